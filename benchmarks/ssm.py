"""State-space kernels, convolutions and scans against the straightforward ones: ``python -m benchmarks.ssm``.

1. kernel and convolution of S4D and S4, forward and backward, at ``--channels`` and ``--states`` for growing lengths:
   milliseconds, microseconds a token, both sides in turns in one process, and the ratio to plain torch (a Vandermonde
   product, a Cauchy product, PyTorch's own gradients of the transforms)
2. how the time a token grows, beside log L
3. the most memory that either side holds, beside one complex tensor of (channels, modes, length)
4. the parallel scan of S5 against the loop over steps

Each figure is the median over rounds. The plain product is left out where its tensors exceed ``--budget`` bytes. The
round in which memory is traced does not count for time.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lrx.nn.ssm import hippo
from lrx.nn.ssm.conv import long_conv
from lrx.nn.ssm.scan import parallel_scan, sequential_scan
from lrx.nn.ssm.systems import Convolution, log_uniform, normal

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own remarks
Step = Callable[[], None]


def layer(kind: str, channels: int, states: int, length: int) -> Convolution:
    """A causal layer of S4 or S4D with exact HiPPO."""
    rng = np.random.default_rng(0)
    modes = hippo.nplr(states)
    dt = log_uniform(rng, 0.001, 0.1, channels)
    system = Convolution([modes], normal(rng, 1, channels, states // 2), np.zeros(channels), dt)
    if kind == "s4":  # C drawn as C~, which spares the dense powers of a layer that is not trained
        system.length, system.method = length, "bilinear"
        system.P = torch.nn.Parameter(torch.view_as_real(torch.from_numpy(modes.P)[None].to(torch.complex64)))
    return system


def parameters(system: Convolution) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A, B (1, M), C (H, M) complex64 and dt (H, 1), as plain code holds them."""
    A = torch.complex(-system.log_decay.exp(), system.frequency)
    return A, torch.view_as_complex(system.B), torch.view_as_complex(system.C)[0], system.log_dt.exp().unsqueeze(-1)


def vandermonde(system: Convolution, length: int) -> Tensor:
    """K (H, L) of S4D through all powers (H, M, L)."""
    A, B, C, dt = parameters(system)
    log_z = dt * A
    powers = torch.exp(log_z.unsqueeze(-1) * torch.arange(length))
    return 2 * torch.einsum("hm,hml->hl", C * B * (torch.exp(log_z) - 1) / A, powers).real


def cauchy(system: Convolution, length: int) -> Tensor:
    """K (H, L) of S4 through all quotients (H, M, L/2 + 1), of which both conjugates are needed."""
    A, B, C, dt = parameters(system)
    P = torch.view_as_complex(system.P)
    angle = torch.arange(length // 2 + 1, dtype=torch.float64) * (-2 * math.pi / length)
    omega = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)
    below = 2 * (1 - omega) - (dt * A).unsqueeze(-1) * (1 + omega)
    above = 2 * (1 - omega) - (dt * A.conj()).unsqueeze(-1) * (1 + omega)

    def q(a: Tensor, b: Tensor) -> Tensor:
        v = (2 * dt * a * b).expand(len(dt), -1)
        return torch.einsum("hm,hml->hl", v, 1 / below) + torch.einsum("hm,hml->hl", v.conj(), 1 / above)

    woodbury = q(C, P) * q(P.conj(), B) * (1 + omega) / (2 + (1 + omega) * q(P.conj(), P))
    return torch.fft.irfft(q(C, B) - woodbury, n=length)


def ours(system: Convolution, u: Tensor) -> Tensor:
    return long_conv(u, system.kernel(u.shape[-1]))


def plain(system: Convolution, u: Tensor) -> Tensor:
    """The plain kernel, and the convolution with PyTorch's own gradients."""
    length = u.shape[-1]
    k = vandermonde(system, length) if system.length is None else cauchy(system, length)
    size = 2 * length
    return torch.fft.irfft(torch.fft.rfft(u, n=size) * torch.fft.rfft(k, n=size), n=size)[..., :length]


