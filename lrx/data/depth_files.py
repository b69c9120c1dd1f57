"""RGB-D pairs in files: the Middlebury pairs of the depth super-resolution literature, NYU-v2, and a user's own folder.

Every reader yields (name, image (H, W, 3) uint8, depth (H, W) float32, known (H, W) bool). Depth is in grey levels of
Middlebury's maps (disparity-like, near is bright) and in metres otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrx.errors import UserError, did_you_mean

Pair = tuple[str, NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_]]


@dataclass(frozen=True)
class Item:
    """Files of a Middlebury pair. ``crop``: how the image is cut to its map: ``centre``, or ``corner`` (bottom, right).

    ``unknown``: whether 0 in the map means unknown.
    """

    image: str
    depth: str
    crop: str = "none"
    unknown: bool = False


MIDDLEBURY = {
    **{
        name: Item(f"middlebury_A/RGB/{name}.png", f"middlebury_A/Depth/{name}.png", "centre")
        for name in ("art", "books", "moebius")
    },
    **{
        name: Item(f"middlebury_C/RGB/{name}.bmp", f"middlebury_C/Depth/{name}_2.mat", "corner")
        for name in ("cones", "teddy", "tsukuba", "venus")
    },
    "aloe": Item("aloe/aloeL.jpg", "aloe/aloeGT.png", unknown=True),
}
NYU_MAT = "nyu_depth_v2_labeled.mat"
NYU_NPY = {  # the split by which the guided super-resolution literature passes NYU-v2 around
    "train": ("train_images_split.npy", "train_depth_split.npy"),
    "test": ("test_images_v2.npy", "test_depth.npy"),
}
NYU_MINMAX = "test_minmax.npy"
NYU_TRAIN, NYU_ALL = 1000, 1449
SUFFIXES = (".png", ".bmp", ".jpg", ".jpeg")


def folder_of(task: Mapping[str, Any]) -> Path:
    """``task.data_dir``. Raises ``UserError`` when it is not given or no folder."""
    given = str(task.get("data_dir") or "")
    if not given:
        wanted = {
            "middlebury": "middlebury_A, middlebury_C and aloe",
            "nyu": f"{NYU_MAT} or {', '.join(NYU_NPY['train'])}, ...",
        }.get(str(task["dataset"]), "train/RGB, train/Depth, test/RGB and test/Depth")
        raise UserError(f"task.source=local needs task.data_dir=<the folder with {wanted}>")
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise UserError(f"task.data_dir={given}: {'not a folder' if folder.exists() else 'no such folder'}")
    return folder


def files(task: Mapping[str, Any], split: str) -> list[tuple[str, Path, Path]]:
    """(name, image file, depth file) of a split (train, test). Raises ``UserError`` naming what is missing.

    Of NYU-v2 one entry stands for all: the official file twice, or the two arrays of the split.
    """
    folder, dataset = folder_of(task), task["dataset"]
    if dataset == "middlebury":
        found = []
        for name in task[f"{split}_items"]:
            if name not in MIDDLEBURY:
                raise UserError(f"task.{split}_items: no pair is called {name!r}; {did_you_mean(name, MIDDLEBURY)}")
            item = MIDDLEBURY[name]
            found.append((name, folder / item.image, folder / item.depth))
    elif dataset == "nyu":
        mat = folder / NYU_MAT
        image, depth = (folder / name for name in NYU_NPY[split])
        if not mat.is_file() and not depth.is_file():
            raise UserError(f"{folder}: neither {NYU_MAT} nor {depth.name} is there")
        found = [("nyu", mat, mat)] if mat.is_file() else [("nyu", image, depth)]
        if not mat.is_file() and split == "test" and not (folder / NYU_MINMAX).is_file():
            raise UserError(f"{folder / NYU_MINMAX} is missing (least and largest depth of each test image)")
    else:
        found = _paired(folder / split)
    for _, image, depth in found:
        for path in (image, depth):
            if not path.is_file():
                raise UserError(f"{path} is missing (task.data_dir={task['data_dir']})")
    return found


def _paired(folder: Path) -> list[tuple[str, Path, Path]]:
    images, maps = folder / "RGB", folder / "Depth"
    for place in (images, maps):
        if not place.is_dir():
            raise UserError(
                f"{place}: no such folder; a folder of yours has <split>/RGB/NAME.png and <split>/Depth/NAME.png"
            )
    found = []
    for image in sorted(path for path in images.iterdir() if path.suffix.lower() in SUFFIXES):
        depth = maps / f"{image.stem}.png"
        found.append((image.stem, image, depth))
    if not found:
        raise UserError(f"{images} has no image ({', '.join(SUFFIXES)})")
    return found


def read(task: Mapping[str, Any], split: str, mat: Path | None = None) -> Iterator[Pair]:
    """The pairs of a split. ``mat``: NYU-v2's official file, where it is not in ``data_dir``. Raises ``UserError``."""
    if mat is not None:
        yield from nyu_mat(mat, split)
        return
    for name, image, depth in files(task, split):
        if task["dataset"] == "nyu":
            yield from nyu_mat(depth, split) if depth.suffix == ".mat" else nyu_npy(image, depth, split)
            continue
        item = MIDDLEBURY.get(name, Item("", "")) if task["dataset"] == "middlebury" else Item("", "", unknown=True)
        unit = 1.0 if task["dataset"] == "middlebury" else float(task["depth_unit"])
        yield pair(name, image, depth, item, unit)


