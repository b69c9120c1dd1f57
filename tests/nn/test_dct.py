"""The cosine basis, its FFT, and the choice of columns."""

import itertools

import pytest
import scipy.fft
import torch

from lrx.nn import dct

torch.set_num_threads(1)
F64, CPU = torch.float64, torch.device("cpu")


@pytest.mark.parametrize("d", [1, 2, 5, 8, 33, 64])
def test_basis_is_orthogonal_and_the_fft_is_its_transform(d):
    C = dct.basis_vectors(d, "dct2", F64, CPU)
    assert torch.allclose(C @ C.T, torch.eye(d, dtype=F64), atol=1e-13)
    assert torch.equal(dct.basis_vectors(d, "dct3", F64, CPU), C.T)
    x = torch.randn(3, 4, d, dtype=F64, generator=torch.Generator().manual_seed(d))
    expected = torch.tensor(scipy.fft.dct(x.numpy(), type=2, norm="ortho"))
    torch.testing.assert_close(x @ C.T, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(dct.dct(x), expected, rtol=0, atol=1e-12)
    dct3 = torch.tensor(scipy.fft.dct(x.numpy(), type=3, norm="ortho"))
    torch.testing.assert_close(x @ C, dct3, rtol=0, atol=1e-12)


def test_a_large_basis_is_orthogonal_in_float32():
    C = dct.basis_vectors(1024, "dct2", torch.float32, CPU)
    assert (C @ C.T - torch.eye(1024)).abs().max() < 1e-5
    assert (C.double() - dct.basis_vectors(1024, "dct2", F64, CPU)).abs().max() < 1e-8


def test_rows_are_transformed_alike_in_pieces_and_at_once(monkeypatch):
    x = torch.randn(5, 40, 32)
    whole = dct.dct(x)
    monkeypatch.setattr(dct, "CHUNK", 100)
    assert torch.equal(dct.dct(x), whole)


def test_one_copy_of_a_basis_serves_all_matrices_of_its_size():
    assert dct.basis_vectors(16, "dct2", F64, CPU) is dct.basis_vectors(16, "dct2", F64, CPU)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize(("transform", "basis"), [("fft", "dct2"), ("matmul", "dct2"), ("matmul", "dct3")])
def test_selection_is_the_literal_one(norm, transform, basis):
    X = torch.randn(4, 10, 7, dtype=F64, generator=torch.Generator().manual_seed(1))
    chosen, x = dct.select(X, 3, norm=norm, basis=basis, transform=transform)
    rows = dct.vectors(chosen, 7, basis, F64)
    for i in range(4):
        S = X[i] @ dct.basis_vectors(7, basis, F64, CPU).T
        score = S.norm(p=1 if norm == "l1" else 2, dim=0)
        assert chosen[i].tolist() == sorted(score.topk(3).indices.tolist())
        torch.testing.assert_close(x[i], S[:, chosen[i]], rtol=0, atol=1e-12)
        torch.testing.assert_close(x[i], X[i] @ rows[i].T, rtol=0, atol=1e-12)


def test_l2_selection_is_optimal_and_its_error_bounded():
    """Invariant 2: no other subset has a smaller error; the error is what was dropped, at most (1 - r/d) ||X||^2."""
    X = torch.randn(1, 9, 6, dtype=F64, generator=torch.Generator().manual_seed(2))
    S = dct.dct(X)[0]
    for r in (1, 2, 4):
        chosen, x = dct.select(X, r, norm="l2")
        error = (X - x @ dct.vectors(chosen, 6, "dct2", F64)).square().sum()
        dropped = [j for j in range(6) if j not in chosen[0].tolist()]
        assert torch.isclose(error, S[:, dropped].square().sum())
        assert error <= (1 - r / 6) * X.square().sum()
        everything = X.square().sum()
        others = [everything - S[:, list(c)].square().sum() for c in itertools.combinations(range(6), r)]
        assert torch.isclose(error, torch.stack(others).min())


def test_selection_ignores_the_scale_of_the_matrix():
    X = torch.randn(3, 20, 16, generator=torch.Generator().manual_seed(3))
    for norm in ("l1", "l2"):
        assert torch.equal(dct.select(X, 5, norm=norm)[0], dct.select(64 * X, 5, norm=norm)[0])


def test_an_fft_has_no_dct3():
    with pytest.raises(ValueError, match="DCT-II"):
        dct.select(torch.zeros(1, 4, 4), 2, basis="dct3")


def test_a_matrix_that_is_not_finite_stays_so():
    X = torch.randn(2, 6, 4)
    X[0, 1, 2] = torch.nan
    chosen, x = dct.select(X, 2)
    assert ((chosen >= 0) & (chosen < 4)).all()
    assert x[0].isnan().any()
    assert x[1].isfinite().all()


def test_carrying_is_the_product_with_both_bases():
    """Invariant 4: Q_old^T Q_new has entries 0 and 1, at most one 1 in a row and a column."""
    generator = torch.Generator().manual_seed(4)
    old, new = (torch.stack([torch.randperm(9, generator=generator)[:4].sort().values for _ in range(6)]) for _ in "ab")
    values = torch.randn(6, 5, 4, dtype=F64, generator=generator)
    R = dct.vectors(old, 9, "dct2", F64) @ dct.vectors(new, 9, "dct2", F64).mT
    torch.testing.assert_close(R, R.round().abs(), rtol=0, atol=1e-13)
    assert (R.sum(-1) < 1 + 1e-9).all()
    assert (R.sum(-2) < 1 + 1e-9).all()
    torch.testing.assert_close(dct.carry(values, old, new), values @ R, rtol=0, atol=1e-12)
    squares = values.square()
    assert (dct.carry(squares, old, new) >= 0).all()
