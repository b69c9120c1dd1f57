"""Features projected onto the column space of a thin matrix, without the N x N projection ever being formed.

    M (N, k) = Q R reduced,   Q^T Q = I_k,   Y = Q (Q^T F),   F and Y (N, C):  rank(Y) <= k

Y depends on M through its column space alone: it is the same for M G with any invertible G. Its derivative, with
P = Q Q^T and Z = dL/dY, is

    dL/dF = P Z,   dL/dM = (I - P)(Z F^T + F Z^T) Q R^{-T}

and grows without bound as columns of M become collinear. In ``R^{-T} = R (R^T R)^{-1}`` the backward pass therefore
uses ``R (R^T R + (damping s)^2 I)^{-1}`` with s^2 = ||R||_F^2 / k: at most 1 / (2 damping s) large, the exact
derivative for damping = 0. The forward pass is exact always; Householder's QR gives an orthonormal Q for a
rank-deficient M too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TINY = 1e-30  # so that M = 0 has a damped derivative of 0, not 0/0


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, thin: Tensor, damping: float) -> Tensor:
        Q, R = torch.linalg.qr(thin)
        ctx.save_for_backward(features, Q, R)
        ctx.damping = damping
        return Q @ (Q.mT @ features)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        F, Q, R = ctx.saved_tensors
        (Z,) = grads
        QZ, QF = Q.mT @ Z, Q.mT @ F  # (k, C)
        S = Z @ QF.mT + F @ QZ.mT  # (N, k)
        S = S - Q @ (Q.mT @ S)
        k = R.shape[-1]
        gram = R.mT @ R
        scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        damped = gram + (ctx.damping**2 * scale + TINY) * torch.eye(k, dtype=R.dtype, device=R.device)
        # S R (R^T R + d)^{-1}, the matrix in brackets symmetric.
        dM = torch.linalg.solve(damped, (S @ R).mT).mT if ctx.damping else _exact(S, R)
        return Q @ QZ, dM, None


def _exact(S: Tensor, R: Tensor) -> Tensor:
    """S R^{-T}."""
    return torch.linalg.solve_triangular(R.mT, S, upper=False, left=False)


def project(features: Tensor, thin: Tensor, damping: float = 1e-3) -> Tensor:
    """``features`` (..., N, C) projected onto the column space of ``thin`` (..., N, k), in float32 at least.

    ``damping``: of the derivative with respect to ``thin``; see above. O(N k (k + C)) per matrix.
    """
    with torch.autocast(features.device.type, enabled=False):
        kind = torch.promote_types(features.dtype, torch.float32)
        found: Tensor = _Project.apply(features.to(kind), thin.to(kind), damping)
    return found
