"""Long convolutions by the fast Fourier transform."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def fast_length(least: int) -> int:
    """The smallest 2^a 3^b 5^c >= ``least``, lengths for which the transform is fast."""
    best = 1 << max(least - 1, 0).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            quotient = -(-least // three)
            best = min(best, three << (quotient - 1).bit_length())
            three *= 3
        five *= 5
    return best


def long_conv(u: Tensor, kernels: Tensor) -> Tensor:
    """``u`` (batch, H, L) with ``kernels`` (1 or 2, H, K), each channel with its own -> (batch, H, L).

    One kernel: y_t = sum_j k_j u_{t-j}, causal. The second, of a bidirectional layer, reads the future from the next
    step on: y_t += sum_j k'_j u_{t+1+j}. Half precision is computed in float32. Gradients reach ``u`` and ``kernels``.
    """
    length, longest = u.shape[-1], kernels.shape[-1]
    kernels = kernels[..., : min(longest, length)]
    size = fast_length(length + kernels.shape[-1])
    whole = torch.nn.functional.pad(kernels[0], (0, size - kernels.shape[-1]))
    if len(kernels) == 2:  # lag -1-j of a circular convolution stands at its end
        whole = whole + torch.nn.functional.pad(kernels[1].flip(-1), (size - kernels.shape[-1], 0))
    kind = torch.promote_types(u.dtype, torch.float32)
    return _Circular.apply(u.to(kind), whole.to(kind)).to(u.dtype)


class _Circular(torch.autograd.Function):
    """The circular convolution of u (batch, H, L), padded to the length of k (H, n), cut to L.

    Its backward pass takes three real transforms; PyTorch's own takes complex ones of the whole length.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, k: Tensor) -> Tensor:
        size, length = k.shape[-1], u.shape[-1]
        with torch.autocast(u.device.type, enabled=False):
            fu, fk = torch.fft.rfft(u, n=size), torch.fft.rfft(k)
            ctx.save_for_backward(fu, fk)
            ctx.size, ctx.length = size, length
            return torch.fft.irfft(fu * fk, n=size)[..., :length]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        fu, fk = ctx.saved_tensors
        fg = torch.fft.rfft(grad, n=ctx.size)
        gu = torch.fft.irfft(fg * fk.conj(), n=ctx.size)[..., : ctx.length] if ctx.needs_input_grad[0] else None
        gk = torch.fft.irfft((fg * fu.conj()).sum(0), n=ctx.size) if ctx.needs_input_grad[1] else None
        return gu, gk
