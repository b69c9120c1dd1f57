"""Images of a split, decoded once into a memory-mapped store, or, where there are too many, each when it is asked for.

A store (``lrx.data.store``) holds ``pixels`` (uint8, one image after the other), where each begins, its height and
width, its label and a hash of its pixels. Its key is a hash of the source's content, so that a changed file gets a
store of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lrx.data import store
from lrx.data.images_decode import Pixels, Unreadable, decode
from lrx.data.splits import rank
from lrx.errors import UserError

FORMAT = 1  # of a store; raised when what is in it changes
DECODE_AT_ONCE_BYTES = 160 * 2**20  # up to this much as it lies there, a split is decoded into a store


class Source(Protocol):
    """A split before it is decoded. ``key``: a hash of its content. ``stored_bytes``: its size as it lies there."""

    key: str
    stored_bytes: int

    @property
    def labels(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def read(self, position: int) -> bytes | Pixels:
        """The encoded image, or its pixels."""
        ...

    def name(self, position: int) -> str:
        """For messages: the file, or the file and the row."""
        ...


class Undecodable(UserError):
    """An image of a scored split, or of one too large to look through first, cannot be read."""

    def __init__(self, message: str) -> None:
        # A loader's worker hands over a whole traceback as the message; what was said stands in its last line.
        super().__init__(message.strip().splitlines()[-1].rpartition(f"{type(self).__name__}: ")[2])


class Reader(Protocol):
    def __call__(self, position: int) -> Pixels: ...


@dataclass(frozen=True)
class Images:
    """A split. ``labels`` (n,): class ids. ``ranks`` (n,): a hash of each image, by which shares of a split are drawn.

    ``reader(places[i])``: the pixels of image i. ``notes``: counts of what was met and is no error.
    """

    labels: NDArray[np.int64]
    ranks: NDArray[np.uint64]
    places: NDArray[np.int64]
    reader: Reader
    notes: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, position: int) -> Pixels:
        """(height, width, 3) uint8, read-only."""
        return self.reader(int(self.places[position]))

    def take(self, positions: Iterable[int]) -> Images:
        """The images at ``positions``, in that order."""
        chosen = np.fromiter(positions, dtype=np.int64)
        return Images(self.labels[chosen], self.ranks[chosen], self.places[chosen], self.reader, self.notes)


def hold_out(images: Images, fraction: float, most: int | None) -> tuple[Images, Images]:
    """(kept, held out), about ``fraction`` held out and at most about ``most``. Equal images stay together."""
    if fraction == 0 or not len(images):
        return images, images.take([])
    wanted = max(1, round(fraction * len(images)))
    border = np.sort(images.ranks)[min(wanted, most or wanted) - 1]
    return images.take(np.flatnonzero(images.ranks > border)), images.take(np.flatnonzero(images.ranks <= border))


def limit(images: Images, size: int | None) -> Images:
    """A fixed random sample of at most ``size`` images; a larger sample contains a smaller one."""
    if size is None or size >= len(images):
        return images
    drawn = sorted(range(len(images)), key=lambda i: rank("limit", i))[:size]
    return images.take(sorted(drawn))


def open_images(source: Source, *, whole: bool, root: Path | None = None) -> Images:
    """The images of ``source``: from the cache, decoded into it, or (a large split) decoded when asked for.

    Of a small split unreadable images are left out and counted (``unreadable_images``); with ``whole`` they are an
    error instead, since a score over fewer images is another score. Raises ``UserError`` then, and when nothing is
    readable.
    """
    if source.stored_bytes > DECODE_AT_ONCE_BYTES:
        labels = np.asarray(source.labels, dtype=np.int64)
        ranks = np.fromiter((rank("image", source.key, i) for i in range(len(source))), dtype=np.uint64)
        return Images(labels, ranks, np.arange(len(source)), _Lazy(source))
    stored = store.stored("images", (FORMAT, _decoder(), source.key), lambda: _decoded(source), root)
    notes: dict[str, Any] = json.loads(bytes(stored["notes"]))
    if broken := notes.pop("first", None):
        left = "no image of the split can be read" if not len(stored["labels"]) else "a scored split has to be whole"
        if whole or not len(stored["labels"]):
            count = notes["unreadable_images"] - 1
            more = f" (and {count} more)" if count else ""
            raise UserError(f"{source.name(broken[0])} cannot be decoded ({broken[1]}){more}; {left}")
    reader = _Stored(stored["pixels"], stored["offsets"], stored["shapes"])
    return Images(stored["labels"], stored["ranks"], np.arange(len(stored["labels"])), reader, notes)


class _Stored:
    """Pixels out of the mapped file."""

    def __init__(self, pixels: NDArray[np.uint8], offsets: NDArray[np.int64], shapes: NDArray[np.int64]) -> None:
        self.pixels, self.offsets, self.shapes = pixels, offsets, shapes

    def __call__(self, position: int) -> Pixels:
        height, width = self.shapes[position]
        start = self.offsets[position]
        return np.asarray(self.pixels[start : start + height * width * 3]).reshape(height, width, 3)


class _Lazy:
    """Decodes each image when it is asked for. Raises ``Undecodable`` with its name."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, position: int) -> Pixels:
        try:
            return _pixels(self.source, position)[0]
        except Unreadable as error:
            name = self.source.name(position)
            raise Undecodable(f"{name} cannot be decoded ({error}); remove or replace the image") from None


def _pixels(source: Source, position: int) -> tuple[Pixels, str]:
    """Raises ``Unreadable``."""
    try:
        content = source.read(position)
    except OSError as error:
        raise Unreadable(error.strerror or type(error).__name__) from None
    return decode(content) if isinstance(content, bytes) else (content, "")


def _decoder() -> str:
    """Another version of the decoder may give other pixels."""
    from PIL import __version__

    return __version__


def _decoded(source: Source) -> dict[str, NDArray[Any]]:
    """The arrays of a store; unreadable images are left out."""
    kept: list[bytes] = []
    labels, ranks, shapes, offsets = [], [], [], [0]
    notes: dict[str, Any] = {}
    for position, label in enumerate(source.labels):
        try:
            pixels, converted = _pixels(source, position)
        except Unreadable as error:
            notes.setdefault("first", (position, str(error)))
            notes["unreadable_images"] = notes.get("unreadable_images", 0) + 1
            continue
        data = pixels.tobytes()
        kept.append(data)
        labels.append(label)
        shapes.append(pixels.shape[:2])
        offsets.append(offsets[-1] + len(data))
        ranks.append(int.from_bytes(hashlib.sha256(data).digest()[:8], "big"))
        if converted:
            notes[f"converted_{converted}"] = notes.get(f"converted_{converted}", 0) + 1
    return {
        "pixels": np.frombuffer(b"".join(kept), dtype=np.uint8),
        "labels": np.asarray(labels, dtype=np.int64),
        "ranks": np.asarray(ranks, dtype=np.uint64),
        "shapes": np.asarray(shapes, dtype=np.int64).reshape(-1, 2),
        "offsets": np.asarray(offsets, dtype=np.int64),
        "notes": np.frombuffer(json.dumps(notes).encode(), dtype=np.uint8),
    }
