"""Enlarging a depth map without training: bicubic, and joint bilateral upsampling.

Bicubic is PIL's filter (a = -1/2), in PyTorch. "Joint bilateral upsampling", Kopf et al., SIGGRAPH 2007: a pixel p of
the enlarged map is a mean of the low-resolution pixels q around it, in a window of (2 radius + 1)^2::

    D(p) = sum_q D_lr(q) f(|p / s - q|) g(|I(p) - I(q)|) / sum_q f g,   f and g Gaussians of sigma_space and sigma_range

with distances in low-resolution pixels and colours in [0, 1]. Departure: the colour of q is the mean of the image over
q's block, where the paper takes the image's pixel at q. Trained: nothing.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrx.errors import UserError
from lrx.models.base import Backbone, Inputs, Model, Outputs
from lrx.models.gdnet import DepthBackbone, refuse


class Interpolation(Model):
    """``kind``: bicubic or joint_bilateral; the rest is of the latter."""

    name: ClassVar[str] = "interpolation"
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        kind: Literal["bicubic", "joint_bilateral"] = "bicubic",
        radius: int = 2,
        sigma_space: float = 0.5,
        sigma_range: float = 0.1,
        weights: Literal["random"] = "random",
    ) -> None:
        if radius < 1:
            raise UserError(f"model.radius={radius}: must be at least 1")
        for key, value in (("sigma_space", sigma_space), ("sigma_range", sigma_range)):
            if not value > 0:
                raise UserError(f"model.{key}={value}: must be above 0")
        self.kind, self.radius, self.sigma_space, self.sigma_range = kind, radius, sigma_space, sigma_range
        self.weights = weights

    def build(self, inputs: Inputs, outputs: Outputs, seed: int) -> Backbone:
        """Raises ``UserError`` for a task of another kind."""
        refuse(inputs, outputs)
        if self.kind == "bicubic":
            net: nn.Module = Bicubic(inputs.factor)
        else:
            net = JointBilateral(inputs.factor, self.radius, self.sigma_space, self.sigma_range)
        return DepthBackbone(net, head=[], roles={}, reads="depth")


class Bicubic(nn.Module):
    """(batch, 3, H, W) and (batch, 1, H/factor, W/factor) -> (batch, 1, H, W)."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: Tensor, low: Tensor) -> Tensor:
        return enlarge(low, image.shape[-2:])


class JointBilateral(nn.Module):
    """As ``Bicubic``, guided by the image. One pass over the image for each place of the window."""

    def __init__(self, factor: int, radius: int, sigma_space: float, sigma_range: float) -> None:
        super().__init__()
        self.factor, self.radius = factor, radius
        self.sigma_space, self.sigma_range = sigma_space, sigma_range

    def forward(self, image: Tensor, low: Tensor) -> Tensor:
        s, r = self.factor, self.radius
        height, width = low.shape[-2:]
        guide = F.avg_pool2d(image, s)
        # Outside the map there is nothing: weight 0.
        padded = F.pad(torch.cat([guide, low, torch.ones_like(low)], dim=1), (r, r, r, r))
        within = (
            torch.arange(s, device=low.device, dtype=low.dtype) + 0.5
        ) / s - 0.5  # of a pixel, from its block's middle
        total, weights = torch.zeros_like(image[:, :1]), torch.zeros_like(image[:, :1])
        for dy in range(-r, r + 1):
            for dx in range(-r, r + 1):
                there = padded[..., r + dy : r + dy + height, r + dx : r + dx + width]
                there = there.repeat_interleave(s, dim=-2).repeat_interleave(s, dim=-1)
                space = (within - dy).square()[:, None] + (within - dx).square()
                space = space.repeat(height, width) / (2 * self.sigma_space**2)
                colour = (image - there[:, :3]).square().sum(1, keepdim=True) / (2 * self.sigma_range**2)
                # The middle's weight would vanish too where a pixel's colour is far from all around it.
                weight = (-space - colour).exp().clamp(min=1e-30) * there[:, 4:]
                total, weights = total + weight * there[:, 3:4], weights + weight
        return total / weights


def enlarge(low: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """(batch, 1, h, w) -> (batch, 1, *size) by PIL's bicubic filter."""
    return F.interpolate(low, size=tuple(size), mode="bicubic", align_corners=False, antialias=True)
