"""Weight-decomposed low-rank layers (DoRA): every row of W0 + s B A is rescaled to a trained length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrx.nn.lowrank import LowRank, LowRankConv2d, LowRankLinear, lowrank_layers, matrix

# Elements of W that are converted at once where it is kept in half precision.
CHUNK = 2**20


class _DoRA(LowRank):
    """What linear layers and convolutions share: the magnitudes m (``magnitude``, (out,)) and the row norms.

    The matrix is ``diag(m / ||W + s B A||) (W + s B A)`` with the Euclidean norms of the rows; m starts at the rows'
    norms of W, so the layer starts as ``base`` exactly. ``detach_norm``: whether the norm counts as a constant in the
    gradient. Norms are kept above 0, so that a row of zeros starts as zeros and not as NaN.
    """

    detach_norm: bool = True
    squares: Tensor  # of the rows' norms of W

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        squares = self._over_rows(lambda rows: rows.square().sum(1)).to(self.A.dtype)
        self.register_buffer("squares", squares, persistent=False)
        with torch.no_grad():
            self.magnitude = nn.Parameter(self.norms())

    def _over_rows(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """``f`` of W in the factors' precision, (m, ...). A W in another precision is converted by and by."""
        W = matrix(self.base)
        if W.dtype == self.A.dtype:
            return f(W)
        return torch.cat([f(rows.to(self.A.dtype)) for rows in W.split(max(1, CHUNK // W.shape[1]))])

    def norms(self) -> Tensor:
        """The rows' norms of W + s B A, (m,), without forming it.

        ||w_i + s b_i A||^2 = ||w_i||^2 + 2 s b_i . (A w_i) + s^2 b_i (A A^T) b_i^T: O(m n r) operations and an m x r
        temporary.
        """
        A, B, s = self.A, self.B, self.scaling
        cross = self._over_rows(lambda rows: rows @ A.mT)
        squared = self.squares + (B * (2 * s * cross + s**2 * (B @ (A @ A.mT)))).sum(1)
        return squared.clamp_min(torch.finfo(A.dtype).tiny).sqrt()

    def rescaling(self) -> Tensor:
        """m / ||W + s B A||, (m,)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_norm):
            norms = self.norms()
        return self.magnitude / norms

    @torch.no_grad()
    def merged(self) -> nn.Module:
        weight = self.base.weight
        updated = matrix(self.base).float() + (self.B.float() @ self.A.float()) * self.scaling
        weight.copy_((updated * self.rescaling().float()[:, None]).view(weight.shape))
        return self.base


class DoRALinear(_DoRA, LowRankLinear):
    """``y = x W^T + bias + x' ((c - 1) W + c s B A)^T`` with c = m / ||W + s B A|| and x' = dropout(x).

    The layer of peft with ``use_dora``, which forms W + s B A (m, n) at every step, and B A from an n x n identity.
    ``forward``: x (..., n) -> (..., m).
    """

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        bias = self.base.bias
        dropped = self.dropout(x)
        without_bias = y if bias is None else y - bias
        plain = without_bias if dropped is x else F.linear(dropped, self.base.weight)
        with torch.autocast(x.device.type, enabled=False):
            c = self.rescaling()
            h = F.linear(dropped.to(self.A.dtype), self.A)
            update = (c - 1) * plain.to(c.dtype) + F.linear(h, self.B * (c * self.scaling)[:, None])
            return y + update.to(y.dtype)


class DoRAConv2d(_DoRA, LowRankConv2d):
    """The same of a convolution, whose kernels (c, h, w) are the rows. ``forward``: as ``LowRankConv2d``."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        bias = self.base.bias
        dropped = self.dropout(x)
        without_bias = y if bias is None else y - bias[:, None, None]
        plain = without_bias if dropped is x else self._convolve(dropped, self.base.weight)
        with torch.autocast(x.device.type, enabled=False):
            c = self.rescaling()
            h = self._convolve(dropped.to(self.A.dtype), self.A.view(-1, *self.base.weight.shape[1:]))
            mixed = F.conv2d(h, (self.B * (c * self.scaling)[:, None])[:, :, None, None])
            return y + ((c - 1)[:, None, None] * plain.to(c.dtype) + mixed).to(y.dtype)


def dora_layers(root: nn.Module) -> Iterator[_DoRA]:
    """Every weight-decomposed layer below ``root``, in registration order."""
    return (layer for _, layer in lowrank_layers(root) if isinstance(layer, _DoRA))
