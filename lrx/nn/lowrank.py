"""Low-rank layers: a frozen matrix W (m, n) with a trainable update ``scaling * B A``, B (m, r), A (r, n)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Pair:
    """One adapted matrix as every low-rank method sees it: ``W + scaling * B A``.

    ``weight`` (m, n) is frozen, of a convolution its kernels as rows (m, channels h w); ``B`` (m, r) and ``A`` (r, n)
    are the trained factors; ``name`` is the adapted layer's name in the backbone.
    """

    name: str
    weight: Tensor
    B: nn.Parameter
    A: nn.Parameter
    scaling: float


class LowRank(nn.Module):
    """A frozen layer with the matrix W (m, n) and the factors of its update: ``A`` (rank, n) and ``B`` (m, rank).

    ``base``: the layer, frozen here. The factors are in ``dtype`` (float32 by default) whatever the precision of
    ``base``: their products run outside autocast, and only their sum with the base's output is rounded to its type. A
    starts Kaiming-uniform with a = sqrt(5), as in the official code of LoRA, B at zero, so the layer starts as ``base``
    exactly.
    """

    base: Any  # an nn.Linear or nn.Conv2d

    def __init__(
        self,
        base: nn.Linear | nn.Conv2d,
        rank: int,
        scaling: float,
        *,
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        m, n = matrix(base).shape
        if not 1 <= rank <= min(m, n):
            raise ValueError(f"rank {rank} does not fit a {m} x {n} matrix: it must lie in 1..{min(m, n)}")
        self.base = base.requires_grad_(False)
        self.rank, self.scaling = rank, scaling
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        device = base.weight.device
        self.A = nn.Parameter(torch.empty(rank, n, dtype=dtype, device=device))
        self.B = nn.Parameter(torch.zeros(m, rank, dtype=dtype, device=device))
        # kaiming_uniform_(a=sqrt(5)) on (rank, n) is U(-1/sqrt(n), 1/sqrt(n)); drawn on the CPU so that every device
        # starts from the same factors.
        bound = 1 / math.sqrt(n)
        draw = torch.rand(rank, n, dtype=torch.float32, generator=generator)
        with torch.no_grad():
            self.A.copy_((2 * draw - 1) * bound)

    @property
    def weight(self) -> Tensor:
        """The frozen weight: code that only asks a layer for its weight's type or device keeps working."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The plain layer with the matrix ``W + scaling * B A``, computed in float32 and rounded once."""
        delta = (self.B.float() @ self.A.float()) * self.scaling
        weight = self.base.weight
        weight.copy_(weight.float() + delta.view(weight.shape))
        return self.base

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scaling={self.scaling:g}"


class LowRankLinear(LowRank):
    """``y = x W^T + bias + scaling * dropout(x) A^T B^T``, the LoRA layer (Hu et al. 2021, section 4.1).

    ``forward``: x (..., n) -> (..., m).
    """

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        with torch.autocast(x.device.type, enabled=False):
            h = F.linear(self.dropout(x).to(self.A.dtype), self.A)
            if y.dtype == self.B.dtype:  # one fused call instead of a product, a scaling and a sum
                update = torch.addmm(
                    y.reshape(-1, y.shape[-1]), h.reshape(-1, self.rank), self.B.t(), alpha=self.scaling
                )
                return update.view_as(y)
            return y + (F.linear(h, self.B) * self.scaling).to(y.dtype)


class LowRankConv2d(LowRank):
    """A convolution whose kernel (m, c, h, w), read as a matrix W (m, n) with n = c h w, has a low-rank update.

    The rows of A are ``rank`` kernels (c, h, w) with the stride, padding and dilation of ``base``; B then mixes their
    outputs point by point. So ``y = base(x) + scaling * B * (A * dropout(x))``, which is the convolution with the
    kernel ``W + scaling * B A``; the layer of PEFT, whose ``lora_A`` and ``lora_B`` are the same numbers in the shapes
    (rank, c, h, w) and (m, rank, 1, 1). ``base`` must not be grouped. ``forward``: (batch, c, H, W) -> (batch, m, H',
    W').
    """

    def __init__(self, base: nn.Conv2d, *args: Any, **kwargs: Any) -> None:
        if base.groups != 1:
            raise ValueError(f"a convolution in {base.groups} groups has no single m x n matrix")
        super().__init__(base, *args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        with torch.autocast(x.device.type, enabled=False):
            h = self._convolve(self.dropout(x).to(self.A.dtype), self.A.view(-1, *self.base.weight.shape[1:]))
            update = F.conv2d(h * self.scaling, self.B[:, :, None, None])
            return y + update.to(y.dtype)

    def _convolve(self, x: Tensor, kernels: Tensor) -> Tensor:
        """What ``base`` does, with other kernels and without bias."""
        if type(self.base).forward is nn.Conv2d.forward:
            return self.base._conv_forward(x, kernels, None)
        # A subclass with a forward of its own, such as timm's convolutions that pad as TensorFlow does.
        tensors = {"weight": kernels}
        if self.base.bias is not None:
            tensors["bias"] = kernels.new_zeros(len(kernels))
        return torch.func.functional_call(self.base, tensors, (x,))


def matrix(layer: nn.Module) -> Tensor:
    """The weight of a linear layer or convolution as a matrix (m, n), a view; n = inputs, or channels h w."""
    weight: Any = layer.weight
    return weight.flatten(1)


def lowrank_layers(root: nn.Module) -> Iterator[tuple[str, LowRank]]:
    """Every low-rank layer below ``root`` with its name, in registration order."""
    for name, module in root.named_modules():
        if isinstance(module, LowRank):
            yield name, module


def pairs(root: nn.Module) -> list[Pair]:
    """The pairs (W, B, A) of every low-rank layer below ``root``."""
    return [Pair(name, matrix(layer.base), layer.B, layer.A, layer.scaling) for name, layer in lowrank_layers(root)]


def replace_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` where ``root.get_submodule(name)`` stands."""
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, new)
