"""The Long Range Arena as data: what a configuration asks for, whether it can be had, and reading or generating it.

``check`` and ``digest`` are what the command line calls before anything heavy is imported. All take the ``task``
section of a configuration with the defaults of ``lrx.tasks.lra.LongRangeArena`` for what it leaves out.

``embedded`` needs no download of the benchmark: ListOps, Pathfinder and Path-X are generated (``data_seed``,
``*_size``), ``text`` are the film reviews of ``lrx.data.embedded``, ``smnist`` is Debian's Fashion-MNIST or
scikit-learn's digits, ``acsf1`` the series of a package. ``local`` and ``hub`` are the published data. Splits are
disjoint: where there is no selection split, ``holdout`` of the training split is one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrx.data import (
    embedded,
    imagenet,
    images_files,
    lra_images,
    lra_listops,
    lra_noise,
    lra_pathfinder,
    lra_series,
    lra_text,
)
from lrx.data.lra_sequences import Sequences
from lrx.errors import UserError, did_you_mean

BUNDLE = "lra_release.gz of the Long Range Arena"


@dataclass(frozen=True)
class Kind:
    """One data set. ``size``: pixels of a side. ``selects``: sources with a selection split of their own."""

    classes: int
    sources: tuple[str, ...]
    selects: tuple[str, ...]
    vocabulary: int = 0
    features: int = 0
    size: int = 0
    pairs: bool = False
    what: str = ""


SETS = {
    "listops": Kind(
        10,
        ("embedded", "local"),
        ("embedded", "local"),
        vocabulary=lra_listops.VOCABULARY,
        what="generated expressions",
    ),
    "text": Kind(2, ("embedded", "local", "hub"), ("embedded",), lra_text.VOCABULARY, what="bytes of film reviews"),
    "retrieval": Kind(2, ("local",), ("local",), lra_text.VOCABULARY, pairs=True, what="bytes of pairs of papers"),
    "image": Kind(10, ("local", "hub"), (), features=1, what="grey pixels of CIFAR-10"),
    "pathfinder": Kind(2, ("embedded", "local"), ("embedded", "local"), features=1, size=32, what="drawn, 32 x 32"),
    "pathx": Kind(2, ("embedded", "local"), ("embedded", "local"), features=1, size=128, what="drawn, 128 x 128"),
    "smnist": Kind(10, ("embedded", "local", "hub"), (), features=1, what="grey pixels of Fashion-MNIST, or of digits"),
    "acsf1": Kind(10, ("embedded",), (), features=1, what="power consumption of appliances, 1,460 steps"),
}
_AT_LEAST = {
    "batch_size": 1, "eval_batch_size": 1, "train_size": 1, "select_size": 1, "test_size": 1, "train_limit": 1,
    "eval_limit": 1, "holdout_most": 1, "workers": 0, "data_seed": 0, "max_depth": 1, "max_args": 2, "max_length": 2,
    "min_length": 0, "contour": 2,
}  # fmt: skip


SIZES = (16, 32, 64)  # of Pathfinder's drawn images; 32 is the arena's task


def check(task: Mapping[str, Any], mode: str = "train") -> None:
    """Look at the options and at the files' presence; nothing is generated. ``mode="eval"`` needs the test split alone.

    Raises ``UserError`` for a wrong set, source or value, a missing file, or an unreachable hub.
    """
    kind, name = spec(task), str(task["dataset"])
    _check_options(task, kind)
    source = task.get("source", "embedded")
    needed = ("test",) if mode == "eval" else ("train", *(("select",) if own_select(task) else ()), "test")
    if name in ("image", "smnist"):
        imagenet.check(lra_images.request(task) | {"holdout": task.get("holdout", 0.1)}, mode)
    elif name == "acsf1":
        lra_series.check()
    elif source == "hub":
        lra_text.repository(task).check([lra_text.hub_file(split) for split in needed])
    elif source == "local":
        for split in needed:
            _files(task, split)
    elif name == "text":
        embedded.check()


def _check_options(task: Mapping[str, Any], kind: Kind) -> None:
    for key, least in _AT_LEAST.items():
        value = task.get(key)
        if value is not None and value < least:
            raise UserError(f"task.{key}={value}: must be at least {least}")
    if not 0 <= task.get("holdout", 0.1) < 1:
        raise UserError(f"task.holdout={task['holdout']}: a fraction of the training part, from 0 to below 1")
    source = task.get("source", "embedded")
    if task["dataset"] == "listops" and source == "embedded" and _bound(task, "max_length") - task["min_length"] < 2:
        raise UserError(
            f"task.min_length={task['min_length']}: no length lies strictly between it and task.max_length="
            f"{task['max_length']}"
        )
    if (size := task.get("size")) is not None and (name := task["dataset"]) != "pathfinder":
        raise UserError(f"task.size={size}: only images of pathfinder are drawn in several sizes, not {name}")
    if size is not None and (size not in SIZES or source != "embedded"):
        known = ", ".join(map(str, SIZES))
        raise UserError(f"task.size={size}: drawn images (task.source=embedded) have {known} pixels of a side")
    if kind.size and not 2 <= task["contour"] <= 14:
        raise UserError(f"task.contour={task['contour']}: dashes of a contour, from 2 to 14 (the hard task)")
    if source == "local" and task["dataset"] not in ("image", "smnist") and not task.get("data_dir"):
        only = f"; they come with {BUNDLE}, and with no package" if task["dataset"] == "retrieval" else ""
        raise UserError(f"task.source=local needs task.data_dir=<the folder with the files of {task['dataset']}>{only}")
    if (noise := task.get("noise")) is not None:
        if not kind.features:
            raise UserError(f"task.noise: the steps of {task['dataset']} are ids; noise needs real values")
        lra_noise.frequencies(noise)


def _bound(task: Mapping[str, Any], key: str) -> int:
    if task.get(key) is None:
        raise UserError(f"task.{key} is missing for {task['dataset']}")
    return int(task[key])


def spec(task: Mapping[str, Any]) -> Kind:
    """The set that a configuration asks for. Raises ``UserError`` for one that does not exist, or not from there."""
    name, source = str(task.get("dataset", "")), str(task.get("source", "embedded"))
    if name not in SETS:
        raise UserError(f"task.dataset={name}: no such set; {did_you_mean(name, SETS)}")
    kind = SETS[name]
    if source not in kind.sources:
        advice = {
            "retrieval": f"its papers (AAN) come only with {BUNDLE}; task.source=local task.data_dir=<folder of "
            f"{lra_text.AAN['train']}>",
            "image": "CIFAR-10 comes with no package; task.source=local task.data_dir=<its binary version, parquet, or "
            "train/<class>/*.png and test/<class>/*.png> or task.source=hub",
        }.get(name, f"it comes with task.source={' or '.join(kind.sources)}")
        raise UserError(f"task.dataset={name} cannot be had with task.source={source}: {advice}")
    if source != "local" and task.get("data_dir"):
        raise UserError(f"task.data_dir is read only with task.source=local (it is {source})")
    if source != "hub" and task.get("revision"):
        raise UserError(f"task.revision is read only with task.source=hub (it is {source})")
    return kind


def own_select(task: Mapping[str, Any]) -> bool:
    """Whether there is a selection split beside the training split."""
    return task.get("source", "embedded") in SETS[str(task["dataset"])].selects


def classes(task: Mapping[str, Any]) -> int:
    """Number of classes."""
    return lra_images.classes(task) if task["dataset"] == "image" else spec(task).classes


def _folder(task: Mapping[str, Any]) -> Path:
    given = str(task.get("data_dir") or "")
    folder = Path(given).expanduser()
    if not given or not folder.is_dir():
        raise UserError(f"task.data_dir={given}: {'not a folder' if given and folder.exists() else 'no such folder'}")
    return folder


def _files(task: Mapping[str, Any], split: str) -> list[Path]:
    """The local files of a split, except of images. Raises ``UserError`` naming what is missing."""
    folder, name = _folder(task), task["dataset"]
    if name == "text":
        return lra_text.files(folder, split)
    if size := SETS[str(name)].size:
        return lra_images.metadata(task, size)
    path = folder / (lra_listops.FILES if name == "listops" else lra_text.AAN)[split]
    if not path.is_file():
        raise UserError(f"{path} is missing (it comes with {BUNDLE})")
    return [path]


def sizes(task: Mapping[str, Any]) -> tuple[int, int, int]:
    """Examples of the generated splits: train, select, test."""
    return _bound(task, "train_size"), _bound(task, "select_size"), _bound(task, "test_size")


def digest(task: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over what a run reads, part of its identity; of generated data over what generates it.

    Local files count by their content, whatever folder they lie in, images of Pathfinder by names and labels.
    """
    spec(task)
    name, source = str(task["dataset"]), task.get("source", "embedded")
    total = hashlib.sha256(f"{name} {source}".encode())
    if name in ("image", "smnist"):
        total.update(imagenet.digest(lra_images.request(task)).encode())
    elif name == "acsf1":
        total.update("".join(each for _, each in lra_series.FILES.values()).encode())
    elif source == "hub":
        total.update(f"{lra_text.IMDB}@{task.get('revision') or lra_text.REVISION}".encode())
    elif source == "local":
        for split in ("train", *(("select",) if own_select(task) else ()), "test"):
            for path in _files(task, split):
                total.update(f"{split}/{path.parent.name}/{images_files.sha256(path)};".encode())
    elif name == "text":
        total.update("".join(each for _, each, _, _ in embedded.SOURCES.values()).encode())
    return total.hexdigest()


