"""NOBLE's layer: a linear layer with a nonlinear low-rank branch, ``y = W x + b + U sigma(D x + d)``.

W (m, n); D (r, n), d (r,), U (m, r); sigma maps h (..., r) to (..., r). f = min(m, n).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Preset:
    """How the layer starts and how fast its parts are trained.

    ``uniform``: W, D and the inner matrices start uniform (W with the same standard deviation) instead of normal.
    ``bias``: D and the inner matrices have a bias. ``up_power``, ``inner_power``: exponents of f / r in the rates of U
    and of the inner matrices. ``two_sided``: half of ``up_power`` for U and half for D. ``frequency_rate``,
    ``phase_rate``: factors of the rates of w and p.
    """

    uniform: bool
    bias: bool
    up_power: float
    inner_power: float
    frequency_rate: float
    phase_rate: float
    two_sided: bool = False


# The official code, and a port of the paper's appendix (see lrx/methods/noble.py).
PRESETS = {
    "repo": Preset(uniform=False, bias=True, up_power=0.4, inner_power=0.5, frequency_rate=2.0, phase_rate=4.0),
    "paper_port": Preset(uniform=True, bias=False, up_power=0.6, inner_power=0.45, frequency_rate=3.0, phase_rate=5.0),
}
SCALE_RATE, SHIFT_RATE = 5.0, 3.0  # official code


@dataclass(frozen=True)
class Waves:
    """How cosines start: frequencies of kind ``frequencies`` in [low, high], or all ``frequency`` where ``uniform``.

    ``harmonic``: equally spaced, ``geometric``: in equal ratios; with ``_random`` drawn at random instead. Phases are
    normal with standard deviation ``phase_std``. ``trained``: whether the frequencies are.
    """

    frequencies: str = "harmonic_random"
    low: float = 0.8
    high: float = 1.2
    frequency: float = 1.0
    phase_std: float = 0.1
    trained: bool = True

    def draw(self, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Frequencies and phases, (width,) each, on the CPU in float32."""
        kind, low, high = self.frequencies, self.low, self.high
        if kind.startswith("geometric"):
            low, high = math.log(low), math.log(high)
        if kind == "uniform":
            w = torch.full((width,), self.frequency)
        elif kind.endswith("_random"):
            w = low + (high - low) * torch.rand(width, generator=generator)
        else:
            w = torch.linspace(low, high, width)
        w = w.exp() if kind.startswith("geometric") else w
        return w, torch.fmod(torch.randn(width, generator=generator) * self.phase_std, 2 * math.pi)


class Cosine(nn.Module):
    """``cos(w * h + p)``, w and p (width,), elementwise; w is a buffer where it is not trained."""

    w: Tensor

    def __init__(self, waves: Waves, width: int, generator: torch.Generator) -> None:
        super().__init__()
        w, p = waves.draw(width, generator)
        if waves.trained:
            self.w = nn.Parameter(w)
        else:
            self.register_buffer("w", w)
        self.p = nn.Parameter(p)

    def forward(self, h: Tensor) -> Tensor:
        return torch.cos(torch.addcmul(self.p, self.w, h))


class ScaleShift(nn.Module):
    """``g(h) * a + c``, a and c (width,), which start at 1 and 0; without ``scale`` there is no a."""

    def __init__(self, g: nn.Module, width: int, scale: bool = True) -> None:
        super().__init__()
        self.g = g
        self.a = nn.Parameter(torch.ones(width)) if scale else None
        self.c = nn.Parameter(torch.zeros(width))

    def forward(self, h: Tensor) -> Tensor:
        return self.g(h) + self.c if self.a is None else torch.addcmul(self.c, self.g(h), self.a)


class Signed(nn.Module):
    """``-g(h)``, with ``flip`` ``-g(-h)``."""

    def __init__(self, g: nn.Module, flip: bool) -> None:
        super().__init__()
        self.g, self.flip = g, flip

    def forward(self, h: Tensor) -> Tensor:
        return -self.g(-h if self.flip else h)


class SwiGLU(nn.Module):
    """``silu(g) * v`` of h = [g, v], (..., 2 r) -> (..., r)."""

    def forward(self, h: Tensor) -> Tensor:
        g, v = h.chunk(2, dim=-1)
        return F.silu(g) * v


class Inner(nn.Module):
    """``F a + f`` between two activations: F (out, width) normal with ``std`` or Xavier uniform."""

    def __init__(self, width: int, out: int, std: float, preset: Preset, generator: torch.Generator) -> None:
        super().__init__()
        if preset.uniform:
            matrix = _uniform(out, width, math.sqrt(6 / (width + out)), generator)
        else:
            matrix = torch.randn(out, width, generator=generator) * std
        self.F = nn.Parameter(matrix)
        # The default of PyTorch's linear layers, which the official code leaves as it is.
        bias = _uniform(1, out, 1 / math.sqrt(width), generator)[0] if preset.bias else None
        self.f = None if bias is None else nn.Parameter(bias)

    def forward(self, a: Tensor) -> Tensor:
        return F.linear(a, self.F, self.f)


class Net(nn.Module):
    """``g_k(F_k ... g_1(F_1 g_0(h) + f_1) ... + f_k)``, k = 1 or 2; ``acts``: g_0, ..., g_k.

    ``residual_matrix`` adds h after each inner matrix, ``residual_after`` adds it to the result.
    """

    def __init__(
        self, acts: Sequence[nn.Module], inner: Sequence[Inner], residual_matrix: bool, residual_after: bool
    ) -> None:
        super().__init__()
        self.acts, self.inner = nn.ModuleList(acts), nn.ModuleList(inner)
        self.residual_matrix, self.residual_after = residual_matrix, residual_after

    def forward(self, h: Tensor) -> Tensor:
        y = self.acts[0](h)
        for i, matrix in enumerate(self.inner, 1):
            y = matrix(y)
            y = self.acts[i](y + h if self.residual_matrix else y)
        return y + h if self.residual_after else y


