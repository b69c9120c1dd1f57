"""Readers of the published files: the digits of scikit-learn, IDX (Fashion-MNIST), CIFAR's binary version, parquet.

Each gives a ``Source`` (``lrx.data.images_store``). The pickled version of CIFAR is not read: a pickle can run code.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
import io
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrx.data.images_decode import Pixels, as_rgb
from lrx.data.images_spec import HELD_BACK, ImageSet
from lrx.errors import UserError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts its files
_CIFAR_TRAIN = [f"data_batch_{i}.bin" for i in range(1, 6)]
BINARY = {  # set -> (folder of its archive, split -> files, bytes of labels per image, which of them is the label)
    "cifar10": ("cifar-10-batches-bin", {"train": _CIFAR_TRAIN, "test": ["test_batch.bin"]}, 1, 0),
    "cifar100": ("cifar-100-binary", {"train": ["train.bin"], "test": ["test.bin"]}, 2, 1),
}


class Arrays:
    """Pixels in memory: grey (n, height, width) or RGB (n, height, width, 3). ``key``: what identifies the content."""

    def __init__(self, pixels: NDArray[np.uint8], labels: NDArray[Any], key: str, origin: str) -> None:
        self.pixels, self.labels, self.origin = pixels, labels.astype(np.int64).tolist(), origin
        self.key = hashlib.sha256(key.encode()).hexdigest()
        self.stored_bytes = pixels.nbytes

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, position: int) -> Pixels:
        pixels = self.pixels[position]
        return as_rgb(pixels) if pixels.ndim == 2 else pixels

    def name(self, position: int) -> str:
        return f"{self.origin}, image {position}"


def sha256(path: Path) -> str:
    """Hex digest of a file, remembered while it is not touched. Raises ``UserError`` when it cannot be read."""
    try:
        found = path.stat()
        return _sha256(path, found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, _touched: int, _size: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digits_file() -> Path:
    """scikit-learn's ``digits.csv.gz``; the package is not imported. Raises ``UserError`` when it is not there."""
    found = importlib.util.find_spec("sklearn")
    path = Path(str(found.origin)).parent / "datasets" / "data" / "digits.csv.gz" if found and found.origin else None
    if path is None or not path.is_file():
        raise UserError("task.dataset=digits comes with scikit-learn, which is not installed: pip install scikit-learn")
    return path


