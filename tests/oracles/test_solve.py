"""The small symmetric solves of ``lrx.nn.solve`` against NumPy and SciPy."""

import numpy as np
import pytest
import scipy.linalg
import torch

from lrx.nn.solve import gram_inverse, symmetric_pinv, symmetric_sylvester

torch.set_num_threads(1)


def grams(seed, ranks, r=4, width=9, dtype=torch.float64):
    """Gram matrices of the given ranks."""
    rng = np.random.default_rng(seed)
    factors = [rng.standard_normal((r, k)) @ rng.standard_normal((k, width)) for k in ranks]
    X = torch.tensor(np.stack(factors), dtype=dtype)
    return X @ X.mT


@pytest.mark.parametrize("damping", [0.0, 1e-3])
@pytest.mark.parametrize(
    "ranks", [[4, 4], [4, 3, 0, 4], [2, 3] * 30], ids=len
)  # of 60, some have a Cholesky factor with a noise pivot
def test_gram_inverse(ranks, damping):
    gram = grams(0, ranks)
    for ours, matrix in zip(gram_inverse(gram, damping), gram.numpy(), strict=False):
        expected = np.linalg.pinv(matrix + damping * np.eye(4), rcond=1e-12, hermitian=True)
        np.testing.assert_allclose(ours, expected, rtol=1e-7, atol=1e-9 * max(1, np.abs(expected).max()))


def test_non_finite_matrices_give_nan_and_leave_the_others():
    gram = grams(1, [4, 4, 0])
    expected = gram_inverse(gram, 0.0)
    gram = torch.cat([gram, gram[:1]])
    gram[3, 0, 0] = float("nan")
    inverse = gram_inverse(gram, 0.0)
    torch.testing.assert_close(inverse[:3], expected)
    assert inverse[3].isnan().all()


def test_rounding_that_exceeds_the_damping_is_survived():
    gram = grams(2, [1, 2], dtype=torch.float32) * 1e6
    assert gram_inverse(gram, 1e-6).isfinite().all()


def test_sylvester_and_pinv():
    for ranks in ([4, 4], [0, 2]):
        P, Q = grams(3, ranks), grams(4, [4, 4])
        C = torch.tensor(np.random.default_rng(5).standard_normal((2, 4, 4)))
        eigen = []
        for gram in (P, Q):
            values, vectors = torch.linalg.eigh(gram)
            eigen.append((values.clamp_min(0), vectors))
        X = symmetric_sylvester(eigen[0], eigen[1], C)
        for i in range(2):
            np.testing.assert_allclose(
                X[i], scipy.linalg.solve_sylvester(P[i].numpy(), Q[i].numpy(), C[i].numpy()), rtol=1e-8
            )
            expected = np.linalg.pinv(P[i].numpy(), rcond=1e-12, hermitian=True)
            np.testing.assert_allclose(symmetric_pinv(*eigen[0])[i], expected, rtol=1e-7, atol=1e-10)
    zero = (torch.zeros(1, 4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)[None])
    assert torch.equal(symmetric_sylvester(zero, zero, C[:1]), torch.zeros_like(C[:1]))
