"""Batches of guided depth super-resolution.

A batch: ``image`` (b, 3, H, W) float32 in [0, 1]; ``depth_low`` (b, 1, H/s, W/s) and ``depth`` (b, 1, H, W) float32;
``valid`` (b, 1, H, W) bool; ``span`` (b,) float64, what a depth of 1 is in the unit of the metrics; ``index`` (b,)
int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrx.data.depth_sr import Scenes
from lrx.seeds import derive


class Whole:
    """Positions of images of one size -> a batch."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def __call__(self, positions: Sequence[int]) -> dict[str, Tensor]:
        return collate(self.scenes, positions, [self.scenes.image(i) for i in positions])


class Patches:
    """(epoch, place) pairs -> a batch of patches of ``side`` pixels, of whole images where it is None.

    A map's patch and its low-resolution counterpart are cut at the same place, a multiple of the factor. ``origin``:
    the image of each place; an image has as many places as patches cover it. Corner and flips are a function of
    (``seed``, epoch, place).
    """

    def __init__(self, scenes: Scenes, side: int | None, flip: float, seed: int) -> None:
        self.scenes, self.side, self.flip, self.seed = scenes, side, flip, seed
        areas = [height * width for height, width in map(scenes.shape, range(len(scenes)))]
        self.origin = [i for i, area in enumerate(areas) for _ in range(max(1, area // side**2) if side else 1)]

    def __call__(self, drawn: Sequence[Any]) -> dict[str, Tensor]:
        positions = [self.origin[place] for _, place in drawn]
        cut = [self._cut(i, derive(self.seed, *pair)) for i, pair in zip(positions, drawn, strict=True)]
        return collate(self.scenes, positions, cut)

    def _cut(self, position: int, seed: int) -> dict[str, np.ndarray]:
        rng = np.random.RandomState(seed % 2**32)
        found, factor = self.scenes.image(position), self.scenes.factor
        height, width = self.scenes.shape(position)
        if self.side:
            top, left = (rng.randint((length - self.side) // factor + 1) * factor for length in (height, width))
            found = {key: _part(value, top, left, self.side, factor * (key == "low")) for key, value in found.items()}
        for axis in (1, 0):
            if rng.random_sample() < self.flip:
                found = {key: np.flip(value, axis) for key, value in found.items()}
        return found


def _part(value: np.ndarray, top: int, left: int, side: int, factor: int) -> np.ndarray:
    """A square of a map, in the smaller coordinates where ``factor`` is not 0."""
    f = factor or 1
    return value[top // f : (top + side) // f, left // f : (left + side) // f]


def collate(scenes: Scenes, positions: Sequence[int], images: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """The tensors of a batch."""

    def stacked(key: str) -> Tensor:
        return torch.from_numpy(np.stack([np.ascontiguousarray(image[key]) for image in images]))

    return {
        "image": stacked("pixels").permute(0, 3, 1, 2).float().div(255),
        "depth_low": stacked("low").unsqueeze(1),
        "depth": stacked("depth").unsqueeze(1),
        "valid": stacked("known").unsqueeze(1),
        "span": torch.tensor([scenes.span(i) for i in positions], dtype=torch.float64),
        "index": torch.as_tensor(list(positions), dtype=torch.int64),
    }
