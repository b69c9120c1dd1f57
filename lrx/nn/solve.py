"""Small symmetric systems that low-rank optimizers solve at every step, batched over pairs of equal shape."""

from __future__ import annotations

import torch
from torch import Tensor


def gram_inverse(gram: Tensor, damping: float) -> Tensor:
    """``(gram + damping I)^-1`` for Gram matrices ``gram = X X^T`` (N, r, r), in their own type.

    One batched Cholesky factorisation. The r x r inverse is formed because applying it to a wide right-hand side is one
    batched product: ``cholesky_solve`` goes matrix by matrix and takes four to ten times as long on a CPU.

    A matrix that is not positive definite in its own precision (only rank-deficient factors without damping, or
    rounding that exceeds the damping) gets its Moore-Penrose inverse instead, which makes the projected gradient the
    least-squares solution of smallest norm; B = 0 thus gives 0. A matrix with non-finite entries gets NaN, so that a
    diverged run shows up in its loss instead of as an error of LAPACK. The test for singular matrices waits for the
    device once per call.

    ``gram`` must be float32 or float64 (half-precision Gram inverses are meaningless); ``damping`` >= 0.
    """
    r = gram.shape[-1]
    damped = gram.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(damping)
    L, info = torch.linalg.cholesky_ex(damped)
    singular = info != 0
    if damping == 0:
        # Without damping a matrix that is singular in exact arithmetic often factors, with a pivot of rounding noise.
        pivots = L.diagonal(dim1=-2, dim2=-1)
        singular |= pivots.amin(-1) ** 2 <= r * torch.finfo(gram.dtype).eps * pivots.amax(-1) ** 2
    if not singular.any():
        return torch.cholesky_inverse(L)
    inverse = torch.full_like(gram, torch.nan)
    regular = ~singular
    if regular.any():
        inverse[regular] = torch.cholesky_inverse(L[regular])
    solvable = singular & damped.isfinite().all(-1).all(-1)
    if solvable.any():
        inverse[solvable] = torch.linalg.pinv(damped[solvable], hermitian=True)
    return inverse


def symmetric_pinv(values: Tensor, vectors: Tensor) -> Tensor:
    """Moore-Penrose inverse of ``vectors diag(values) vectors^T``, (N, r) and (N, r, r) -> (N, r, r).

    Eigenvalues up to ``r * eps`` times the largest count as zero, as in ``torch.linalg.pinv``.
    """
    cutoff = values.shape[-1] * torch.finfo(values.dtype).eps * values.abs().amax(-1, keepdim=True)
    inverse = torch.where(values > cutoff, 1 / values, torch.zeros_like(values))
    return (vectors * inverse.unsqueeze(-2)) @ vectors.mT


def symmetric_sylvester(P: tuple[Tensor, Tensor], Q: tuple[Tensor, Tensor], C: Tensor) -> Tensor:
    """X with ``P X + X Q = C`` for symmetric positive semidefinite P, Q given as (eigenvalues, eigenvectors).

    Shapes (N, r) and (N, r, r); C, X: (N, r, r). Components in the common null space of P and Q, which the equation
    does not determine, are zero.
    """
    (p, U), (q, V) = P, Q
    total = p.unsqueeze(-1) + q.unsqueeze(-2)  # in eigenbases the equation reads (p_i + q_j) X_ij = C_ij
    quotient = torch.where(total > 0, (U.mT @ C @ V) / total, torch.zeros_like(C))
    return U @ quotient @ V.mT
