"""Small symmetric systems that low-rank optimizers solve at every step, batched over pairs of equal shape."""

from __future__ import annotations

import torch
from torch import Tensor


def gram_inverse(gram: Tensor, damping: float) -> Tensor:
    """``(gram + damping I)^-1`` for Gram matrices ``gram = X X^T`` (N, r, r), in their own type.

    One batched Cholesky factorisation. The r x r inverse is formed because applying it to a wide right-hand side is one
    batched product: ``cholesky_solve`` goes matrix by matrix and takes four to ten times as long on a CPU.

    Without damping, and for a matrix that is not positive definite in its own precision (rounding that exceeds the
    damping), it is the Moore-Penrose inverse, by eigendecomposition: the projected gradient is then the least-squares
    solution of smallest norm, and B = 0 gives 0. (Cholesky cannot tell: it often factors a singular matrix, with a
    pivot of rounding noise.) A matrix with non-finite entries gets NaN, so that a diverged run shows up in its loss
    instead of as an error of LAPACK. The test for definiteness waits for the device once per call.

    ``gram`` must be float32 or float64 (half-precision Gram inverses are meaningless); ``damping`` >= 0.
    """
    if damping == 0:
        return _pinv(gram)
    damped = gram.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(damping)
    L, info = torch.linalg.cholesky_ex(damped)
    indefinite = info != 0
    if not indefinite.any():
        return torch.cholesky_inverse(L)
    inverse = torch.empty_like(gram)
    inverse[indefinite] = _pinv(damped[indefinite])
    inverse[~indefinite] = torch.cholesky_inverse(L[~indefinite])
    return inverse


def _pinv(gram: Tensor) -> Tensor:
    """Moore-Penrose inverses of symmetric (N, r, r); NaN where a matrix has non-finite entries."""
    values, vectors = symmetric_eigh(gram)
    return symmetric_pinv(values, vectors)


def symmetric_eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (N, r), clamped at 0, and eigenvectors (N, r, r) of positive semidefinite matrices (N, r, r).

    A matrix with non-finite entries, for which LAPACK raises, gets NaN eigenvectors.
    """
    finite = gram.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    values, vectors = torch.linalg.eigh(torch.where(finite, gram, torch.zeros_like(gram)))
    return values.clamp_min(0), torch.where(finite, vectors, torch.full_like(vectors, torch.nan))


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
