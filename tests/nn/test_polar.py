"""Polar factors: exact, by iteration, and from a sketch."""

import numpy as np
import pytest
import torch

from lrx.nn.polar import coefficients, polar, shape_factor, sketched_polar

torch.set_num_threads(1)
F64 = torch.float64
ITERATIVE = ["cubic", "quintic", "empirical", "polar_express"]


def matrices(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def exact(M):
    U, _, Vh = np.linalg.svd(M.numpy(), full_matrices=False)
    return torch.tensor(U @ Vh)


def literal(M, solver, steps):
    X = M / (M.norm() * (1.01 if solver == "polar_express" else 1) + 1e-7)
    for a, b, c in coefficients(solver, steps):
        X = a * X + b * X @ X.T @ X + c * X @ X.T @ X @ X.T @ X
    return X


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_exact_polar_factor(shape):
    """Invariant 1: orthonormal on the short side, and <M, o> is the nuclear norm."""
    M = matrices(3, *shape)
    o = polar(M, "svd", 1)
    torch.testing.assert_close(o, exact(M), rtol=0, atol=1e-12)
    gram = o.mT @ o if shape[0] >= shape[1] else o @ o.mT
    torch.testing.assert_close(gram, torch.eye(min(shape), dtype=F64).expand_as(gram), rtol=0, atol=1e-12)
    torch.testing.assert_close((M * o).sum((1, 2)), torch.linalg.svdvals(M).sum(1))


@pytest.mark.parametrize("solver", ITERATIVE)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_iterations_are_the_polynomials(solver, shape):
    M = matrices(2, *shape)
    for steps in (1, 3, 7, 11):
        for ours, one in zip(polar(M, solver, steps), M, strict=True):
            torch.testing.assert_close(ours, literal(one, solver, steps), rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", ["svd", *ITERATIVE])
def test_symmetries(solver):
    """Invariants 2, 9 and 10: scale, orthogonal factors, transposition, and the singular vectors are kept."""
    M = matrices(1, 7, 5)
    o = polar(M, solver, 5)
    torch.testing.assert_close(polar(37 * M, solver, 5), o, rtol=0, atol=1e-6)
    U, V = torch.linalg.qr(matrices(7, 7)).Q, torch.linalg.qr(matrices(5, 5, seed=1)).Q
    torch.testing.assert_close(polar(U @ M @ V, solver, 5), U @ o @ V, rtol=0, atol=1e-10)
    torch.testing.assert_close(polar(M.mT, solver, 5), o.mT, rtol=0, atol=1e-10)
    left, _, right = torch.linalg.svd(M[0], full_matrices=False)
    middle = left.T @ o[0] @ right.T
    torch.testing.assert_close(middle, middle.diagonal().diag(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("solver", "steps", "smallest", "low", "high"),
    [
        ("cubic", 7, 0.1, 0.965, 1.0001),
        ("quintic", 7, 0.05, 0.9995, 1.0018),
        ("quintic", 7, 0.01, 0.90, 1.0018),
        ("empirical", 5, 0.01, 0.675, 1.135),
        ("empirical", 5, 0.001, 0.465, 1.205),
        ("polar_express", 5, 0.001, 0.835, 1.125),
        ("polar_express", 7, 0.001, 0.99998, 1.00002),
    ],
)
def test_where_singular_values_end(solver, steps, smallest, low, high):
    """The table of the paper's solvers, on single values: the map of the polynomials alone."""
    x = torch.logspace(np.log10(smallest), 0, 400, dtype=F64)
    if solver == "polar_express":
        x = x / 1.01
    for a, b, c in coefficients(solver, steps):
        x = a * x + b * x**3 + c * x**5
    assert low <= x.min()
    assert x.max() <= high


def test_error_falls_with_the_steps_of_what_converges():
    """Invariant 7."""
    M = matrices(1, 20, 12)
    errors = {s: [float((polar(M, s, q) - exact(M)).norm()) for q in (2, 4, 6)] for s in ITERATIVE}
    for solver in ("cubic", "quintic", "polar_express"):
        assert errors[solver] == sorted(errors[solver], reverse=True)
        assert errors[solver][-1] < 0.5 * errors[solver][0]
    assert errors["empirical"][-1] > 0.1


@pytest.mark.parametrize("solver", ["svd", *ITERATIVE])
def test_zero_and_nan(solver):
    M = torch.zeros(3, 4, 6)
    M[1, 2, 2] = torch.nan
    M[2] = 1
    before = M.clone()
    o = polar(M, solver, 5)
    assert torch.equal(o[0], torch.zeros(4, 6))
    assert o[1].isnan().any()
    assert o[2].isfinite().all()
    assert torch.equal(M.nan_to_num(7), before.nan_to_num(7)), "the momentum buffer is passed here"


def test_half_precision_is_close_and_gives_back_the_type():
    M = matrices(2, 16, 12).float()
    o = polar(M, "quintic", 7, half=True)
    assert o.dtype == torch.float32
    assert 1e-5 < (o - polar(M, "quintic", 7)).abs().max() < 0.05


def sketched(M, columns, kind="gaussian", power_steps=1, solver="svd", seed=0):
    generator = torch.Generator().manual_seed(seed)
    options = {"columns": columns, "power_steps": power_steps, "sketch": kind, "generator": generator}
    return sketched_polar(M, solver, 9, **options)


@pytest.mark.parametrize("solver", ["svd", "quintic"])
def test_a_gaussian_sketch_of_the_whole_column_space_is_exact(solver):
    """Invariant 6."""
    M = matrices(2, 9, 4) @ matrices(2, 4, 14, seed=1)  # rank 4
    torch.testing.assert_close(sketched(M, 4, solver=solver), polar(M, solver, 9), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["gaussian", "kaczmarz"])
def test_a_small_sketch_gives_a_polar_factor_of_low_rank(kind):
    """Invariant 6: o = Q polar(Q^T M), so its rank is at most l and o o^T projects."""
    M = matrices(3, 12, 10)
    o = sketched(M, 4, kind)
    assert (torch.linalg.matrix_rank(o) == 4).all()
    P = o @ o.mT
    torch.testing.assert_close(P @ P, P, rtol=0, atol=1e-10)
    torch.testing.assert_close(P @ o, o, rtol=0, atol=1e-10)
    torch.testing.assert_close(o, polar(P @ M, "svd", 1), rtol=0, atol=1e-9)
    assert torch.equal(o, sketched(M, 4, kind))
    assert not torch.equal(o, sketched(M, 4, kind, seed=1))


def test_power_steps_find_the_leading_directions():
    U, V = torch.linalg.qr(matrices(12, 12)).Q, torch.linalg.qr(matrices(12, 12, seed=1)).Q
    M = ((U * 0.5 ** torch.arange(12)) @ V.T)[None]
    best = (U[:, :3] @ V[:, :3].T)[None]
    errors = [float((sketched(M, 3, power_steps=h) - best).norm()) for h in (0, 2, 6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-2


@pytest.mark.parametrize("kind", ["gaussian", "kaczmarz"])
def test_sketch_of_zero_and_nan(kind):
    M = torch.zeros(2, 6, 5)
    M[1, 0, 0] = torch.nan
    o = sketched(M, 2, kind)
    assert torch.equal(o[0], torch.zeros(6, 5))
    assert o[1].isnan().any()


def test_shape_factors():
    assert shape_factor(8, 2, "kj") == 2.0
    assert shape_factor(2, 8, "kj") == 1.0
    assert shape_factor(4, 100, "kimi") == pytest.approx(2.0)
    assert shape_factor(2, 8, "dion") == 0.5
    assert shape_factor(2, 8, "none") == 1.0
