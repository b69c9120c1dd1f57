"""The transforms of image classification, from torchvision, and batches whose randomness has nothing to be stored.

Training: RandomResizedCrop and a flip, then what is asked for of RandAugment, colour jitter and random erasing;
scoring: the shorter side resized to round(size / crop_ratio), one centre crop. Images stay uint8 until they are a
batch, which is then scaled to [0, 1] and normalised. Resizing is torchvision's on tensors, with antialiasing; it
differs from Pillow's by a grey level here and there.

Every random number of an image is drawn from a generator seeded with (seed, epoch, index of the image), so a run that
was interrupted sees the images of one that was not, whatever the number of workers. Mixup and CutMix mix the images of
a batch, with (seed, epoch, index of the batch's first image).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from lrx.data.images_store import Images
from lrx.data.loader import EpochBatches
from lrx.errors import UserError
from lrx.seeds import derive

# Of the field: ImageNet's channel means and deviations, and the ones that map [0, 1] to [-1, 1].
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Look:
    """How a network wants its images: ``interpolation`` of resizing, ``mean`` and ``std`` of each channel in [0, 1]."""

    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def look(options: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> Look:
    """What ``options`` say, or, where they say ``model``, what the network was trained with (``Backbone.image``).

    A network that says nothing (random weights) gets ImageNet's values and bilinear resizing. Raises ``UserError`` for
    values that no image has.
    """
    wanted = wanted or {}
    interpolation = options["interpolation"]
    if interpolation == "model":
        interpolation = str(wanted.get("interpolation", "bilinear"))
    chosen = options["normalization"]
    if chosen == "own":
        mean, std = tuple(options["mean"]), tuple(options["std"])
    elif chosen == "model":
        mean, std = tuple(wanted.get("mean", IMAGENET[0])), tuple(wanted.get("std", IMAGENET[1]))
    else:
        mean, std = {"imagenet": IMAGENET, "half": HALF}[chosen]
    if interpolation not in {mode.value for mode in v2.InterpolationMode}:
        raise UserError(f"the model asks for interpolation {interpolation!r}; give task.interpolation=bicubic, e.g.")
    return Look(interpolation, mean, std)


def scoring(options: Mapping[str, Any], seen: Look) -> v2.Compose:
    """uint8 (3, height, width) -> uint8 (3, size, size): resize, centre crop."""
    size = options["image_size"]
    mode = v2.InterpolationMode(seen.interpolation)
    resize = v2.Resize(round(size / options["crop_ratio"]), interpolation=mode, antialias=True)
    return v2.Compose([resize, v2.CenterCrop(size)])


def training(options: Mapping[str, Any], seen: Look) -> v2.Compose:
    """uint8 (3, height, width) -> uint8 (3, size, size), at random as ``options`` say."""
    size = options["image_size"]
    mode = v2.InterpolationMode(seen.interpolation)
    steps: list[Any] = list(scoring(options, seen).transforms)
    if options["train_crop"] == "random":
        scale = (options["min_scale"], 1.0)
        steps = [v2.RandomResizedCrop(size, scale=scale, interpolation=mode, antialias=True)]
    if options["flip"]:
        steps.append(v2.RandomHorizontalFlip(options["flip"]))
    if options["rand_augment"]:
        steps.append(v2.RandAugment(options["rand_augment"], options["rand_augment_magnitude"], interpolation=mode))
    if amount := options["color_jitter"]:
        steps.append(v2.ColorJitter(brightness=amount, contrast=amount, saturation=amount))
    return v2.Compose(steps)


class Finish:
    """A batch of uint8 images -> float32, in [0, 1], normalised."""

    def __init__(self, seen: Look) -> None:
        self.mean = torch.tensor(seen.mean).view(-1, 1, 1)
        self.std = torch.tensor(seen.std).view(-1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().div_(255).sub_(self.mean).div_(self.std)


class ScoringBatches:
    """Positions -> ``pixel_values`` (batch, 3, size, size) float32, ``labels`` and ``index`` (batch,) int64."""

    def __init__(self, images: Images, options: Mapping[str, Any], seen: Look) -> None:
        self.images, self.transform, self.finish = images, scoring(options, seen), Finish(seen)

    def __call__(self, positions: Sequence[int]) -> dict[str, Tensor]:
        pixels = torch.stack([self.transform(_tensor(self.images, i)) for i in positions])
        return {"pixel_values": self.finish(pixels), **_labels(self.images, positions)}


class TrainingBatches:
    """(epoch, position) pairs -> a batch as ``ScoringBatches`` makes it, augmented.

    With Mixup or CutMix ``labels`` are (batch, classes) float32: the shares of the classes.
    """

    def __init__(self, images: Images, options: Mapping[str, Any], seen: Look, classes: int, seed: int) -> None:
        self.images, self.transform, self.finish = images, training(options, seen), Finish(seen)
        self.seed = derive(seed, "augment")
        share = options["random_erasing"]
        self.erase = v2.RandomErasing(share, value="random") if share else None
        kinds = {"mixup": v2.MixUp, "cutmix": v2.CutMix}
        self.mixes = [
            kind(alpha=options[name], num_classes=classes) for name, kind in kinds.items() if options[name] > 0
        ]

    def __call__(self, drawn: Sequence[Any]) -> dict[str, Tensor]:
        positions = [position for _, position in drawn]
        seeds = [derive(self.seed, epoch, position) for epoch, position in drawn]
        generator = torch.default_generator  # torchvision's transforms draw from no other
        before = generator.get_state()
        try:
            pixels = torch.stack([self._augmented(i, seed) for i, seed in zip(positions, seeds, strict=True)])
            batch = {"pixel_values": self.finish(pixels), **_labels(self.images, positions)}
            if self.erase is not None:
                for image, seed in zip(batch["pixel_values"], seeds, strict=True):
                    generator.manual_seed(derive(seed, "erase"))
                    image.copy_(self.erase(image))
            if self.mixes:
                generator.manual_seed(derive(seeds[0], "mix"))
                mix = self.mixes[int(torch.randint(len(self.mixes), ()))]
                batch["pixel_values"], batch["labels"] = mix(batch["pixel_values"], batch["labels"])
        finally:
            generator.set_state(before)
        return batch

    def _augmented(self, position: int, seed: int) -> Tensor:
        torch.default_generator.manual_seed(seed)
        return self.transform(_tensor(self.images, position))


class EpochDraws(EpochBatches):
    """Batches of (epoch, position): a worker process does not know otherwise which epoch it works for."""

    def __iter__(self) -> Iterator[Any]:
        return iter([[(self.epoch, position) for position in batch] for batch in super().__iter__()])


def _tensor(images: Images, position: int) -> Tensor:
    """uint8 (3, height, width)."""
    return torch.from_numpy(images.pixels(position).copy()).permute(2, 0, 1)


def _labels(images: Images, positions: Sequence[int]) -> dict[str, Tensor]:
    labels = torch.from_numpy(images.labels[list(positions)].copy())
    return {"labels": labels, "index": torch.as_tensor(positions, dtype=torch.int64)}
