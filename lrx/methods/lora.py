"""LoRA: a frozen matrix with a trained low-rank update.

"LoRA: Low-Rank Adaptation of Large Language Models", Hu et al., ICLR 2022, arXiv 2106.09685 (section 4.1).

    y = W0 x + (alpha / r) B A x,  W0 (m, n) frozen,  B (m, r) = 0 at first,  A (r, n) random at first

Trained: A, B and the task head, with AdamW; frozen: the rest.
Per step: one AdamW step. Weight decay falls on A, B and the head's matrices, not on 1-D tensors.
Departures: A starts Kaiming-uniform with a = sqrt(5), as in the official code (github.com/microsoft/LoRA); the paper
says Gaussian. The factors stay in float32 when the backbone is in half precision.
Cost per matrix: r (m + n) parameters, 2 r (m + n) state, O(r (m + n)) operations per token.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from lrx.methods import parts
from lrx.methods.base import Method, split_trainable
from lrx.models.base import Backbone
from lrx.nn.optim import adamw


class LoRA(Method):
    """``rank``: r. ``alpha``: the update is scaled by alpha / r. ``dropout``: on the update's input.

    ``target_modules``: roles, names, a pattern or ``all-linear``. ``head_lr``: the task head's rate (null: ``lr``).
    """

    name: ClassVar[str] = "lora"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "LoRA (Hu et al. 2022, arXiv 2106.09685)"
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
        )

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        factors, _ = split_trainable(backbone)
        part = adamw(factors, lr=self.lr, weight_decay=self.weight_decay)
        return parts.with_head([part], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return self.rank * (m + n)

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * self.rank * (m + n)
