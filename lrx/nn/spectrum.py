"""Singular values, ranks and subspace angles of weight updates, in float64.

A factored update s B A, B (m, r), A (r, n), is taken apart without forming it: with B = Q R (QR, (m, r)) and
A^T = P S ((n, r)), s B A = Q (s R S^T) P^T, so the singular values are those of the r x r core and the left singular
vectors are Q times the core's.
"""

from __future__ import annotations

import torch
from torch import Tensor


def factored_svd(B: Tensor, A: Tensor, scaling: float = 1.0) -> tuple[Tensor, Tensor]:
    """Singular values (q,), descending, and left singular vectors (m, q) of ``scaling * B A``; q = min(m, r, n).

    Cost O((m + n) r^2 + r^3); no m x n temporary.
    """
    Q, R = torch.linalg.qr(_double(B))
    _, S = torch.linalg.qr(_double(A).mT)
    left, values, _ = torch.linalg.svd(scaling * (R @ S.mT), full_matrices=False)
    return values, Q @ left


def dense_svd(update: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values (q,), descending, and left singular vectors (m, q) of an (m, n) matrix; q = min(m, n)."""
    left, values, _ = torch.linalg.svd(_double(update), full_matrices=False)
    return values, left


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values (min(m, n),), descending."""
    return torch.linalg.svdvals(_double(matrix))


def numerical_rank(values: Tensor, m: int, n: int) -> int:
    """How many singular values stand out from rounding: above max(m, n) * eps times the largest."""
    if not values.numel() or not values[0] > 0:
        return 0
    return int((values > max(m, n) * torch.finfo(values.dtype).eps * values[0]).sum())


def effective_rank(values: Tensor) -> float:
    """exp(-sum p log p) with p = values / sum(values): the effective rank of Roy and Vetterli (EUSIPCO 2007).

    Between 1 and the rank; r for r equal values. 0 for a zero matrix, which has no distribution.
    """
    total = values.sum()
    if not total > 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def stable_rank(values: Tensor) -> float:
    """``||.||_F^2 / ||.||_2^2`` = sum(values^2) / values[0]^2; 0 for a zero matrix."""
    if not values.numel() or not values[0] > 0:
        return 0.0
    return float((values / values[0]).square().sum())


def principal_angles(U: Tensor, V: Tensor) -> Tensor:
    """The min(p, q) principal angles in radians, ascending, between the spans of U (m, p) and V (m, q).

    Columns must be orthonormal. Cosines are exact for large angles only and sines for small ones, so each is used
    where it is (Bjorck and Golub, Math. Comp. 1973). Empty when either space is.
    """
    if not U.shape[1] or not V.shape[1]:
        return U.new_zeros(0)
    if U.shape[1] < V.shape[1]:
        U, V = V, U
    cosines = torch.linalg.svdvals(U.mT @ V).clamp(max=1.0)
    sines = torch.linalg.svdvals(V - U @ (U.mT @ V)).clamp(max=1.0).flip(0)
    return torch.where(cosines.square() < 0.5, torch.arccos(cosines), torch.arcsin(sines))


def _double(matrix: Tensor) -> Tensor:
    return matrix.detach().to("cpu", torch.float64)  # not every device has float64
