"""Optimizer steps over many matrices, all sides in one process and in turns: ``python -m benchmarks.optimizers``.

1. optimizers of factor pairs, each against ``torch.optim.AdamW(foreach=True)`` on the same factors and against a loop
   over the pairs that writes the update down as the paper does; both must give the same factors
2. optimizers of whole matrices, each against ``torch.optim.AdamW(foreach=True)`` on the same matrices, with the bytes
   that each keeps between steps
3. DCT-AdamW's choice of columns against GaLore's singular value decomposition of the same gradient

``small``: 144 pairs of 768 x 768 at rank 8. ``large``: the 224 matrices of a 32-layer Llama of width 4,096 at rank 16,
of which whole matrices would take 26 GB, so that they are timed at ``small`` only. Ratios are medians over rounds of
interleaved steps; the least times stand beside them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from benchmarks.optimizer_loops import (
    LR,
    Loop,
    adaprelora_loop,
    altlora_loop,
    altlora_plus_loop,
    lora_rite_loop,
    scaled_adamw_loop,
)
from lrx.methods.adaprelora import AdaPreLoRAOptimizer
from lrx.methods.altlora import AltLoRAOptimizer, SecondMoment
from lrx.methods.dct_adamw import DCTAdamWOptimizer, TrionOptimizer
from lrx.methods.dion import DionOptimizer
from lrx.methods.galore import GaLoreOptimizer, right_vectors
from lrx.methods.lora_pro import LoRAProOptimizer
from lrx.methods.lora_rite import LoRARiteOptimizer
from lrx.methods.muon_nesterov import MuonNesterovOptimizer
from lrx.methods.scaled_adamw import ScaledAdamWOptimizer
from lrx.nn import dct
from lrx.nn.lowrank import Pair
from lrx.nn.optim import state_bytes

Step = Callable[[], object]
SHAPES: dict[str, tuple[list[tuple[int, int]], int]] = {
    "small": ([(768, 768)] * 144, 8),
    "large": ([(4096, 4096)] * 128 + [(11008, 4096)] * 64 + [(4096, 11008)] * 32, 16),
}
SCALING = 2.0
# Upper limits of a step's time relative to AdamW(foreach=True), and the least gain over the literal loop.
BARS = {"altlora": 1.2, "altlora_plus": 1.8, "scaled_adamw": 1.8, "adaprelora": 1.8}
LOOP_BAR, SELECTION_BAR = 2.0, 50.0


def make_pairs(shapes: Sequence[tuple[int, int]], rank: int) -> list[Pair]:
    """Pairs with random factors and gradients. No optimizer of factors reads W, which is therefore not allocated."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for i, (m, n) in enumerate(shapes):
        B = nn.Parameter(torch.randn(m, rank, generator=generator) / math.sqrt(m))
        A = nn.Parameter(torch.randn(rank, n, generator=generator) / math.sqrt(n))
        for p in (B, A):
            p.grad = torch.randn(p.shape, generator=generator)
        pairs.append(Pair(str(i), torch.empty(1, 1).expand(m, n), B, A, SCALING))
    return pairs


def factors(pairs: Sequence[Pair]) -> list[torch.Tensor]:
    return [p for pair in pairs for p in (pair.A, pair.B)]


