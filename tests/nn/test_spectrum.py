"""The lens's mathematics against the singular value decomposition of the whole product."""

from __future__ import annotations

import math

import pytest
import torch

from lrx.nn import spectrum

SHAPES = [(40, 30, 5), (7, 50, 7), (6, 6, 6), (64, 3, 3), (5, 4, 1), (4, 9, 6)]  # the last: more columns than rows


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
def test_factored_is_the_svd_of_the_product(m: int, n: int, r: int) -> None:
    B, A = draw(m, r), draw(r, n, seed=1)
    values, left = spectrum.factored_svd(B, A, 0.25)
    U, S, _ = torch.linalg.svd(0.25 * (B @ A), full_matrices=False)
    q = min(m, n, r)
    assert torch.allclose(values[:q], S[:q], rtol=1e-12, atol=1e-14)
    assert torch.allclose(left.mT @ left, torch.eye(left.shape[1], dtype=torch.float64), atol=1e-12)
    signs = (left[:, :q] * U[:, :q]).sum(0).abs()
    assert torch.allclose(signs, torch.ones(q, dtype=torch.float64), atol=1e-9)
    assert torch.equal(values, values.sort(descending=True).values)


def test_small_factors_lose_no_digits() -> None:
    """Singular values far below those of a formed product in rounding: the factors keep them apart."""
    basis = torch.linalg.qr(draw(50, 3)).Q
    other = torch.linalg.qr(draw(40, 3, seed=1)).Q
    wanted = torch.tensor([1.0, 1e-6, 1e-11], dtype=torch.float64)
    values, _ = spectrum.factored_svd(basis * wanted, other.mT)
    assert torch.allclose(values, wanted, rtol=1e-4)


@pytest.mark.parametrize("r", [1, 4, 9])
def test_ranks_of_an_orthogonal_update_are_its_dimension(r: int) -> None:
    values, _ = spectrum.factored_svd(torch.linalg.qr(draw(30, r)).Q, torch.linalg.qr(draw(20, r, seed=1)).Q.mT, 3.0)
    assert spectrum.effective_rank(values) == pytest.approx(r, rel=1e-12)
    assert spectrum.stable_rank(values) == pytest.approx(r, rel=1e-12)
    assert spectrum.numerical_rank(values, 30, 20) == r


def test_ranks_by_their_definitions() -> None:
    values = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert spectrum.effective_rank(values) == pytest.approx(math.exp(entropy), rel=1e-14)
    assert spectrum.stable_rank(values) == pytest.approx(10 / 9, rel=1e-14)
    assert spectrum.numerical_rank(values, 3, 3) == 2


def test_a_zero_update_has_no_rank_and_no_direction() -> None:
    values, left = spectrum.factored_svd(torch.zeros(8, 3), draw(3, 5))
    assert (spectrum.effective_rank(values), spectrum.stable_rank(values)) == (0.0, 0.0)
    assert spectrum.numerical_rank(values, 8, 5) == 0
    assert left.isfinite().all()
    assert spectrum.principal_angles(left[:, :0], left).numel() == 0


def test_angles_are_zero_within_and_right_between_orthogonal_spaces() -> None:
    whole = torch.linalg.qr(draw(20, 8)).Q
    same = torch.linalg.qr(whole[:, :4] @ draw(4, 4, seed=2)).Q
    assert spectrum.principal_angles(whole[:, :4], same).max() < 1e-14
    right = spectrum.principal_angles(whole[:, :4], whole[:, 4:])
    assert torch.allclose(right, torch.full((4,), math.pi / 2, dtype=torch.float64), atol=1e-14)


@pytest.mark.parametrize("angle", [1e-9, 1e-3, 0.7, 0.9, math.pi / 2 - 1e-9])
def test_a_known_angle_is_found_to_the_last_digits(angle: float) -> None:
    """Where the cosine alone would be blind (1 - 1e-18) and where the sine would."""
    basis = torch.linalg.qr(draw(10, 3)).Q
    turned = basis.clone()[:, :2]
    turned[:, 1] = math.cos(angle) * basis[:, 1] + math.sin(angle) * basis[:, 2]
    found = spectrum.principal_angles(basis[:, :2], turned)
    assert found.tolist() == pytest.approx([0, angle], rel=1e-7, abs=1e-15)


def test_angles_of_spaces_of_unequal_dimension_agree_with_scipy() -> None:
    from scipy.linalg import subspace_angles

    for p, q in ((2, 5), (5, 2), (4, 4)):
        U, V = torch.linalg.qr(draw(12, p)).Q, torch.linalg.qr(draw(12, q, seed=3)).Q
        expected = sorted(subspace_angles(U.numpy(), V.numpy()))
        assert spectrum.principal_angles(U, V).tolist() == pytest.approx(expected, abs=1e-9)


def test_the_left_space_does_not_depend_on_the_basis_of_the_factors() -> None:
    """B -> B M, A -> M^-1 A is the same update; B -> B M alone spans the same space."""
    B, A, M = draw(30, 4), draw(4, 20, seed=1), draw(4, 4, seed=2)
    values, left = spectrum.factored_svd(B, A)
    again, moved = spectrum.factored_svd(B @ M, torch.linalg.solve(M, A))
    assert torch.allclose(values, again, rtol=1e-9)
    assert spectrum.principal_angles(left, moved).max() < 1e-9
    _, turned = spectrum.factored_svd(B @ M, A)
    assert spectrum.principal_angles(left, turned).max() < 1e-9


def test_dense_agrees_with_factored() -> None:
    B, A = draw(12, 3), draw(3, 9, seed=1)
    values, left = spectrum.dense_svd(2 * B @ A)
    expected, basis = spectrum.factored_svd(B, A, 2)
    assert torch.allclose(values[:3], expected, rtol=1e-10)
    assert values[3:].max() < 1e-13
    assert spectrum.principal_angles(left[:, :3], basis).max() < 1e-9
    assert torch.allclose(spectrum.singular_values(2 * B @ A), values, atol=1e-13)
