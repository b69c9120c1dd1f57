"""Image classification sets as data: what a configuration asks for, whether it can be had, and reading it.

``check`` and ``digest`` are what the command line calls before anything heavy is imported. They and ``load`` take the
``task`` section of a configuration, with the defaults of ``lrx.tasks.imagenet.ImageNet`` for what it leaves out.
Sources: ``embedded`` (scikit-learn's digits), ``local`` (the published files, parquet, or class folders), ``hub``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrx.data import images_files, images_folder
from lrx.data.hub import Repository
from lrx.data.images_spec import SETS, ImageSet
from lrx.data.images_store import Images, Source, open_images
from lrx.errors import UserError, did_you_mean

__all__ = ["SETS", "ImageSet", "check", "classes", "describe", "digest", "load", "reported", "spec", "splits"]

SOURCES = ("embedded", "local", "hub")
_AT_LEAST = {
    "batch_size": 1, "eval_batch_size": 1, "image_size": 1, "train_limit": 1, "eval_limit": 1, "holdout_most": 1,
    "workers": 0, "rand_augment": 0, "rand_augment_magnitude": 0, "color_jitter": 0, "mixup": 0, "cutmix": 0,
}  # fmt: skip
_SHARES = ("random_erasing", "flip", "label_smoothing")


def check(task: Mapping[str, Any], mode: str = "train") -> None:
    """Look at the options and at the files' presence; no torch, no image is opened (``hub`` without network: 3 s).

    ``mode="eval"`` needs no training images, except of a folder, whose training folder names the classes. Raises
    ``UserError`` for a wrong set, source or value, a missing file or folder, an empty class, or an unreachable hub.
    """
    _check_options(task)
    chosen = spec(task)
    names = splits(task) if mode != "eval" else (reported(task),)
    source = task.get("source", "embedded")
    if source == "embedded":
        images_files.digits_file()
    elif source == "hub":
        repository(task, chosen).check([file for split in names for file in chosen.files(split)])
    elif isinstance(found := _local(task, chosen), dict):
        for split in names:
            _files(found, split, chosen, task)
    else:
        images_folder.check(found, tuple(_folder_split(chosen, split) for split in names))
        _count(chosen, found)


def _check_options(task: Mapping[str, Any]) -> None:
    for key, least in _AT_LEAST.items():
        value = task.get(key)
        if value is not None and value < least:
            raise UserError(f"task.{key}={value}: must be at least {least}")
    for key in _SHARES:
        if not 0 <= task.get(key, 0) <= 1:
            raise UserError(f"task.{key}={task[key]}: from 0 to 1")
    if task.get("label_smoothing", 0) == 1:
        raise UserError("task.label_smoothing=1.0: must be below 1; nothing would be left of the labels")
    if not 0 <= task.get("holdout", 0) < 1:
        raise UserError(f"task.holdout={task['holdout']}: a fraction of the training part, from 0 to below 1")
    for key in ("crop_ratio", "min_scale"):
        if not 0 < task.get(key, 1) <= 1:
            raise UserError(f"task.{key}={task[key]}: above 0, at most 1")
    if task.get("rand_augment_magnitude", 0) > 30:
        raise UserError(f"task.rand_augment_magnitude={task['rand_augment_magnitude']}: at most 30")
    own = task.get("normalization") == "own"
    for key in ("mean", "std"):
        value = task.get(key)
        if own and (value is None or len(value) != 3):
            raise UserError(f"task.normalization=own needs task.{key}=[red,green,blue], for values from 0 to 1")
        if not own and value is not None:
            raise UserError(f"task.{key} is read only with task.normalization=own")
    if own and min(task["std"]) <= 0:
        raise UserError(f"task.std={task['std']}: every value must be above 0")


def describe() -> list[str]:
    """A line per set for ``lrx info``: classes, metrics, roles and sizes of its splits."""
    lines = []
    for each in SETS.values():
        count = f"{each.classes:,} classes" if each.classes else "a class per folder"
        sizes = ", ".join(f"{name} {size:,}" for name, size in each.sizes.items()) or "sizes as found"
        which = each.reported if each.classes else "test, or val where there is no test"
        sources = ", ".join(each.sources)
        lines.append(f"{each.name} ({sources}): {count}; accuracy, top5; reported {which}; {sizes}")
    return lines


def spec(task: Mapping[str, Any]) -> ImageSet:
    """The set that a configuration asks for. Raises ``UserError`` for one that does not exist, or not from there."""
    name, source = str(task.get("dataset", "digits")), str(task.get("source", "embedded"))
    if name not in SETS:
        raise UserError(f"task.dataset={name}: no such set; {did_you_mean(name, SETS)}")
    if source not in SOURCES:
        raise UserError(f"task.source={source}: no such source; {did_you_mean(source, SOURCES)}")
    chosen = SETS[name]
    if source not in chosen.sources:
        others = ", ".join(each.name for each in SETS.values() if source in each.sources)
        raise UserError(
            f"task.dataset={name} comes with task.source={' or '.join(chosen.sources)}; {source} has: {others}"
        )
    if source != "local" and task.get("data_dir"):
        raise UserError(f"task.data_dir is read only with task.source=local (it is {source})")
    if source != "hub" and task.get("revision"):
        raise UserError(f"task.revision is read only with task.source=hub (it is {source})")
    return chosen


def reported(task: Mapping[str, Any]) -> str:
    """The split that is scored: the official test or validation split; of a folder ``test``, else ``val``."""
    chosen = spec(task)
    if chosen.name == "folder":
        return "test" if images_folder.folder_of(_data_dir(task, chosen), "test") else "val"
    return chosen.reported


def splits(task: Mapping[str, Any]) -> tuple[str, ...]:
    """Every split there is: ``train``, ``select`` where the set has one of its own, and the reported one."""
    name = reported(task)
    if spec(task).name == "folder" and name == "test" and images_folder.folder_of(task["data_dir"], "val"):
        return ("train", "select", "test")
    return ("train", name)


def classes(task: Mapping[str, Any]) -> int:
    """Number of classes. Raises ``UserError`` as ``check`` does for a folder."""
    chosen = spec(task)
    return chosen.classes or len(images_folder.classes_of(_data_dir(task, chosen)))


def repository(task: Mapping[str, Any], chosen: ImageSet) -> Repository:
    """The set's repository on the hub."""
    otherwise = f"task.source=local task.data_dir=<the files of {chosen.name}>"
    if chosen.name == "imagenet1k":
        otherwise = f"(its terms have to be accepted on the hub, and HF_TOKEN set) {otherwise}"
    return Repository(chosen.repository, task.get("revision") or chosen.revision, otherwise)


