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
    are the trained factors; ``name`` is the adapted layer's name in the backbone. ``B0``, ``A0``: of an anchored layer,
    whose matrix is ``W + scaling * (B A - B0 A0)``.
    """

    name: str
    weight: Tensor
    B: nn.Parameter
    A: nn.Parameter
    scaling: float
    B0: Tensor | None = None
    A0: Tensor | None = None

    def change(self) -> tuple[Tensor, Tensor]:
        """Factors (m, k) and (k, n) of what is added to ``weight``, but for the scaling; see ``change``."""
        return change(self.B, self.A, self.B0, self.A0)


def change(B: Tensor, A: Tensor, B0: Tensor | None, A0: Tensor | None) -> tuple[Tensor, Tensor]:
    """Factors of ``B A``, or of ``B A - B0 A0`` with an anchor: then of twice the rank, (m, 2 r) and (2 r, n).

    ``B A - B0 A0 = [B - B0, B0] [A; A - A0]``: in this form it is zero at the anchor to the last digit, and the large
    product ``B0 A0`` is never added and taken away again.
    """
    if B0 is None or A0 is None:
        return B, A
    return torch.cat([B - B0, B0], 1), torch.cat([A, A - A0])


class LowRank(nn.Module):
    """A frozen layer with the matrix W (m, n) and the factors of its update: ``A`` (rank, n) and ``B`` (m, rank).

    ``base``: the layer, frozen here. The factors are in ``dtype`` (float32 by default) whatever the precision of
    ``base``: their products run outside autocast, and only their sum with the base's output is rounded to its type. A
    starts Kaiming-uniform with a = sqrt(5), as in the official code of LoRA, B at zero, so the layer starts as ``base``
    exactly.

    An anchored layer (``anchor``) starts as ``base`` from any factors: its matrix is ``W + scaling * (B A - B0 A0)``
    with frozen copies ``B0``, ``A0`` of the factors at the start. W itself stays as it was, to the last bit.
    """

    base: Any  # an nn.Linear or nn.Conv2d
    B0: Tensor | None
    A0: Tensor | None

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
        self.register_buffer("B0", None)
        self.register_buffer("A0", None)

    @torch.no_grad()
    def anchor(self, B: Tensor | None = None, A: Tensor | None = None) -> None:
        """Put the factors at ``B`` (m, rank), ``A`` (rank, n) (None: where they are) and start as ``base`` there."""
        if B is not None:
            self.B.copy_(B)
        if A is not None:
            self.A.copy_(A)
        self.B0, self.A0 = self.B.detach().clone(), self.A.detach().clone()

    def change(self) -> tuple[Tensor, Tensor]:
        """Factors (m, k), (k, n) of what is added to W, but for the scaling; k is the rank, or with an anchor twice."""
        return change(self.B, self.A, self.B0, self.A0)

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
        B, A = self.change()
        delta = (B.float() @ A.float()) * self.scaling
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
            B, A = self.change()
            h = F.linear(self.dropout(x).to(A.dtype), A)
            if y.dtype == B.dtype:  # one fused call instead of a product, a scaling and a sum
                update = torch.addmm(y.reshape(-1, y.shape[-1]), h.reshape(-1, len(A)), B.t(), alpha=self.scaling)
                return update.view_as(y)
            return y + (F.linear(h, B) * self.scaling).to(y.dtype)


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
            B, A = self.change()
            h = self._convolve(self.dropout(x).to(A.dtype), A.view(-1, *self.base.weight.shape[1:]))
            update = F.conv2d(h * self.scaling, B[:, :, None, None])
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
    return [
        Pair(name, matrix(layer.base), layer.B, layer.A, layer.scaling, layer.B0, layer.A0)
        for name, layer in lowrank_layers(root)
    ]


def anchors(root: nn.Module) -> dict[str, Tensor]:
    """The frozen factors B0, A0 of every anchored layer below ``root``, by name: part of an adapter's state."""
    return {
        f"{name}.{key}": buffer
        for name, layer in lowrank_layers(root)
        for key, buffer in layer.named_buffers(recurse=False)
        if key in ("B0", "A0")
    }


def replace_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` where ``root.get_submodule(name)`` stands."""
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, new)
