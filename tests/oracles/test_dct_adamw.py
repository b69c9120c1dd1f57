"""DCT-AdamW against its equations, matrix by matrix, in NumPy float64, and what its card states."""

import copy

import numpy as np
import pytest
import scipy.fft
import torch

from lrx.errors import UserError
from lrx.methods.dct_adamw import DCTAdamW, DCTAdamWOptimizer
from lrx.methods.galore import right_vectors
from lrx.nn import dct
from lrx.nn.optim import state_bytes
from lrx.nn.quantize import dequantize, quantize
from tests.oracles.matrices import assert_follows, problems, trace

torch.set_num_threads(1)
R, LR, DECAY, B1, B2, EPS = 3, 0.05, 0.1, 0.9, 0.999, 1e-8


def levels(E, bits):
    """A row's numbers on 2^bits - 1 equal steps between its extremes."""
    low, high = E.min(1, keepdims=True), E.max(1, keepdims=True)
    step = np.where(high > low, (high - low) / (2**bits - 1), 1)
    return np.floor((E - low) / step + 0.5) * step + low


def literal(W, gradient, steps, *, every=1, rotate=True, error="none", norm="l1", basis="dct2", rank=R, sums=None):
    """Left projections Q_r^T G (r x n) are written out; the rotation is a product with both bases."""
    m, n = W.shape
    right, d = m >= n, min(m, n)
    C = scipy.fft.dct(np.eye(d), axis=0, norm="ortho")
    Q = C.T if basis == "dct2" else C
    E = np.zeros((m, n))
    M = V = np.zeros((m, rank) if right else (rank, n))
    found, Qr = [], None
    for t in range(1, steps + 1):
        G = gradient(t - 1, W)
        A = G + E
        old = Qr
        if t == 1 or t % every == 0:
            S = A @ Q if right else Q.T @ A
            score = np.linalg.norm(S, ord=1 if norm == "l1" else 2, axis=0 if right else 1)
            Qr = Q[:, np.sort(np.argsort(-score)[:rank])]
            if rotate and t > 1:
                M, V = (M @ old.T @ Qr, np.abs(V @ old.T @ Qr)) if right else (Qr.T @ old @ M, np.abs(Qr.T @ old @ V))
        a = A @ Qr if right else Qr.T @ A
        back = a @ Qr.T if right else Qr @ a
        if error != "none":
            E = A - back
            E = E if error == "full" else levels(E, int(error[0]))
        if sums is not None:
            sums.append((G, back, E))
        M = B1 * M + (1 - B1) * a
        V = B2 * V + (1 - B2) * a * a
        u = M / (1 - B1**t) / (np.sqrt(V / (1 - B2**t)) + EPS)  # the bias-corrected form of the same
        W = (1 - LR * DECAY) * W - LR * (u @ Qr.T if right else Qr @ u)
        found.append(W)
    return found


def literal_with_basis(basis):
    """Q^T of the left case is what the transposed right case multiplies by: the same basis on either side."""
    return {"basis": basis, "transform": "fft" if basis == "dct2" else "matmul"}


def ours(given, steps, dtype=torch.float64, **options):
    return trace(
        lambda ps: DCTAdamWOptimizer(ps, **({"lr": LR, "weight_decay": DECAY, "rank": R} | options)),
        given,
        steps,
        dtype,
    )


@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("error", ["none", "full", "8bit", "4bit"])
def test_steps_equal_the_equations(error, every, rotate):
    given = problems()
    found, _ = ours(given, 15, every=every, rotate=rotate, error_feedback=error)
    assert_follows(found, [literal(*one, 15, every=every, rotate=rotate, error=error) for one in given], 1e-8)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("basis", ["dct2", "dct3"])
def test_norms_and_bases(norm, basis):
    given = problems(seed=1)
    found, _ = ours(given, 12, norm=norm, **literal_with_basis(basis))
    assert_follows(found, [literal(*one, 12, norm=norm, basis=basis) for one in given], 1e-8)


