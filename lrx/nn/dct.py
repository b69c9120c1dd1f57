"""The discrete cosine basis, and the choice of the few basis vectors that a matrix is most aligned with.

The orthogonal matrix C (d, d), C_ij = sqrt(2/d) cos(pi i (2j + 1) / (2d)) with row 0 divided by sqrt(2), has the DCT-II
basis as rows and the DCT-III basis as columns. Coefficients in the DCT-II basis come from one real FFT of each row
("A fast cosine transform in one and two dimensions", Makhoul, IEEE ASSP 1980), O(d log d) operations whatever the
number of vectors that are chosen; in either basis from one product with a d x d matrix.
"""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Basis = Literal["dct2", "dct3"]
Norm = Literal["l1", "l2"]
Transform = Literal["fft", "matmul"]
CHUNK = 2**17  # elements that a CPU transforms at a time: above and below it is slower


@functools.lru_cache(maxsize=32)
def basis_vectors(d: int, basis: Basis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal basis (d, d), one vector a row: C for ``dct2``, its transpose for ``dct3``.

    One copy for each size, shared by all matrices of it: not to be written to. Computed in float64.
    """
    i = torch.arange(d)
    # The cosine's period is 4 d: reduced as integers, the argument stays exact however large d is.
    angle = (i[:, None] * (2 * i + 1)) % (4 * d)
    C = math.sqrt(2 / d) * torch.cos(angle.double() * (math.pi / (2 * d)))
    C[0] *= math.sqrt(0.5)
    return (C if basis == "dct2" else C.T).to(device=device, dtype=dtype).contiguous()


class _Tables(NamedTuple):
    """``twiddle`` (d // 2 + 1,): factors after the FFT. DCT-II coefficient j is ``sign[j]`` times entry ``place[j]`` of
    the real and imaginary parts, interleaved."""

    twiddle: Tensor
    place: Tensor
    sign: Tensor


@functools.lru_cache(maxsize=32)
def _tables(d: int, dtype: torch.dtype, device: torch.device) -> _Tables:
    j = torch.arange(d)
    k = torch.arange(d // 2 + 1)
    scale = torch.full((d // 2 + 1,), math.sqrt(2 / d), dtype=torch.float64)
    scale[0] = math.sqrt(1 / d)
    twiddle = torch.polar(scale, -math.pi / (2 * d) * k.double())
    upper = j > d // 2  # from the conjugate: coefficient d - k is minus the imaginary part of entry k
    place = torch.where(upper, 2 * (d - j) + 1, 2 * j)
    sign = torch.where(upper, -1.0, 1.0)
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    return _Tables(twiddle.to(device, complex_dtype), place.to(device), sign.to(device, dtype))


def _packed(X: Tensor) -> Tensor:
    """The DCT-II coefficients of the rows of X (..., d) before they are put in order, (..., 2 (d // 2 + 1)).

    A few rows at a time, so that what one step of the transform writes is still in the cache for the next.
    """
    d, tables = X.shape[-1], _tables(X.shape[-1], X.dtype, X.device)
    rows = X.reshape(-1, d)
    packed = torch.empty(len(rows), d // 2 + 1, dtype=tables.twiddle.dtype, device=X.device)
    many = max(1, CHUNK // d) if X.device.type == "cpu" else len(rows)
    for start in range(0, len(rows), many):
        x = rows[start : start + many]
        z = torch.fft.rfft(torch.cat([x[:, ::2], x[:, 1::2].flip(-1)], dim=-1))
        torch.mul(z, tables.twiddle, out=packed[start : start + many])
    return torch.view_as_real(packed).view(*X.shape[:-1], -1)


def dct(X: Tensor) -> Tensor:
    """Orthonormal DCT-II of the rows of X (..., d), float32 or float64: ``X C^T`` by FFT."""
    tables = _tables(X.shape[-1], X.dtype, X.device)
    return _packed(X).index_select(-1, tables.place) * tables.sign


def select(
    X: Tensor, rank: int, *, norm: Norm = "l1", basis: Basis = "dct2", transform: Transform = "fft"
) -> tuple[Tensor, Tensor]:
    """The ``rank`` basis vectors on which the rows of X have the largest coefficients.

    X: (N, L, d) in float32 or float64. Of S = X Q, with the basis as columns of Q, the columns of largest ``norm`` are
    chosen; l2 is the choice of smallest error ||X - x Q_r^T||. Returns their numbers (N, rank) int64, ascending, and
    x = S[:, chosen] (N, L, rank). ``fft`` goes with ``dct2`` only. Raises ``ValueError`` otherwise.
    """
    if transform == "fft":
        if basis != "dct2":
            raise ValueError("only DCT-II coefficients come from an FFT; use transform='matmul'")
        S = _packed(X)
        tables = _tables(X.shape[-1], X.dtype, X.device)
        chosen = _largest(_scores(S, norm).index_select(-1, tables.place), rank)
        return chosen, _columns(S, tables.place[chosen]) * tables.sign[chosen].unsqueeze(-2)
    S = X @ basis_vectors(X.shape[-1], basis, X.dtype, X.device).T
    chosen = _largest(_scores(S, norm), rank)
    return chosen, _columns(S, chosen)


def vectors(chosen: Tensor, d: int, basis: Basis, dtype: torch.dtype) -> Tensor:
    """``Q_r^T`` (N, r, d): the basis vectors with the numbers ``chosen`` (N, r), as rows."""
    return basis_vectors(d, basis, dtype, chosen.device)[chosen]


def _scores(S: Tensor, norm: Norm) -> Tensor:
    """The columns' l1 norms, or their squared l2 norms: what ranks them. (``vector_norm`` takes ten times as long.)"""
    return S.abs().sum(-2) if norm == "l1" else S.square().sum(-2)


def _largest(scores: Tensor, rank: int) -> Tensor:
    return scores.topk(rank, dim=-1, sorted=False).indices.sort(dim=-1).values


def _columns(S: Tensor, chosen: Tensor) -> Tensor:
    """``S[i][:, chosen[i]]`` for S (N, L, d) and chosen (N, r): (N, L, r)."""
    return S.gather(-1, chosen.unsqueeze(-2).expand(-1, S.shape[-2], -1))


def carry(values: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Columns that belong to basis vectors ``old`` (N, r), put where those vectors stand in ``new`` (N, r).

    ``values`` (N, L, r) -> (N, L, r): ``values Q_old^T Q_new``, a partial permutation because the basis is orthogonal.
    Columns of vectors that are not in ``old`` are 0. Both lists must be ascending.
    """
    place = torch.searchsorted(old, new).clamp_max_(old.shape[-1] - 1)
    stays = old.gather(-1, place) == new
    return torch.where(stays.unsqueeze(-2), _columns(values, place), torch.zeros((), dtype=values.dtype))
