"""Matrices kept in 8 or 4 bits per entry, with a scale of its own for each row."""

from __future__ import annotations

import torch
from torch import Tensor


def quantize(X: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """X (..., m, n) as (codes, range): 255 or 15 equal steps between each row's minimum and maximum.

    ``codes``: uint8 (..., m, n) for 8 bits; for 4 two neighbours in a byte, (..., m, ceil(n / 2)). ``range``: (..., m,
    2), each row's minimum and step. A row with an entry that is not finite gets a range that is not finite.
    """
    low, high = X.aminmax(dim=-1, keepdim=True)
    size = (high - low) / (2**bits - 1)
    codes = ((X - low) / torch.where(size > 0, size, torch.ones_like(size)) + 0.5).floor()
    codes = codes.nan_to_num(0).clamp_(0, 2**bits - 1).to(torch.uint8)
    if bits == 4:
        if X.shape[-1] % 2:
            codes = torch.nn.functional.pad(codes, (0, 1))
        codes = codes[..., ::2] << 4 | codes[..., 1::2]
    return codes, torch.cat([low, size], dim=-1)


def dequantize(codes: Tensor, range: Tensor, bits: int, n: int) -> Tensor:
    """The matrix (..., m, n) of ``quantize``, in the type of ``range``."""
    if bits == 4:
        codes = torch.stack([codes >> 4, codes & 15], dim=-1).flatten(-2)[..., :n]
    low, size = range.unbind(-1)
    return codes.to(range.dtype).mul_(size.unsqueeze(-1)).add_(low.unsqueeze(-1))
