"""LoRA-RITE against its equations pair by pair in NumPy float64, with QR factors as in the official code."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from lrx.methods.lora_rite import LoRARiteOptimizer, polar
from lrx.nn.lowrank import Pair
from tests.oracles.test_adaprelora import draw, give, gradient_of, pairs_of

torch.set_num_threads(1)
SHAPES = [(12, 9, 4), (7, 15, 4), (12, 9, 4), (6, 6, 2)]
SCALING = 2.0


class Side:
    """One factor of one pair as (width, r), with its state."""

    def __init__(self, width, other, r):
        self.V, self.M, self.Q, self.e = np.zeros((r, r)), np.zeros((width, r)), np.zeros((other, r)), 0.0


def listing(A, B, grads, steps, *, s, lr, gamma, betas, eps, escape, skip, clip, cap, balance):
    """What the official class computes, restated; returns for each pair the factors after each step.

    Run side by side in float64 over 40 steps, the real class and ours differed by at most 3e-13 (relative) for every
    combination of its options.
    """
    A, B = [a.copy() for a in A], [b.copy() for b in B]
    sides = [(Side(a.shape[1], len(b), len(a)), Side(len(b), a.shape[1], len(a))) for a, b in zip(A, B, strict=True)]
    traces = [[] for _ in A]
    for t in range(1, steps + 1):
        b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in betas)
        jobs = []
        for a, b, grad, (left, right) in zip(A, B, grads, sides, strict=True):
            G = grad(t - 1, a, b)
            for side, other, g in ((left, b, (s * b.T @ G).T), (right, a.T, s * G @ a.T)):
                Q, R = np.linalg.qr(other)
                inverse = np.linalg.pinv(R)
                U = g @ inverse
                if skip and np.sqrt(np.mean(U**2)) > skip:
                    U = np.zeros_like(U)
                jobs.append([side, Q, inverse, U])
        total = np.sqrt(sum(np.sum(U**2) for *_, U in jobs))
        steps_taken = []
        for side, Q, inverse, U in jobs:
            if clip and total > clip:
                U = U * clip / total
            P = Q.T @ side.Q
            carried = P @ side.V @ P.T
            if escape:
                eigenvalues = np.linalg.eigvalsh(side.V) - np.linalg.eigvalsh(carried)
                lost = min(np.max(eigenvalues), np.trace(side.V - carried))
                side.e = b2 * (side.e + max(0.0, lost))
            side.V = b2 * carried + (1 - b2) * U.T @ U / len(U)
            w, E = np.linalg.eigh(side.V)
            root = E @ np.diag(1 / (np.sqrt(np.maximum(w, 0) + side.e) + eps)) @ E.T
            side.M = b1 * side.M @ P.T + (1 - b1) * U @ root
            side.Q = Q
            D = side.M / max(1.0, np.sqrt(np.mean(side.M**2)) / cap) if cap else side.M
            steps_taken.append(D @ inverse.T)
        for i, (a, b) in enumerate(zip(A, B, strict=True)):
            a = a - lr * (steps_taken[2 * i].T + gamma * a)
            b = b - lr * (steps_taken[2 * i + 1] + gamma * b)
            if balance:
                x, y = np.linalg.norm(a) + 1e-6, np.linalg.norm(b) + 1e-6
                a, b = a * np.sqrt(y / x), b * np.sqrt(x / y)
            A[i], B[i] = a, b
            traces[i].append((a.copy(), b.copy()))
    return traces


def fast(A, B, grads, steps, *, s=SCALING, **options):
    pairs = pairs_of(A, B, s)
    optimizer = LoRARiteOptimizer(pairs, **options)
    traces = [[] for _ in pairs]
    for t in range(steps):
        give(pairs, grads, t)
        optimizer.step()
        for trace, pair in zip(traces, pairs, strict=True):
            trace.append((pair.A.detach().numpy().copy(), pair.B.detach().numpy().copy()))
    return traces


def deviation(ours, theirs):
    return max(
        np.abs(x - y).max() / max(np.abs(y).max(), 1e-12)
        for trace, other in zip(ours, theirs, strict=True)
        for a, b in zip(trace, other, strict=True)
        for x, y in zip(a, b, strict=True)
    )


OPTIONS = [
    {"escape": escape, "skip": skip, "clip": clip, "cap": cap, "balance": balance}
    for escape, skip, clip, cap, balance in itertools.product(
        [True, False], [0.0, 0.2], [0.0, 1.0], [0.0, 0.5], [False, True]
    )
]


@pytest.mark.parametrize("zero_b", [False, True], ids=["full_rank", "B_zero"])
def test_equals_the_listing(zero_b):
    A, B = draw(0, SHAPES, zero_b=zero_b)
    grads = [gradient_of(i, m, n) for i, (m, n, r) in enumerate(SHAPES)]
    common = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-6}
    for o in OPTIONS[:: 5 if zero_b else 3]:  # either stride meets every value of every option
        ours = fast(A, B, grads, 12, weight_decay=0.1, **common, **o)
        assert deviation(ours, listing(A, B, grads, 12, s=SCALING, gamma=0.1, **common, **o)) < 1e-8, o


@pytest.mark.parametrize("escape", [True, False])
def test_the_product_does_not_depend_on_the_factors(escape):
    A, B = draw(3, SHAPES)
    rng = np.random.default_rng(4)
    turns = [np.eye(r) + 0.3 * rng.standard_normal((r, r)) for _, _, r in SHAPES]
    grads = [gradient_of(i, m, n) for i, (m, n, r) in enumerate(SHAPES)]
    options = {"lr": 0.02, "weight_decay": 0.1, "escape": escape, "cap": 0.5}
    one = fast(A, B, grads, 25, **options)
    other = fast(
        [np.linalg.solve(q, a) for q, a in zip(turns, A, strict=True)],
        [b @ q for q, b in zip(turns, B, strict=True)], grads, 25, **options,
    )  # fmt: skip
    for p, q in zip(one, other, strict=True):
        for x, y in zip(p, q, strict=True):
            np.testing.assert_allclose(y[1] @ y[0], x[1] @ x[0], rtol=1e-7, atol=1e-9)
            assert np.abs(x[0] - y[0]).max() > 1e-3


def test_at_b_zero_a_stands_still():
    A, B = draw(5, SHAPES, zero_b=True)
    grads = [gradient_of(i, m, n) for i, (m, n, r) in enumerate(SHAPES)]
    for a, trace in zip(A, fast(A, B, grads, 1, lr=0.1), strict=True):
        np.testing.assert_array_equal(trace[0][0], a)
        assert np.abs(trace[0][1]).max() > 0


def test_the_first_step_is_orthonormal():
    """(U U^T / n)^(-1/2) U has rows of mean square 1, orthogonal to each other: the equilibration of its name."""
    A, B = draw(6, [(12, 9, 4)])
    trace = fast(A, B, [gradient_of(0, 12, 9)], 1, lr=1.0, skip=0.0, clip=0.0, eps=1e-12)
    _, R = np.linalg.qr(B[0])
    M = R @ (A[0] - trace[0][0][0])  # of (4), up to a rotation
    np.testing.assert_allclose(M @ M.T / 9, np.eye(4), atol=1e-6)


def test_clipping_takes_all_pairs_together():
    A, B = draw(7, SHAPES)
    grads = [gradient_of(i, m, n) for i, (m, n, r) in enumerate(SHAPES)]
    big = [lambda t, A, B, g=g: 100 * g(t, A, B) for g in grads]
    optimizer = LoRARiteOptimizer(pairs := pairs_of(A, B), lr=0.0, skip=0.0, clip=1.0)
    give(pairs, big, 0)
    optimizer.step()
    squares = 0.0
    for state in optimizer.state.values():  # V = U U^T / width after the first step
        squares += float(state["second"].trace()) * state["momentum"].shape[1]
    assert squares == pytest.approx(1.0)


def test_polar_of_a_rank_deficient_factor_is_its_pseudo_inverse():
    X = torch.randn(1, 4, 30, dtype=torch.float64)
    X[0, 3] = X[0, 2]
    inverse, Q = polar(X)
    torch.testing.assert_close(inverse @ X, Q)
    assert torch.linalg.matrix_rank(inverse[0]) == 3
    torch.testing.assert_close(Q.mT @ Q @ X.mT, X.mT, msg="Q spans the rows of X")


@pytest.mark.parametrize("escape", [True, False])
def test_state_is_as_large_as_declared(escape):
    pairs = pairs_of(*draw(8, SHAPES))
    optimizer = LoRARiteOptimizer(pairs, lr=0.1, escape=escape)
    give(pairs, [gradient_of(i, m, n) for i, (m, n, r) in enumerate(SHAPES)], 0)
    optimizer.step()
    kept = sum(v.numel() for state in optimizer.state.values() for v in state.values() if v.ndim)
    assert kept == sum(2 * r * (m + n) + 2 * r * r + 2 * escape for m, n, r in SHAPES)


def test_non_finite_gradients_end_in_nan_not_in_an_error():
    pairs = pairs_of(*draw(11, SHAPES))
    optimizer = LoRARiteOptimizer(pairs, lr=0.1)
    grads = [gradient_of(i, m, n) for i, (m, n, r) in enumerate(SHAPES)]
    for t in range(3):
        give(pairs, grads, t)
        if t == 0:
            pairs[0].A.grad[0, 0] = float("nan")
        optimizer.step()
    assert pairs[0].A.isnan().any()


def test_half_precision_factors_are_stepped_in_float32():
    A, B = draw(12, [(12, 9, 4)])
    grads = [gradient_of(0, 12, 9)]
    a, b = (nn.Parameter(torch.tensor(x[0], dtype=torch.bfloat16)) for x in (A, B))
    pair = Pair("", torch.zeros(0), b, a, SCALING)
    optimizer = LoRARiteOptimizer([pair], lr=0.02)
    for t in range(3):
        give([pair], grads, t)
        optimizer.step()
    exact = fast(A, B, grads, 3, lr=0.02)[0][-1]
    assert pair.A.dtype == torch.bfloat16
    np.testing.assert_allclose(pair.A.detach().double().numpy(), exact[0], rtol=0.05, atol=0.03)
