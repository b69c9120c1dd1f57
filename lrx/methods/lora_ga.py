"""LoRA-GA: LoRA that starts from singular directions of the full gradient, so that its first step is nearest to it.

"LoRA-GA: Low-Rank Adaptation with Gradient Approximation", Wang, Yu and Li, NeurIPS 2024, arXiv 2407.05000 (Theorems
3.1 and 3.2, Algorithm 1).

    G = U S V^T (m, n)     mean gradient dL/dW0 over the first batches, layer by layer, before training
    (1)  A0 = zeta V^T[0:r] (r, n),  B0 = zeta U[:, r:2r] (m, r),  zeta = m^(1/4) / sqrt(gamma)
    (2)  y = (W0 - s B0 A0 + s B A) x,  B = B0 and A = A0 at first,  s = alpha / sqrt(r)    the backbone's function

The first step of A and B changes s B A by -lr s^2 (B0 B0^T G + G A0^T A0): with (1), up to a factor, the best
approximation of G of rank 2 r.
Trained: A, B and the task head, with AdamW; frozen: the rest.
Before training: the gradient of ``init_batches`` batches, the factors of each matrix. Per step: one AdamW step.
Options for official variants: ``direction`` (which singular vectors: ArB2r as in (1); A2rBr: A0 = V^T[r:2r],
B0 = U[:, 0:r]; ArBr: A0 the odd ones of the first 2 r, B0 the even ones), ``scale`` (zeta as in (1) is stable; unit: 1;
gd: 1 / s), ``rslora`` (false: s = alpha / r), ``niter`` (iterations of the fast SVD with 4 r columns; null: exact).
Departures from the official code (github.com/Outsider565/LoRA-GA): the offset s B0 A0 is not subtracted from W0, which
would round it: B0, A0 are kept beside the trained factors, so the start is exact, the backbone stays as it was, and for
PEFT it is a plain LoRA of rank 2 r. Where 2 r > min(m, n), for which the official code has no factor, the r last of the
min(m, n) directions take the place of those from r on. Dropout acts on the input of B A - B0 A0, there on that of B A.
Batches are the task's (there its first samples, one or two at a time), and the gradient of the new head is not used.
peft's own ``lora_ga`` is another initialisation: it scales B by singular values.
Cost per matrix: r (m + n) parameters and as many frozen numbers, 2 r (m + n) state, twice LoRA's operations per token.
At the start G in float32, held for groups of matrices of at most 2^28 elements together, each with its own backward
passes over the batches.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lrx.errors import UserError
from lrx.methods import parts
from lrx.methods.base import Loss, Method, split_trainable
from lrx.models.base import Backbone
from lrx.nn.estimate import mean_gradients
from lrx.nn.lowrank import LowRank, anchors, lowrank_layers
from lrx.nn.optim import adamw
from lrx.nn.svd import truncated_svd


class LoRAGA(Method):
    """Options as in ``lora``, and: ``rslora``: the update is scaled by alpha / sqrt(rank), else by alpha / rank.

    ``init_batches``: batches of the gradient. ``gamma``: of the scale ``stable``. ``direction``, ``scale``, ``niter``:
    see ``lrx info``.
    """

    name: ClassVar[str] = "lora_ga"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "LoRA-GA (Wang et al. 2024, arXiv 2407.05000)"
    exact_at_init: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    peft_form: ClassVar[Literal["lora"] | None] = "lora"

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float = 0.0,
        head_lr: float | None = None,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        target_modules: str | list[str] = "all-linear",
        rslora: bool = True,
        init_batches: int = 4,
        direction: Literal["ArB2r", "A2rBr", "ArBr"] = "ArB2r",
        scale: Literal["stable", "unit", "gd"] = "stable",
        gamma: float = 16.0,
        niter: int | None = 4,
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_lowrank(rank, alpha, dropout)
        parts.require(init_batches >= 1, "init_batches", init_batches, "the gradient needs at least 1 batch")
        parts.require(0 < gamma < math.inf, "gamma", gamma, "must be positive and finite")
        parts.require(niter is None or niter >= 0, "niter", niter, "iterations of the fast SVD, 0 or more; null: exact")
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr
        self.rank, self.alpha, self.dropout, self.target_modules = rank, alpha, dropout, target_modules
        self.rslora, self.init_batches, self.direction, self.scale = rslora, init_batches, direction, scale
        self.gamma, self.niter = gamma, niter
        self.seed = 0

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """A plain start of LoRA, with room in the state for what ``warm_start`` finds."""
        parts.attach_lowrank(
            backbone,
            generator,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            target_modules=self.target_modules,
            rank_stabilized=self.rslora,
        )
        for _, layer in lowrank_layers(backbone.net):
            layer.anchor()
        self.seed = int(torch.randint(2**62, (1,), generator=generator))

    def warm_start(self, backbone: Backbone, batches: Iterable[dict[str, Any]], loss: Loss) -> None:
        """Set the factors by (1). The network is in the mode the caller chose, in a run that of training.

        Dropout draws from a generator of its own, and running statistics of the head are put back.
        """
        drawn = list(itertools.islice(batches, self.init_batches))
        if not drawn:
            raise UserError("method=lora_ga starts from gradients of training batches, and the training split has none")
        layers = dict(lowrank_layers(backbone.net))
        weights = {name: layer.weight for name, layer in layers.items()}
        statistics = {name: value.clone() for name, value in backbone.statistics().items()}
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self.seed)
            losses = [functools.partial(loss, backbone, batch) for batch in drawn]
            for name, gradient in mean_gradients(backbone.net, weights, losses):
                self.start(layers[name], gradient.flatten(1), generator)
        with torch.no_grad():
            for name, value in statistics.items():
                backbone.net.get_buffer(name).copy_(value)

    def start(self, layer: LowRank, gradient: Tensor, generator: torch.Generator) -> None:
        """Put the factors of ``layer`` where (1) has them, for a gradient (m, n)."""
        m, n = gradient.shape
        r, q = self.rank, min(2 * self.rank, m, n)
        extra = min(4 * self.rank, m, n) - q
        U, _, V = truncated_svd(gradient, q, iterations=self.niter, oversample=extra, generator=generator)
        even, odd = list(range(0, q, 2)), list(range(1, q, 2))
        of_A, of_B = {
            "ArB2r": (list(range(r)), list(range(q - r, q))),
            "A2rBr": (list(range(q - r, q)), list(range(r))),
            "ArBr": ((odd + even)[:r], (even + odd)[:r]),
        }[self.direction]
        zeta = {"stable": m**0.25 / self.gamma**0.5, "unit": 1.0, "gd": 1 / layer.scaling}[self.scale]
        layer.anchor(zeta * U[:, of_B], zeta * V[:, of_A].mT)

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        factors, _ = split_trainable(backbone)
        part = adamw(factors, lr=self.lr, weight_decay=self.weight_decay)
        return parts.with_head([part], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        return super().adapter_state(backbone) | anchors(backbone.net)

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return self.rank * (m + n)

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * self.rank * (m + n)
