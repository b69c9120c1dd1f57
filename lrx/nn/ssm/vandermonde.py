"""Discretisation of diagonal systems and sums of their powers, without a tensor of (channels, modes, length).

    (1)  ZOH:       z = exp(dt A),                     b = (exp(dt A) - 1) / A
    (2)  bilinear:  z = (1 + dt A / 2) / (1 - dt A / 2),  b = dt / (1 - dt A / 2)
    (3)  K_l = sum_m 2 Re(w_m z_m^l),  l = 0..L-1

With l = i T + j the sum (3) is, for each channel, a product of two real matrices (L/T x 2M) and (2M x T):
Re(w z^(iT) z^j) = Re(w z^(iT)) Re(z^j) - Im(w z^(iT)) Im(z^j). At T near sqrt(L) that takes 4 M sqrt(L) sines and
cosines a channel instead of 2 M L, and as little memory; the rest is the matrix product. What has the size
(channels, modes) is computed in float64, phases included: at l = 16,384 a phase in float32 is off by 0.003 rad.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def discretise(A: Tensor, dt: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """(log z, b) of eq. (1) or (2), complex128 (H, M), for ``A`` complex128 (H, M) or (M,) and ``dt`` (H, 1)."""
    w = dt.double() * A
    if method == "zoh":
        return w, expm1(w) / A
    a, b = w.real / 2, w.imag / 2
    size = torch.log1p(4 * a / ((1 - a).square() + b.square())) / 2  # log|z|, accurate for |z| near 1
    return torch.complex(size, torch.atan2(2 * b, 1 - a.square() - b.square())), dt.double() / (1 - w / 2)


def expm1(w: Tensor) -> Tensor:
    """exp(w) - 1 of a complex tensor, accurate for small w."""
    x, y = w.real, w.imag
    return torch.complex(torch.expm1(x) * torch.cos(y) - 2 * torch.sin(y / 2).square(), torch.exp(x) * torch.sin(y))


def power_sums(weights: Tensor, log_z: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Eq. (3): ``weights`` complex (H, c, M), ``log_z`` complex128 (H, M) -> (H, c, length) real of type ``dtype``."""
    channels, count, modes = weights.shape
    inner = 1 << round(math.log2(length) / 2)
    outer = -(-length // inner)
    right = _Powers.apply(log_z, inner, 1, dtype)
    left = _Powers.apply(log_z, outer, inner, dtype)
    wr, wi = (2 * weights.real).to(dtype), (2 * weights.imag).to(dtype)
    wr, wi = wr.transpose(1, 2).unsqueeze(-1), wi.transpose(1, 2).unsqueeze(-1)
    re, im = left[:, 0].unsqueeze(2), left[:, 1].unsqueeze(2)  # (H, M, 1, L/T)
    mixed = torch.stack([wr * re - wi * im, -(wr * im + wi * re)], dim=1)  # (H, 2, M, c, L/T)
    rows = mixed.reshape(channels, 2 * modes, count * outer).transpose(1, 2)
    with torch.autocast(rows.device.type, enabled=False):
        sums = torch.bmm(rows, right.reshape(channels, 2 * modes, inner))
    return sums.reshape(channels, count, outer * inner)[..., :length]


class _Powers(torch.autograd.Function):
    """z^(stride j), j < count, as real and imaginary part: log_z complex128 (H, M) -> (H, 2, M, count)."""

    @staticmethod
    def forward(ctx: Any, log_z: Tensor, count: int, stride: int, dtype: torch.dtype) -> Tensor:
        steps = torch.arange(count, device=log_z.device, dtype=torch.float64) * stride
        turns = (log_z.imag / (2 * math.pi)).unsqueeze(-1) * steps
        phase = ((turns - turns.round()) * (2 * math.pi)).to(dtype)
        size = torch.exp((log_z.real.unsqueeze(-1) * steps).to(dtype))
        powers = torch.stack([size * torch.cos(phase), size * torch.sin(phase)], dim=1)
        ctx.save_for_backward(powers, steps.to(dtype))
        return powers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        powers, steps = ctx.saved_tensors
        gr, gi, zr, zi = grad[:, 0], grad[:, 1], powers[:, 0], powers[:, 1]
        real = (gr * zr + gi * zi) @ steps
        imaginary = (gi * zr - gr * zi) @ steps
        return torch.complex(real.double(), imaginary.double()), None, None, None
