"""Moving a low-rank product into the frozen matrix of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from lrx.nn.lowrank import LowRank


@torch.no_grad()
def absorb(layer: LowRank, left: Tensor, right: Tensor) -> None:
    """``W <- W + scaling left right`` for left (m, q) and right (q, n), in place.

    Where W has another type than the factors (half precision) the sum is made in theirs and rounded once.
    """
    weight = layer.base.weight
    if weight.ndim == 2 and weight.dtype == left.dtype:
        weight.addmm_(left, right, alpha=layer.scaling)  # no m x n temporary
    else:
        delta = (left @ right).mul_(layer.scaling)
        weight.copy_(weight.to(delta.dtype) + delta.view(weight.shape))
