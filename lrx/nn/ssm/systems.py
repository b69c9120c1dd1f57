"""The layers y = SSM(u) of S4, S4D and S5 over sequences (batch, L, H), with their recurrent form.

A system has ``forward(u)`` for whole sequences and, unless it is bidirectional, ``start(batch)`` and ``step(u, state)``
for one step at a time, in a time and memory that do not grow with the steps behind. Parameters are real tensors (a
complex number is a last axis of 2); kernels are computed in float32 at least. Re A is -exp(parameter) in S4 and S4D and
cut at -1e-4 in S5, so that no update makes a system unstable.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lrx.nn.ssm.conv import long_conv
from lrx.nn.ssm.hippo import Complex, Modes, Real
from lrx.nn.ssm.s4 import dense, dplr_kernel, dplr_step, lengthen, truncate, untruncate
from lrx.nn.ssm.s4d import diagonal_kernel
from lrx.nn.ssm.scan import parallel_scan
from lrx.nn.ssm.vandermonde import discretise

State = dict[str, Tensor]


class System(nn.Module):
    """``groups``: which parameters are A, B and dt, for their own learning rates."""

    groups: ClassVar[dict[str, tuple[str, ...]]]
    bidirectional: bool

    def start(self, batch: int) -> State:
        """The state before the first step, zero, with what the steps share."""
        raise NotImplementedError

    def step(self, u: Tensor, state: State) -> tuple[Tensor, State]:
        """``u`` (batch, H) of the next step -> y (batch, H) and the state after it."""
        raise NotImplementedError


class Convolution(System):
    """S4 (``length`` given: C is the C~ of a kernel of that length) and S4D (``length`` None).

    ``modes``: one for each of S copies of (A, B, P), S dividing ``width``; channel h has copy h mod S. ``C``: complex
    (1 or 2, H, M), two for a bidirectional layer. ``dt``: (H,). ``method``: discretisation, of S4 always bilinear.
    """

    groups = {"A": ("log_decay", "frequency", "P"), "B": ("B",), "dt": ("log_dt",)}  # noqa: RUF012

    def __init__(
        self, modes: list[Modes], C: Complex, D: Real, dt: Real, *, method: str = "zoh", length: int | None = None
    ) -> None:
        super().__init__()
        self.method, self.length, self.bidirectional = method, length, len(C) == 2
        A, B = np.stack([m.A for m in modes]), np.stack([m.B for m in modes])
        self.log_decay = nn.Parameter(single(np.log(-A.real)))
        self.frequency = nn.Parameter(single(A.imag))
        self.B = pair(B)
        self.log_dt, self.D = nn.Parameter(single(np.log(dt))), nn.Parameter(single(D))
        if length is not None:
            P = np.stack([m.P for m in modes])
            self.P = pair(P)
            copies = np.arange(len(dt)) % len(modes)
            C = truncate(C, dense(A[copies], P[copies], dt), length)
        self.C = pair(C)

    def forward(self, u: Tensor) -> Tensor:
        kernels = self.kernel(u.shape[1])
        y = long_conv(u.transpose(1, 2), kernels).transpose(1, 2)
        return (self.D * u).to(y.dtype) + y  # in this order: the sum has u's strides, for which GELU is fast

    def kernel(self, length: int) -> Tensor:
        """K (1 or 2, H, length) real, in float32 at least."""
        kind = torch.promote_types(self.D.dtype, torch.float32)
        A, B, P, dt = self._continuous()
        C = double(self.C)
        if self.length is None:
            return diagonal_kernel(A, B, C, dt, length, self.method, kind)
        assert P is not None
        own = self.length
        while own < length:
            C, own = lengthen(C, A, P, dt, own), 2 * own
        return dplr_kernel(A, P, B, C, dt, own, kind)[..., :length]

    def _continuous(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """A, B, P complex128 (1 or H, M) and dt float64 (H, 1)."""
        A = torch.complex(-torch.exp(self.log_decay.double()), self.frequency.double())
        parts = [A, double(self.B), double(self.P) if self.length is not None else None]
        if len(A) > 1:
            repeats = len(self.log_dt) // len(A)
            parts = [p if p is None else p.repeat(repeats, 1) for p in parts]
        A, B, P = parts  # type: ignore[assignment]
        return A, B, P, torch.exp(self.log_dt.double()).unsqueeze(-1)  # type: ignore[return-value]

    @torch.no_grad()
    def start(self, batch: int) -> State:
        A, B, P, dt = self._continuous()
        C = double(self.C)[0]
        channels, modes = C.shape
        if P is None:
            log_z, b = discretise(A, dt, self.method)
            fixed = {"z": torch.exp(log_z), "B": b * B, "C": C}
        else:
            arrays = [x.expand(channels, -1).cpu().numpy() for x in (A, P)]
            Abar = dense(arrays[0], arrays[1], dt[:, 0].cpu().numpy())
            read = untruncate(C.unsqueeze(0).cpu().numpy(), Abar, int(self.length or 0))
            fixed = {"A": A, "P": P, "B": B, "C": torch.from_numpy(read)[0].to(A.device)}
        kind = torch.complex128 if self.D.dtype == torch.float64 else torch.complex64
        state = {name: value.to(kind) for name, value in fixed.items()}
        state["dt"] = dt.to(state["C"].real.dtype)
        state["x"] = torch.zeros(batch, channels, modes, dtype=kind, device=A.device)
        return state

    @torch.no_grad()
    def step(self, u: Tensor, state: State) -> tuple[Tensor, State]:
        v = u.to(state["dt"].dtype)
        if "z" in state:
            x = state["z"] * state["x"] + state["B"] * v.unsqueeze(-1)
        else:
            x = dplr_step(state["x"], v, state["A"], state["P"], state["B"], state["dt"])
        y = 2 * (state["C"] * x).real.sum(-1)
        return (y + self.D * v).to(u.dtype), {**state, "x": x}


class Simplified(System):
    """S5: one system of P states for all H features, as a parallel scan; "Simplified State Space Layers", arXiv
    2208.04933.

    ``x_k = z x_{k-1} + b B u_k``, ``y_k = 2 Re(C x_k) + D u_k`` (z, b: ``discretise``). ``A``: (M,) modes; ``B``
    (M, H), ``C`` (H, M), or (H, 2 M) for a bidirectional layer, whose second scan runs from the end; ``dt`` (M,).
    ``clip``: Re A is cut at -1e-4, as by the option ``clip_eigs`` of the official code; without it an update can make
    the system unstable.
    """

    groups = {"A": ("decay", "frequency"), "B": ("B",), "dt": ("log_dt",)}  # noqa: RUF012
    LEAST = -1e-4

    def __init__(
        self, A: Complex, B: Complex, C: Complex, D: Real, dt: Real, *, method: str = "zoh", clip: bool = True
    ) -> None:
        super().__init__()
        self.method, self.most = method, self.LEAST if clip else math.inf
        self.bidirectional = C.shape[1] == 2 * len(A)
        self.decay, self.frequency = nn.Parameter(single(A.real)), nn.Parameter(single(A.imag))
        self.B, self.C = pair(B), pair(C)
        self.D, self.log_dt = nn.Parameter(single(D)), nn.Parameter(single(np.log(dt)))

    def forward(self, u: Tensor) -> Tensor:
        z, B, C = self._discrete()
        with torch.autocast(u.device.type, enabled=False):
            v = u.to(z.real.dtype)
            driven = torch.complex(v @ B.real.T, v @ B.imag.T)
            x = parallel_scan(z, driven)
            if self.bidirectional:
                x = torch.cat([x, parallel_scan(z, driven.flip(1)).flip(1)], dim=-1)
            y = 2 * (x.real @ C.real.T - x.imag @ C.imag.T)
            return (y + self.D * v).to(u.dtype)

    def _discrete(self) -> tuple[Tensor, Tensor, Tensor]:
        """exp(A dt) (M,), the discretised B (M, H) and C, complex64 or complex128."""
        kind = torch.complex128 if self.D.dtype == torch.float64 else torch.complex64
        A = torch.complex(self.decay.double().clamp(max=self.most), self.frequency.double())
        log_z, b = discretise(A.unsqueeze(-1), torch.exp(self.log_dt.double()).unsqueeze(-1), self.method)
        return torch.exp(log_z[:, 0]).to(kind), (b * double(self.B)).to(kind), double(self.C).to(kind)

    @torch.no_grad()
    def start(self, batch: int) -> State:
        z, B, C = self._discrete()
        return {"z": z, "B": B, "C": C, "x": torch.zeros(batch, len(z), dtype=z.dtype, device=z.device)}

    @torch.no_grad()
    def step(self, u: Tensor, state: State) -> tuple[Tensor, State]:
        v = u.to(state["x"].real.dtype)
        x = state["z"] * state["x"] + v.to(state["B"].dtype) @ state["B"].T
        return (2 * (x @ state["C"].T).real + self.D * v).to(u.dtype), {**state, "x": x}


def single(values: Real) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def pair(values: Complex) -> nn.Parameter:
    """A complex array as a real parameter with a last axis of 2."""
    return nn.Parameter(single(np.stack([values.real, values.imag], axis=-1)))


def double(parameter: Tensor) -> Tensor:
    return torch.view_as_complex(parameter.double())


def log_uniform(rng: np.random.Generator, low: float, high: float, count: int) -> Real:
    """``count`` steps dt with a uniform logarithm."""
    return np.exp(rng.uniform(math.log(low), math.log(high), count))


def normal(rng: np.random.Generator, *shape: int) -> Any:
    """Complex standard normal numbers: E|x|^2 = 1."""
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / math.sqrt(2)
