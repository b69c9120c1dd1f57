"""Muon with Nesterov momentum against its equations, matrix by matrix, in NumPy float64, and the card's claims."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from lrx.errors import UserError
from lrx.methods.muon_nesterov import MuonNesterov, MuonNesterovOptimizer, Sketching
from lrx.nn.optim import state_bytes
from lrx.nn.polar import coefficients
from tests.oracles.matrices import assert_follows, problems, trace

torch.set_num_threads(1)
LR, DECAY, BETA = 0.05, 0.1, 0.8


def polar(M, solver, steps):
    if solver == "svd":
        U, _, Vh = np.linalg.svd(M, full_matrices=False)
        return U @ Vh
    X = M / (np.linalg.norm(M) * (1.01 if solver == "polar_express" else 1) + 1e-7)
    for a, b, c in coefficients(solver, steps):
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X


def literal(W, gradient, steps, *, nesterov=True, solver="svd", q=5, average=False, rescale=False, factor=1.0):
    C = np.zeros_like(W)
    found = []
    for t in range(steps):
        G = gradient(t, W)
        if average:  # the same with a running average, as in KellerJordan/Muon
            C = BETA * C + (1 - BETA) * G
            M = (1 - BETA) * G + BETA * C if nesterov else C
        else:
            C = BETA * C + G
            M = G + BETA * C if nesterov else C
        if rescale:
            W = W * np.sqrt(len(W)) / np.linalg.norm(W)
        W = (1 - LR * DECAY) * W - LR * factor * polar(M, solver, q)
        found.append(W)
    return found


def optimizer_of(**options):
    options = {"lr": LR, "weight_decay": DECAY, "beta": BETA, "scale": "none", "solver": "svd"} | options
    return lambda ps: MuonNesterovOptimizer(ps, **options)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("solver", ["svd", "cubic", "quintic", "empirical", "polar_express"])
def test_steps_equal_the_equations(solver, nesterov):
    given = problems()
    found, _ = trace(optimizer_of(solver=solver, nesterov=nesterov), given, 12)
    assert_follows(found, [literal(*one, 12, solver=solver, nesterov=nesterov) for one in given], 1e-8)


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_sum_and_a_running_average_give_the_same_steps(nesterov):
    """Invariant 3."""
    given = problems()
    found, _ = trace(optimizer_of(nesterov=nesterov), given, 12)
    assert_follows(found, [literal(*one, 12, nesterov=nesterov, average=True) for one in given], 1e-8)


def test_without_momentum_both_kinds_are_the_polar_factor_of_the_gradient():
    """Invariant 4."""
    given = problems()
    found = {n: trace(optimizer_of(nesterov=n, beta=0.0, weight_decay=0.0), given, 1)[0] for n in (True, False)}
    for i, (start, gradient) in enumerate(given):
        expected = start - LR * polar(gradient(0, start), "svd", 0)
        np.testing.assert_allclose(found[True][0][i], expected, atol=1e-12)
        np.testing.assert_allclose(found[False][0][i], expected, atol=1e-12)


@pytest.mark.parametrize(("solver", "limit"), [("svd", 1.0), ("quintic", 1.002), ("empirical", 1.21)])
def test_no_step_is_longer_than_its_solver_allows(solver, limit):
    """Invariant 5, in the spectral norm."""
    given = problems([(30, 20)])
    found, _ = trace(optimizer_of(solver=solver, steps=5, weight_decay=0.0), given, 10)
    weights = [given[0][0], *(now[0] for now in found)]
    steps = [np.linalg.norm(b - a, 2) / LR for a, b in itertools.pairwise(weights)]
    assert max(steps) <= limit + 1e-9
    assert max(steps) > 0.9


def test_shape_factor_and_rescaling():
    given = problems([(12, 3)])
    found, _ = trace(optimizer_of(scale="kj", rescale=True), given, 6)
    assert_follows(found, [literal(*given[0], 6, rescale=True, factor=2.0)], 1e-9)


def test_a_convolution_is_the_matrix_of_its_kernels():
    torch.manual_seed(0)
    conv, matrix = (nn.Parameter(torch.zeros(shape)) for shape in ((6, 2, 3, 3), (6, 18)))
    last = nn.Parameter(torch.zeros(6, 2, 3, 3).to(memory_format=torch.channels_last))
    for p in (conv, matrix, last):
        p.data.copy_(torch.arange(108.0).view(p.shape) / 100)
    optimizers = [optimizer_of(solver="quintic", scale="kj")([p]) for p in (conv, matrix, last)]
    for _ in range(3):
        g = torch.randn(6, 18)
        for p, optimizer in zip((conv, matrix, last), optimizers, strict=True):
            p.grad = g.view(p.shape).clone(memory_format=torch.preserve_format)
            optimizer.step()
    torch.testing.assert_close(conv.flatten(1), matrix, rtol=0, atol=1e-6)
    torch.testing.assert_close(last.flatten(1), matrix, rtol=0, atol=1e-6)


@pytest.mark.parametrize("long", [False, True])
def test_a_sketch_of_everything_is_no_sketch(long):
    """Invariant 6: l is limited to min(m, n), from where on the whole matrix is used."""
    given = problems()
    (a, _), (b, _) = (trace(optimizer_of(sketching=s), given, 5) for s in (None, Sketching(9, 1, long=long)))
    for x, y in zip(a[-1], b[-1], strict=True):
        np.testing.assert_allclose(x, y, atol=1e-12)


@pytest.mark.parametrize("kind", ["gaussian", "kaczmarz"])
@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (9, 9)])
def test_a_sketched_step_lies_in_few_directions_of_the_momentum(shape, kind):
    ((start, gradient),) = given = problems([shape])
    for long in (False, True):
        found, _ = trace(optimizer_of(sketching=Sketching(4, 1, kind, long), weight_decay=0.0, beta=0.0), given, 1)
        o = (start - found[0][0]) / LR
        values = np.linalg.svd(o, compute_uv=False)
        np.testing.assert_allclose(values[:4], 1, atol=1e-8)
        assert values[4:].max() < 1e-8
        G = gradient(0, start)
        rows = long and shape[0] <= shape[1]
        P = o.T @ o if rows else o @ o.T  # onto the sketched space; the rest is polar(P G)
        np.testing.assert_allclose(polar_of_rank(G @ P if rows else P @ G, 4), o, atol=1e-7)


def polar_of_rank(M, r):
    U, _, Vh = np.linalg.svd(M, full_matrices=False)
    return U[:, :r] @ Vh[:r]


def test_a_resumed_run_draws_the_sketches_of_the_unbroken_one():
    given = problems()
    build = optimizer_of(sketching=Sketching(3, 1), seed=7)
    expected, _ = trace(build, given, 8)
    first, optimizer = trace(build, given, 5)
    again = [(W, lambda t, W, g=g: g(t + 5, W)) for W, (_, g) in zip(first[-1], given, strict=True)]

    def resumed(ps):
        other = optimizer_of(sketching=Sketching(3, 1), seed=99)(ps)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        return other

    found, _ = trace(resumed, again, 3)
    for a, b in zip(found[-1], expected[-1], strict=True):
        np.testing.assert_array_equal(a, b)
    other, _ = trace(optimizer_of(sketching=Sketching(3, 1), seed=8), given, 8)
    assert not np.array_equal(other[-1][0], expected[-1][0])


def test_state_is_one_momentum():
    """Invariant 8."""
    _, optimizer = trace(optimizer_of(sketching=Sketching(3, 1)), problems([(10, 7)]), 2, torch.float32)
    assert state_bytes(optimizer) == 4 * 70
    assert MuonNesterov(lr=LR).state_per_matrix(10, 7) == 70


def test_a_gradient_is_left_as_it_was():
    p = nn.Parameter(torch.ones(6, 5))
    p.grad = torch.randn(6, 5)
    before = p.grad.clone()
    for nesterov in (True, False):
        optimizer_of(nesterov=nesterov, solver="empirical")([p]).step()
    assert torch.equal(p.grad, before)


@pytest.mark.parametrize("solver", ["svd", "empirical"])
@pytest.mark.parametrize("sketching", [None, Sketching(2), Sketching(2, 1, "kaczmarz")])
def test_a_gradient_that_is_not_finite_reaches_the_weights_and_zero_moves_nothing(solver, sketching):
    p = nn.Parameter(torch.ones(6, 5))
    optimizer = optimizer_of(solver=solver, sketching=sketching, weight_decay=0.0)([p])
    p.grad = torch.zeros(6, 5)
    optimizer.step()
    assert torch.equal(p, torch.ones(6, 5))
    p.grad[2, 3] = torch.nan
    optimizer.step()
    assert p.isnan().any()


def test_half_precision_is_refused_for_the_exact_solver():
    with pytest.raises(UserError, match=r"method\.half=True"):
        MuonNesterov(lr=LR, solver="svd", half=True)


def heavy_tailed(build, lr, seed, steps=400, df=1.5):
    """Final ||W - W*|| / ||W*|| on 0.5 ||W - W*||^2 with additive Student noise and a linearly decaying rate."""
    rng = np.random.default_rng(seed)
    target = torch.tensor(rng.normal(size=(30, 40)), dtype=torch.float32)
    p = nn.Parameter(torch.zeros(30, 40))
    optimizer = build([p], lr)
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - t / steps)
        p.grad = p.detach() - target + 0.3 * torch.tensor(rng.standard_t(df, size=(30, 40)), dtype=torch.float32)
        optimizer.step()
    return float((p.detach() - target).norm() / target.norm())


@pytest.mark.slow
def test_under_heavy_tails_muon_is_far_better_than_sgd():
    """The card's comparison, each method at its best rate: 0.209 SGD, 0.123 Polyak, 0.117 Nesterov, 0.132 sketched."""
    muon = {"beta": 0.9, "scale": "none", "solver": "quintic", "steps": 7}

    def best(build, rates):
        medians = [float(np.median([heavy_tailed(build, lr, seed) for seed in range(5)])) for lr in rates]
        return min(medians)

    rates = [0.03, 0.06, 0.12]
    sgd = best(lambda ps, lr: torch.optim.SGD(ps, lr=lr, momentum=0.9, nesterov=True), [0.01, 0.03, 0.1])
    polyak = best(lambda ps, lr: MuonNesterovOptimizer(ps, lr=lr, nesterov=False, **muon), rates)
    nesterov = best(lambda ps, lr: MuonNesterovOptimizer(ps, lr=lr, **muon), rates)
    sketched = best(lambda ps, lr: MuonNesterovOptimizer(ps, lr=lr, sketching=Sketching(14, 1), **muon), rates)
    assert nesterov < 0.75 * sgd
    assert nesterov < 1.05 * polyak
    assert nesterov < sketched < 0.8 * sgd
