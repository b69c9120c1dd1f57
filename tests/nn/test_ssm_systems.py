"""Layers of S4, S4D and S5: their two modes, PTD and the transfer functions that it keeps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrx.errors import UserError
from lrx.nn.ssm import hippo, ptd
from lrx.nn.ssm.initial import Start, system
from lrx.nn.ssm.systems import System
from lrx.nn.ssm.transfer import full, gap, main, spike

DEFAULTS: dict[str, Any] = {
    "layer": "s4d", "init": "legs", "width": 4, "state": 8, "copies": 2, "blocks": 2, "bidirectional": False,
    "discretization": "zoh", "dt_min": 0.001, "dt_max": 0.1, "clamp": None, "c_init": "lecun", "gamma": 10.0,
    "share": None, "clip_eigs": True,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "s4": {"layer": "s4", "discretization": "bilinear"},
    "s4d": {},
    "s4d bilinear": {"discretization": "bilinear"},
    "s4d lin": {"init": "lin"},
    "s4d real": {"init": "real"},
    "s4 ptd": {"init": "ptd"},
    "s5": {"layer": "s5"},
    "s5 bilinear": {"layer": "s5", "discretization": "bilinear", "c_init": "trunc"},
    "s5 ptd": {"layer": "s5", "init": "ptd", "c_init": "complex_normal"},
}


def build(length: int = 20, **options: Any) -> System:
    return system(Start(**{**DEFAULTS, **options}), length, np.random.default_rng(0))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", [1, 13, 30])
def test_whole_sequences_and_single_steps_agree(name: str, length: int) -> None:
    layer = build(**CASES[name]).double()
    u = torch.randn(3, length, 4, dtype=torch.float64)
    whole, state = layer(u), layer.start(3)
    for t in range(length):
        y, state = layer.step(u[:, t], state)
        torch.testing.assert_close(y, whole[:, t].detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_a_state_does_not_grow(name: str) -> None:
    layer = build(**CASES[name])
    first = layer.start(2)
    _, later = layer.step(torch.ones(2, 4), first)
    for _ in range(3):
        _, later = layer.step(torch.ones(2, 4), later)
    assert {key: value.shape for key, value in first.items()} == {key: value.shape for key, value in later.items()}


@pytest.mark.parametrize("name", CASES)
def test_causality_and_both_ways(name: str) -> None:
    u = torch.randn(1, 11, 4)
    changed = u.clone()
    changed[:, 6] += 1
    forwards, both = build(**CASES[name]), build(**CASES[name], bidirectional=True)
    moved = (forwards(changed) - forwards(u)).abs().amax((0, 2))
    assert (moved[:6] < 1e-5).all()
    assert (moved[6:] > 1e-4).all()
    assert ((both(changed) - both(u)).abs().amax((0, 2)) > 1e-4).all()


@pytest.mark.parametrize("name", CASES)
def test_systems_stay_stable_whatever_the_update(name: str) -> None:
    layer = build(**CASES[name])
    for p in layer.parameters():
        p.data += 3 * torch.randn_like(p)
    if hasattr(layer, "_continuous"):
        assert (layer._continuous()[0].real < 0).all()
    else:
        assert (layer._discrete()[0].abs() <= 1 + 1e-6).all()  # below 1, but for the rounding of float32


def test_s5_without_the_cut_is_the_same_until_it_would_cut() -> None:
    cut, uncut = build(layer="s5"), build(layer="s5", clip_eigs=False)
    u = torch.randn(1, 6, 4)
    assert torch.equal(cut(u), uncut(u))
    for layer in (cut, uncut):
        layer.decay.data.fill_(0.5)
    assert (cut._discrete()[0].abs() < 1).all()
    assert (uncut._discrete()[0].abs() > 1).all()


@pytest.mark.parametrize("name", CASES)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    layer = build(**CASES[name], length=16)
    u = torch.randn(2, 16, 4)
    expected = layer(u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(u), expected, rtol=0, atol=1e-5)
    half = layer.to(torch.bfloat16)(u.bfloat16())
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()
    assert float((half.float() - expected).norm() / expected.norm()) < 0.2


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_has_a_gradient(name: str) -> None:
    layer = build(**CASES[name], length=9)
    layer(torch.randn(2, 9, 4)).square().sum().backward()
    assert {n for n, p in layer.named_parameters() if p.grad is None or not p.grad.isfinite().all()} == set()


@pytest.mark.parametrize(
    ("states", "gamma", "size", "kappa"), [(4, 10, 0.0695, 4.0), (8, 10, 0.0723, 4.06), (16, 30, 0.0267, 8.78)]
)
def test_ptd_is_the_perturbed_matrix(states: int, gamma: float, size: float, kappa: float) -> None:
    A, B = hippo.legs(states)
    E = ptd.perturbation(states, gamma)
    modes = ptd.perturbed(states, gamma)
    assert len(modes.A) == states // 2
    assert (modes.A.imag < 0).all()
    assert (modes.A.real < 0).all()
    V, Lambda = (np.concatenate([x, x.conj()], -1) for x in (modes.V, modes.A))
    np.testing.assert_allclose(V @ np.diag(Lambda) @ np.linalg.inv(V), A + E, atol=1e-10)
    np.testing.assert_allclose(np.concatenate([modes.B, modes.B.conj()]), np.linalg.inv(V) @ B, atol=1e-10)
    assert np.linalg.norm(E) / np.linalg.norm(A) == pytest.approx(size, rel=0.02)
    assert np.linalg.cond(V) == pytest.approx(kappa, rel=0.02)


def test_the_whole_rank_one_part_leaves_s4d() -> None:
    ours, legs = ptd.perturbed(16, 10.0, share=1.0), hippo.nplr(16)
    np.testing.assert_allclose(np.sort(ours.A.imag), np.sort(legs.A.imag), atol=1e-10)
    s = 1j * np.linspace(0.1, 100, 50)
    C = np.random.default_rng(0).standard_normal(16)
    found, expected = (
        (1 / (s[:, None] - m.A) * (C @ m.V) * m.B + 1 / (s[:, None] - m.A.conj()) * ((C @ m.V) * m.B).conj()).sum(1)
        for m in (ours, legs)
    )
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_real_eigenvalues_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At E = 0 A has the eigenvalues -1..-N, all real."""
    monkeypatch.setattr(ptd, "perturbation", lambda states, gamma: np.zeros((states, states)))
    modes = ptd.perturbed(4, 10.0)
    np.testing.assert_allclose(np.sort(modes.A.real), [-4, -3, -2, -1], atol=1e-9)
    A, B = hippo.legs(4)
    C = np.arange(1.0, 5)
    s = 0.3 + 2j
    found = (2 * ((C @ modes.V) * modes.B / (s - modes.A))).sum()
    assert found == pytest.approx(C @ np.linalg.solve(s * np.eye(4) - A, B), abs=1e-9)


