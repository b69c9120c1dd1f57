"""SwitchLoRA: pretraining with low-rank factors whose components take turns with vectors of a pool.

"SwitchLoRA: Switched Low-Rank Adaptation Can Learn Full-Rank Information", Zhou et al. 2024, arXiv 2406.06564.

    W_eff = W + s B A,  W (m, n) not trained,  B (m, r),  A (r, n),  s = alpha / r;  pools of K = min(m, n) rows (n,)
    for A and K columns (m,) for B;  A and B start as the last r of each pool,  W <- W - s B A

Trained: A, B and the task head (embeddings, norms and output layer where the model counts them to its head), with
AdamW; frozen: the rest. W is not trained but absorbs what switches leave.
Per step t of T, after clipping, for each matrix:
    (1)  q = floor(x) or floor(x) + 1 so that its mean is x = r rate(t) / interval,  rate(t) = 0.3^((t + 1) / T_d)
    (2)  q rows A[I] are exchanged with the pool's next rows C:   W <- W + s B[:, I] (A[I] - C),  A[I] <- C
    (3)  q columns B[:, J] in the same way; J starts r/2 behind I, and q is cut so that they do not meet
    (4)  moments and step counts of B[:, I] and A[J] are set to 0, and their gradients are 0 for ``freeze_steps`` steps
    (5)  AdamW with a step count for each component
The gradient of A[I] itself depends on B[:, I] alone: its moments stay, and the new row takes the old row's step.
At r = 1 and at r = min(m, n) nothing switches.

``exact_at_init`` holds up to the rounding of W - s B A + s B A. In half precision every switch rounds W once more.
Departures from the official code (github.com/asfsdsf/SwitchLoRA): the draws of (1) are a function of the seed and the
step; never more than K - r components switch at once (there the vector to be read would already be overwritten, and
the function would change); ``head_lr`` may differ from ``lr``. Its random choice of candidates, its quantized weights
and its estimate of ranks are not here. The full-rank steps that the paper takes before it compares with ReLoRA are not
here either. Its plain LoRA baseline is ``method=lora`` with ``alpha=1``, which starts from the same distribution.

Cost per matrix: r (m + n) parameters, 2 r (m + n) + 2 r state; besides, K (m + n) numbers in CPU memory and in every
checkpoint, which holds W too. A switch costs O(q m n), a step without one is AdamW's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lrx.methods import parts
from lrx.methods.base import Method
from lrx.models.base import Backbone
from lrx.nn.lowrank import LowRank, Pair, lowrank_layers
from lrx.nn.step_adam import StepAdamW
from lrx.nn.switching import FACTORS, draw, ring_of, start, switch

LEAST_RATE = 1e-8  # of (1), official code


class SwitchOptimizer(StepAdamW):
    """Steps (1) to (5). ``expected(t)``: the mean number of switches of a matrix at step t.

    ``layers`` belong to ``pairs``. The parameter group holds ``seed``, so that checkpoints do.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        layers: Sequence[LowRank],
        *,
        lr: float,
        weight_decay: float,
        expected: Callable[[int], float],
        seed: int,
    ) -> None:
        super().__init__(pairs, lr=lr, weight_decay=weight_decay)
        self._switched = list(zip(pairs, layers, strict=True))
        self._expected = expected
        self.param_groups[0]["seed"] = seed

    def update(self, group: dict[str, Any]) -> None:
        numbers = draw(self._expected(group["calls"]), len(self._switched), group["seed"], group["calls"])  # (1)
        for (pair, layer), number in zip(self._switched, numbers, strict=True):
            self._switch(pair, layer, number)
        super().update(group)  # (5)

    def _switch(self, pair: Pair, layer: LowRank, number: int) -> None:
        ring = ring_of(layer)
        number = min(number, ring.room()) if number else 0
        if number:
            exchanged = switch(layer, number)  # (2), (3)
            self.restart(pair, "B", exchanged["A"])  # (4)
            self.restart(pair, "A", exchanged["B"])
        elif ring.idle():
            return
        else:
            ring.advance(0)
        for factor in FACTORS:
            grad = (pair.A if factor == "A" else pair.B).grad
            if grad is not None:
                for part in ring.frozen(factor):
                    (grad if factor == "A" else grad.mT)[part] = 0


class SwitchLoRA(Method):
    """Options as in ``lora``, with its own usual values: ``alpha`` 1, and rates near 0.02.

    ``interval``: steps between two switches of one component at the start, on average. ``decay_fraction``: T_d as a
    share of all steps. ``freeze_steps``: how long the counterpart of a switched vector is held still.
    """

    name: ClassVar[str] = "switchlora"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "SwitchLoRA (Zhou et al. 2024, arXiv 2406.06564)"
    exact_at_init: ClassVar[bool] = True
    init_tolerance: ClassVar[float] = 1e-5
    mergeable: ClassVar[bool] = True
    moves_base: ClassVar[bool] = True
    peft_form: ClassVar[Literal["lora"] | None] = None

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float = 0.0,
        head_lr: float | None = None,
        rank: int = 8,
        alpha: float = 1.0,
        dropout: float = 0.0,
        target_modules: str | list[str] = "all-linear",
        interval: float = 40.0,
        decay_fraction: float = 0.1,
        freeze_steps: int = 5,
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_lowrank(rank, alpha, dropout)
        parts.check_nonnegative("freeze_steps", freeze_steps)
        least = max(1, 2 * freeze_steps)
        parts.require(interval >= least, "interval", interval, f"at least 1 and 2 freeze_steps, here {least}")
        parts.require(0 < decay_fraction <= 1, "decay_fraction", decay_fraction, "a share of all steps lies in (0, 1]")
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr
        self.rank, self.alpha, self.dropout, self.target_modules = rank, alpha, dropout, target_modules
        self.interval, self.decay_fraction, self.freeze_steps = interval, decay_fraction, freeze_steps
        self._seed = 0
        self._decay_steps: float | None = None

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        parts.attach_lowrank(
            backbone,
            generator,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            target_modules=self.target_modules,
        )
        for _, layer in lowrank_layers(backbone.net):
            start(layer, self.freeze_steps, generator)
        self._seed = int(torch.randint(2**62, (1,), generator=generator))

    def plan(self, backbone: Backbone, total_steps: int) -> None:
        self._decay_steps = self.decay_fraction * total_steps

    def expected(self, step: int) -> float:
        """The mean number of components of each factor that switch at ``step`` (0-based), before any cut."""
        if self._decay_steps is None:
            raise RuntimeError("SwitchLoRA needs the number of steps: the training module must call Method.plan first")
        rate = 0.3 ** ((step + 1) / self._decay_steps)
        return self.rank * max(rate, LEAST_RATE) / self.interval

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        factors = SwitchOptimizer(
            self.pairs(backbone),
            [layer for _, layer in lowrank_layers(backbone.net)],
            lr=self.lr,
            weight_decay=self.weight_decay,
            expected=self.expected,
            seed=self._seed,
        )
        return parts.with_head([factors], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        """What is trained, the matrices that switches have changed, the pools and the position in them."""
        state = super().adapter_state(backbone)
        for name, layer in lowrank_layers(backbone.net):
            ring = ring_of(layer)
            state[f"{name}.base.weight"] = layer.base.weight.detach()
            state |= {f"{name}.pool_A": ring.pool_A, f"{name}.pool_B": ring.pool_B, f"{name}.count": ring.count}
        return state

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return self.rank * (m + n)

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * self.rank * (m + n) + 2 * self.rank
