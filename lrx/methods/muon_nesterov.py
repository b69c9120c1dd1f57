"""Muon with Nesterov or Polyak momentum, and the polar factor exact, by a polynomial iteration or from a random sketch.

"Muon with Nesterov Momentum: Heavy-Tailed Noise and (Randomized) Inexact Polar Decomposition", Choudhury et al. 2026,
arXiv 2605.06884; Muon itself: Jordan et al. 2024 (github.com/KellerJordan/Muon).

    (1)  C = beta C + G;  G = dL/dW (m, n)
    (2)  M = G + beta C  (Nesterov)  or  M = C  (Polyak)
    (3)  O = polar(M), or Q polar(Q^T M) with Q (m, l) a basis of a sketch of M's columns, l = rank + oversampling
    (4)  W = (1 - lr weight_decay) W - lr scale(m, n) O

Trained: everything; the target matrices as above, the rest with AdamW. Per step: one step of each.
Momentum as a running average, (1 - beta) C, gives the same direction, and polar ignores the scale.

Departures from the official code (github.com/Xiaoran-Cheng/muon-randomized-svd, CIFAR-10 file): weight decay and a
factor for the matrix's shape (``scale``), which standard Muon has and that code has not; polar in the weights' own
precision (there bfloat16: ``half: true``); ``rescale: true`` is its rescaling of every weight to Frobenius norm sqrt(m)
before a step. Its NanoGPT file sketches the longer side's complement (``sketch_side: long``) and keeps NorMuon's row
scaling, which is not reproduced, nor its own coefficients of Polar Express. l is limited to min(m, n), from where on
nothing is sketched. Standard Muon takes the shape factor of a convolution from its kernel's height and width, here it
is that of the matrix.

Cost per matrix: m n parameters, m n state; O(m n min(m, n)) operations per iteration, with a sketch O(m n l) in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lrx.methods import parts
from lrx.methods.base import Method
from lrx.models.base import Backbone
from lrx.nn.matrix_optim import Matrices, MatrixOptimizer, add, gradients
from lrx.nn.polar import Shape, Sketch, Solver, polar, shape_factor, sketched_polar


@dataclass(frozen=True)
class Sketching:
    """``columns``: l. ``power_steps``: h. ``long``: a matrix that is not tall is sketched by its rows."""

    columns: int
    power_steps: int = 0
    kind: Sketch = "gaussian"
    long: bool = False


class MuonNesterovOptimizer(MatrixOptimizer):
    """Equations (1)-(4). State per matrix: ``momentum`` C (m, n)."""

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        *,
        lr: float,
        weight_decay: float = 0.0,
        beta: float = 0.95,
        nesterov: bool = True,
        solver: Solver = "empirical",
        steps: int = 5,
        scale: Shape = "kj",
        rescale: bool = False,
        half: bool = False,
        sketching: Sketching | None = None,
        seed: int = 0,
    ) -> None:
        self.beta, self.nesterov, self.solver, self.steps = beta, nesterov, solver, steps
        self.scale, self.rescale, self.half, self.sketching = scale, rescale, half, sketching
        super().__init__(params, lr=lr, weight_decay=weight_decay, seed=seed)

    def flips(self, m: int, n: int) -> bool:
        """The columns are sketched, so rows are by transposing."""
        return self.sketching is not None and self.sketching.long and m <= n

    def update(self, batch: Matrices, group: dict[str, Any]) -> None:
        C = batch.turn(self.stacked("momentum", batch, (batch.m, batch.n)))
        G = gradients(batch)
        C.mul_(self.beta).add_(G)  # (1)
        M = torch.add(G, C, alpha=self.beta) if self.nesterov else C  # (2)
        if self.rescale:
            for p in batch.params:
                p.mul_(batch.m**0.5 / torch.linalg.vector_norm(p, dtype=batch.dtype).to(p.dtype))
        step = group["lr"] * shape_factor(batch.m, batch.n, self.scale)
        add(batch, self._direction(batch, M, group), step=step, keep=1 - group["lr"] * group["weight_decay"])  # (4)

    def _direction(self, batch: Matrices, M: Tensor, group: dict[str, Any]) -> Tensor:
        """(3)"""
        how = self.sketching
        if how is None or how.columns >= min(batch.m, batch.n):
            return polar(M, self.solver, self.steps, half=self.half)
        # Of the seed, the step and the first matrix alone: a resumed run draws what the unbroken one draws.
        seed = group["seed"] + group["calls"] * len(group["params"]) + batch.places[0]
        return sketched_polar(
            M,
            self.solver,
            self.steps,
            columns=how.columns,
            power_steps=how.power_steps,
            sketch=how.kind,
            generator=torch.Generator().manual_seed(seed),
            half=self.half,
        )


class MuonNesterov(Method):
    """``momentum``, ``beta``: kind and coefficient. ``solver``, ``steps``: of the polar factor (``svd``: exact).

    ``scale``: factor of a step by the matrix's shape: sqrt(max(1, m/n)) (``kj``), 0.2 sqrt(max(m, n)) (``kimi``),
    sqrt(m/n) (``dion``) or 1. ``rank``, ``oversampling``, ``power_steps``, ``sketch``, ``sketch_side``: of the random
    sketch (null: none). ``rescale``: weights to norm sqrt(m) before each step. ``half``: iterate in bfloat16.
    ``head_lr``, ``rest_lr``: AdamW's rates for the task head and for all other parameters outside ``target_modules``
    (null: ``lr``).
    """

    name: ClassVar[str] = "muon_nesterov"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Muon with Nesterov momentum (Choudhury et al. 2026, arXiv 2605.06884)"
    exact_at_init: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    trains_base: ClassVar[bool] = True
    peft_form: ClassVar[Literal["lora"] | None] = None

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float = 0.0,
        head_lr: float | None = None,
        rest_lr: float | None = None,
        target_modules: str | list[str] = "all-linear",
        momentum: Literal["nesterov", "polyak"] = "nesterov",
        beta: float = 0.95,
        solver: Literal["svd", "cubic", "quintic", "empirical", "polar_express"] = "empirical",
        steps: int = 5,
        scale: Literal["kj", "kimi", "dion", "none"] = "kj",
        rank: int | None = None,
        oversampling: int = 10,
        power_steps: int = 1,
        sketch: Literal["gaussian", "kaczmarz"] = "gaussian",
        sketch_side: Literal["right", "long"] = "right",
        rescale: bool = False,
        half: bool = False,
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_rest(rest_lr)
        parts.check_beta("beta", beta)
        parts.require(steps >= 1, "steps", steps, "an iteration takes at least 1 step")
        parts.require(rank is None or rank >= 1, "rank", rank, "a sketch has at least 1 column (null: no sketch)")
        parts.require(oversampling >= 0, "oversampling", oversampling, "must not be negative")
        parts.require(power_steps >= 0, "power_steps", power_steps, "must not be negative")
        accepted = "LAPACK has no bfloat16; the exact solver runs in the weights' precision"
        parts.require(not (half and solver == "svd"), "half", half, accepted)
        self.lr, self.weight_decay, self.head_lr, self.rest_lr = lr, weight_decay, head_lr, rest_lr
        self.target_modules, self.momentum, self.beta, self.solver, self.steps = (
            target_modules,
            momentum,
            beta,
            solver,
            steps,
        )
        self.rank, self.scale, self.rescale, self.half = rank, scale, rescale, half
        self.sketching = (
            None if rank is None else Sketching(rank + oversampling, power_steps, sketch, sketch_side == "long")
        )
        self.seed = 0

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        parts.train_all(backbone, self.target_modules, rank=self.rank)
        self.seed = int(torch.randint(2**61, (1,), generator=generator))  # the optimizer keeps it in its state

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        def matrices(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
            return MuonNesterovOptimizer(
                weights,
                lr=self.lr,
                weight_decay=self.weight_decay,
                beta=self.beta,
                nesterov=self.momentum == "nesterov",
                solver=self.solver,
                steps=self.steps,
                scale=self.scale,
                rescale=self.rescale,
                half=self.half,
                sketching=self.sketching,
                seed=self.seed,
            )

        return parts.with_rest(
            matrices,
            backbone,
            target_modules=self.target_modules,
            rest_lr=self.rest_lr or self.lr,
            head_lr=self.head_lr or self.lr,
            weight_decay=self.weight_decay,
        )

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return m * n

    def state_per_matrix(self, m: int, n: int) -> int:
        return m * n
