"""No adaptation: the backbone is scored as it is, the row that every adapted one is held against.

Trained: nothing, so a run takes no step; frozen: everything, a new task head at its random start included.
Departures: none, there is no paper to depart from.
Cost per adapted matrix: none.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from lrx.methods.base import Method
from lrx.models.base import Backbone


class NoMethod(Method):
    """No options: nothing is trained."""

    name: ClassVar[str] = "none"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "the backbone without adaptation"
    exact_at_init: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    peft_form: ClassVar[Literal["lora"] | None] = None

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        backbone.net.requires_grad_(False)
