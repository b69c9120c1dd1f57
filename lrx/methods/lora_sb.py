"""LoRA-SB: LoRA-XS's trained r x r matrix between bases from an estimate of full fine-tuning's first update.

"Initialization using Update Approximation is a Silver Bullet for Extremely Efficient Low-Rank Fine-Tuning",
Ponkshe, Singhal et al. 2024, arXiv 2411.19557.

    y = W0 x + s B R A x,  W0 (m, n) frozen,  s = alpha / r (1 by default)
    Gsum = sum of dL/dW at W0 over ``samples`` training examples (m, n)
    (1)  dW = -eta sign(Gsum)                        AdamW's first step
    (2)  dW = U S V^T:  B = U_r (m, r),  A = V_r^T (r, n)  fixed,  R = diag(S_r) / s  at first, trained
    dL/dR = s B^T G A^T: with orthonormal bases and s = 1 this is the core for which s B gR A is nearest to G.

Trained: R, a full matrix, and the task head, with AdamW; frozen: the rest. Training starts one rank-r step away from
the backbone. A and B belong to the adapter's state; the product is a plain LoRA with B R in the place of B.
Per step: one AdamW step.
Order at the start: the targets' gradients of ``samples`` examples in training mode (a batch that would exceed the count
is cut), their sum in float32, (1), (2). Dropout draws from a generator of its own.

Departures from the official code (github.com/RaghavSinghal10/lora-sb), with the option that reproduces it:
eta is the rate of the first warm-up step there, lr / (warmup_ratio x batches x epochs), and a warm-up of zero divides
by zero; here lr / max(1, warm-up steps), the warm-up being ``warmup_ratio`` of all optimizer steps, whatever the
trainer's own, since a method does not see its schedule (``eta`` sets it directly). ``weighting: official``: the mean
loss of a batch of k examples is divided by k once more, so that an example weighs 1/k^2; the paper sums over examples
(where the loss is a mean over tokens, each example counts as a k-th of its batch). ``svd: randomized``: 10 subspace
iterations with no spare column. Its factors are rounded to bfloat16, and its decomposition resets the global random
numbers; neither is reproduced. It does not divide R by s, which is 1 there.
Cost per matrix: r^2 parameters, 2 r^2 state, O(r (m + n) + r^2) operations per token; at the start a gradient of m x n
and its decomposition.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lrx.errors import UserError
from lrx.methods import parts
from lrx.methods.base import Loss, Method, split_trainable
from lrx.models.base import Backbone
from lrx.nn.core import CoreConv2d, CoreLinear, bases, core_layers, core_pairs
from lrx.nn.estimate import mean_gradients
from lrx.nn.lowrank import Pair
from lrx.nn.optim import adamw
from lrx.nn.svd import truncated_svd


class LoRASB(Method):
    """``rank``, ``dropout``, ``target_modules``: as in ``lora``. ``alpha``: the scaling is alpha / rank (null: 1).

    ``samples``: training examples behind the estimate. ``estimate``: AdamW's first step (the sign), or the gradient
    itself. ``weighting``: the sum over examples, or the official code's. ``eta``: size of the estimated step (null:
    lr / warm-up steps). ``warmup_ratio``: the warm-up that eta assumes, as a share of all steps. ``svd``: the full
    decomposition of each matrix, or subspace iteration, for large ones.
    """

    name: ClassVar[str] = "lora_sb"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "LoRA-SB (Ponkshe, Singhal et al. 2024, arXiv 2411.19557)"
    exact_at_init: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    peft_form: ClassVar[Literal["lora"] | None] = "lora"

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float = 0.0,
        head_lr: float | None = None,
        rank: int = 16,
        alpha: float | None = None,
        dropout: float = 0.0,
        target_modules: str | list[str] = "all-linear",
        samples: int = 50,
        estimate: Literal["sign", "gradient"] = "sign",
        weighting: Literal["sum", "official"] = "sum",
        eta: float | None = None,
        warmup_ratio: float = 0.06,
        svd: Literal["exact", "randomized"] = "exact",
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_lowrank(rank, rank if alpha is None else alpha, dropout)
        parts.require(samples >= 1, "samples", samples, "the estimate needs at least 1 example")
        if eta is not None:
            parts.check_nonnegative("eta", eta)
        parts.require(0 <= warmup_ratio <= 1, "warmup_ratio", warmup_ratio, "a share of the steps lies in [0, 1]")
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr
        self.rank, self.alpha, self.dropout, self.target_modules = rank, alpha, dropout, target_modules
        self.samples, self.estimate, self.weighting = samples, estimate, weighting
        self.eta, self.warmup_ratio, self.svd = eta, warmup_ratio, svd
        self._seed, self._steps = 0, 0

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        parts.attach_lowrank(
            backbone,
            generator,
            rank=self.rank,
            alpha=self.rank if self.alpha is None else self.alpha,
            dropout=self.dropout,
            target_modules=self.target_modules,
            linear=CoreLinear,
            conv=CoreConv2d,
        )
        self._seed = int(torch.randint(2**62, (1,), generator=generator))

    def plan(self, backbone: Backbone, total_steps: int) -> None:
        self._steps = total_steps

    def warm_start(self, backbone: Backbone, batches: Iterable[dict[str, Any]], loss: Loss) -> None:
        layers = dict(core_layers(backbone.net))
        eta = self.lr / max(1, round(self.warmup_ratio * self._steps)) if self.eta is None else self.eta
        generator = torch.Generator().manual_seed(self._seed)
        iterations = None if self.svd == "exact" else 10
        for name, total in self._gradients(backbone, batches, loss):
            # 0 x total: what is not finite stays so, where the sign of NaN is 0 or 1
            step = -eta * (total.sign() + 0 * total if self.estimate == "sign" else total)
            U, S, V = truncated_svd(step.flatten(1), self.rank, iterations=iterations, generator=generator)
            layers[name].start(U, torch.diag(S) / layers[name].scaling, V.mT)

    def _gradients(
        self, backbone: Backbone, batches: Iterable[dict[str, Any]], loss: Loss
    ) -> Iterator[tuple[str, Tensor]]:
        """(layer, Gsum) for each target in registration order, in at least float32 and the weight's shape."""

        def weighted(number: int, batch: dict[str, Any], size: int) -> Tensor:
            torch.manual_seed(self._seed + number)  # the same dropout whenever this batch is computed
            return (size if self.weighting == "sum" else 1 / size) * loss(backbone, batch)

        chosen = list(_first(batches, self.samples))
        losses = [partial(weighted, number, batch, size) for number, (batch, size) in enumerate(chosen)]
        weights = {name: layer.base.weight for name, layer in core_layers(backbone.net)}
        training = backbone.training
        backbone.train()
        try:
            with torch.random.fork_rng():
                for name, mean in mean_gradients(backbone.net, weights, losses):
                    yield name, mean * len(losses)
        finally:
            backbone.train(training)

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        cores, _ = split_trainable(backbone)
        part = adamw(cores, lr=self.lr, weight_decay=self.weight_decay)
        return parts.with_head([part], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        return super().adapter_state(backbone) | bases(backbone.net)

    def pairs(self, backbone: Backbone) -> list[Pair]:
        return list(core_pairs(backbone.net))

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return self.rank**2

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * self.rank**2


def _first(batches: Iterable[dict[str, Any]], samples: int) -> Iterator[tuple[dict[str, Any], int]]:
    """(batch, its number of examples) for the first ``samples`` examples; the last batch is cut to reach the count.

    Raises ``UserError`` when there are fewer.
    """
    left = samples
    for batch in batches:
        size = max(len(value) for value in batch.values() if torch.is_tensor(value) and value.ndim)
        if size > left:
            batch = {k: v[:left] if torch.is_tensor(v) and v.ndim and len(v) == size else v for k, v in batch.items()}
        yield batch, min(size, left)
        left -= size
        if left <= 0:
            return
    raise UserError(f"method.samples={samples}: the training split has only {samples - left} examples")
