"""Linear probing: only the task head is trained, the lower end of what adaptation costs.

Trained: the task head, with AdamW; frozen: the whole backbone. Per step: one AdamW step.
Departures: none, there is no paper to depart from.
Cost per adapted matrix: none.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from lrx.errors import UserError
from lrx.methods import parts
from lrx.methods.base import Method
from lrx.models.base import Backbone


class Head(Method):
    """``head_lr`` wins over ``lr`` when it is given, so that the option means the same for every method."""

    name: ClassVar[str] = "head"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "linear probing"
    exact_at_init: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    peft_form: ClassVar[Literal["lora"] | None] = None

    def __init__(self, *, lr: float, weight_decay: float = 0.0, head_lr: float | None = None) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        backbone.freeze()
        if not any(p.requires_grad for p in backbone.net.parameters()):
            raise UserError("method=head trains the task head, and this model has none: it writes texts")

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        return parts.with_head([], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)
