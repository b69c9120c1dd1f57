"""Dion against its equations, matrix by matrix, in NumPy float64."""

import numpy as np
import pytest
import torch
from torch import nn

from lrx.methods.dion import Dion, DionOptimizer
from lrx.nn.optim import state_bytes
from tests.oracles.matrices import SHAPES, assert_follows, problems, trace

torch.set_num_threads(1)
R, LR, DECAY, MU, SEED = 3, 0.02, 0.1, 0.9, 5


def literal(W, gradient, steps, *, place, transposed=False):
    m, n = W.shape
    turned = transposed and m < n
    Q = torch.randn(m if turned else n, R, generator=torch.Generator().manual_seed(SEED + place)).double().numpy()
    M = np.zeros((m, n))
    found = []
    for t in range(steps):
        M = M + gradient(t, W)
        X = M.T if turned else M
        P, _ = np.linalg.qr(X @ Q)
        R_ = X.T @ P
        X = X - (1 - MU) * P @ R_.T
        M = X.T if turned else X
        Q = R_ / (np.linalg.norm(R_, axis=0) + 1e-8)
        U = Q @ P.T if turned else P @ Q.T
        W = (1 - LR * DECAY) * W - LR * np.sqrt(m / n) * U
        found.append(W)
    return found


def ours(given, steps, dtype=torch.float64, **options):
    return trace(
        lambda ps: DionOptimizer(ps, lr=LR, weight_decay=DECAY, rank=R, mu=MU, seed=SEED, **options),
        given,
        steps,
        dtype,
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_steps_equal_the_equations(transposed):
    given = problems()
    found, _ = ours(given, 12, transposed=transposed)
    assert_follows(found, [literal(*one, 12, place=i, transposed=transposed) for i, one in enumerate(given)], 1e-8)


def test_wide_matrices_transposed_are_the_tall_ones():
    """One problem and its transpose, apart from the shape factor and the random start."""
    ((start, gradient),) = problems([(12, 7)])
    mirrored = [(start.T.copy(), lambda t, W: gradient(t, W.T).T)]
    found, _ = ours([(start, gradient)], 1)
    turned, _ = ours(mirrored, 1, transposed=True)
    keep = 1 - LR * DECAY
    step, other = keep * start - found[0][0], keep * start.T - turned[0][0]
    np.testing.assert_allclose(step / np.sqrt(12 / 7), other.T / np.sqrt(7 / 12), atol=1e-10)


def test_a_step_has_rank_r_and_unit_columns():
    found, optimizer = ours(problems([(12, 8)]), 3)
    (p,) = optimizer.param_groups[0]["params"]
    step = (found[1][0] * (1 - LR * DECAY) - found[2][0]) / (LR * np.sqrt(12 / 8))
    values = np.linalg.svd(step, compute_uv=False)
    assert values[R] < 1e-10
    np.testing.assert_allclose(np.square(values).sum(), R, atol=1e-6)  # P orthonormal, columns of Q of length 1
    np.testing.assert_allclose(optimizer.state[p]["Q"].norm(dim=0), 1, atol=1e-6)


def test_power_iterations_find_the_leading_space_of_a_constant_gradient():
    U, V = (np.linalg.qr(np.random.default_rng(i).normal(size=(9, 9)))[0] for i in (0, 1))
    G = (U * 0.3 ** np.arange(9)) @ V.T
    _, optimizer = ours([(np.zeros((9, 9)), lambda t, W: G)], 10)
    (p,) = optimizer.param_groups[0]["params"]
    Q, _ = np.linalg.qr(optimizer.state[p]["Q"].numpy())
    assert np.linalg.svd(Q.T @ V[:, :R], compute_uv=False).min() > 0.99


def test_state_is_a_momentum_and_a_basis():
    _, optimizer = ours(problems([(7, 10)]), 2, torch.float32)
    assert state_bytes(optimizer) == 4 * (70 + 10 * R)
    assert Dion(lr=LR, rank=R).state_per_matrix(7, 10) == 70 + 10 * R
    assert Dion(lr=LR, rank=R, wide="transposed").state_per_matrix(7, 10) == 70 + 7 * R


def test_the_start_is_a_function_of_the_seed_and_the_place():
    given = problems()
    for seed, same in ((SEED, True), (SEED + 100, False)):
        other, _ = trace(
            lambda ps, seed=seed: DionOptimizer(ps, lr=LR, weight_decay=DECAY, rank=R, mu=MU, seed=seed), given, 2
        )
        for i, (a, b) in enumerate(zip(ours(given, 2)[0][-1], other[-1], strict=True)):
            assert np.array_equal(a, b) == same, SHAPES[i]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_reaches_the_weights(value):
    p = nn.Parameter(torch.ones(6, 5))
    p.grad = torch.ones(6, 5)
    p.grad[2, 3] = value
    DionOptimizer([p], lr=0.1, rank=2, seed=0).step()
    assert p.isnan().any()


def test_a_zero_gradient_moves_nothing_and_does_no_harm():
    p = nn.Parameter(torch.ones(6, 5))
    optimizer = DionOptimizer([p], lr=0.1, rank=2, seed=0)
    p.grad = torch.zeros(6, 5)
    optimizer.step()
    assert torch.equal(p, torch.ones(6, 5))
    p.grad = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert p.isfinite().all()
    assert not torch.equal(p, torch.ones(6, 5))
