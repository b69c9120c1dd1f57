"""GaLore against its equations, matrix by matrix, in NumPy float64."""

import numpy as np
import pytest
import torch
from torch import nn

from lrx.methods.galore import GaLoreOptimizer, right_vectors
from tests.oracles.matrices import assert_follows, problems, trace

torch.set_num_threads(1)
R, LR, DECAY = 3, 0.05, 0.1


def signed(vectors):
    """Columns with their largest entry positive."""
    return vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])


def literal(W, gradient, steps, *, every, side, rank=R, b1=0.9, b2=0.999, eps=1e-6, scale=0.25):
    """Left projections P^T G (r x n) are written out; no matrix is transposed."""
    m, n = W.shape
    right = {"std": m >= n, "reverse": m < n, "right": True, "left": False}[side]
    M = V = 0.0
    found = []
    for t in range(1, steps + 1):
        G = gradient(t - 1, W)
        if (t - 1) % every == 0:
            U, _, Vh = np.linalg.svd(G, full_matrices=False)
            P = signed(Vh[:rank].T if right else U[:, :rank])
        g = G @ P if right else P.T @ G
        M = b1 * M + (1 - b1) * g
        V = b2 * V + (1 - b2) * g * g
        N = M / (np.sqrt(V) + eps)
        W = W - LR * np.sqrt(1 - b2**t) / (1 - b1**t) * scale * (N @ P.T if right else P @ N)
        W = W - LR * DECAY * W
        found.append(W)
    return found


@pytest.mark.parametrize("side", ["std", "reverse", "right", "left"])
@pytest.mark.parametrize("every", [1, 4, 200])
def test_steps_equal_the_equations(side, every):
    given = problems()
    found, _ = trace(
        lambda ps: GaLoreOptimizer(ps, lr=LR, weight_decay=DECAY, rank=R, every=every, side=side), given, 15
    )
    assert_follows(found, [literal(*one, 15, every=every, side=side) for one in given])


def test_with_the_identity_as_projection_it_is_adam(monkeypatch):
    """Invariant 10 of the paper's rule: r = min(m, n), P = I."""
    monkeypatch.setattr(
        "lrx.methods.galore.right_vectors", lambda G, rank: torch.eye(rank, dtype=G.dtype).expand(len(G), rank, rank)
    )
    given = problems([(9, 6), (6, 9)])
    found, _ = trace(lambda ps: GaLoreOptimizer(ps, lr=LR, rank=6, scale=1.0, eps=1e-12), given, 12)
    plain, _ = trace(lambda ps: torch.optim.Adam(ps, lr=LR, eps=1e-12), given, 12)
    for ours, theirs in zip(found, plain, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9)


def test_projecting_forth_and_back_at_full_rank_is_the_identity():
    G = torch.randn(2, 9, 6, dtype=torch.float64)
    P = right_vectors(G, 6)
    torch.testing.assert_close(G @ P @ P.mT, G)


def test_singular_vectors_are_the_leading_ones_with_a_fixed_sign():
    G = torch.randn(4, 12, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    P = right_vectors(G, 2)
    assert torch.equal(P, right_vectors(G.clone(), 2))
    torch.testing.assert_close((G @ P).norm(dim=1), torch.linalg.svdvals(G)[:, :2])
    assert (P.gather(1, P.abs().argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(right_vectors(-G, 2), P)


def test_moments_are_not_transformed_by_a_refresh():
    given = problems([(8, 6)])
    _, optimizer = trace(lambda ps: GaLoreOptimizer(ps, lr=0.0, rank=2, every=5), given, 5)
    (p,) = optimizer.param_groups[0]["params"]
    state = {key: value.clone() for key, value in optimizer.state[p].items()}
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert not torch.equal(optimizer.state[p]["projector"], state["projector"])
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], 0.9 * state["exp_avg"])


def test_a_gradient_that_is_not_finite_reaches_the_weights():
    p = nn.Parameter(torch.ones(6, 5))
    p.grad = torch.full((6, 5), torch.inf)
    GaLoreOptimizer([p], lr=0.1, rank=2).step()
    assert p.isnan().any()


def test_half_precision_weights_keep_their_state_in_float32_through_a_checkpoint():
    given = problems()
    found, optimizer = trace(lambda ps: GaLoreOptimizer(ps, lr=LR, rank=R), given, 4, torch.bfloat16)
    expected, _ = trace(lambda ps: GaLoreOptimizer(ps, lr=LR, rank=R), given, 4)
    assert max(np.abs(a - b).max() for a, b in zip(found[-1], expected[-1], strict=True)) < 0.1
    params = optimizer.param_groups[0]["params"]
    fresh = GaLoreOptimizer(params, lr=LR, rank=R)
    fresh.load_state_dict(optimizer.state_dict())
    for p in params:
        assert p.dtype == torch.bfloat16
        for key in ("exp_avg", "exp_avg_sq", "projector"):
            assert fresh.state[p][key].dtype == torch.float32
            assert torch.equal(fresh.state[p][key], optimizer.state[p][key])