def test_both_paths_give_the_same():
    given = problems(seed=2)
    (fft, _), (matmul, _) = ours(given, 12, transform="fft"), ours(given, 12, transform="matmul")
    for a, b in zip(fft[-1], matmul[-1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("rotate", [True, False])
def test_at_full_rank_it_is_adamw_in_the_cosine_basis(rotate):
    """Invariant 3, which needs sorted indices or rotation: AdamW on W Q with gradients G Q."""
    given = problems([(9, 6)])
    found, _ = ours(given, 12, rank=6, rotate=rotate)
    (start, gradient) = given[0]
    Q = scipy.fft.dct(np.eye(6), axis=0, norm="ortho").T
    turned = [(start @ Q, lambda t, W: gradient(t, W @ Q.T) @ Q)]
    expected, _ = trace(lambda ps: torch.optim.AdamW(ps, lr=LR, weight_decay=DECAY), turned, 12)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a[0], b[0] @ Q.T, atol=1e-9)
    plain, _ = trace(lambda ps: torch.optim.AdamW(ps, lr=LR, weight_decay=DECAY), given, 12)
    assert np.abs(found[-1][0] - plain[-1][0]).max() > 1e-3, "AdamW is not invariant to rotations"


def test_with_the_identity_as_basis_it_is_adamw(monkeypatch):
    monkeypatch.setattr("lrx.nn.dct.basis_vectors", lambda d, basis, dtype, device: torch.eye(d, dtype=dtype))
    given = problems([(9, 6), (6, 9)])
    found, _ = ours(given, 12, rank=6, transform="matmul")
    plain, _ = trace(lambda ps: torch.optim.AdamW(ps, lr=LR, weight_decay=DECAY), given, 12)
    for a, b in zip(found[-1], plain[-1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_full_error_feedback_loses_nothing():
    """Invariant 5: what was applied and what is left are the sum of the gradients."""
    given = problems()
    _, optimizer = ours(given, 20, error_feedback="full", every=3)
    for p, one in zip(optimizer.param_groups[0]["params"], given, strict=True):
        sums = []
        literal(*one, 20, error="full", every=3, sums=sums)
        G, applied, _ = (sum(parts) for parts in zip(*sums, strict=True))
        np.testing.assert_allclose(applied + optimizer.state[p]["error"].numpy(), G, atol=1e-9)


def test_an_update_lies_in_the_span_of_the_chosen_vectors_and_moments_stay_valid():
    """Invariants 4 and 8."""
    given = problems([(12, 8)])
    found, optimizer = ours(given, 6, weight_decay=0.0)
    p = optimizer.param_groups[0]["params"][0]
    C = scipy.fft.dct(np.eye(8), axis=0, norm="ortho")
    rows = C[optimizer.state[p]["indices"].numpy()]
    step = found[-1][0] - found[-2][0]
    np.testing.assert_allclose(step @ rows.T @ rows, step, atol=1e-12)
    assert (optimizer.state[p]["exp_avg_sq"] >= 0).all()
    indices = optimizer.state[p]["indices"].tolist()
    assert indices == sorted(set(indices))


@pytest.mark.parametrize(("error", "bytes_"), [("none", 0), ("full", 4 * 70), ("8bit", 70 + 80), ("4bit", 40 + 80)])
def test_state_is_two_moments_of_rank_r_and_the_indices(error, bytes_):
    """Invariant 6, in bytes, for a 10 x 7 matrix: no basis is kept for a matrix."""
    _, optimizer = ours(problems([(10, 7)]), 3, torch.float32, error_feedback=error)
    assert state_bytes(optimizer) == 4 * (2 * 10 * R + R) + bytes_
    elements = sum(v.numel() for v in optimizer.state[optimizer.param_groups[0]["params"][0]].values() if v.ndim)
    assert elements == DCTAdamW(lr=LR, rank=R, error_feedback=error).state_per_matrix(10, 7)


@pytest.mark.parametrize("error", ["8bit", "4bit"])
def test_a_quantised_error_survives_a_checkpoint(error):
    given = problems()
    expected, _ = ours(given, 8, torch.float32, error_feedback=error)
    first, optimizer = ours(given, 5, torch.float32, error_feedback=error)
    again = [(W, lambda t, W, g=g: g(t + 5, W)) for W, (_, g) in zip(first[-1], given, strict=True)]

    def resumed(ps):
        other = DCTAdamWOptimizer(ps, lr=LR, weight_decay=DECAY, rank=R, error_feedback=error)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        return other

    found, _ = trace(resumed, again, 3, torch.float32)
    for a, b in zip(found[-1], expected[-1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("n", [1, 6, 7])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_numbers_are_the_nearest_levels_in_their_places(bits, n):
    X = torch.randn(3, 5, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    X[0, 0] = 2.0  # a constant row
    codes, scale = quantize(X, bits)
    assert codes.dtype == torch.uint8
    assert codes.shape[-1] == (n if bits == 8 else (n + 1) // 2)
    back = dequantize(codes, scale, bits, n)
    half = (X.amax(-1) - X.amin(-1)) / (2**bits - 1) / 2
    assert ((back - X).abs() <= half.unsqueeze(-1) + 1e-12).all()
    torch.testing.assert_close(back[0, 0], X[0, 0])
    X[1, 2, 0] = torch.nan
    assert dequantize(*quantize(X, bits), bits, n)[1, 2].isnan().all()


def test_the_scale_of_gradients_does_not_matter():
    """Invariant 10 through a whole run, up to eps."""
    given = problems()
    still = [(W, lambda t, _, W=W, g=g: g(t, W)) for W, g in given]
    scaled = [(W, lambda t, _, W=W, g=g: 1000 * g(t, W)) for W, g in given]
    for a, b in zip(ours(still, 6)[0][-1], ours(scaled, 6)[0][-1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_projection_errors_are_ordered_as_the_paper_claims():
    """On gradients with structure: SVD <= chosen cosines < fixed cosines. (On noise no basis has an advantage.)"""
    d, r = 32, 8
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(20, 48, d, dtype=torch.float64, generator=generator).cumsum(2)  # random walks along the rows,
    G = G * (-1.0) ** torch.arange(d)  # moved to the upper half of the basis
    whole = G.square().sum((1, 2))
    rows = dct.basis_vectors(d, "dct2", torch.float64, G.device)[:r]

    def error(x):
        return float((1 - x.square().sum((1, 2)) / whole).mean())

    svd = error(G @ right_vectors(G, r))
    assert svd <= error(dct.select(G, r, norm="l2")[1]) < 0.5 * error(G @ rows.T)
    assert svd < error(dct.select(G, r, norm="l1")[1]) < 0.5 * error(G @ rows.T)


def test_an_fft_of_the_other_basis_is_refused():
    with pytest.raises(UserError, match=r"method\.basis=dct3"):
        DCTAdamW(lr=LR, basis="dct3")
