"""New S4, S4D and S5 systems as their papers start them; every number is drawn from one generator of NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.linalg import block_diag

from lrx.errors import UserError
from lrx.nn.ssm.hippo import INITS, Complex, Modes, Real, check_state, diagonal, nplr
from lrx.nn.ssm.ptd import perturbed
from lrx.nn.ssm.systems import Convolution, Simplified, System, log_uniform, normal

KINDS: dict[str, tuple[str, ...]] = {"s4": ("legs",), "s4d": (*INITS, "ptd"), "s5": ("legs", "ptd")}
CUT = 0.87962566103423978  # standard deviation of a normal number that is cut at 2


@dataclass(frozen=True)
class Start:
    """The options of a system; ``lrx.models.sequence_stack.SequenceStack`` says what they mean."""

    layer: Literal["s4", "s4d", "s5"]
    init: str
    width: int
    state: int
    copies: int
    blocks: int
    bidirectional: bool
    discretization: str
    dt_min: float
    dt_max: float
    clamp: float | None
    c_init: str
    clip_eigs: bool
    gamma: float
    share: float | None


def check(o: Start) -> None:
    """Raise ``UserError`` naming the option that does not fit."""
    if o.init not in KINDS[o.layer]:
        raise UserError(f"model.init={o.init}: layer {o.layer} starts from {' or '.join(KINDS[o.layer])}")
    if o.layer == "s4" and o.discretization != "bilinear":
        raise UserError(f"model.discretization={o.discretization}: the kernel of layer s4 is bilinear")
    if not 0 < o.dt_min <= o.dt_max:
        raise UserError(f"model.dt_min={o.dt_min}: the steps lie between 0 < dt_min <= dt_max={o.dt_max}")
    if o.clamp is not None and not o.clamp > 0:
        raise UserError(f"model.clamp={o.clamp}: the largest imaginary part of B must be positive (null: any)")
    if o.layer == "s5":
        if o.blocks < 1 or o.state % o.blocks:
            raise UserError(f"model.blocks={o.blocks}: must divide the {o.state} states")
        check_state(o.state // o.blocks, "model.state/blocks")
    else:
        check_state(o.state)
        if o.copies < 1 or o.width % o.copies:
            raise UserError(f"model.copies={o.copies}: must divide the {o.width} channels")


def system(o: Start, length: int, rng: np.random.Generator) -> System:
    """A system for sequences of at most ``length`` steps (S4's C~ belongs to it; longer ones work too)."""
    if o.layer == "s5":
        return _simplified(o, rng)
    directions, modes = 1 + o.bidirectional, [_modes(o, rng) for _ in range(o.copies)]
    if o.init == "ptd":  # C = C_0 V; in the basis of a unitary V that is normal again, and drawn as such
        V = np.asarray(modes[0].V)
        C = rng.standard_normal((directions, o.width, len(V))) @ V
    else:
        C = normal(rng, directions, o.width, len(modes[0].A))
    D = rng.standard_normal(o.width)
    dt = log_uniform(rng, o.dt_min, o.dt_max, o.width)
    return Convolution(modes, C, D, dt, method=o.discretization, length=length if o.layer == "s4" else None)


def _modes(o: Start, rng: np.random.Generator) -> Modes:
    size = o.state // o.blocks if o.layer == "s5" else o.state
    if o.init == "ptd":
        return perturbed(size, o.gamma, o.share)
    clamp = None if o.layer == "s5" else o.clamp
    return nplr(size, clamp) if o.layer == "s4" else diagonal(o.init, size, rng, clamp)


def _simplified(o: Start, rng: np.random.Generator) -> Simplified:
    """S5: J blocks of modes on the diagonal, B = V^-1 (real normal), C = C_0 V."""
    modes, features = _modes(o, rng), o.width
    A = np.tile(modes.A, o.blocks)
    V: Complex = block_diag(*[modes.V] * o.blocks)
    inverse: Complex = block_diag(*[modes.inverse] * o.blocks)
    B = inverse @ (_cut_normal(rng, o.state, features) / np.sqrt(o.state))
    C = np.concatenate([_output(o, V, rng) for _ in range(1 + o.bidirectional)], axis=1)
    dt = log_uniform(rng, o.dt_min, o.dt_max, len(A))
    return Simplified(A, B, C, rng.standard_normal(features), dt, method=o.discretization, clip=o.clip_eigs)


def _output(o: Start, V: Complex, rng: np.random.Generator) -> Complex:
    """C (H, M): ``lecun`` has variance 1/(H P) of real and imaginary part before V, ``trunc`` 1/P, as in S5's code."""
    if o.c_init == "complex_normal":
        return normal(rng, o.width, V.shape[1])
    fan = o.state * (o.width if o.c_init == "lecun" else 1)
    drawn = _cut_normal(rng, o.width, o.state) + 1j * _cut_normal(rng, o.width, o.state)
    return drawn / np.sqrt(fan) @ V


def _cut_normal(rng: np.random.Generator, *shape: int) -> Any:
    """Normal numbers cut at two standard deviations, with variance 1."""
    x: Real = rng.standard_normal(shape)
    while (far := np.abs(x) > 2).any():
        x[far] = rng.standard_normal(int(far.sum()))
    return x / CUT
