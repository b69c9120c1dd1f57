"""The leading singular triplets of a matrix, exactly or by randomised subspace iteration."""

from __future__ import annotations

import torch
from torch import Tensor


def truncated_svd(
    matrix: Tensor,
    rank: int,
    *,
    iterations: int | None = None,
    oversample: int = 0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, rank), S (rank,) descending and V (n, rank) of a matrix (m, n), in at least float32.

    ``iterations`` None: LAPACK's decomposition. Otherwise Algorithms 4.4 and 5.1 of Halko, Martinsson and Tropp (2011)
    with a Gaussian sketch of rank + ``oversample`` columns from ``generator`` and so many subspace iterations, in
    O(m n rank iterations) operations: what ``torch.svd_lowrank`` computes, from the same random numbers to rounding.
    The sketch is drawn on the CPU so that every device starts from the same one. Signs: the largest entry of each
    column of U is positive, as in scikit-learn. A matrix with non-finite entries gives NaN instead of LAPACK's error;
    on the meta device only the shapes are right.
    """
    X = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
    m, n = X.shape
    if X.is_meta:
        return X.new_empty(m, rank), X.new_empty(rank), X.new_empty(n, rank)
    if not X.isfinite().all():
        return X.new_full((m, rank), torch.nan), X.new_full((rank,), torch.nan), X.new_full((n, rank), torch.nan)
    if iterations is None:
        U, S, Vt = torch.linalg.svd(X, full_matrices=False)
        V = Vt.mT
    else:
        tall = X if m >= n else X.mT
        q = min(rank + oversample, m, n)
        sketch = torch.randn(min(m, n), q, dtype=X.dtype, generator=generator).to(X.device)
        Q = torch.linalg.qr(tall @ sketch).Q
        for _ in range(iterations):
            Q = torch.linalg.qr(tall @ torch.linalg.qr(tall.mT @ Q).Q).Q
        inner, S, Vt = torch.linalg.svd(Q.mT @ tall, full_matrices=False)
        U, V = (Q @ inner, Vt.mT) if m >= n else (Vt.mT, Q @ inner)
    U, S, V = U[:, :rank], S[:rank], V[:, :rank]
    largest = U.gather(0, U.abs().argmax(0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(U.dtype)
    return U * signs, S, V * signs