def digest(task: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over what a run reads, part of its identity. Raises ``UserError`` as ``check`` does.

    Files by their content, whatever folder they lie in, but those of a large image folder by names and sizes (reading
    ImageNet once takes hours); the hub's by repository and revision.
    """
    chosen = spec(task)
    total = hashlib.sha256(chosen.name.encode())
    source = task.get("source", "embedded")
    if source == "embedded":
        total.update(images_files.sha256(images_files.digits_file()).encode())
    elif source == "hub":
        total.update(f"{chosen.repository}@{task.get('revision') or chosen.revision}".encode())
    else:
        found = _local(task, chosen)
        for split in splits(task):
            if isinstance(found, dict):
                if split == "train" and not found.get("train"):
                    continue  # a folder to evaluate only; training on it fails elsewhere
                for path in _files(found, split, chosen, task):
                    total.update(f"{split}/{images_files.sha256(path)};".encode())
            else:
                total.update(f"{split}/{images_folder.Folder(found, _folder_split(chosen, split)).key};".encode())
    return total.hexdigest()


def load(task: Mapping[str, Any], split: str, root: Path | None = None) -> Images:
    """``train``, ``select`` (a folder with three splits) or the reported split. ``root``: of the cache.

    Raises ``UserError`` when it cannot be had or does not fit its format.
    """
    chosen = spec(task)
    source = _source(task, chosen, split)
    images = open_images(source, whole=split != "train", root=root)
    return dataclasses.replace(images, notes={**images.notes, **getattr(source, "notes", {})})


def _source(task: Mapping[str, Any], chosen: ImageSet, split: str) -> Source:
    from lrx.data.images_parquet import Parquet

    origin = task.get("source", "embedded")
    if origin == "embedded":
        return images_files.digits(split)
    if origin == "hub":
        repo = repository(task, chosen)
        paths = [repo.get(file) for file in chosen.files(split)]
        return Parquet(paths, chosen, f"{repo.name}@{repo.revision}/{split}")
    found = _local(task, chosen)
    if not isinstance(found, dict):
        _count(chosen, found)
        return images_folder.Folder(found, _folder_split(chosen, split))
    paths = _files(found, split, chosen, task)
    if paths[0].suffix == ".parquet":
        return Parquet(paths, chosen, "".join(images_files.sha256(path) for path in paths))
    if paths[0].suffix == ".bin":
        return images_files.binary(paths, chosen)
    return images_files.idx(paths[0].parent, split, chosen.classes)


def _local(task: Mapping[str, Any], chosen: ImageSet) -> Path | dict[str, list[Path]]:
    """The folder with a folder for each class, or the files of each split that is there."""
    folder = _data_dir(task, chosen)
    if chosen.name == "folder":
        return folder
    if chosen.name == "imagenet1k" and images_folder.folder_of(folder, "val"):
        return folder
    found: dict[str, list[Path]] = {}
    for split in ("train", chosen.reported):
        paths = images_files.parquet_files(folder, split)
        if not paths and chosen.name in images_files.BINARY:
            paths = images_files.binary_files(folder, chosen, split)
        if not paths and chosen.name == "fashion_mnist" and any(folder.glob("*-ubyte*")):
            paths = list(images_files.idx_files(folder, split))
        found[split] = paths
    return found


def _files(found: dict[str, list[Path]], split: str, chosen: ImageSet, task: Mapping[str, Any]) -> list[Path]:
    if found.get(split):
        return found[split]
    folder = _data_dir(task, chosen)
    wanted = f"{split}.parquet or {split}-00000-of-*.parquet"
    if chosen.name in images_files.BINARY:
        wanted = f"{images_files.BINARY[chosen.name][1][split][0]} (the binary version) or {wanted}"
        inner = ("cifar-10-batches-py", "cifar-100-python")
        pickled = ("data_batch_1", "test_batch", "train", "test")
        if any((home / name).is_file() for home in (folder, *(folder / i for i in inner)) for name in pickled):
            wanted += "; the pickled Python version is not read, since a pickle can run code"
    elif chosen.name == "fashion_mnist":
        wanted = f"{'train' if split == 'train' else 't10k'}-images-idx3-ubyte.gz or {wanted}"
    elif chosen.name == "imagenet1k":
        wanted = f"train/<class>/*.JPEG with val/<class>/*.JPEG, or {wanted}"
    raise UserError(f"{folder} has no {split} split of {chosen.name}: {wanted}")


def _folder_split(chosen: ImageSet, split: str) -> str:
    return "val" if split in ("select", "validation") else split


def _count(chosen: ImageSet, folder: Path) -> None:
    count = len(images_folder.classes_of(folder))
    if chosen.classes and count != chosen.classes:
        raise UserError(f"{folder}: train has {count} class folders, {chosen.name} has {chosen.classes}")
    if count < 2:
        raise UserError(f"{folder}: train has one class folder; there is nothing to tell apart")


def _data_dir(task: Mapping[str, Any], chosen: ImageSet) -> Path:
    given = task.get("data_dir")
    if not given and chosen.name == "fashion_mnist":
        if not images_files.DEBIAN.is_dir():
            raise UserError(
                f"task.dataset=fashion_mnist task.source=local: {images_files.DEBIAN} is not there (Debian's package "
                "dataset-fashion-mnist has it); install that, or give task.data_dir=<the folder with its files>"
            )
        return images_files.DEBIAN
    if not given:
        raise UserError(f"task.source=local needs task.data_dir=<the folder with {chosen.name}>")
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise UserError(f"task.data_dir={given}: {'not a folder' if folder.exists() else 'no such folder'}")
    return folder
