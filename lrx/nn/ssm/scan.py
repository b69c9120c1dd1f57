"""The linear recurrence x_k = a x_{k-1} + v_k, x_{-1} = 0, one step after another and as a parallel scan.

"Simplified State Space Layers for Sequence Modeling", Smith et al., ICLR 2023, arXiv 2208.04933 (S5).

Elements (a_i, v_i) o (a_j, v_j) = (a_j a_i, a_j v_i + v_j) are associative. With the same a at every step, two
neighbours join to (a^2, a v_{2j} + v_{2j+1}); scanning half as many of them gives all odd x, and one step more the even
ones: 2 log2(L) operations on whole tensors, and twice the multiplications of the loop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def sequential_scan(a: Tensor, v: Tensor) -> Tensor:
    """The reference: ``a`` (P,), ``v`` (batch, L, P) -> x (batch, L, P)."""
    x, states = torch.zeros_like(v[:, 0]), []
    for step in v.unbind(1):
        x = a * x + step
        states.append(x)
    return torch.stack(states, dim=1)


def parallel_scan(a: Tensor, v: Tensor) -> Tensor:
    """The same states as ``sequential_scan`` in O(log L) operations. Gradients reach ``a`` and ``v``."""
    return _Scan.apply(a, v)


def _scan(a: Tensor, v: Tensor) -> Tensor:
    length = v.shape[1]
    if length == 1:
        return v
    even, odd = v[:, 0 : length - length % 2 : 2], v[:, 1::2]
    joined = _scan(a * a, torch.addcmul(odd, a, even))
    x = torch.empty_like(v)
    x[:, 1::2] = joined
    x[:, 0] = v[:, 0]
    if length > 2:
        x[:, 2::2] = torch.addcmul(v[:, 2::2], a, joined[:, : (length - 1) // 2])
    return x


class _Scan(torch.autograd.Function):
    """The adjoint of a scan is the scan with conj(a) from the end; nothing but x is kept for it."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, v: Tensor) -> Tensor:
        x = _scan(a, v)
        ctx.save_for_backward(a, x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:  # type: ignore[override]
        a, x = ctx.saved_tensors
        gv = _scan(a.conj(), grad.flip(1)).flip(1)
        ga = (gv[:, 1:] * x[:, :-1].conj()).sum((0, 1)) if ctx.needs_input_grad[0] else None
        return ga, gv