def pair(name: str, image: Path, depth: Path, item: Item, unit: float = 1.0) -> Pair:
    """One pair, cut to one size. ``unit``: what a count of the map's file is. Raises ``UserError``."""
    colours = _picture(image)
    values = (_mat(depth) if depth.suffix == ".mat" else _map(depth)).astype(np.float32) * np.float32(unit)
    known = np.isfinite(values) & ((values > 0) | (not item.unknown))
    return name, cut(colours, values.shape, item.crop, image), values, known


def cut(colours: NDArray[np.uint8], shape: tuple[int, ...], crop: str, path: Path) -> NDArray[np.uint8]:
    """The image cut to its map's (H, W), as the set's authors do. Raises ``UserError`` for another size."""
    rows, columns = colours.shape[0] - shape[0], colours.shape[1] - shape[1]
    if rows < 0 or columns < 0 or (crop == "none" and (rows or columns)):
        raise UserError(
            f"{path} is {colours.shape[1]} x {colours.shape[0]} pixels and its depth map {shape[1]} x {shape[0]}; both "
            "must have one size"
        )
    top, left = (rows // 2, columns // 2) if crop == "centre" else (0, 0)
    return colours[top : top + shape[0], left : left + shape[1]]


def _picture(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    with _reading(path), Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _map(path: Path) -> NDArray[Any]:
    """Grey levels of 8 or 16 bits. Raises ``UserError`` for a picture with colours."""
    from PIL import Image

    with _reading(path), Image.open(path) as image:
        values = np.asarray(image)
    if values.ndim != 2:
        raise UserError(f"{path} has {values.shape[2]} channels; a depth map has one (8 or 16 bits)")
    return values


def _mat(path: Path) -> NDArray[Any]:
    from scipy.io import loadmat

    with _reading(path):
        content = loadmat(path)
    found = [value for key, value in content.items() if not key.startswith("__") and getattr(value, "ndim", 0) == 2]
    if not found:
        raise UserError(f"{path} holds no matrix")
    return np.asarray(found[0])


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of several libraries, with no common base
        raise UserError(f"{path} cannot be read ({type(error).__name__}); replace the file") from None


def nyu_mat(path: Path, split: str) -> Iterator[Pair]:
    """The official file: images (1449, 3, 640, 480) uint8 and depths (1449, 640, 480) in metres, holes filled.

    Stored column by column, so both are turned. The first 1,000 are for training, the last 449 are the test split.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path}: reading it needs the package h5py (pip install h5py)") from None

    with _reading(path), h5py.File(path, "r") as content:
        images, depths = content["images"], content["depths"]
        if len(depths) != NYU_ALL:
            raise UserError(f"{path} has {len(depths)} maps, not {NYU_ALL}; it is not the labelled set")
        for i in range(NYU_TRAIN) if split == "train" else range(NYU_TRAIN, NYU_ALL):
            depth = np.asarray(depths[i], dtype=np.float32).T
            yield str(i), np.asarray(images[i]).transpose(2, 1, 0), depth, np.isfinite(depth) & (depth > 0)


def nyu_npy(image: Path, depth: Path, split: str) -> Iterator[Pair]:
    """The split as four arrays. Test maps are stored from 0 to 1 between each image's least and largest depth."""
    with _reading(depth):
        images, depths = np.load(image, mmap_mode="r"), np.load(depth, mmap_mode="r")
        bounds = np.load(depth.parent / NYU_MINMAX) if split == "test" else None
    if len(images) != len(depths) or (bounds is not None and bounds.shape != (2, len(depths))):
        raise UserError(f"{depth.parent}: {image.name} and {depth.name} do not have equally many images")
    for i in range(len(depths)):
        values = np.asarray(depths[i], dtype=np.float32).squeeze()
        if bounds is not None:
            values = values * np.float32(bounds[1, i] - bounds[0, i]) + np.float32(bounds[0, i])
        colours = np.asarray(images[i])
        if colours.dtype != np.uint8:
            colours = np.floor(np.clip(colours, 0, 1) * 255 + 0.5).astype(np.uint8)
        yield f"{split}{i}", colours, values, np.isfinite(values) & (values > 0)


def digest(task: Mapping[str, Any]) -> str:
    """SHA-256 over the files of both splits; of files above 64 MiB over size and first and last MiB."""
    total = hashlib.sha256()
    for split in ("train", "test"):
        for name, *paths in files(task, split):
            for path in paths:
                total.update(f"{split}/{name}/{_content(path)};".encode())
    return total.hexdigest()


def _content(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size <= 2**26:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        found = hashlib.sha256(str(size).encode() + stream.read(2**20))
        stream.seek(-(2**20), 2)
        found.update(stream.read())
    return found.hexdigest()