def is_net(activation: str) -> bool:
    """Whether it has an inner matrix, so that the residual options mean something."""
    return "_net" in activation


def _simple(name: str) -> nn.Module:
    made = {"gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "leakyrelu": nn.LeakyReLU, "swiglu": SwiGLU}  # slope .01
    return made[name]()


def sigma(
    name: str,
    rank: int,
    *,
    preset: Preset,
    waves: Waves,
    residual_matrix: bool = False,
    residual_after: bool = False,
    generator: torch.Generator,
) -> nn.Module:
    """The branch's activation by its name in the official code. ``swiglu`` and ``swiglu_net`` read 2 r numbers."""
    root = math.sqrt(rank)
    if name in ("identity", "linear"):
        return nn.Identity()
    if name == "cos":
        return Cosine(waves, rank, generator)
    if is_net(name):
        g, count = name.partition("_net")[0], 2 if name.endswith("_double") else 1
        out = 2 * rank if g == "swiglu" else rank
        acts = [Cosine(waves, rank, generator) if g == "cos" else _simple(g) for _ in range(count + 1)]
        std = 1 / root if count == 2 else 0.5 / root
        inner = [Inner(rank, out, std, preset, generator) for _ in range(count)]
        return Net(acts, inner, residual_matrix, residual_after)
    g, _, change = name.partition("_")
    if change in ("scale", "shift"):
        return ScaleShift(_simple(g), rank, scale=change == "scale")
    if g in ("neg", "flip"):
        return Signed(_simple(change), flip=g == "flip")
    return _simple(name)


class Branch(nn.Module):
    """``U sigma(D x + d)``: D (r, n), (2 r, n) for a gated sigma; d its bias, absent for ``identity``; U (m, r).

    D starts with variance 1 / n (``uniform``: PyTorch's default), d at 0, U normal with ``up_scale`` / sqrt(r).
    """

    def __init__(
        self,
        m: int,
        n: int,
        rank: int,
        activation: str,
        *,
        preset: Preset,
        waves: Waves,
        up_scale: float,
        residual_matrix: bool,
        residual_after: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        width = 2 * rank if activation.startswith("swiglu") else rank
        root = math.sqrt(n)
        down = (
            _uniform(width, n, 1 / root, generator)
            if preset.uniform
            else torch.randn(width, n, generator=generator) / root
        )
        self.D = nn.Parameter(down)
        biased = preset.bias and activation != "identity"
        self.d = nn.Parameter(torch.zeros(width)) if biased else None
        self.sigma = sigma(
            activation,
            rank,
            preset=preset,
            waves=waves,
            residual_matrix=residual_matrix,
            residual_after=residual_after,
            generator=generator,
        )
        self.U = nn.Parameter(torch.randn(m, rank, generator=generator) * (up_scale / math.sqrt(rank)))
        ratio = min(m, n) / rank
        up = preset.up_power / 2 if preset.two_sided else preset.up_power
        self.factors = {
            "U": ratio**up, "D": ratio**up if preset.two_sided else 1.0, "d": 1.0,
            "F": ratio**preset.inner_power, "f": ratio**preset.inner_power,
            "w": preset.frequency_rate, "p": preset.phase_rate, "a": SCALE_RATE, "c": SHIFT_RATE,
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.sigma(F.linear(x, self.D, self.d)), self.U)

    def rates(self) -> Iterator[tuple[nn.Parameter, float]]:
        """Every parameter with the factor of its learning rate."""
        for name, p in self.named_parameters():
            yield p, self.factors[name.rpartition(".")[2]]


class NobleLinear(nn.Linear):
    """A linear layer (m, n), whose ``weight`` and ``bias`` are trained on, with a ``branch`` beside it.

    The branch is float32 (float64 beside a float64 weight) outside autocast: the cosine of a half-precision argument
    would lose its phase. ``forward``: x (..., n) -> (..., m).
    """

    def __init__(self, layer: nn.Linear, branch: Branch | None) -> None:
        # On the meta device, so that nothing is drawn or allocated for what is replaced at once.
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        self.branch = None if branch is None else branch.to(self.weight.device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.branch is None:
            return y
        with torch.autocast(x.device.type, enabled=False):
            return y + self.branch(x.to(self.branch.U.dtype)).to(y.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer with the same outputs. Raises ``ValueError`` unless the branch is linear and unbiased."""
        options: dict[str, Any] = {"device": "meta", "dtype": self.weight.dtype}
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, **options)
        plain.weight, plain.bias = self.weight, self.bias
        if self.branch is not None:
            if self.branch.d is not None or not isinstance(self.branch.sigma, nn.Identity):
                raise ValueError("a nonlinear branch leaves no single matrix")
            W = self.weight.to(self.branch.U.dtype)
            plain.weight = nn.Parameter((W + self.branch.U @ self.branch.D).to(self.weight.dtype))
        return plain


@torch.no_grad()
def redraw(layer: nn.Linear, scale: float, preset: Preset, generator: torch.Generator) -> None:
    """W anew with standard deviation ``scale`` / sqrt(n), normal or ``uniform``, and a zero bias."""
    m, n = layer.weight.shape
    if preset.uniform:
        layer.weight.copy_(_uniform(m, n, scale * math.sqrt(3 / n), generator))
    else:
        layer.weight.copy_(torch.randn(m, n, generator=generator) * (scale / math.sqrt(n)))
    if layer.bias is not None:
        layer.bias.zero_()


def _uniform(rows: int, columns: int, bound: float, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(rows, columns, generator=generator) - 1) * bound
