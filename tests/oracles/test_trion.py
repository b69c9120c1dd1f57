"""Trion against its equations, matrix by matrix, in NumPy float64."""

import numpy as np
import pytest
import scipy.fft
import torch
from torch import nn

from lrx.methods.dct_adamw import Trion, TrionOptimizer
from lrx.nn.optim import state_bytes
from tests.oracles.matrices import assert_follows, problems, trace

torch.set_num_threads(1)
R, LR, DECAY, MU = 3, 0.02, 0.1, 0.9


def newton_schulz(X, steps=5):
    X = X / (np.linalg.norm(X) + 1e-7)
    for _ in range(steps):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X


def factor(m, n, scale):
    return {"kj": max(1, m / n) ** 0.5, "kimi": 0.2 * max(m, n) ** 0.5, "dion": (m / n) ** 0.5, "none": 1}[scale]


def literal(W, gradient, steps, *, scale="kj", norm="l1", basis="dct2", rank=R):
    """Rows of a wide matrix are chosen without transposing it."""
    m, n = W.shape
    right, d = m >= n, min(m, n)
    C = scipy.fft.dct(np.eye(d), axis=0, norm="ortho")
    Q = C.T if basis == "dct2" else C
    M = np.zeros((m, n))
    found = []
    for t in range(steps):
        B = M + gradient(t, W)
        S = B @ Q if right else Q.T @ B
        score = np.linalg.norm(S, ord=1 if norm == "l1" else 2, axis=0 if right else 1)
        Qr = Q[:, np.argsort(-score)[:rank]]
        b = B @ Qr if right else Qr.T @ B
        kept = b @ Qr.T if right else Qr @ b
        M = MU * kept + (B - kept)
        U = newton_schulz(b) @ Qr.T if right else Qr @ newton_schulz(b)
        W = (1 - LR * DECAY) * W - LR * factor(m, n, scale) * U
        found.append(W)
    return found


def ours(given, steps, dtype=torch.float64, **options):
    return trace(
        lambda ps: TrionOptimizer(ps, **({"lr": LR, "weight_decay": DECAY, "rank": R, "mu": MU} | options)),
        given,
        steps,
        dtype,
    )


@pytest.mark.parametrize("scale", ["kj", "kimi", "dion", "none"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize(("transform", "basis"), [("fft", "dct2"), ("matmul", "dct2"), ("matmul", "dct3")])
def test_steps_equal_the_equations(scale, norm, transform, basis):
    given = problems()
    found, _ = ours(given, 12, scale=scale, norm=norm, transform=transform, basis=basis)
    assert_follows(found, [literal(*one, 12, scale=scale, norm=norm, basis=basis) for one in given], 1e-8)


@pytest.mark.parametrize("shape", [(10, 6), (6, 10)])
def test_at_full_rank_it_is_muon_with_a_momentum_that_decays(shape):
    """Invariant 7: M becomes mu B, and U = NS(B C) C^T."""
    ((start, gradient),) = given = problems([shape])
    found, optimizer = ours(given, 1, rank=6, weight_decay=0.0, scale="none")
    (p,) = optimizer.param_groups[0]["params"]
    B = gradient(0, start)
    np.testing.assert_allclose(optimizer.state[p]["momentum"].numpy(), MU * B, atol=1e-12)
    np.testing.assert_allclose(start - found[0][0], LR * newton_schulz(B), atol=1e-10)


def test_the_residual_stays_in_the_momentum():
    """Invariants 7 and 8: M = mu B_kept + (B - B_kept), the step within the span of the chosen vectors."""
    ((start, gradient),) = given = problems([(10, 6)])
    found, optimizer = ours(given, 1, weight_decay=0.0)
    (p,) = optimizer.param_groups[0]["params"]
    B, step = gradient(0, start), start - found[0][0]
    assert np.linalg.matrix_rank(step, tol=1e-10) == R
    P = np.linalg.pinv(step, rcond=1e-8) @ step  # onto the chosen vectors
    np.testing.assert_allclose(optimizer.state[p]["momentum"].numpy(), MU * B @ P + B - B @ P, atol=1e-9)


def test_state_is_one_momentum():
    _, optimizer = ours(problems([(10, 7)]), 2, torch.float32)
    assert state_bytes(optimizer) == 4 * 70
    assert Trion(lr=LR).state_per_matrix(10, 7) == 70


def test_bfloat16_iterations_are_a_percent_or_two_away():
    given = problems([(24, 16)])
    (a, _), (b, _) = ours(given, 8, torch.float32), ours(given, 8, torch.float32, half=True)
    move = np.linalg.norm(a[-1][0] - given[0][0])
    assert 1e-4 < np.linalg.norm(a[-1][0] - b[-1][0]) / move < 0.05


def test_a_gradient_that_is_not_finite_reaches_the_weights():
    p = nn.Parameter(torch.ones(6, 5))
    p.grad = torch.ones(6, 5)
    p.grad[2, 3] = torch.nan
    TrionOptimizer([p], lr=0.1, rank=2).step()
    assert p.isnan().any()
