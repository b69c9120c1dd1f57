"""LoRA+: LoRA in which B learns faster than A.

"LoRA+: Efficient Low Rank Adaptation of Large Models", Hayou, Ghosh and Yu, ICML 2024, arXiv 2402.12354 (section 4).

    y = W0 x + s B A x,  W0 (m, n) frozen,  B (m, r) = 0 at first,  A (r, n) random at first,  s = alpha / r
    lr of A = lr,  lr of B = ratio * lr

In the limit of large width both factors learn features only if the rate of B is of a higher order than that of A.
Trained: A, B and the task head, with AdamW; frozen: the rest. A starts as in ``method=lora``.
Per step: one AdamW step. A schedule multiplies both rates.
Departures from the official code (github.com/nikhil-ghosh-berkeley/loraplus): there the head's matrices take the rate
of A and every trained 1-D tensor that of B, the head's bias included; here the whole head takes ``head_lr``, and
``head_bias: ratio`` reproduces the official rule. Factors of embeddings, which have a rate of their own there, are not
trained here. Its scripts set AdamW's beta2 to 0.99, here it is 0.999 as in every method.
Cost per matrix: r (m + n) parameters, 2 r (m + n) state, as in LoRA.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch

from lrx.methods import parts
from lrx.methods.base import Method, split_trainable
from lrx.models.base import Backbone
from lrx.nn.optim import adamw


class LoRAPlus(Method):
    """Options as in ``lora``, and: ``lr``: the rate of A. ``ratio``: the rate of B over it.

    ``head_bias``: whether the head's 1-D tensors take ``head_lr`` like its matrices, or ``ratio`` times it (official).
    """

    name: ClassVar[str] = "lora_plus"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "LoRA+ (Hayou et al. 2024, arXiv 2402.12354)"
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
        ratio: float = 16.0,
        head_bias: Literal["head_lr", "ratio"] = "head_lr",
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_lowrank(rank, alpha, dropout)
        parts.require(0 < ratio < math.inf, "ratio", ratio, "the rate of B over that of A must be positive and finite")
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr
        self.rank, self.alpha, self.dropout, self.target_modules = rank, alpha, dropout, target_modules
        self.ratio, self.head_bias = ratio, head_bias

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
        pairs = self.pairs(backbone)
        slow = adamw([(pair.name, pair.A) for pair in pairs], lr=self.lr, weight_decay=self.weight_decay)
        fast = adamw([(pair.name, pair.B) for pair in pairs], lr=self.lr * self.ratio, weight_decay=self.weight_decay)
        optimizer = parts.with_head([slow, fast], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)
        if self.head_bias == "ratio":
            biases = {id(p) for _, p in split_trainable(backbone)[1] if p.ndim < 2}
            for group in optimizer.param_groups:
                if any(id(p) in biases for p in group["params"]):
                    group["lr"] *= self.ratio
        return optimizer

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return self.rank * (m + n)

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * self.rank * (m + n)