def race(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side's steps, in turns and after two rounds of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {name: seconds[2:] for name, seconds in times.items()}


def ratio(first: Sequence[float], second: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def verdict(value: float, bar: float | None, at_most: bool = True) -> str:
    if bar is None:
        return ""
    return f"bar {bar:g} {'met' if (value <= bar) == at_most else 'MISSED'}"


def race_pairs(name: str, rounds: int) -> None:
    """Each pair optimizer against AdamW and its loop."""
    shapes, rank = SHAPES[name]
    made = {
        "altlora": (lambda pairs: AltLoRAOptimizer(pairs, lr=LR), altlora_loop),
        "altlora_plus": (lambda pairs: AltLoRAOptimizer(pairs, lr=LR, second=SecondMoment()), altlora_plus_loop),
        "scaled_adamw": (lambda pairs: ScaledAdamWOptimizer(pairs, lr=LR), scaled_adamw_loop),
        "adaprelora": (lambda pairs: AdaPreLoRAOptimizer(pairs, lr=LR), adaprelora_loop),
        "lora_rite": (lambda pairs: LoRARiteOptimizer(pairs, lr=LR, skip=0, clip=0), lora_rite_loop),
        "lora_pro": (lambda pairs: LoRAProOptimizer(pairs, lr=LR), None),
    }
    print(f"\n{name}: {len(shapes)} pairs, rank {rank}; against AdamW(foreach=True) on the same factors and the loop")
    for method, (build, rule) in made.items():
        if name == "large" and method in ("adaprelora", "lora_pro"):
            rule = None  # forms the m x n matrices: minutes a step
            if method == "lora_pro":
                continue
        ours, theirs = make_pairs(shapes, rank), make_pairs(shapes, rank)
        steps: dict[str, Step] = {
            "ours": build(ours).step,
            "adamw": torch.optim.AdamW(factors(make_pairs(shapes, rank)), lr=LR, foreach=True).step,
        }
        if rule is not None:
            steps["loop"] = Loop(theirs, rule).step
        times = race(steps, rounds)
        relative = ratio(times["ours"], times["adamw"])
        line = (
            f"{method:<14} {statistics.median(times['ours']) * 1e3:8.1f} ms   AdamW"
            f" {statistics.median(times['adamw']) * 1e3:7.1f} ms   ratio {relative:6.2f}"
            f" (least {min(times['ours']) / min(times['adamw']):.2f}) {verdict(relative, BARS.get(method)):<14}"
        )
        if rule is not None:
            gain = ratio(times["loop"], times["ours"])
            gap = max(
                ((a - b).abs().max() / b.abs().max()).item()
                for a, b in zip(factors(ours), factors(theirs), strict=True)
            )
            line += f"  loop {statistics.median(times['loop']) * 1e3:8.1f} ms, {gain:.1f} times ours"
            line += f" {verdict(gain, LOOP_BAR, at_most=False)}, largest difference {gap:.0e}"
            assert gap < 1e-2, f"{method}: the loop gives other factors"
        print(line, flush=True)


def race_matrices(rounds: int) -> None:
    """Optimizers of whole matrices at the small shape."""
    shapes, rank = SHAPES["small"]
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=generator) / 28) for shape in shapes]
    for p in weights:
        p.grad = torch.randn(p.shape, generator=generator)
    made: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        "galore": lambda ps: GaLoreOptimizer(ps, lr=LR, rank=rank),
        "dct_adamw": lambda ps: DCTAdamWOptimizer(ps, lr=LR, rank=rank),
        "trion": lambda ps: TrionOptimizer(ps, lr=LR, rank=rank),
        "dion": lambda ps: DionOptimizer(ps, lr=LR, rank=rank, seed=0),
        "muon_nesterov": lambda ps: MuonNesterovOptimizer(ps, lr=LR),
    }
    adamw = torch.optim.AdamW(weights, lr=LR, foreach=True)
    print(f"\nsmall: {len(shapes)} whole matrices, rank {rank}; against AdamW(foreach=True) on the same matrices")
    for method, build in made.items():
        optimizer = build(weights)
        times = race({"ours": optimizer.step, "adamw": adamw.step}, rounds)
        print(
            f"{method:<14} {statistics.median(times['ours']) * 1e3:8.1f} ms   AdamW"
            f" {statistics.median(times['adamw']) * 1e3:7.1f} ms   ratio {ratio(times['ours'], times['adamw']):6.2f}"
            f" (least {min(times['ours']) / min(times['adamw']):.2f})   state"
            f" {state_bytes(optimizer) / 2**20:.1f} MiB of AdamW's {state_bytes(adamw) / 2**20:.0f}",
            flush=True,
        )


def race_selections(rounds: int, size: int = 1024, rank: int = 256) -> None:
    """What a refresh of the subspace costs."""
    G = torch.randn(1, size, size, generator=torch.Generator().manual_seed(0))
    times = race({"dct": lambda: dct.select(G, rank), "svd": lambda: right_vectors(G, rank)}, rounds)
    gain = ratio(times["svd"], times["dct"])
    print(
        f"\nchoice of {rank} directions of a {size} x {size} gradient: DCT by FFT"
        f" {statistics.median(times['dct']) * 1e3:.1f} ms, SVD {statistics.median(times['svd']) * 1e3:.1f} ms, ratio"
        f" {gain:.0f} {verdict(gain, SELECTION_BAR, at_most=False)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="leave the large shape out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"fp32, {options.threads} threads, {options.rounds} rounds, torch {torch.__version__}")
    race_pairs("small", options.rounds)
    race_matrices(max(3, options.rounds // 3))
    race_selections(max(3, options.rounds // 3))
    if not options.small:
        race_pairs("large", max(3, options.rounds // 3))


if __name__ == "__main__":
    main()
