"""AdamW over factor pairs that counts the steps of every rank-1 component on its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lrx.nn.lowrank import Pair
from lrx.nn.pair_optim import Batch, Factor, PairOptimizer, decay


class StepAdamW(PairOptimizer):
    """AdamW in which row i of A and column i of B have step counts, so that a component can start anew.

    For a component with count t after this step:

        M = beta1 M + (1 - beta1) g,  V = beta2 V + (1 - beta2) g * g,  p = (1 - lr weight_decay) p
        p = p - lr (M / (1 - beta1^t)) / (sqrt(V / (1 - beta2^t)) + eps)

    With equal counts this is ``torch.optim.AdamW``. State per factor: ``exp_avg`` and ``exp_avg_sq`` (the factor's
    shape), ``steps`` (r, 1) for A and (1, r) for B, in the factor's type. ``beta1`` and ``beta2`` lie in (0, 1).
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        lr: float,
        weight_decay: float = 0.0,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(pairs, lr=lr, weight_decay=weight_decay)
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def update(self, group: dict[str, Any]) -> None:
        for factor in self.moves(group["calls"]):
            for batch in self.batches(factor):
                self._move(batch, group["lr"], group["weight_decay"])

    def _move(self, batch: Batch, lr: float, weight_decay: float) -> None:
        M, V = self.stacked("exp_avg", batch), self.stacked("exp_avg_sq", batch)
        rank = batch.rows(M).shape[1]
        steps = self.stacked("steps", batch, (rank, 1) if batch.factor == "A" else (1, rank))
        steps += 1
        # 1 - beta^t without the cancellation at beta near 1, which costs float32 five digits at the first step.
        correction1 = -torch.expm1(steps * math.log(self.beta1))
        correction2 = -torch.expm1(steps * math.log(self.beta2))

        decay(batch, 1 - lr * weight_decay)
        grads = [p.grad for p in batch.moving if p.grad is not None]
        torch._foreach_lerp_(list(M.unbind(0)), grads, 1 - self.beta1)
        V.mul_(self.beta2)
        torch._foreach_addcmul_(list(V.unbind(0)), grads, grads, 1 - self.beta2)
        # (sqrt(V / c2) + eps) c1, so that one fused call makes the step.
        denominator = V.sqrt()
        scale = correction1 / correction2.sqrt()
        torch.addcmul(self.eps * correction1, denominator, scale, out=denominator)
        torch._foreach_addcdiv_(batch.moving, list(M.unbind(0)), list(denominator.unbind(0)), -lr)

    def restart(self, pair: Pair, factor: Factor, components: list[slice]) -> None:
        """Set moments and step counts of these components of one factor to zero."""
        state = self.state[pair.A if factor == "A" else pair.B]
        for key in ("exp_avg", "exp_avg_sq", "steps"):
            if key in state:
                for part in components:
                    (state[key] if factor == "A" else state[key].mT)[part] = 0
