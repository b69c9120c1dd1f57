"""Kernels and scans of state-space layers, held against dense matrices in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lrx.errors import UserError
from lrx.nn.ssm import hippo, s4
from lrx.nn.ssm.conv import fast_length, long_conv
from lrx.nn.ssm.scan import parallel_scan, sequential_scan
from lrx.nn.ssm.systems import Convolution
from lrx.nn.ssm.vandermonde import power_sums

F64 = torch.float64


def dense_legs(states: int) -> tuple[np.ndarray, np.ndarray]:
    A, B = np.zeros((states, states)), np.zeros(states)
    for n in range(states):
        B[n] = math.sqrt(2 * n + 1)
        for k in range(n + 1):
            A[n, k] = -(n + 1) if n == k else -math.sqrt((2 * n + 1) * (2 * k + 1))
    return A, B


def krylov(A: np.ndarray, B: np.ndarray, C: np.ndarray, dt: float, length: int, method: str = "bilinear") -> np.ndarray:
    """C Abar^l Bbar, one product after the other. A, B, C: of all states, real or complex."""
    eye = np.eye(len(A))
    if method == "bilinear":
        inverse = np.linalg.inv(eye - dt / 2 * A)
        Abar, x = inverse @ (eye + dt / 2 * A), inverse @ B * dt
    else:
        Abar = np.diag(np.exp(dt * np.diag(A)))
        x = np.linalg.inv(A) @ (Abar - eye) @ B
    found = []
    for _ in range(length):
        found.append(C @ x)
        x = Abar @ x
    return np.array(found)


def both(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, x.conj()], axis=-1)


def s4_layer(
    states: int, dts: list[float], length: int, seed: int = 0, directions: int = 1
) -> tuple[Convolution, np.ndarray]:
    """A float64 layer with exact HiPPO, and its C before it became C~."""
    rng = np.random.default_rng(seed)
    modes = hippo.nplr(states)
    shape = (directions, len(dts), states // 2)
    C = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    Abar = s4.dense(np.stack([modes.A] * len(dts)), np.stack([modes.P] * len(dts)), np.array(dts))
    layer = Convolution([modes], C, np.zeros(len(dts)), np.array(dts), method="bilinear", length=length).double()
    with torch.no_grad():  # the parameters as they were before float32 rounded them
        layer.frequency.copy_(torch.from_numpy(modes.A.imag))
        layer.log_decay.copy_(torch.from_numpy(np.log(-modes.A.real)))
        layer.log_dt.copy_(torch.tensor(dts, dtype=F64).log())
        for name, value in {"B": modes.B, "P": modes.P}.items():
            getattr(layer, name).copy_(torch.view_as_real(torch.from_numpy(value)))
        layer.C.copy_(torch.view_as_real(torch.from_numpy(s4.truncate(C, Abar, length))))
    return layer, C


@pytest.mark.parametrize("states", [2, 8, 64])
def test_legs_is_normal_plus_rank_one(states: int) -> None:
    A, B = hippo.legs(states)
    expected_A, expected_B = dense_legs(states)
    np.testing.assert_allclose(A, expected_A, rtol=1e-15, atol=0)
    np.testing.assert_allclose(B, expected_B, rtol=1e-15)
    skew = A + np.outer(hippo.rank_one(states), hippo.rank_one(states)) + np.eye(states) / 2
    assert np.abs(skew + skew.T).max() < 1e-11
    modes = hippo.nplr(states)
    assert (modes.A.real == -0.5).all()
    assert (modes.A.imag < 0).all()
    V, Lambda, P = (np.concatenate([x, x.conj()], -1) for x in (modes.V, modes.A, modes.P))
    np.testing.assert_allclose(V @ np.diag(Lambda) @ V.conj().T - V @ np.outer(P, P.conj()) @ V.conj().T, A, atol=1e-10)
    np.testing.assert_allclose(modes.B, math.sqrt(2) * modes.P, atol=1e-11)
    assert np.isreal(modes.V[0]).all()
    assert (modes.V[0].real > 0).all()
    if states >= 8:
        assert -modes.A.imag.min() == pytest.approx(states**2 / math.pi - 0.52, abs=0.02)


def test_the_clamp_cuts_what_exceeds_it() -> None:
    exact, cut = hippo.nplr(64), hippo.nplr(64, clamp=2.0)
    assert (np.abs(exact.B.imag) > 2).sum() == 11  # of the official code, in the same gauge
    np.testing.assert_array_equal(cut.B.imag, exact.B.imag.clip(-2, 2))
    np.testing.assert_array_equal(cut.P, exact.P)
    np.testing.assert_array_equal(cut.B.real, exact.B.real)


def test_diagonal_initialisations() -> None:
    rng = np.random.default_rng(0)
    n = np.arange(4)
    np.testing.assert_allclose(hippo.diagonal("lin", 8, rng).A, -0.5 - 1j * np.pi * n)
    np.testing.assert_allclose(hippo.diagonal("inv", 8, rng).A, -0.5 - 1j * 8 / np.pi * (8 / (2 * n + 1) - 1))
    np.testing.assert_allclose(hippo.diagonal("real", 8, rng).A, -(n + 1.0))
    drawn = hippo.diagonal("random", 8, rng).A
    assert len(set(drawn.imag)) == 4
    assert (drawn.real == -0.5).all()
    np.testing.assert_array_equal(hippo.diagonal("legs", 8, rng).A, hippo.nplr(8).A)


@pytest.mark.parametrize("states", [0, 7])
def test_an_odd_number_of_states_is_refused(states: int) -> None:
    with pytest.raises(UserError, match=rf"model\.state={states}: .*even"):
        hippo.nplr(states)


@pytest.mark.parametrize(("states", "length"), [(2, 1), (4, 2), (16, 63), (64, 64), (64, 257)])
def test_dplr_kernel_is_the_dense_one(states: int, length: int) -> None:
    dts = [0.001, 0.1]
    layer, C = s4_layer(states, dts, length)
    A, B = dense_legs(states)
    V = both(hippo.nplr(states).V)
    found = layer.kernel(length)[0].detach().numpy()
    for h, dt in enumerate(dts):
        expected = krylov(A, B, (both(C[0, h]) @ np.linalg.inv(V)).real, dt, length)
        assert np.abs(found[h] - expected).max() / np.abs(expected).max() < 1e-10


def test_dplr_kernel_is_the_cauchy_sum_of_the_paper() -> None:
    """Cauchy sums over all states at the roots of unity, Woodbury, inverse transform; length odd: no node at -1."""
    layer, C = s4_layer(16, [0.02], 45)
    modes = hippo.nplr(16)
    A, P, B = both(modes.A), both(modes.P), both(modes.B)
    Abar = s4.dense(modes.A[None], modes.P[None], np.array([0.02]))[0]
    tilde = both(C[0, 0]) @ (np.eye(16) - np.linalg.matrix_power(Abar, 45))
    omega = np.exp(-2j * np.pi * np.arange(45) / 45)
    z = 2 * (1 - omega) / (1 + omega)

    def cauchy(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return 0.02 * (a * b / (z[:, None] - 0.02 * A)).sum(1)

    woodbury = cauchy(tilde, P) * cauchy(P.conj(), B) / (1 + cauchy(P.conj(), P))
    expected = np.fft.ifft(2 / (1 + omega) * (cauchy(tilde, B) - woodbury)).real
    np.testing.assert_allclose(layer.kernel(45)[0, 0].detach().numpy(), expected, rtol=0, atol=1e-11)


def test_a_longer_kernel_continues_the_shorter_one() -> None:
    layer, C = s4_layer(8, [0.05], 13)
    A, B = dense_legs(8)
    expected = krylov(A, B, (both(C[0, 0]) @ np.linalg.inv(both(hippo.nplr(8).V))).real, 0.05, 50)
    for length in (5, 13, 14, 50):
        np.testing.assert_allclose(layer.kernel(length)[0, 0].detach().numpy(), expected[:length], atol=1e-10)


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
@pytest.mark.parametrize("init", ["legs", "lin", "real"])
def test_diagonal_kernel_is_the_dense_one(method: str, init: str) -> None:
    rng = np.random.default_rng(1)
    modes = [hippo.diagonal(init, 8, rng)] * 2
    C = rng.standard_normal((2, 4, 4)) + 1j * rng.standard_normal((2, 4, 4))
    layer = Convolution(modes, C, np.zeros(4), np.array([0.01, 0.3, 0.05, 0.1]), method=method).double()
    A = (-layer.log_decay.exp() + 1j * layer.frequency).detach().numpy()
    B, C, dt = torch.view_as_complex(layer.B), torch.view_as_complex(layer.C), layer.log_dt.exp()
    found = layer.kernel(37)
    assert found.shape == (2, 4, 37)
    for c in range(2):
        for h in range(4):
            args = (np.diag(both(A[h % 2])), both(B[h % 2].detach().numpy()), both(C[c, h].detach().numpy()))
            expected = krylov(*args, float(dt[h]), 37, method)
            np.testing.assert_allclose(found[c, h].detach().numpy(), expected.real, atol=1e-12)


def test_dplr_without_its_rank_one_part_is_diagonal() -> None:
    layer, _ = s4_layer(16, [0.01, 0.05], 40)
    with torch.no_grad():
        layer.P.zero_()
    A, _, _, dt = layer._continuous()
    log_z = torch.log((1 + dt / 2 * A) / (1 - dt / 2 * A))
    plain = Convolution([hippo.nplr(16)], np.zeros((1, 2, 8)), np.zeros(2), np.ones(2), method="bilinear").double()
    with torch.no_grad():
        for name in ("log_decay", "frequency", "B", "log_dt"):
            getattr(plain, name).copy_(getattr(layer, name))
        C = torch.view_as_complex(layer.C) / (1 - torch.exp(40 * log_z))
        plain.C.copy_(torch.view_as_real(C))
    torch.testing.assert_close(plain.kernel(40), layer.kernel(40), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["s4", "s4d"])
def test_float32_is_close_to_float64(kind: str) -> None:
    layer, _ = s4_layer(64, [0.001, 0.01, 0.1], 1024)
    if kind == "s4d":
        layer.length = None
    exact = layer.kernel(1024)
    rough = layer.float().kernel(1024)
    assert rough.dtype == torch.float32
    assert float((rough - exact).abs().max() / exact.abs().max()) < 2e-4


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 100])
def test_power_sums_and_their_gradients(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    log_z = torch.complex(
        -torch.rand(2, 3, generator=generator, dtype=F64) / 20, torch.randn(2, 3, generator=generator, dtype=F64)
    )
    weights = torch.randn(2, 4, 3, generator=generator, dtype=torch.complex128)
    inputs = [weights.requires_grad_(), log_z.requires_grad_()]
    found = power_sums(*inputs, length, F64)
    steps = torch.arange(length, dtype=F64)
    expected = 2 * (weights.unsqueeze(-1) * torch.exp(log_z.unsqueeze(1).unsqueeze(-1) * steps)).sum(2).real
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weight = torch.randn(expected.shape, generator=generator, dtype=F64)
    ours = torch.autograd.grad((found * weight).sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 5, 16])
def test_long_convolution(length: int) -> None:
    u = torch.randn(2, 3, length, dtype=F64, requires_grad=True)
    kernels = torch.randn(2, 3, length, dtype=F64, requires_grad=True)
    found, forwards = long_conv(u, kernels), long_conv(u, kernels[:1])
    for t in range(length):
        past = sum((kernels[0, :, j] * u[:, :, t - j] for j in range(t + 1)), torch.zeros(2, 3, dtype=F64))
        future = sum(
            (kernels[1, :, j - 1] * u[:, :, t + j] for j in range(1, length - t)), torch.zeros(2, 3, dtype=F64)
        )
        torch.testing.assert_close(forwards[..., t], past)
        torch.testing.assert_close(found[..., t], past + future)
    assert torch.autograd.gradcheck(long_conv, (u, kernels))


def test_fast_lengths() -> None:
    def smooth(n: int) -> bool:
        for p in (2, 3, 5):
            while n % p == 0:
                n //= p
        return n == 1

    for least in [*range(1, 200), 1568, 32769]:
        assert fast_length(least) == next(n for n in range(least, 2 * least + 1) if smooth(n))


@pytest.mark.parametrize("length", [1, 2, 3, 8, 13])
def test_parallel_scan_is_the_loop(length: int) -> None:
    a = (0.9 * torch.exp(1j * torch.randn(5, dtype=F64))).requires_grad_()
    v = torch.randn(2, length, 5, dtype=torch.complex128, requires_grad=True)
    expected = sequential_scan(a, v)
    torch.testing.assert_close(parallel_scan(a, v), expected, rtol=0, atol=1e-12)
    weight = torch.randn(2, length, 5, dtype=torch.complex128)

    def gradients(x: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((x * weight).real.sum(), (a, v), allow_unused=True, materialize_grads=True)

    for ours, theirs in zip(gradients(parallel_scan(a, v)), gradients(sequential_scan(a, v)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
