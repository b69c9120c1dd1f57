"""A plain guided U-Net: image and enlarged depth as four channels, to a correction of the enlarged depth.

"U-Net: Convolutional Networks for Biomedical Image Segmentation", Ronneberger et al. 2015, arXiv 1505.04597. Beside the
paper: padded convolutions, so that sizes stay; sums by concatenation as there; one convolution a level in the place of
two, and enlargement without weights, so that it has about as many parameters as GDNet of the same scale. The depth map
is enlarged bicubically, and the network's output is added to it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrx.errors import UserError
from lrx.models.base import Backbone, Inputs, Model, Outputs
from lrx.models.gdnet import DepthBackbone, refuse
from lrx.models.interpolation import enlarge


class DepthUNet(Model):
    """A network to be trained from scratch.

    ``width``: channels of the first level, twice as many at each of the ``depth`` levels below. ``guided``: whether it
    sees the image. ``weights``: there are only ``random`` ones.
    """

    name: ClassVar[str] = "depth_unet"
    version: ClassVar[int] = 1

    def __init__(
        self, *, width: int = 16, depth: int = 2, guided: bool = True, weights: Literal["random"] = "random"
    ) -> None:
        if width < 1 or not 1 <= depth <= 6:
            raise UserError(f"model.width={width}, model.depth={depth}: at least one channel, and 1 to 6 levels")
        self.width, self.depth, self.guided, self.weights = width, depth, guided, weights

    def build(self, inputs: Inputs, outputs: Outputs, seed: int) -> Backbone:
        """Raises ``UserError`` for a task of another kind."""
        refuse(inputs, outputs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = UNet(self.width, self.depth, self.guided, inputs.factor)
        return DepthBackbone(net, head=["last"], roles={}, reads="depth")


class UNet(nn.Module):
    """Image (batch, 3, H, W) and depth (batch, 1, H/factor, W/factor) -> depth (batch, 1, H, W)."""

    def __init__(self, width: int, depth: int, guided: bool, factor: int) -> None:
        super().__init__()
        self.guided, self.factor = guided, factor
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise([4 if guided else 1, *widths]))
        self.up = nn.ModuleList(nn.Conv2d(a + b, b, 3, padding=1) for b, a in reversed(list(pairwise(widths))))
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, image: Tensor, low: Tensor) -> Tensor:
        base = enlarge(low, image.shape[-2:])
        x = torch.cat([image, base], dim=1) if self.guided else base
        kept: list[Tensor] = []
        for level, layer in enumerate(self.down):
            x = torch.relu(layer(F.max_pool2d(x, 2, ceil_mode=True) if level else x))
            kept.append(x)
        kept.pop()
        for layer in self.up:
            beside = kept.pop()
            x = F.interpolate(x, size=beside.shape[-2:], mode="bilinear", align_corners=False)
            x = torch.relu(layer(torch.cat([x, beside], dim=1)))
        return base + self.last(x)
