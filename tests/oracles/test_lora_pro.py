"""LoRA-Pro's AdamW form against its equations computed literally, pair by pair, in NumPy float64."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from lrx.methods.lora_pro import Adjustment, LoRAProOptimizer
from lrx.nn.lowrank import Pair

torch.set_num_threads(1)
SHAPES = [(12, 9, 4), (7, 15, 4), (12, 9, 4), (6, 6, 2)]  # (m, n, r)
S, BETA1, BETA2, EPS, DELTA = 2.0, 0.9, 0.999, 1e-8, 1e-8


def literal(A, B, grad, steps, *, lr, gamma=0.0, shift=0):
    """The module docstring's equations. ``shift=1``: the official code's bias corrections, with t + 1."""
    A, B = A.copy(), B.copy()
    (m, r), n = B.shape, A.shape[1]
    M, V = np.zeros((m, n)), np.zeros((m, n))
    trace = []
    for t in range(1, steps + 1):
        G = grad(t - 1, A, B)
        BB, AA = np.linalg.pinv(B.T @ B + DELTA * np.eye(r)), np.linalg.pinv(A @ A.T + DELTA * np.eye(r))

        def adjust(gA, gB, B=B, BB=BB, AA=AA):
            return BB @ gA / S**2, (np.eye(m) - B @ BB @ B.T) @ gB @ AA / S**2

        fA, fB = adjust(S * B.T @ G, S * G @ A.T)
        E = S * B @ fA + S * fB @ A
        M = BETA1 * M + (1 - BETA1) * E
        V = BETA2 * V + (1 - BETA2) * E * E
        H = M / (1 - BETA1 ** (t + shift)) / (np.sqrt(V / (1 - BETA2 ** (t + shift))) + EPS)
        gA, gB = S * B.T @ H, S * H @ A.T
        fA, fB = adjust(gA, gB)
        X = scipy.linalg.solve_sylvester(B.T @ B, A @ A.T, -BB @ gA @ A.T / S**2)
        fA, fB = fA + X @ A, fB - B @ X
        A, B = A - lr * (fA + gamma * A), B - lr * (fB + gamma * B)
        trace.append((A.copy(), B.copy()))
    return trace


def draw(seed, zero_b=False):
    rng = np.random.default_rng(seed)
    A = [rng.standard_normal((r, n)) / n**0.5 for m, n, r in SHAPES]
    B = [np.zeros((m, r)) if zero_b else 0.5 * rng.standard_normal((m, r)) for m, n, r in SHAPES]
    return A, B


def gradient_of(i, m, n):
    rng = np.random.default_rng(100 + i)
    target, noise = rng.standard_normal((m, n)), rng.standard_normal((50, m, n))
    return lambda t, A, B: 0.1 * (S * B @ A - target) + 0.02 * noise[t]


GRADS = [gradient_of(i, m, n) for i, (m, n, r) in enumerate(SHAPES)]


def fast(A, B, steps, make=LoRAProOptimizer, **options):
    pairs = [
        Pair(str(i), torch.zeros(0), nn.Parameter(torch.tensor(b)), nn.Parameter(torch.tensor(a)), S)
        for i, (a, b) in enumerate(zip(A, B, strict=False))
    ]
    optimizer = make(pairs, **options)
    traces = [[] for _ in pairs]
    for t in range(steps):
        for pair, grad in zip(pairs, GRADS, strict=False):
            G = torch.tensor(grad(t, pair.A.detach().numpy(), pair.B.detach().numpy()))
            pair.A.grad, pair.B.grad = S * pair.B.detach().T @ G, S * G @ pair.A.detach().T
        optimizer.step()
        for trace, pair in zip(traces, pairs, strict=False):
            trace.append((pair.A.detach().numpy().copy(), pair.B.detach().numpy().copy()))
    return optimizer, traces


def deviation(ours, theirs):
    pairs = [(x, y) for p, q in zip(ours, theirs, strict=True) for x, y in zip(p, q, strict=False)]
    return max(np.abs(x - y).max() / np.abs(y).max() for x, y in pairs)


@pytest.mark.parametrize("gamma", [0.0, 0.1])
@pytest.mark.parametrize("zero_b", [False, True], ids=["full_rank", "B_zero"])
def test_equals_the_equations(zero_b, gamma):
    A, B = draw(0, zero_b)
    _, ours = fast(A, B, 50, lr=0.01, weight_decay=gamma)
    for i, (a, b) in enumerate(zip(A, B, strict=False)):
        assert deviation(ours[i], literal(a, b, GRADS[i], 50, lr=0.01, gamma=gamma)) < 1e-9


def test_official_bias_correction():
    """Their code corrects with t + 1. With that, and without its bfloat16 rounding of the gradient in V, the real
    function
    and ours differed by at most 2e-14 (relative, float64, 50 steps); with the rounding by 3e-3, all of it the
    rounding's."""

    class Shifted(LoRAProOptimizer):
        def _normalised(self, batch, E):
            from dataclasses import replace

            return super()._normalised(replace(batch, count=batch.count + 1), E)

    A, B = draw(1)
    _, ours = fast(A, B, 50, make=Shifted, lr=0.01)
    for i, (a, b) in enumerate(zip(A, B, strict=False)):
        assert deviation(ours[i], literal(a, b, GRADS[i], 50, lr=0.01, shift=1)) < 1e-9
        assert deviation(ours[i], literal(a, b, GRADS[i], 50, lr=0.01, shift=0)) > 1e-4