def test_an_unstable_perturbation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptd, "perturbation", lambda states, gamma: 20 * np.eye(states))
    with pytest.raises(UserError, match=r"model\.gamma=1: with 4 states .* not stable"):
        ptd.perturbed(4, 1.0)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_the_share_lies_between_0_and_1(share: float) -> None:
    with pytest.raises(UserError, match=r"model\.share="):
        ptd.perturbed(4, 10.0, share)


@pytest.mark.parametrize(("states", "expected"), [(8, 0.598), (16, 0.627), (32, 0.634)])
def test_s4d_misses_hippo_at_its_top_frequency(states: int, expected: float) -> None:
    """The gap of the diagonal system does not vanish: it tends to 2/pi, at the top eigenfrequency."""
    assert spike(states) == pytest.approx(states**2 / math.pi - 0.52, abs=0.02)
    grid = np.linspace(spike(states) - 1, spike(states) + 1, 401)
    gaps = gap(states, full(states, 1.0), 0.5, grid)
    assert gaps.max() == pytest.approx(expected, abs=0.002)
    assert abs(grid[gaps.argmax()] - spike(states)) < 0.1
    off = gap(states, full(states, 1.0), 0.5, np.array([1.5 * spike(states)]))
    assert off[0] < 0.1


def test_the_gap_of_ptd_vanishes_linearly() -> None:
    grid = np.geomspace(0.05, 400, 2000)
    shares = np.array([0.1, 0.05, 0.025])
    gaps = np.array([gap(16, full(16, t), 1.0, grid).max() for t in shares])
    np.testing.assert_allclose(gaps[:-1] / gaps[1:], 2, rtol=0.15)
    assert [gap(n, full(n, 0.1), 1.0, grid).max() for n in (8, 32)] == pytest.approx([0.0088, 0.0022], rel=0.1)
    solved = hippo.legs(16)[0] + ptd.perturbation(16, 10.0)
    assert gap(16, solved, 1.0, grid).max() < 0.05


def test_the_picture_is_drawn_and_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path / "gap.png"), "--states", "8", "--gamma", "100"])
    assert (tmp_path / "gap.png").read_bytes().startswith(b"\x89PNG")
    assert "wrote" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(tmp_path / "gap.png"), "--states", "7"])
    assert "model.state=7" in capsys.readouterr().err
