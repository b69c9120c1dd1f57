"""Guided depth super-resolution as data: what a configuration asks for, whether it can be had, reading or drawing it.

``check`` and ``digest`` are what the command line calls before anything heavy is imported. All take the ``task``
section of a configuration with every option of ``lrx.tasks.depth_sr.DepthSR``.

``embedded`` are rendered scenes (``lrx.data.depth_scenes``); ``local`` and ``hub`` real pairs. The low-resolution map
of an image is made once (``lrx.data.depth_degrade``), from the whole image, with noise seeded by the image's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrx.data import depth_files, depth_scenes, store
from lrx.data.depth_degrade import Map, degrade, filled
from lrx.data.hub import Repository
from lrx.data.splits import rank
from lrx.errors import UserError, did_you_mean

FORMAT = 1  # of the stored arrays; raised when the same options give others


@dataclass(frozen=True)
class Kind:
    """A data set. ``largest``: depth that 1 is (0: ``task.max_depth``); ``scale``: reported units in one of its."""

    sources: tuple[str, ...]
    largest: float
    scale: float
    unit: str
    what: str


SETS = {
    "rendered": Kind(("embedded",), depth_scenes.MAX_DEPTH, 100.0, "cm", "rendered planes and boxes, exact depth"),
    "middlebury": Kind(("local",), 255.0, 1.0, "grey levels of 255", "8 Middlebury pairs, disparity-like"),
    "nyu": Kind(("local", "hub"), 10.0, 100.0, "cm", "NYU-v2, 1,000 and 449 labelled indoor images"),
    "folder": Kind(("local",), 0.0, 100.0, "cm", "a folder of your own: train/RGB, train/Depth, test/RGB, test/Depth"),
}
_AT_LEAST = {
    "scale_factor": 2, "batch_size": 1, "eval_batch_size": 1, "train_limit": 1, "eval_limit": 1, "workers": 0,
    "border": 0, "panel": 0, "train_size": 1, "select_size": 0, "test_size": 1, "patch": 1, "scene_size": 1, "noise": 0,
}  # fmt: skip
_SHARES = ("flip", "noise_share", "silog_lambda")
_POSITIVE = ("max_depth", "depth_unit", "silog_alpha")
BORDERS = {"compressed": 0, "standard": 6}


@dataclass(frozen=True)
class Scenes:
    """A split, one image after the other in flat arrays. ``places``: which images of the arrays it has.

    Of image i: ``pixels`` (H, W, 3) uint8; ``depth`` (H, W) float32, 0 to 1 between ``offset`` and ``offset + span``
    of the data set's unit; ``known`` (H, W); ``low`` (H/s, W/s) float32, in the same measure.
    """

    names: Sequence[str]
    shapes: NDArray[np.int64]
    offsets: NDArray[np.float64]
    spans: NDArray[np.float64]
    arrays: Mapping[str, NDArray[Any]]
    starts: NDArray[np.int64]
    factor: int
    places: Sequence[int]
    notes: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places)

    def shape(self, position: int) -> tuple[int, int]:
        height, width = self.shapes[self.places[position]]
        return int(height), int(width)

    def name(self, position: int) -> str:
        return self.names[self.places[position]]

    def span(self, position: int) -> float:
        return float(self.spans[self.places[position]])

    def image(self, position: int) -> dict[str, NDArray[Any]]:
        """``pixels``, ``depth``, ``known`` and ``low`` of an image, read-only."""
        place = self.places[position]
        (height, width), start = self.shape(position), int(self.starts[place])
        count, f = height * width, self.factor
        one = {key: self.arrays[key][start : start + count].reshape(height, width) for key in ("depth", "known")}
        pixels = self.arrays["pixels"][3 * start : 3 * (start + count)].reshape(height, width, 3)
        low = self.arrays["low"][start // f**2 : (start + count) // f**2].reshape(height // f, width // f)
        return {**one, "pixels": pixels, "low": low}

    def take(self, positions: Sequence[int]) -> Scenes:
        """The images at ``positions``, in that order."""
        chosen = [self.places[i] for i in positions]
        return Scenes(self.names, self.shapes, self.offsets, self.spans, self.arrays, self.starts, self.factor, chosen,
                      self.notes)  # fmt: skip


def check(task: Mapping[str, Any], mode: str = "train") -> None:
    """Look at the options and at the files' presence; no image is opened (``hub`` without network: 3 s).

    ``mode="eval"`` needs no training images. Raises ``UserError`` naming the key or file.
    """
    chosen = spec(task)
    for key, least in _AT_LEAST.items():
        value = task[key]
        if value is not None and not value >= least:
            raise UserError(f"task.{key}={value}: must be at least {least}")
    for key in _SHARES:
        if not 0 <= task[key] <= 1:
            raise UserError(f"task.{key}={task[key]}: from 0 to 1")
    for key in _POSITIVE:
        if task[key] is not None and not task[key] > 0:
            raise UserError(f"task.{key}={task[key]}: must be above 0")
    if not 1 <= task["bits"] <= 16:
        raise UserError(f"task.bits={task['bits']}: from 1 to 16 bits of depth (task.quantiser=none for none)")
    if not 0 <= task["holdout"] < 1:
        raise UserError(f"task.holdout={task['holdout']}: a fraction of the training part, from 0 to below 1")
    if not chosen.largest and task["max_depth"] is None:
        raise UserError("task.dataset=folder needs task.max_depth=<the largest depth, in metres>")
    for key in ("patch", "scene_size"):
        if task[key] is not None and task[key] % task["scale_factor"]:
            raise UserError(f"task.{key}={task[key]}: must be a multiple of task.scale_factor={task['scale_factor']}")
    if task["dataset"] == "rendered" and (task["patch"] or 0) > task["scene_size"]:
        raise UserError(f"task.patch={task['patch']}: a scene has task.scene_size={task['scene_size']} pixels a side")
    if task["source"] == "local":
        for split in ("train", "test") if mode != "eval" else ("test",):
            depth_files.files(task, split)
        if task["dataset"] == "middlebury" and (both := set(task["train_items"]) & set(task["test_items"])):
            raise UserError(f"task.train_items and task.test_items share {sorted(both)[0]!r}")
    elif task["source"] == "hub":
        repository(task).check([depth_files.NYU_MAT])


def spec(task: Mapping[str, Any]) -> Kind:
    """The set that a configuration asks for. Raises ``UserError`` for one that does not exist, or not from there."""
    name, source = str(task["dataset"]), task["source"]
    if name not in SETS:
        raise UserError(f"task.dataset={name}: no such set; {did_you_mean(name, SETS)}")
    if source not in SETS[name].sources:
        others = [other for other, each in SETS.items() if source in each.sources]
        raise UserError(
            f"task.dataset={name} comes with task.source={' or '.join(SETS[name].sources)}; {source} has: "
            f"{', '.join(others)}"
        )
    if source != "local" and task["data_dir"]:
        raise UserError(f"task.data_dir is read only with task.source=local (it is {source})")
    return SETS[name]


def repository(task: Mapping[str, Any]) -> Repository:
    """The repository on the hub with NYU-v2's official file. Raises ``UserError`` when none is given."""
    otherwise = f"task.source=local task.data_dir=<the folder with {depth_files.NYU_MAT}>"
    if not task["repository"]:
        raise UserError(
            f"task.source=hub needs task.repository=OWNER/NAME with {depth_files.NYU_MAT} (the copies for depth "
            f"estimation have another split and size), or use {otherwise}"
        )
    return Repository(str(task["repository"]), task["revision"] or "main", otherwise)


