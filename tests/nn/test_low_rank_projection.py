"""The projection onto the columns of a thin matrix, in float64, and its derivative."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lrx.nn.low_rank_projection import project

N, C, K = 24, 6, 4


def matrices(seed: int = 0, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, N, C, generator=generator, dtype=torch.float64)
    return features, torch.randn(batch, N, K, generator=generator, dtype=torch.float64)


def projector(thin: Tensor) -> Tensor:
    """P (N, N): what becomes of the unit vectors."""
    return project(torch.eye(N, dtype=torch.float64).expand(len(thin), N, N), thin)


def test_it_is_the_orthogonal_projection_onto_the_columns() -> None:
    features, thin = matrices()
    for one, F, M in zip(project(features, thin), features.numpy(), thin.numpy(), strict=True):
        left = np.linalg.svd(M, full_matrices=False)[0]  # another orthonormal basis of the same columns
        np.testing.assert_allclose(one.numpy(), left @ (left.T @ F), atol=1e-12)
    P = projector(thin)
    torch.testing.assert_close(P, P.mT)
    torch.testing.assert_close(P @ P, P)
    torch.testing.assert_close(P.diagonal(dim1=1, dim2=2).sum(1), torch.full((2,), float(K), dtype=torch.float64))
    torch.testing.assert_close(P @ thin, thin)
    Q = torch.linalg.qr(thin.float())[0]
    assert (Q.mT @ Q - torch.eye(K)).abs().max() < 1e-5


def test_rank_norm_and_change_of_basis() -> None:
    features, thin = matrices(1)
    out = project(features, thin)
    assert (torch.linalg.matrix_rank(out) <= K).all()
    assert (out.norm(dim=(1, 2)) <= features.norm(dim=(1, 2))).all()
    basis = torch.randn(2, K, K, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    torch.testing.assert_close(project(features, thin @ basis), out)
    square = torch.randn(2, N, N, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    torch.testing.assert_close(project(features, square), features)  # k = N: the identity


def test_noise_outside_the_signal_s_space_is_scaled_by_k_over_n() -> None:
    generator = torch.Generator().manual_seed(2)
    basis = torch.randn(400, N, K, generator=generator, dtype=torch.float64)
    signal = basis @ torch.randn(400, K, C, generator=generator, dtype=torch.float64)
    noise = torch.randn(400, N, C, generator=generator, dtype=torch.float64)
    left = project(signal + noise, basis) - signal
    assert left.square().sum() / noise.square().sum() == pytest.approx(K / N, rel=0.03)


def gradients(features: Tensor, thin: Tensor, damping: float | None) -> tuple[Tensor, ...]:
    F, M = features.clone().requires_grad_(), thin.clone().requires_grad_()
    if damping is None:  # PyTorch's own rule through QR
        Q = torch.linalg.qr(M)[0]
        out = Q @ (Q.mT @ F)
    else:
        out = project(F, M, damping)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=out.dtype)
    return torch.autograd.grad((out.sin() * weights).sum(), (F, M))


def test_undamped_it_has_the_derivative_of_qr() -> None:
    features, thin = matrices(3)
    exact, damped = gradients(features, thin, None), gradients(features, thin, 1e-3)
    for ours, theirs in zip(gradients(features, thin, 0.0), exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(damped[0], exact[0])
    assert 0 < (damped[1] - exact[1]).norm() < 1e-4 * exact[1].norm()


@pytest.mark.parametrize("kind", ["twice the same column", "nearly", "one column zero", "zero"])
def test_a_rank_deficient_matrix_keeps_a_projection_and_a_bounded_derivative(kind: str) -> None:
    features, thin = (each.float() for each in matrices(4))
    if kind == "zero":
        thin = torch.zeros_like(thin)
    elif kind == "one column zero":
        thin[..., 1] = 0
    else:
        thin[..., 1] = thin[..., 0] + (1e-6 * thin[..., 1] if kind == "nearly" else 0)
    P = project(torch.eye(N).expand(2, N, N), thin)
    torch.testing.assert_close(P @ P, P, rtol=0, atol=1e-5)
    torch.testing.assert_close(P @ thin, thin, rtol=0, atol=1e-5)
    found = gradients(features, thin, 1e-3)
    assert all(each.isfinite().all() for each in found)
    # |S| |R (R^T R + d)^-1| with d = (1e-3 s)^2: at most |S| / (2e-3 s), s the columns' root mean square norm
    scale = thin.square().sum((1, 2)).div(K).sqrt()
    bound = 2 * features.norm() * found[0].new_tensor(N * C).sqrt() * 4 / (2e-3 * scale).clamp(min=1e-6)
    assert (found[1].norm(dim=(1, 2)) <= bound).all()
    if kind == "nearly":  # where PyTorch's own rule is far beyond what is useful
        assert gradients(features, thin, 0.0)[1].norm() > 100 * found[1].norm()


def test_half_precision_is_projected_in_float32() -> None:
    features, thin = (each.float() for each in matrices(8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = project(features.bfloat16(), thin)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, project(features.bfloat16().float(), thin))
