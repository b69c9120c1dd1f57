"""A split of labelled texts, and the fixed, seeded ways of dividing one. None of them depends on a run's seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Split:
    """Examples in file order. ``texts``: one or two sentences each; ``labels``: class ids or values, None if hidden.

    ``ids``: the files' own index of each example. ``notes``: irregularities that were met and are not errors.
    """

    texts: list[tuple[str, ...]]
    labels: list[int] | list[float] | None
    ids: list[str]
    notes: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    def digest(self) -> str:
        """64 hex digits of texts and labels."""
        return hashlib.sha256(repr((self.texts, self.labels)).encode()).hexdigest()

    def take(self, positions: list[int]) -> Split:
        """The examples at ``positions``, in that order."""
        labels = None if self.labels is None else [self.labels[i] for i in positions]
        return Split([self.texts[i] for i in positions], labels, [self.ids[i] for i in positions], self.notes)


def rank(*key: object) -> int:
    """A 64-bit number that is a pure function of ``key``: the order in which examples are drawn."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()[:8], "big")


def hold_out(split: Split, fraction: float, most: int = 2000) -> tuple[Split, Split]:
    """Divide into (kept, held out) with about ``fraction`` held out, at most ``most``, both in file order.

    Drawn by a hash of the texts, so that the files' order does not matter and identical examples never straddle. The
    cap: more examples would cost training data and time at every evaluation without choosing better.
    """
    if fraction == 0 or len(split) == 0:
        return split, split.take([])
    ranks = [rank("hold-out", *texts) for texts in split.texts]
    wanted = min(max(1, round(fraction * len(split))), most)
    border = sorted(ranks)[wanted - 1]  # examples equal to the last one drawn come along
    kept = split.take([i for i, r in enumerate(ranks) if r > border])
    return kept, split.take([i for i, r in enumerate(ranks) if r <= border])


def limit(split: Split, size: int | None) -> Split:
    """A fixed random sample of at most ``size`` examples in file order; a larger sample contains a smaller one."""
    if size is None or size >= len(split):
        return split
    drawn = sorted(range(len(split)), key=lambda i: rank("limit", i))[:size]
    return split.take(sorted(drawn))