def digest(task: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over what a run reads, part of its identity; of rendered scenes over what renders them."""
    spec(task)
    if task["source"] == "local":
        return depth_files.digest(task)
    what: tuple[object, ...] = ("scenes", depth_scenes.VERSION)
    if task["source"] == "hub":
        what = (str(task["repository"]), task["revision"] or "main")
    return hashlib.sha256(repr(what).encode()).hexdigest()


def describe() -> list[str]:
    """A line per set for ``lrx info``: what it is, sources, unit."""
    return [
        f"{name} ({', '.join(each.sources)}): {each.what}; rmse and mae per image in {each.unit}, reported test"
        for name, each in SETS.items()
    ]


def border(task: Mapping[str, Any]) -> int:
    """Pixels cut from each side before the metrics."""
    return BORDERS[task["protocol"]] if task["border"] is None else int(task["border"])


def largest(task: Mapping[str, Any]) -> float:
    """Depth, in the set's own unit, that 1 stands for."""
    return float(task["max_depth"] or spec(task).largest)


def splits(task: Mapping[str, Any], name: str, root: Path | None = None) -> dict[str, Scenes]:
    """``test``, or ``train`` with ``select``; where ``holdout`` is 0, or of no rendered scenes, without ``select``.

    ``root``: of the cache. Raises ``UserError`` for a file that does not fit.
    """
    if task["dataset"] == "rendered":
        found = {each: _stored(task, each, root) for each in _rendered_parts(task, name)}
    elif name == "test":
        found = {"test": _stored(task, "test", root)}
    else:
        both = _stored(task, "train", root)
        held = [i for i in range(len(both)) if both.name(i).endswith("/select")]
        kept = [i for i in range(len(both)) if i not in set(held)]
        found = {"train": both.take(kept)} | ({"select": both.take(held)} if held else {})
    most = {"train": task["train_limit"]}
    return {key: _limit(each, most.get(key, task["eval_limit"])) for key, each in found.items()}


def _rendered_parts(task: Mapping[str, Any], name: str) -> list[str]:
    return [name] if name == "test" else ["train", *(["select"] if task["select_size"] else [])]


def _limit(scenes: Scenes, size: int | None) -> Scenes:
    if size is None or size >= len(scenes):
        return scenes
    return scenes.take(sorted(sorted(range(len(scenes)), key=lambda i: rank("limit", i))[:size]))


def _stored(task: Mapping[str, Any], split: str, root: Path | None) -> Scenes:
    keys = ("dataset", "protocol", "scale_factor", "downsample", "quantiser", "bits", "noise", "noise_share",
            "max_depth", "depth_unit", "holdout", "train_items", "test_items", "patch")  # fmt: skip
    own = ("data_seed", "train_size", "select_size", "test_size", "scene_size")
    chosen = (*keys, *own) if task["dataset"] == "rendered" else keys
    key = (FORMAT, split, digest(task), *(str(task[each]) for each in chosen))
    arrays = store.stored("depth_sr", key, lambda: _build(task, split), root)
    names = bytes(arrays["names"]).decode().split("\n")
    starts = np.concatenate([[0], np.cumsum(arrays["shapes"].prod(axis=1))])
    notes = {name: float(value) for name, value in zip(("cut", "too_deep"), arrays["counts"], strict=True) if value}
    return Scenes(names, arrays["shapes"], arrays["offsets"], arrays["spans"], arrays, starts,
                  int(task["scale_factor"]), range(len(names)), notes)  # fmt: skip


def _build(task: Mapping[str, Any], split: str) -> store.Arrays:
    factor, chosen, deepest = int(task["scale_factor"]), spec(task), largest(task)
    parts: dict[str, list[NDArray[Any]]] = {"pixels": [], "depth": [], "known": [], "low": []}
    names, shapes, offsets, spans = [], [], [], []
    uneven, deep = 0, 0
    for name, pixels, depth, known in _pairs(task, split):
        height, width = (side // factor * factor for side in depth.shape)
        uneven += depth.shape != (height, width)
        inside = (slice(height), slice(width))
        pixels, depth, known = pixels[inside], depth[inside], known[inside]
        deep += int((depth > deepest).sum())
        known = known & (depth <= deepest)
        if not known.any():
            raise UserError(
                f"task.dataset={task['dataset']}, image {name}: no pixel has a known depth (above 0, finite, at most "
                f"{deepest:g})"
            )
        whole = filled(depth, known)
        offset, span = 0.0, deepest
        if task["protocol"] == "standard" and task["dataset"] == "nyu":  # as its users do: by the truth
            offset, span = float(whole.min()), float(whole.max() - whole.min()) or 1.0
        whole = ((whole - offset) / span).astype(np.float32)
        low = degrade(whole, task, f"{task['dataset']} {name}")
        for part, top, bottom in _strips(task, split, height):
            names.append(f"{name}{part}")
            shapes.append((bottom - top, width))
            offsets.append(offset)
            spans.append(span * chosen.scale)
            parts["pixels"].append(pixels[top:bottom].ravel())
            parts["depth"].append(whole[top:bottom].ravel())
            parts["known"].append(known[top:bottom].ravel())
            parts["low"].append(low[top // factor : bottom // factor].ravel())
    smallest = min(min(shape) for shape in shapes)
    if split == "train" and (task["patch"] or 0) > smallest:
        raise UserError(f"task.patch={task['patch']}: the smallest training image has {smallest} pixels a side")
    arrays = {key: np.concatenate(values) for key, values in parts.items()}
    return arrays | {
        "names": np.frombuffer("\n".join(names).encode(), dtype=np.uint8),
        "shapes": np.asarray(shapes, dtype=np.int64),
        "offsets": np.asarray(offsets),
        "spans": np.asarray(spans),
        "counts": np.asarray([uneven, deep], dtype=np.float64),
    }


def _pairs(task: Mapping[str, Any], split: str) -> Iterator[tuple[str, NDArray[np.uint8], Map, NDArray[np.bool_]]]:
    """Whole images of the split. Of files held out by name, the name says so."""
    if task["dataset"] == "rendered":
        sizes = {"train": task["train_size"], "select": task["select_size"], "test": task["test_size"]}
        before = sum(sizes[each] for each in list(sizes)[: list(sizes).index(split)])
        for number in range(before, before + sizes[split]):
            pixels, depth = depth_scenes.draw(task["data_seed"], number, task["scene_size"])
            yield f"{task['data_seed']}/{number}", pixels, depth, np.isfinite(depth)
        return
    mat = repository(task).get(depth_files.NYU_MAT) if task["source"] == "hub" else None
    for name, pixels, depth, known in depth_files.read(task, split, mat):
        held = split == "train" and task["dataset"] != "middlebury" and _held(task, name)
        yield f"{name}/select" if held else name, pixels, depth, known


def _held(task: Mapping[str, Any], name: str) -> bool:
    return rank("hold-out", task["dataset"], name) / 2**64 < task["holdout"]


def _strips(task: Mapping[str, Any], split: str, height: int) -> list[tuple[str, int, int]]:
    """(ending of the name, first row, end): of Middlebury's few training images the lower part is held out."""
    if split != "train" or task["dataset"] != "middlebury" or not task["holdout"]:
        return [("", 0, height)]
    factor = int(task["scale_factor"])
    border = round(height * (1 - task["holdout"])) // factor * factor
    if not 0 < border < height:
        raise UserError(f"task.holdout={task['holdout']}: leaves nothing of {height} rows on one side")
    return [("", 0, border), ("/select", border, height)]