def digits(split: str) -> Arrays:
    """``train`` or ``test``: 8 x 8 grey values 0 to 16, here 0 to 255. A third, drawn by a hash, is the test split."""
    path = digits_file()
    table = np.loadtxt(io.BytesIO(gzip.decompress(path.read_bytes())), delimiter=",", dtype=np.int64)
    values, labels = table[:, :-1], table[:, -1]
    ranks = [int.from_bytes(hashlib.sha256(row.astype(np.uint8).tobytes()).digest()[:8], "big") for row in values]
    border = sorted(ranks)[round(HELD_BACK * len(ranks)) - 1]
    chosen = np.asarray([(rank <= border) == (split == "test") for rank in ranks])
    pixels = np.round(values[chosen].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return Arrays(pixels, labels[chosen], f"digits/{split}/{sha256(path)}", str(path))


def idx_files(folder: Path, split: str) -> tuple[Path, Path]:
    """(images, labels) of a split in IDX format, packed or not. Raises ``UserError`` naming what is missing."""
    prefix = "train" if split == "train" else "t10k"
    found = []
    for what in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        name = f"{prefix}-{what}"
        paths = [folder / f"{name}.gz", folder / name, folder / f"{name.replace('-idx', '.idx')}"]
        there = [path for path in paths if path.is_file()]
        if not there:
            raise UserError(f"{folder} has no {name}.gz (the {split} split)")
        found.append(there[0])
    return found[0], found[1]


def idx(folder: Path, split: str, classes: int) -> Arrays:
    """A split in IDX format. Raises ``UserError`` for files that are none, or do not belong together."""
    paths = idx_files(folder, split)
    pixels, labels = (_idx(path, axes) for path, axes in zip(paths, (3, 1), strict=True))
    if len(pixels) != len(labels):
        raise UserError(f"{paths[0]} has {len(pixels)} images and {paths[1]} has {len(labels)} labels")
    check_labels(labels, classes, str(paths[1]))
    return Arrays(pixels, labels, "".join(sha256(path) for path in paths), str(paths[0]))


def _idx(path: Path, axes: int) -> NDArray[np.uint8]:
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    start = 4 + 4 * axes
    if len(data) < start or data[:4] != bytes((0, 0, 8, axes)):
        raise UserError(f"{path} is no IDX file of bytes with {axes} axes")
    shape = struct.unpack(f">{axes}I", data[4:start])
    if len(data) - start != np.prod(shape, dtype=np.int64) or not shape[0]:
        size = " x ".join(map(str, shape))
        raise UserError(f"{path} is not whole: {len(data) - start:,} bytes of values, its header says {size}")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def binary_files(folder: Path, chosen: ImageSet, split: str) -> list[Path]:
    """The files of a split of CIFAR's binary version; none when ``folder`` has no such version."""
    inner, files, _, _ = BINARY[chosen.name]
    for home in (folder, folder / inner):
        paths = [home / name for name in files[split]]
        there = [path for path in paths if path.is_file()]
        if there and len(there) < len(paths):
            missing = next(path for path in paths if path not in there)
            raise UserError(f"{missing} is missing: the {split} split of {chosen.name} has {len(paths)} files")
        if there:
            return paths
    return []


def binary(paths: Sequence[Path], chosen: ImageSet) -> Arrays:
    """CIFAR's binary version: per image the label byte(s), then 32 x 32 red, green and blue values."""
    _, _, before, which = BINARY[chosen.name]
    width = before + 3072
    pixels, labels = [], []
    for path in paths:
        try:
            data = np.fromfile(path, dtype=np.uint8)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        if not len(data) or len(data) % width:
            raise UserError(f"{path} is not whole: {len(data):,} bytes are no multiple of {width} (an image)")
        rows = data.reshape(-1, width)
        check_labels(rows[:, which], chosen.classes, str(path))
        labels.append(rows[:, which])
        pixels.append(rows[:, before:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    key = "".join(sha256(path) for path in paths)
    return Arrays(np.ascontiguousarray(np.concatenate(pixels)), np.concatenate(labels), key, str(paths[0].parent))


def parquet_files(folder: Path, split: str) -> list[Path]:
    """The parquet files of a split, ``train.parquet`` or ``train-00000-of-00002.parquet`` ...; none if there are none.

    Looked for in ``folder``, then in its folders. Raises ``UserError`` when some of a numbered set are missing.
    """
    try:
        homes = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None
    names = {"train": ("train",), "test": ("test", "validation")}.get(split, (split, "val", "valid"))
    for name in names:
        for home in homes:
            paths = sorted([*home.glob(f"{name}.parquet"), *home.glob(f"{name}-*-of-*.parquet")])
            if paths:
                _complete(paths)
                return paths
    return []


def _complete(paths: Sequence[Path]) -> None:
    numbered = [match for path in paths if (match := re.search(r"-(\d{5})-of-(\d{5})", path.name))]
    if numbered and {int(match[1]) for match in numbered} != set(range(int(numbered[0][2]))):
        wanted = int(numbered[0][2])
        raise UserError(f"{paths[0].parent} has {len(numbered)} of the {wanted} files like {paths[0].name}")


def check_labels(labels: NDArray[Any], classes: int, where: str) -> None:
    """Raise ``UserError`` with file and row for the first label that is no class id below ``classes``."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        row = int(wrong[0])
        hidden = "; the labels of this split are hidden" if (labels == -1).all() else ""
        raise UserError(f"{where}, row {row}: label {labels[row]} is no class id from 0 to {classes - 1}{hidden}")
