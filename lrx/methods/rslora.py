"""rsLoRA: LoRA whose update is scaled by alpha / sqrt(r), so that high ranks learn as fast as low ones.

"A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", Kalajdzievski 2023, arXiv 2312.03732 (Theorem 3.2).

    y = W0 x + s B A x,  W0 (m, n) frozen,  B (m, r) = 0 at first,  A (r, n) random at first,  s = alpha / sqrt(r)

With s = alpha / r, as in LoRA, outputs and gradients of the update shrink as r grows; s of order 1 / sqrt(r) is the
only choice that keeps both of order 1. At rank r it is LoRA with alpha sqrt(r) in the place of alpha.
Trained: A, B and the task head, with AdamW; frozen: the rest. A starts as in ``method=lora``.
Per step: one AdamW step.
Departures: none; there is no official repository, and peft's ``use_rslora`` has the same factor.
Cost per matrix: r (m + n) parameters, 2 r (m + n) state, as in LoRA.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from lrx.methods import parts
from lrx.methods.base import Method, split_trainable
from lrx.models.base import Backbone
from lrx.nn.optim import adamw


class RsLoRA(Method):
    """Options as in ``lora``, but ``alpha``: the update is scaled by alpha / sqrt(rank)."""

    name: ClassVar[str] = "rslora"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "rsLoRA (Kalajdzievski 2023, arXiv 2312.03732)"
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
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_lowrank(rank, alpha, dropout)
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr
        self.rank, self.alpha, self.dropout, self.target_modules = rank, alpha, dropout, target_modules

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        parts.attach_lowrank(
            backbone,
            generator,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            target_modules=self.target_modules,
            rank_stabilized=True,
        )

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        factors, _ = split_trainable(backbone)
        part = adamw(factors, lr=self.lr, weight_decay=self.weight_decay)
        return parts.with_head([part], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return self.rank * (m + n)

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * self.rank * (m + n)