def load(task: Mapping[str, Any], split: str, root: Path | None = None) -> Sequences:
    """``train``, ``test``, or ``select`` where ``own_select``. ``root``: of the cache. Raises ``UserError``."""
    kind, name = spec(task), str(task["dataset"])
    generated = task.get("source", "embedded") == "embedded"
    if name == "listops":
        if not generated:
            return lra_listops.read(_files(task, split)[0], _bound(task, "max_length"))
        bounds = {key: _bound(task, key) for key in ("max_depth", "max_args", "min_length", "max_length")}
        return lra_listops.stored(split, sizes(task), task["data_seed"], root, **bounds)
    if kind.size:
        if not generated:
            return lra_images.pathfinder(task, split, kind.size)
        size = task.get("size") or kind.size
        return lra_pathfinder.stored(split, sizes(task), task["data_seed"], size, task["contour"], root)
    if name == "acsf1":
        return lra_series.load(split, root)
    if name == "retrieval":
        return lra_text.retrieval(task, split)
    return lra_text.text(task, split) if name == "text" else lra_images.load(task, split)


def describe() -> list[str]:
    """A line per set for ``lrx info``: what it is, classes, sources."""
    lines = []
    for name, each in SETS.items():
        sources = ", ".join(each.sources)
        lines.append(f"{name} ({sources}): {each.what}; {each.classes} classes; accuracy; reported test")
    return lines
