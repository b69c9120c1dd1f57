"""Full fine-tuning: every parameter is trained with AdamW, the reference that low-rank methods are measured against.

"Decoupled Weight Decay Regularization", Loshchilov and Hutter, ICLR 2019, arXiv 1711.05101 (AdamW).

    M = beta1 M + (1 - beta1) g,  V = beta2 V + (1 - beta2) g * g
    p = p - lr (M / (1 - beta1^t) / (sqrt(V / (1 - beta2^t)) + eps) + weight_decay p)

Trained: everything. Per step: one AdamW step.
Departures: 1-D tensors (biases, norms) are not decayed, as is usual; the paper decays every parameter. Parameters that
the model gives a rate of their own (``Backbone.rates``) take at most that, and its decay.
Cost per (m, n) matrix: m n parameters, 2 m n state.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from lrx.methods import parts
from lrx.methods.base import Method, split_trainable
from lrx.models.base import Backbone
from lrx.nn.optim import adamw


class Full(Method):
    """``head_lr``: the task head's rate (null: ``lr``)."""

    name: ClassVar[str] = "full"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "full fine-tuning with AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101)"
    exact_at_init: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    trains_base: ClassVar[bool] = True
    peft_form: ClassVar[Literal["lora"] | None] = None

    def __init__(self, *, lr: float, weight_decay: float = 0.0, head_lr: float | None = None) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        backbone.net.requires_grad_(True)

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        body, _ = split_trainable(backbone)
        groups: dict[tuple[float, float], list[tuple[str, torch.nn.Parameter]]] = {}
        for name, p in body:
            own = backbone.rates.get(name, {})
            rate = min(self.lr, own.get("lr", self.lr)), own.get("weight_decay", self.weight_decay)
            groups.setdefault(rate, []).append((name, p))
        found = [adamw(group, lr=lr, weight_decay=decay) for (lr, decay), group in groups.items()]
        return parts.with_head(found, backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return m * n

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * m * n
