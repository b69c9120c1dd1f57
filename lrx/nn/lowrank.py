"""Low-rank layers: a frozen matrix W (m, n) with a trainable update ``scaling * B A``, B (m, r), A (r, n)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Pair:
    """One adapted matrix as every low-rank method sees it: ``W + scaling * B A``.

    ``weight`` (m, n) is frozen; ``B`` (m, r) and ``A`` (r, n) are the trained factors; ``name`` is the adapted
    layer's name in the backbone.
    """

    name: str
    weight: Tensor
    B: nn.Parameter
    A: nn.Parameter
    scaling: float


class LowRankLinear(nn.Module):
    """``y = x W^T + bias + scaling * dropout(x) A^T B^T``, the LoRA layer (Hu et al. 2021, section 4.1).

    ``base``: the frozen ``nn.Linear`` with weight (m, n). ``A``: (rank, n), ``B``: (m, rank), both in ``dtype``
    (float32 by default) whatever the precision of ``base``: the factors' products run outside autocast, and only
    their sum with ``x W^T`` is rounded to the layer's output type. A starts Kaiming-uniform with a = sqrt(5), as in
    the official code, B at zero, so the layer starts as ``base`` exactly.

    ``forward``: x (..., n) -> (..., m).
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        scaling: float,
        *,
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        m, n = base.weight.shape
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
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    @property
    def weight(self) -> Tensor:
        """The frozen W: code that only asks a linear layer for its weight's type or device keeps working."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

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

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain linear layer with weight ``W + scaling * B A``, computed in float32 and rounded once."""
        delta = (self.B.float() @ self.A.float()) * self.scaling
        self.base.weight.copy_(self.base.weight.float() + delta)
        return self.base

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scaling={self.scaling:g}"


def lowrank_layers(root: nn.Module) -> Iterator[tuple[str, LowRankLinear]]:
    """Every ``LowRankLinear`` below ``root`` with its name, in registration order."""
    for name, module in root.named_modules():
        if isinstance(module, LowRankLinear):
            yield name, module


def pairs(root: nn.Module) -> list[Pair]:
    """The pairs (W, B, A) of every low-rank layer below ``root``."""
    return [Pair(name, layer.base.weight, layer.B, layer.A, layer.scaling) for name, layer in lowrank_layers(root)]


def replace_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` where ``root.get_submodule(name)`` stands."""
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, new)
