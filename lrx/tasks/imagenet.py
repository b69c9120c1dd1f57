"""Image classification: ImageNet-1K (Russakovsky et al. 2015) and the sets that pretrained networks are adapted to.

Data and splits are in ``lrx.data.imagenet``. Reported is the official test split (of ImageNet-1K its 50,000 validation
images, since the test labels are hidden), one centre crop: top-1 accuracy and, with at least 5 classes, top-5, over the
whole split. Model selection uses a held-out share of the training images (``holdout``), so that no reported number was
selected on; ``holdout=0`` selects on the reported split, and the task says so in ``selects_on_reported``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from lrx import warm
from lrx.data import imagenet
from lrx.data.images_store import Images, hold_out, limit
from lrx.data.loader import Batches, Positions, ResumableLoader, evaluation_loader
from lrx.errors import UserError
from lrx.models.base import Backbone, Inputs, Outputs
from lrx.seeds import derive
from lrx.tasks.base import Suite, Task
from lrx.tasks.image_transforms import EpochDraws, Look, ScoringBatches, TrainingBatches, look

RANKED = 5  # classes of a prediction, the best first


class ImageNet(Suite):
    """One image classification set.

    Arguments:
        source: ``embedded`` (digits), ``local`` (files in ``data_dir``) or ``hub``.
        dataset: imagenet1k, cifar10, cifar100, fashion_mnist, digits, or a user's own set of class folders.
        data_dir: for ``local``, where the files are; None for Debian's Fashion-MNIST.
        batch_size, eval_batch_size: images per batch and process.
        image_size: pixels of a side that the network sees.
        crop_ratio: when scored, the shorter side is resized to round(image_size / crop_ratio), then cropped.
        interpolation, normalization: as the model was trained (``model``), or as said; ``own`` uses ``mean``, ``std``.
        train_crop: ``random`` is RandomResizedCrop with areas from ``min_scale`` to 1, ``center`` the crop of scoring.
        flip: probability of a horizontal flip.
        rand_augment: operations of RandAugment per image, 0 for none; ``rand_augment_magnitude`` is from 0 to 30.
        color_jitter: largest change of brightness, contrast and saturation, as a share.
        random_erasing: probability that a rectangle is replaced by noise.
        mixup, cutmix: parameter of the Beta distribution, 0 for none; with both, each batch gets one of them.
        label_smoothing: share of the label spread over all classes.
        holdout: share of the training split kept for model selection, at most ``holdout_most`` images (None: no
            limit); 0 selects on the reported split.
        train_limit, eval_limit: a fixed sample of the training and of every scored split; None for all of it.
        revision: of the hub's repository; None for the fixed one.
        workers: processes that prepare batches.
    """

    name: ClassVar[str] = "imagenet"
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        source: Literal["embedded", "local", "hub"] = "embedded",
        dataset: Literal["imagenet1k", "cifar10", "cifar100", "fashion_mnist", "digits", "folder"] = "digits",
        data_dir: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        image_size: int = 224,
        crop_ratio: float = 0.875,
        interpolation: Literal["model", "bilinear", "bicubic"] = "model",
        normalization: Literal["model", "imagenet", "half", "own"] = "model",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        train_crop: Literal["random", "center"] = "random",
        min_scale: float = 0.08,
        flip: float = 0.5,
        rand_augment: int = 0,
        rand_augment_magnitude: int = 9,
        color_jitter: float = 0.0,
        random_erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_smoothing: float = 0.0,
        holdout: float = 0.1,
        holdout_most: int | None = 2000,
        train_limit: int | None = None,
        eval_limit: int | None = None,
        revision: str | None = None,
        workers: int = 0,
    ) -> None:
        self.options: dict[str, Any] = {
            "source": source,
            "dataset": dataset,
            "data_dir": data_dir,
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "image_size": image_size,
            "crop_ratio": crop_ratio,
            "interpolation": interpolation,
            "normalization": normalization,
            "mean": mean,
            "std": std,
            "train_crop": train_crop,
            "min_scale": min_scale,
            "flip": flip,
            "rand_augment": rand_augment,
            "rand_augment_magnitude": rand_augment_magnitude,
            "color_jitter": color_jitter,
            "random_erasing": random_erasing,
            "mixup": mixup,
            "cutmix": cutmix,
            "label_smoothing": label_smoothing,
            "holdout": holdout,
            "holdout_most": holdout_most,
            "train_limit": train_limit,
            "eval_limit": eval_limit,
            "revision": revision,
            "workers": workers,
        }

    def parts(self) -> list[Task]:
        """The set, as one part of its name."""
        return [ImageTask(self.options)]


class ImageTask(Task):
    """One image set. Images are read when a split is first needed, so scoring needs no training image.

    A prediction is the ids of the five best classes, the best first (fewer where there are fewer classes).
    """

    primary = "accuracy"

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.options = dict(options)
        self.name = options["dataset"]
        self.classes = imagenet.classes(options)
        self.higher_is_better = dict.fromkeys(("accuracy", "top5") if self.classes >= RANKED else ("accuracy",), True)
        self.inputs = Inputs("image", (3, options["image_size"], options["image_size"]))
        self.outputs = Outputs("classes", self.classes)
        self.reported = (imagenet.reported(options),)
        self.own_select = "select" in imagenet.splits(options)
        self.selects_on_reported = options["holdout"] == 0 and not self.own_select
        self.notes: dict[str, int] = {}
        self._splits: dict[str, Images] = {}
        self._look: Look | None = None
        self._seed = 0

    def bind(self, backbone: Backbone, seed: int) -> None:
        """Take over how the network wants its images, and the seed of order and augmentation."""
        if backbone.reads != "image":
            raise UserError(f"task {self.name} is images; this model reads text")
        self._look = look(self.options, getattr(backbone, "image", None))
        self._seed = derive(seed, "data", self.name)

    def split(self, name: str) -> Images:
        """The images of ``train``, ``select`` or the reported split."""
        if name not in self._splits:
            if name == "select" and self.selects_on_reported:
                return self.split(self.reported[0])
            if name not in {"train", "select", *self.reported}:
                raise KeyError(f"{self.name} has no split {name!r}")
            keys = ("source", "dataset", "data_dir", "revision", "holdout", "holdout_most", "train_limit", "eval_limit")
            key = ("imagenet", name, *(self.options[key] for key in keys))
            for found, images in warm.keep(key, lambda: self._load(name)).items():
                self._splits[found] = images
                self.notes.update({f"{found}.{what}": count for what, count in images.notes.items()})
        return self._splits[name]

    def _load(self, name: str) -> dict[str, Images]:
        """The split, and the other one of ``train`` and ``select`` where both are of the training images."""
        options = self.options
        found = {name: imagenet.load(options, "train" if name == "select" and not self.own_select else name)}
        if name in {"train", "select"} and not self.own_select and not self.selects_on_reported:
            train, select = hold_out(found[name], options["holdout"], options["holdout_most"])
            if not len(train):
                raise UserError(f"task.holdout={options['holdout']} leaves no training image of {self.name}")
            found = {"train": train, "select": dataclasses.replace(select, notes={})}
        most = {"train": options["train_limit"]}
        return {key: limit(images, most.get(key, options["eval_limit"])) for key, images in found.items()}

    def size(self, split: str) -> int:
        """Number of images of a split."""
        return len(self.split(split))

    def train_dataloader(self) -> DataLoader:  # type: ignore[override]
        images = self.split("train")
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        order = EpochDraws(len(images), self.options["batch_size"], self._seed, rank, world)
        batches = TrainingBatches(images, self.options, self._bound(), self.classes, self._seed)
        return ResumableLoader(Positions(len(images), batches), order, self.options["workers"])

    def eval_dataloader(self, split: str) -> DataLoader:
        """Every image of a split once, in file order."""
        images = self.split(split)
        order = Batches([0] * len(images), self.options["eval_batch_size"])
        batches = ScoringBatches(images, self.options, self._bound())
        return evaluation_loader(Positions(len(images), batches), order, self.options["workers"])

    def _bound(self) -> Look:
        assert self._look is not None, "bind comes first"
        return self._look

    def loss(self, backbone: Backbone, batch: dict[str, Any]) -> Tensor:
        """Cross-entropy in float32, of class ids or of the shares of classes that Mixup and CutMix give."""
        outputs = backbone(batch).float()
        return F.cross_entropy(outputs, batch["labels"], label_smoothing=self.options["label_smoothing"])

    def predict(self, outputs: Tensor) -> Tensor:
        """Scores (batch, classes) -> ids (batch, 5) of the best, in the order of ``torch.topk``; with a NaN all -1."""
        broken = outputs.isnan().any(dim=1, keepdim=True)
        return outputs.topk(min(RANKED, self.classes), dim=1).indices.masked_fill(broken, -1)

    def score(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """Shares of images whose class is the best, and among the five best; NaN of no images."""
        items = _hits(predictions, references)
        return {name: float(items[name].mean()) if len(references) else float("nan") for name in self.higher_is_better}

    def item_scores(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """Per image: whether its class was among the five best (top-1 follows from prediction and reference)."""
        return {"top5": _hits(predictions, references)["top5"]} if "top5" in self.higher_is_better else {}


def _hits(predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
    """float64 (n,): 1 where right."""
    hit = predictions == references[:, None]
    return {"accuracy": hit[:, 0].astype(np.float64), "top5": hit[:, :RANKED].any(axis=1).astype(np.float64)}
