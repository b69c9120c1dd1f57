"""Images as sequences of pixels: grey CIFAR-10 (``image``), Fashion-MNIST or digits (``smnist``), Pathfinder's files.

The readers are those of ``lrx.data.imagenet``. Grey is 0.2989 red + 0.5870 green + 0.1140 blue, as TensorFlow has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrx.data import imagenet, images_files
from lrx.data.images_decode import Unreadable, decode
from lrx.data.images_store import Images
from lrx.data.lra_sequences import Sequences, regular
from lrx.data.splits import rank
from lrx.errors import UserError

GREY = np.asarray([0.2989, 0.5870, 0.1140])
CONTOURS = {6: "curv_baseline", 9: "curv_contour_length_9", 14: "curv_contour_length_14"}
SHARES = {"test": 0.1, "select": 0.1}  # of the images of Pathfinder's files


def filled_with(task: Mapping[str, Any]) -> str:
    """What ``smnist`` is made of: ``fashion_mnist`` where its files are, else ``digits``."""
    if task.get("source", "embedded") != "embedded" or images_files.DEBIAN.is_dir():
        return "fashion_mnist"
    return "digits"


def request(task: Mapping[str, Any]) -> dict[str, Any]:
    """The images that a configuration asks for, as ``lrx.data.imagenet`` is asked."""
    source, given = task.get("source", "embedded"), task.get("data_dir")
    if task["dataset"] == "smnist":
        name = filled_with(task)
        if source == "embedded":
            source = "local" if name == "fashion_mnist" else "embedded"
    else:
        name = "cifar10"
        if source == "local" and given and not _published(Path(given).expanduser()):
            name = "folder"
    return {"dataset": name, "source": source, "data_dir": given, "revision": task.get("revision")}


def _published(folder: Path) -> bool:
    """Whether the folder has files of CIFAR-10, rather than a folder for each class."""
    patterns = ("*.bin", "*.parquet", "*/*.bin", "*/*.parquet", "data_batch_*", "*/data_batch_*")
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns) or not (folder / "train").is_dir()


def load(task: Mapping[str, Any], split: str) -> Sequences:
    """Rows of grey pixels (n, height * width, 1) uint8 of ``train`` or ``test``. Raises ``UserError``."""
    asked = request(task)
    images = imagenet.load(asked, split if split == "train" else imagenet.reported(asked))
    return regular(grey(images), images.labels)


def classes(task: Mapping[str, Any]) -> int:
    """Number of classes: 10, or of a folder as found."""
    return imagenet.classes(request(task))


def grey(images: Images) -> NDArray[np.uint8]:
    """(n, height * width, 1). Raises ``UserError`` for images of several sizes."""
    if not len(images):
        raise UserError("task.data_dir: no images")
    shape = images.pixels(0).shape
    out = np.zeros((len(images), shape[0] * shape[1], 1), dtype=np.uint8)
    for position in range(len(images)):
        pixels = images.pixels(position)
        if pixels.shape != shape:
            sizes = f"{pixels.shape[1]} x {pixels.shape[0]} and {shape[1]} x {shape[0]}"
            raise UserError(f"task.data_dir: images of {sizes} pixels; a sequence task needs equal sizes")
        flat = pixels.reshape(-1, 3)
        same = (flat[:, 0] == flat[:, 1]).all() and (flat[:, 1] == flat[:, 2]).all()
        out[position, :, 0] = flat[:, 0] if same else np.round(flat @ GREY).clip(0, 255)
    return out


def pathfinder(task: Mapping[str, Any], split: str, size: int) -> Sequences:
    """A split of the published files. An image of 0 bytes is left out, as S4's loader does, and counted.

    Raises ``UserError``.
    """
    rows, labels, broken = [], [], 0
    for path, label in _listed(task, size):
        share = rank("pathfinder", path.parent.name, path.name) / 2**64
        own = "test" if share < SHARES["test"] else "select" if share < sum(SHARES.values()) else "train"
        if own != split:
            continue
        try:
            pixels = decode(path.read_bytes())[0]
        except (OSError, Unreadable) as error:
            if path.is_file() and not path.stat().st_size:
                broken += 1
                continue
            raise UserError(f"{path} cannot be read: {error}") from None
        if pixels.shape[:2] != (size, size):
            raise UserError(f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, not {size} x {size}")
        rows.append(pixels[:, :, 0].reshape(-1, 1))
        labels.append(label)
    if not rows:
        raise UserError(f"task.data_dir={task['data_dir']}: no image in the {split} split of pathfinder{size}")
    found = regular(np.stack(rows), np.asarray(labels))
    found.notes.update({"empty_images": broken} if broken else {})
    return found


def metadata(task: Mapping[str, Any], size: int) -> list[Path]:
    """The tables of the published files: folder, file, number, label, ... per line. Raises ``UserError``."""
    folder = Path(task["data_dir"]).expanduser()
    contour = int(task["contour"])
    if contour not in CONTOURS:
        raise UserError(f"task.contour={contour}: the published files have {', '.join(map(str, CONTOURS))}")
    for home in (folder, folder / f"pathfinder{size}"):
        found = sorted((home / CONTOURS[contour] / "metadata").glob("*.npy"))
        if found:
            return found
    raise UserError(f"{folder} has no {CONTOURS[contour]}/metadata/*.npy (the files of pathfinder{size})")


def _listed(task: Mapping[str, Any], size: int) -> Iterator[tuple[Path, int]]:
    for table in metadata(task, size):
        try:
            lines = table.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{table} cannot be read: {error}") from None
        for number, line in enumerate(lines, start=1):
            cells = line.split()
            if len(cells) < 4 or cells[3] not in ("0", "1"):
                raise UserError(f"{table}, line {number}: expected folder, file, number and a label 0 or 1")
            yield table.parent.parent / cells[0] / cells[1], int(cells[3])