def test_6_equivalent_gradient():
    """It equals G - (I - Pi_B) G (I - Pi_A), for every X, and the X of the paper is the nearest."""
    rng = np.random.default_rng(2)
    m, n, r = 12, 9, 4
    B, A, G = rng.standard_normal((m, r)), rng.standard_normal((r, n)), rng.standard_normal((m, n))
    gA, gB = S * B.T @ G, S * G @ A.T
    outside_B, outside_A = np.eye(m) - B @ np.linalg.pinv(B), np.eye(n) - np.linalg.pinv(A) @ A
    expected = G - outside_B @ G @ outside_A
    a, b = torch.tensor(A)[None], torch.tensor(B)[None]
    adjustment = Adjustment(b, a, S, 0.0)
    fA, fB = adjustment.minimal(torch.tensor(gA)[None], torch.tensor(gB)[None])
    np.testing.assert_allclose(adjustment.equivalent(fA, fB)[0], expected, atol=1e-12)
    X = torch.tensor(rng.standard_normal((1, r, r)))
    np.testing.assert_allclose(adjustment.equivalent(fA + X @ a, fB - b @ X)[0], expected, atol=1e-12)

    nA, nB = adjustment.nearest(torch.tensor(gA)[None], torch.tensor(gB)[None])
    np.testing.assert_allclose(adjustment.equivalent(nA, nB)[0], expected, atol=1e-12)

    def distance(x, y):
        return ((x[0].numpy() - gA) ** 2).sum() + ((y[0].numpy() - gB) ** 2).sum()

    for scale in (1e-3, 1e-1):
        D = scale * torch.tensor(rng.standard_normal((1, r, r)))
        assert distance(nA, nB) < distance(nA + D @ a, nB - b @ D)


def test_moments_are_full_matrices():
    optimizer, _ = fast(*draw(3), 2, lr=0.01)
    kept = sum(v.numel() for state in optimizer.state.values() for v in state.values() if v.ndim)
    assert kept == sum(2 * m * n for m, n, r in SHAPES)


def test_splitting_a_batch_changes_nothing(monkeypatch):
    A, B = draw(4)
    _, whole = fast(A, B, 5, lr=0.01)
    monkeypatch.setattr("lrx.methods.lora_pro.LARGEST", 1)
    optimizer, split = fast(A, B, 5, lr=0.01)
    assert [len(bucket) for bucket in optimizer._buckets] == [1, 1, 1, 1]
    assert max(deviation(x, y) for x, y in zip(split, whole, strict=False)) < 1e-12


@pytest.mark.filterwarnings("ignore:invalid value")
def test_non_finite_gradients_end_in_nan_not_in_an_error():
    A, B = draw(5)
    A[0][0, 0] = np.inf
    _, traces = fast(A, B, 3, lr=0.01)
    assert not np.isfinite(traces[0][-1][1]).all()
    assert np.isfinite(traces[2][-1][1]).all()
