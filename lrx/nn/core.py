"""Low-rank layers of which only a small core is trained: ``W + scaling * B R A`` with fixed B (m, r) and A (r, n)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrx.nn.lowrank import LowRank, LowRankConv2d, LowRankLinear, Pair, matrix


class Core(LowRank):
    """A low-rank layer whose ``A`` and ``B`` are fixed and whose ``R`` (rank, rank) is trained.

    It starts with R = 0, so as ``base`` exactly, until ``start`` gives it bases. The product is that of a plain
    low-rank layer with B R in the place of B (``change``).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.A.requires_grad_(False)
        self.B.requires_grad_(False)
        self.R = nn.Parameter(self.A.new_zeros(self.rank, self.rank))

    @torch.no_grad()
    def start(self, B: Tensor, R: Tensor, A: Tensor) -> None:
        """Take B (m, rank), R (rank, rank) and A (rank, n)."""
        self.B.copy_(B)
        self.R.copy_(R)
        self.A.copy_(A)

    def change(self) -> tuple[Tensor, Tensor]:
        """B R (m, rank) and A (rank, n), whose product is what is added to W, but for the scaling."""
        return self.B @ self.R, self.A


class CoreLinear(Core, LowRankLinear):
    """``y = x W^T + bias + scaling * dropout(x) A^T R^T B^T``. ``forward``: x (..., n) -> (..., m)."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        with torch.autocast(x.device.type, enabled=False):
            h = F.linear(F.linear(self.dropout(x).to(self.A.dtype), self.A), self.R)
            return y + (F.linear(h, self.B) * self.scaling).to(y.dtype)


class CoreConv2d(Core, LowRankConv2d):
    """A convolution whose kernel as a matrix (m, c h w) has the update. (batch, c, H, W) -> (batch, m, H', W')."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        with torch.autocast(x.device.type, enabled=False):
            h = self._convolve(self.dropout(x).to(self.A.dtype), self.A.view(-1, *self.base.weight.shape[1:]))
            h = F.conv2d(h, (self.R * self.scaling)[:, :, None, None])
            return y + F.conv2d(h, self.B[:, :, None, None]).to(y.dtype)


@dataclass(frozen=True, kw_only=True)
class CorePair(Pair):
    """One adapted matrix ``W + scaling * B R A`` of which ``R`` (r, r) is trained and ``B``, ``A`` are fixed."""

    R: nn.Parameter

    def change(self) -> tuple[Tensor, Tensor]:
        return self.B @ self.R, self.A


def core_pairs(root: nn.Module) -> list[CorePair]:
    """The matrices W, B, R, A of every layer with a trained core below ``root``."""
    return [
        CorePair(name, matrix(layer.base), layer.B, layer.A, layer.scaling, R=layer.R)
        for name, layer in core_layers(root)
    ]


def core_layers(root: nn.Module) -> Iterator[tuple[str, Core]]:
    """Every layer with a trained core below ``root`` with its name, in registration order."""
    for name, module in root.named_modules():
        if isinstance(module, Core):
            yield name, module


def bases(root: nn.Module) -> dict[str, Tensor]:
    """The fixed A and B of every such layer by parameter name: not trained, but no part of the pretrained network."""
    return {f"{name}.{key}": getattr(layer, key).detach() for name, layer in core_layers(root) for key in ("A", "B")}
