"""Images in a folder for each class: ``train/<class>/*.jpg``, ``val/...`` and, if there is one, ``test/...``.

It is torchvision's ImageFolder layout, and how ImageNet is kept locally. The class folders of ``train``, in the order
of their names, are the class ids.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from lrx.data.images_files import sha256
from lrx.errors import UserError, did_you_mean

# The endings that torchvision's ImageFolder reads.
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
CONTENT_BYTES = 2**30  # up to this much, files are identified by their content, beyond it by their names and sizes


def folder_of(data_dir: str | Path, split: str) -> Path | None:
    """The folder of ``train``, ``val`` or ``test``, whatever its case; None if there is none."""
    root = Path(data_dir).expanduser()
    try:
        found = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    except OSError as error:
        raise UserError(f"task.data_dir={data_dir} cannot be read: {error.strerror}") from None
    return next((found[name] for name in FOLDERS[split] if name in found), None)


def classes_of(data_dir: str | Path) -> list[str]:
    """Names of the classes in id order. Raises ``UserError`` when there is no training folder, or none in it."""
    train = folder_of(data_dir, "train")
    if train is None:
        raise UserError(f"task.data_dir={data_dir} has no folder train (train/<class>/*.jpg)")
    return _classes(train)


def _classes(folder: Path) -> list[str]:
    try:
        found = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None
    names = sorted(path.name for path in found if path.is_dir() and not path.name.startswith("."))
    if not names:
        flat = any(_is_image(path.name) for path in found)
        hint = "; its images have to be in a folder for each class" if flat else ""
        raise UserError(f"{folder} has no class folders{hint}")
    return names


def check(data_dir: str | Path, splits: tuple[str, ...]) -> None:
    """Raise ``UserError`` unless each split is there with known classes, and each training class has an image."""
    known = classes_of(data_dir)
    for split in splits:
        folder = _required(data_dir, split)
        _known(folder, known)
        if split == "train":
            empty = [name for name in known if not any(_is_image(file) for _, file in _files(folder / name))]
            if empty:
                more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
                raise UserError(f"{folder / empty[0]}{more} holds no image; remove the folder or add images")


def _known(folder: Path, known: list[str]) -> list[str]:
    names = _classes(folder)
    if unknown := [name for name in names if name not in known]:
        hint = did_you_mean(unknown[0], known) if len(known) <= 20 else f"({len(known)} classes)"
        raise UserError(f"{folder / unknown[0]} is no class of the training folder; {hint}")
    return names


def _required(data_dir: str | Path, split: str) -> Path:
    folder = folder_of(data_dir, split)
    if folder is None:
        raise UserError(f"task.data_dir={data_dir} has no folder {split} ({split}/<class>/*.jpg)")
    return folder


class Folder:
    """A split of a folder, as a ``Source``. ``notes``: files that are no images, classes without one here."""

    def __init__(self, data_dir: str | Path, split: str) -> None:
        known = classes_of(data_dir)
        self.folder = _required(data_dir, split)
        ids = {name: number for number, name in enumerate(known)}
        self.labels: list[int] = []
        self.files: list[str] = []
        others = 0
        for name in _known(self.folder, known):
            for where, file in sorted(_files(self.folder / name)):
                if _is_image(file):
                    self.labels.append(ids[name])
                    self.files.append(os.path.join(where, file))
                else:
                    others += 1
        if not self.files:
            raise UserError(f"{self.folder} holds no images ({', '.join(ENDINGS)})")
        self.sizes = [_size(path) for path in self.files]
        self.stored_bytes = sum(self.sizes)
        absent = len(known) - len(set(self.labels))
        self.notes = {"files_no_images": others} if others else {}
        if absent:
            self.notes["classes_without_images"] = absent
        self.key = self._key()

    def _key(self) -> str:
        total = hashlib.sha256("\n".join(sorted(set(map(str, self.labels)))).encode())
        for path, size, label in zip(self.files, self.sizes, self.labels, strict=True):
            what = sha256(Path(path)) if self.stored_bytes <= CONTENT_BYTES else str(size)
            name = os.fsencode(os.path.relpath(path, self.folder))  # which may be no UTF-8
            total.update(b"%d %s %s\n" % (label, name, what.encode()))
        return total.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def read(self, position: int) -> bytes:
        return Path(self.files[position]).read_bytes()

    def name(self, position: int) -> str:
        return self.files[position]


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """(folder, name) of every file below ``folder`` whose name does not begin with a dot; links are followed."""
    for where, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if not name.startswith("."):
                yield where, name


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
