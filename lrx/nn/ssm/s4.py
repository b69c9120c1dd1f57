"""S4: the kernel and the recurrence of a system that is diagonal plus rank one.

"Efficiently Modeling Long Sequences with Structured State Spaces", Gu, Goel, Re, ICLR 2022, arXiv 2111.00396.

For one channel with step dt, A = Lambda - P P*, M conjugate pairs of modes and bilinear discretisation

    (1)  Abar = (I - dt A/2)^-1 (I + dt A/2),  Bbar = (I - dt A/2)^-1 dt B

the kernel K_l = C Abar^l Bbar, l < L, has the generating function at the roots of unity w_k = exp(-2 pi i k / L)

    (2)  C~ = C (I - Abar^L)
    (3)  q_ab(w) = dt sum_n 2 a_n b_n / (2 (1-w) - dt Lambda_n (1+w)),  ab in {C~, P*} x {B, P}
    (4)  K^(w) = q_CB - q_CP q_PB (1+w) / (2 + (1+w) q_PP),  K = irfft(K^)

which is the paper's Woodbury identity multiplied out, so that nothing is divided by 1 + w (w = -1 is a node at even L).
A term of (3) is dt a b / (1 - dt Lambda/2) / (1 - w z) with z the discretised mode, and 1 / (1 - w z) is the transform
of z^l / (1 - z^L), l < L, at these nodes. So the four Cauchy sums (3) are taken as real transforms of four sums of
powers (``power_sums``): a matrix product and a transform instead of H M L divisions, equal to rounding.

What is learned is C~, as in the official code after its first step. It belongs to one length; ``lengthen`` takes it to
2 L by C~ (I + Abar^L). Departures: the official code computes C~ at the first forward pass, and lengthens it in place.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lrx.nn.ssm.hippo import Complex, Real
from lrx.nn.ssm.vandermonde import discretise, expm1, power_sums


def dplr_kernel(A: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Eq. (2) to (4): K (c, H, length) real, from C~ for exactly this ``length``.

    ``A``, ``P``, ``B`` complex128 (H, M) or (1, M), ``C`` complex (c, H, M), ``dt`` (H, 1).
    """
    channels, count = len(dt), len(C)
    log_z, b = discretise(A, dt, "bilinear")
    b = b / -expm1(length * log_z)
    pairs = [C * (B * b), C * (P * b), (P.conj() * B * b).unsqueeze(0), (P.conj() * P * b).unsqueeze(0)]
    weights = torch.cat([pair.expand(-1, channels, -1) for pair in pairs]).transpose(0, 1)
    q = torch.fft.rfft(power_sums(weights, log_z.expand(channels, -1), length, dtype))  # (H, 2c + 2, L/2 + 1)
    q_cb, q_cp, q_pb, q_pp = q[:, :count], q[:, count : 2 * count], q[:, -2:-1], q[:, -1:]
    angle = torch.arange(q.shape[-1], device=q.device, dtype=torch.float64) * (-2 * torch.pi / length)
    one_plus = torch.complex(1 + torch.cos(angle), torch.sin(angle)).to(q.dtype)
    return torch.fft.irfft(q_cb - q_cp * (q_pb * one_plus / (2 + one_plus * q_pp)), n=length).transpose(0, 1)


def dense(A: Complex, P: Complex, dt: Real) -> Complex:
    """Eq. (1): Abar (H, 2M, 2M) over the modes and their conjugates; ``A``, ``P`` (H, M), ``dt`` (H,)."""
    A, P = np.concatenate([A, A.conj()], -1), np.concatenate([P, P.conj()], -1)
    eye = np.eye(A.shape[-1])
    half = dt[:, None, None] / 2 * (A[..., None] * eye - P[..., None] * P.conj()[..., None, :])
    return np.linalg.solve(eye - half, eye + half)


def truncate(C: Complex, Abar: Complex, length: int) -> Complex:
    """Eq. (2): C~ from ``C`` (c, H, M) for a kernel of ``length``."""
    return C - _times(C, np.linalg.matrix_power(Abar, length))


def untruncate(C: Complex, Abar: Complex, length: int) -> Complex:
    """The C of eq. (2) from C~: what the recurrence reads out with."""
    system = np.eye(Abar.shape[-1]) - np.linalg.matrix_power(Abar, length)
    both = np.concatenate([C, C.conj()], -1).transpose(1, 2, 0)  # (H, 2M, c)
    return np.linalg.solve(system.transpose(0, 2, 1), both).transpose(2, 0, 1)[..., : C.shape[-1]]


def lengthen(C: Tensor, A: Tensor, P: Tensor, dt: Tensor, length: int) -> Tensor:
    """C~ for 2 ``length`` from C~ for ``length``, both (c, H, M); differentiable, O(N^3 log L) a channel."""
    modes = C.shape[-1]
    A, P = torch.cat([A, A.conj()], -1).expand(len(dt), -1), torch.cat([P, P.conj()], -1).expand(len(dt), -1)
    half = dt.double().unsqueeze(-1) / 2 * (torch.diag_embed(A) - P.unsqueeze(-1) * P.conj().unsqueeze(-2))
    eye = torch.eye(2 * modes, device=A.device, dtype=A.dtype)
    power = torch.linalg.matrix_power(torch.linalg.solve(eye - half, eye + half), length)
    both = torch.cat([C, C.conj()], -1)
    return C + torch.einsum("chn,hnm->chm", both, power)[..., :modes]


def dplr_step(x: Tensor, u: Tensor, A: Tensor, P: Tensor, B: Tensor, dt: Tensor) -> Tensor:
    """The next state of eq. (1) in O(M) a channel: ``x`` complex (batch, H, M), ``u`` real (batch, H).

    x' = (I - dt A/2)^-1 ((I + dt A/2) x + dt B u); the inverse of diagonal plus rank one is one again.
    """
    inner = 2 * (P.conj() * x).real.sum(-1, keepdim=True)  # P* x over the modes and their conjugates
    v = x + dt / 2 * (A * x - P * inner) + dt * B * u.unsqueeze(-1)
    scale = 1 / (1 - dt / 2 * A)
    v = scale * v
    top = 2 * (P.conj() * v).real.sum(-1, keepdim=True)
    below = 1 + dt * (P.conj() * scale * P).real.sum(-1, keepdim=True)
    return v - scale * P * (dt / 2 * top / below)


def _times(C: Complex, power: Complex) -> Complex:
    both = np.concatenate([C, C.conj()], -1).transpose(1, 0, 2)  # (H, c, 2M)
    return (both @ power).transpose(1, 0, 2)[..., : C.shape[-1]]
