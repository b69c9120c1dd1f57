"""A split of long sequences: ids or values of all examples end to end, and where each begins."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrx.data.splits import rank

PAD, UNKNOWN, END = 0, 1, 2  # ids of every task whose steps are ids; symbols begin behind them
SPECIALS = 3


@dataclass(frozen=True)
class Sequences:
    """``steps``: (total,) ids, or (total, features) values, uint8, int32 or float32. ``offsets``: (n + 1,) int64.

    ``labels``: (n,) int64. ``second``: of pairs, the other sequences, with the same labels. ``notes``: counts of what
    was met and is no error.
    """

    steps: NDArray[Any]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    second: Sequences | None = None
    notes: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) steps of each example; of a pair the longer one's."""
        own = np.diff(self.offsets)
        return own if self.second is None else np.maximum(own, self.second.lengths)

    def at(self, position: int) -> NDArray[Any]:
        """The steps of one example."""
        return self.steps[self.offsets[position] : self.offsets[position + 1]]

    def ranks(self) -> list[int]:
        """A hash of each example's content: equal examples have equal ones."""
        other = self.second
        return [
            rank_of(self.at(i).tobytes(), b"" if other is None else other.at(i).tobytes()) for i in range(len(self))
        ]

    def take(self, positions: Iterable[int]) -> Sequences:
        """The examples at ``positions``, in that order."""
        chosen = np.fromiter(positions, dtype=np.int64)
        second = None if self.second is None else self.second.take(chosen.tolist())
        sizes = np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        index = np.repeat(self.offsets[chosen] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return Sequences(self.steps[index], offsets, self.labels[chosen], second, dict(self.notes))


def rank_of(*contents: bytes) -> int:
    """64 bits of a hash of bytes."""
    total = hashlib.sha256()
    for content in contents:
        total.update(len(content).to_bytes(8, "big") + content)
    return int.from_bytes(total.digest()[:8], "big")


def packed(
    rows: Sequence[NDArray[Any]], labels: Sequence[int], second: Sequences | None = None, **notes: float
) -> Sequences:
    """Examples put end to end. No row: an empty split."""
    sizes = [len(row) for row in rows]
    steps = np.concatenate(rows) if rows else np.zeros(0, dtype=np.uint8)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Sequences(steps, offsets, np.asarray(labels, dtype=np.int64), second, {k: v for k, v in notes.items() if v})


def regular(values: NDArray[Any], labels: NDArray[Any]) -> Sequences:
    """Examples of equal length: ``values`` (n, length) or (n, length, features); one feature becomes an axis."""
    n, length = values.shape[:2]
    steps = values.reshape(n * length, -1)
    return Sequences(steps, np.arange(n + 1, dtype=np.int64) * length, np.asarray(labels, dtype=np.int64))


def hold_out(split: Sequences, fraction: float, most: int | None) -> tuple[Sequences, Sequences]:
    """(kept, held out): about ``fraction``, at most about ``most``; drawn by content, equal examples stay together."""
    if not len(split) or not fraction:
        return split, split.take([])
    ranks = np.asarray(split.ranks(), dtype=np.uint64)
    wanted = max(1, round(fraction * len(split)))
    border = np.sort(ranks)[min(wanted, most or wanted) - 1]
    return split.take(np.flatnonzero(ranks > border)), split.take(np.flatnonzero(ranks <= border))


def limit(split: Sequences, size: int | None) -> Sequences:
    """A fixed random sample of at most ``size`` examples, in order; a larger sample contains a smaller one."""
    if size is None or size >= len(split):
        return split
    drawn = sorted(range(len(split)), key=lambda i: rank("limit", i))[:size]
    return split.take(sorted(drawn))


def shared(train: Sequences, other: Sequences) -> int:
    """How many examples of ``other`` stand in ``train`` too."""
    known = set(train.ranks())
    return sum(each in known for each in other.ranks())