def step(function: Callable[[Convolution, Tensor], Tensor], system: Convolution, u: Tensor) -> Step:
    def call() -> None:
        system.zero_grad()
        function(system, u).square().mean().backward()

    return call


def medians(sides: Sequence[Step], rounds: Sequence[int]) -> list[float]:
    """Milliseconds of each side, in turns, over its number of rounds."""
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(max(rounds)):
        for side, found, most in zip(sides, times, rounds, strict=True):
            if len(found) < most:
                start = time.perf_counter()
                side()
                found.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(found) for found in times]


def peak(side: Step) -> int:
    """The most bytes that are allocated at one time during a call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        side()
    now = most = 0
    for event in trace.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def convolutions(
    channels: int, states: int, lengths: Sequence[int], batch: int, rounds: Sequence[int], budget: int
) -> None:
    for kind in ("s4d", "s4"):
        print(
            f"{kind}: kernel and convolution, forward and backward, {channels} channels, {states} states, batch {batch}"
        )
        print("      L       ms  us/token  (log L: 1)   plain ms   ratio  peak MB  plain MB  H x M x L MB")
        first = 0.0
        for length in lengths:
            system = layer(kind, channels, states, length)
            u = torch.randn(batch, channels, length, requires_grad=True)
            sides = [step(ours, system, u)]
            whole = 8 * channels * states // 2 * length
            if 6 * whole <= budget:
                if not first:
                    torch.testing.assert_close(ours(system, u), plain(system, u), rtol=1e-2, atol=1e-2)
                sides.append(step(plain, system, u))
            memory = [peak(side) / 1e6 for side in sides]
            times = medians(sides, rounds[: len(sides)])
            token = 1e3 * times[0] / length
            first = first or token / math.log(length)
            row = f"{length:7d} {times[0]:8.1f} {token:9.2f} {token / math.log(length) / first:11.2f}"
            if len(sides) == 2:
                row += f" {times[1]:10.1f} {times[1] / times[0]:6.1f}x {memory[0]:8.0f} {memory[1]:9.0f}"
            else:
                row += f" {'-':>10} {'-':>7} {memory[0]:8.0f} {'-':>9}"
            print(f"{row} {whole / 1e6:13.0f}", flush=True)


def scans(states: int, lengths: Sequence[int], batch: int, rounds: int) -> None:
    print(f"s5: scan of {states} complex states, forward and backward, batch {batch}")
    print("      L  parallel ms  loop ms   ratio")
    for length in lengths:
        a = (0.99 * torch.exp(1j * torch.randn(states))).requires_grad_()
        v = torch.randn(batch, length, states, dtype=torch.complex64, requires_grad=True)
        torch.testing.assert_close(parallel_scan(a, v), sequential_scan(a, v), rtol=1e-3, atol=1e-3)
        sides: list[Step] = [
            lambda f=f, a=a, v=v: f(a, v).abs().square().mean().backward()  # type: ignore[misc]
            for f in (parallel_scan, sequential_scan)
        ]
        for side in sides:
            side()
        fast, slow = medians(sides, (rounds, rounds))
        print(f"{length:7d} {fast:12.1f} {slow:8.1f} {slow / fast:6.1f}x", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--states", type=int, default=64)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain-rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=8e9, help="bytes that the plain product may hold")
    parser.add_argument("--threads", type=int, default=1)
    o = parser.parse_args(arguments)
    torch.set_num_threads(o.threads)
    convolutions(o.channels, o.states, o.lengths, o.batch, (o.rounds, o.plain_rounds), int(o.budget))
    scans(o.states, [n for n in o.lengths if n <= 4096], o.batch, o.rounds)


if __name__ == "__main__":
    main()
