"""RGB-guided depth super-resolution: clean (``standard``) or compressed low-resolution depth, RMSE and MAE.

Data, degradation and splits are in ``lrx.data.depth_sr``. Of each image::

    RMSE = sqrt(mean((pred - gt)^2)),   MAE = mean(|pred - gt|)   over its known pixels, without ``border``

in float64, then the plain mean over the images (not the root of a pooled mean). Units: centimetres, of Middlebury grey
levels of 255. A prediction, as it is stored, is an image's (RMSE, MAE), computed here against the batch's truth; its
reference is the image's mean depth, by which tables know that two runs scored the same images.

Losses, over the known pixels of a batch's images, depth in (0, 1]::

    SILog = alpha mean_images sqrt(mean(d^2) - lambda mean(d)^2),   d = log pred - log gt   (Eigen et al. 2014)
    L1, MSE: the mean over the pixels
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lrx import warm
from lrx.data import depth_sr
from lrx.data.depth_sr import Scenes
from lrx.data.loader import Batches, Positions, ResumableLoader, evaluation_loader
from lrx.errors import UserError
from lrx.models.base import Backbone, Inputs, Outputs
from lrx.seeds import derive
from lrx.tasks.base import Suite, Task
from lrx.tasks.depth_batches import Patches, Whole
from lrx.tasks.image_transforms import EpochDraws

FLOOR = 1e-3  # the least depth whose logarithm is taken, as a share of the largest


class DepthSR(Suite):
    """One data set under one protocol.

    Arguments:
        dataset: rendered, middlebury, nyu, or a folder of your own (train/RGB, train/Depth, test/RGB, test/Depth).
        source: ``embedded`` (rendered), ``local`` (files in ``data_dir``) or ``hub`` (nyu, of ``repository``).
        data_dir: for ``local``, where the files are.
        protocol: ``compressed`` ("lrx-compressed": down, quantiser, noise) or ``standard`` (PIL bicubic alone).
        scale_factor: s, by which both sides shrink.
        downsample, quantiser, bits, noise, noise_share: of ``compressed``: kernel; uniform or none; b; standard
            deviation as a share of the largest depth; share of the low-resolution pixels that have noise.
        border: pixels cut from each side before the metrics; None: 6 in ``standard``, none in ``compressed``.
        max_depth: what depth 1 stands for, in the set's own unit; None: the set's own. Deeper pixels are not scored.
        depth_unit: metres per count in the maps of a folder (0.001: millimetres).
        loss, silog_lambda, silog_alpha: what is trained.
        patch: pixels of a side of the training patches; None: whole images, which must have one size.
        flip: probability of a horizontal and of a vertical flip.
        data_seed, train_size, select_size, test_size, scene_size: of rendered scenes.
        train_items, test_items: names of the Middlebury pairs.
        holdout: share of the training images kept for model selection, of Middlebury the lower part of each; 0 (of
            rendered scenes select_size=0) selects on the reported split.
        train_limit, eval_limit: a fixed sample of the training and of every scored split; None for all of it.
        batch_size, eval_batch_size: images per batch and process; images of several sizes are scored one by one.
        repository, revision: on the hub.
        panel: images of the reported split in the run's picture; 0 for none.
        workers: processes that prepare batches.
    """

    name: ClassVar[str] = "depth_sr"
    version: ClassVar[int] = 1
    named_by: ClassVar[str] = "dataset"

    def __init__(
        self,
        *,
        dataset: Literal["rendered", "middlebury", "nyu", "folder"] = "rendered",
        source: Literal["embedded", "local", "hub"] = "embedded",
        data_dir: str | None = None,
        protocol: Literal["compressed", "standard"] = "compressed",
        scale_factor: int = 4,
        downsample: Literal["area", "nearest", "bicubic"] = "area",
        quantiser: Literal["uniform", "none"] = "uniform",
        bits: int = 5,
        noise: float = 0.03,
        noise_share: float = 1.0,
        border: int | None = None,
        max_depth: float | None = None,
        depth_unit: float = 0.001,
        loss: Literal["silog", "l1", "mse"] = "silog",
        silog_lambda: float = 0.85,
        silog_alpha: float = 10.0,
        patch: int | None = None,
        flip: float = 0.5,
        data_seed: int = 0,
        train_size: int = 1000,
        select_size: int = 100,
        test_size: int = 200,
        scene_size: int = 64,
        train_items: list[str] | None = None,
        test_items: list[str] | None = None,
        holdout: float = 0.2,
        train_limit: int | None = None,
        eval_limit: int | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 16,
        repository: str | None = None,
        revision: str | None = None,
        panel: int = 4,
        workers: int = 0,
    ) -> None:
        given = locals()
        self.options: dict[str, Any] = {key: given[key] for key in given if key not in ("self", "__class__")}
        self.options["train_items"] = list(train_items or ())
        self.options["test_items"] = list(test_items or ())

    def parts(self) -> list[Task]:
        """The data set, as one part of its name."""
        return [DepthTask(self.options)]


class DepthTask(Task):
    """One data set. Splits are read, or rendered, when first needed."""

    primary = "rmse"
    higher_is_better: Mapping[str, bool] = {"rmse": False, "mae": False}

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.options = dict(options)
        self.name = options["dataset"]
        self.unit = depth_sr.spec(options).unit
        self.outputs = Outputs("depth", 1)
        self.reported = ("test",)
        rendered = options["dataset"] == "rendered"
        self.selects_on_reported = options["select_size"] == 0 if rendered else options["holdout"] == 0
        self.notes: dict[str, float] = {}
        self._splits: dict[str, Scenes] = {}
        self._seed = 0

    @property
    def inputs(self) -> Inputs:  # type: ignore[override]
        """With the size of a training image, or of the first scored one where nothing is trained on."""
        options = self.options
        side = options["patch"] or (options["scene_size"] if options["dataset"] == "rendered" else None)
        height, width = (side, side) if side else self.split("test").shape(0)
        return Inputs("image_depth", (3, height, width), factor=options["scale_factor"])

    def bind(self, backbone: Backbone, seed: int) -> None:
        """Take over the seed of order and augmentation. Raises ``UserError`` for a model that reads no depth maps."""
        if backbone.reads != "depth":
            raise UserError("task depth_sr is depth maps with images; this model reads none (model=gdnet does)")
        self._seed = derive(seed, "data", self.name)

    def split(self, name: str) -> Scenes:
        """The images of ``train``, ``select`` or ``test``."""
        if name == "select" and self.selects_on_reported:
            name = "test"
        if name not in self._splits:
            if name not in {"train", "select", "test"}:
                raise KeyError(f"{self.name} has no split {name!r}")
            loose = ("batch_size", "eval_batch_size", "workers", "loss", "border", "panel", "flip")
            key = ("depth_sr", name, *(str(value) for key, value in self.options.items() if key not in loose))
            which = "test" if name == "test" else "train"
            self._splits |= warm.keep(key, lambda: depth_sr.splits(self.options, which))
            for part in ("train", "select") if name != "test" and not self.selects_on_reported else (name,):
                if part not in self._splits or not len(self._splits[part]):
                    raise UserError(
                        f"task.holdout={self.options['holdout']}: no image of {self.name} is left for the {part} split"
                    )
            self.notes.update({f"{name}.{what}": count for what, count in self._splits[name].notes.items()})
        return self._splits[name]

    def size(self, split: str) -> int:
        """Number of images of a split."""
        return len(self.split(split))

    def train_dataloader(self) -> DataLoader:  # type: ignore[override]
        """Patches at random places: of an image as many in an epoch as cover it."""
        patches = Patches(self.split("train"), self.options["patch"], self.options["flip"], derive(self._seed, "crop"))
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        order = EpochDraws(len(patches.origin), self.options["batch_size"], self._seed, rank, world)
        return ResumableLoader(Positions(len(patches.origin), patches), order, self.options["workers"])

    def eval_dataloader(self, split: str) -> DataLoader:
        """Every image of a split once, whole."""
        scenes = self.split(split)
        shapes = [scenes.shape(i) for i in range(len(scenes))]
        size = self.options["eval_batch_size"] if len(set(shapes)) == 1 else 1
        order = Batches([height * width for height, width in shapes], size)
        return evaluation_loader(Positions(len(scenes), Whole(scenes)), order, self.options["workers"])

    def loss(self, backbone: Backbone, batch: dict[str, Any]) -> Tensor:
        """The chosen loss in float32."""
        found, truth, valid = backbone(batch).float(), batch["depth"], batch["valid"]
        if self.options["loss"] == "silog":
            return silog(found, truth, valid, self.options["silog_lambda"], self.options["silog_alpha"])
        error = (found - truth)[valid]
        return error.abs().mean() if self.options["loss"] == "l1" else error.square().mean()

    def infer(self, backbone: Backbone, batch: dict[str, Any]) -> np.ndarray:
        """(batch, 2) float64: RMSE and MAE of each image, in the set's unit."""
        cut = depth_sr.border(self.options)
        error = (backbone(batch).double() - batch["depth"].double()) * batch["span"].view(-1, 1, 1, 1)
        valid = batch["valid"]
        if cut:
            inner = (..., slice(cut, -cut), slice(cut, -cut))
            error, valid = error[inner], valid[inner]
        return per_image(error, valid).cpu().numpy()

    def references(self, split: str) -> np.ndarray:
        """(n,) float64: the mean depth of each image, as a share of the largest."""
        scenes = self.split(split)
        return np.asarray([float(scenes.image(i)["depth"].mean(dtype=np.float64)) for i in range(len(scenes))])

    def score(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """Means over the images; NaN of none."""
        return {name: float(values.mean()) for name, values in self.item_scores(predictions, references).items()}

    def item_scores(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """Both errors of each image."""
        return {"rmse": predictions[:, 0], "mae": predictions[:, 1]}

    def pictures(self, backbone: Backbone, folder: Path) -> dict[str, Path]:
        """A panel of the first images of the reported split: image, input, prediction, truth, error."""
        if not self.options["panel"] or not self.reported:
            return {}
        from lrx.tasks.depth_panel import draw

        split = self.reported[0]
        count = min(self.options["panel"], self.size(split))
        found = Whole(self.split(split))
        device = next(iter(backbone.parameters()), torch.empty(0)).device
        rows = []
        for i in range(count):
            batch = {key: value.to(device) for key, value in found([i]).items()}
            with torch.no_grad():
                rows.append((self.split(split).name(i), batch, backbone(batch).float().cpu()))
        return {split: draw(rows, folder / f"panel.{split}.png", self.options["scale_factor"], self.unit)}


def silog(found: Tensor, truth: Tensor, valid: Tensor, weight: float, alpha: float) -> Tensor:
    """Scalar: alpha times the mean over images of sqrt(mean d^2 - weight mean(d)^2), over ``valid`` pixels.

    All (batch, 1, H, W). Depths below ``FLOOR`` count as it. Images without a valid pixel are left out.
    """
    d = (found.clamp(min=FLOOR).log() - truth.clamp(min=FLOOR).log()) * valid
    count = valid.sum(dim=(1, 2, 3))
    mean = d.sum(dim=(1, 2, 3)) / count.clamp(min=1)
    square = d.square().sum(dim=(1, 2, 3)) / count.clamp(min=1)
    inside = square - weight * mean.square()
    # At a perfect prediction the root has no derivative: there it is taken of 1e-12.
    return alpha * inside.clamp(min=1e-12).sqrt()[count > 0].mean()


def per_image(error: Tensor, valid: Tensor) -> Tensor:
    """(batch, 1, H, W), float64 -> (batch, 2): RMSE and MAE over ``valid``; NaN where there is no valid pixel."""
    count = valid.sum(dim=(1, 2, 3)).double()
    error = torch.where(valid, error, torch.zeros((), dtype=error.dtype, device=error.device))
    square = error.square().sum(dim=(1, 2, 3)) / count
    return torch.stack([square.sqrt(), error.abs().sum(dim=(1, 2, 3)) / count], dim=1)
