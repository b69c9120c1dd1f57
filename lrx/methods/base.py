"""The contract of a method: what a paper does to the weights or to the training.

Every hook is optional, so that a paper's file holds only what the paper changes. A method takes plain keyword
arguments; its constructor's signature is the schema of ``conf/method/<name>.yaml`` (read without importing torch), so
annotate every argument with ``int``, ``float``, ``bool``, ``str``, ``Literal[...]``, ``list[...]``, ``tuple[...]`` or
``X | None``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lrx.models.base import Backbone
from lrx.nn.lowrank import Pair, lowrank_layers, pairs, replace_module

Loss = Callable[[Backbone, dict[str, Any]], Tensor]


class Method:
    """Base of all methods. Subclasses are final: compose parts from ``lrx.nn`` instead of subclassing a method.

    Declared facts (the contract tests check each of them for every method):

    ``name``, ``version``: registry key; the version is part of a run's fingerprint, raise it when numbers change.
    ``paper``: title, first author, year, identifier.
    ``exact_at_init``: after ``adapt`` the outputs equal the backbone's.
    ``init_tolerance``: by how much they may differ from rounding, where the method takes something out of the weights.
    ``mergeable``: ``merge`` folds the update into plain weights and leaves the outputs unchanged.
    ``trains``: false for a method that evaluates the backbone as it is.
    ``moves_base``: the matrices below its low-rank layers absorb parts of the update in between, so that an adapter's
    state holds them and ``s B A`` is not the whole change.
    ``trains_base``: the backbone's own matrices are trained, so that nothing of it need stay as it was.
    ``for_policies``: it makes sense of policies alone, and refuses any other model.
    ``peft_form``: ``"lora"`` when the result is a plain LoRA that PEFT can load, else None.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    exact_at_init: ClassVar[bool] = True
    init_tolerance: ClassVar[float] = 0.0
    mergeable: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    moves_base: ClassVar[bool] = False
    trains_base: ClassVar[bool] = False
    for_policies: ClassVar[bool] = False
    peft_form: ClassVar[Literal["lora"] | None] = None

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Freeze, wrap or replace modules of ``backbone.net``. Random numbers come from ``generator`` only."""

    def warm_start(self, backbone: Backbone, batches: Iterable[dict[str, Any]], loss: Loss) -> None:
        """Data-driven initialisation from training batches, before the optimizer is built."""

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        """The optimizer over everything that is trained, the task head included. Learning rates are in its groups."""
        raise NotImplementedError(f"{type(self).__name__} must build an optimizer")

    def rate_factors(self, backbone: Backbone) -> dict[str, float]:
        """Parameters outside the head that train at a multiple of ``lr``: name -> factor. All others have 1."""
        return {}

    def plan(self, backbone: Backbone, total_steps: int) -> None:
        """Called once before training with the number of optimizer steps, for methods that follow a schedule."""

    def objective(self, backbone: Backbone, batch: dict[str, Tensor]) -> Tensor | None:
        """The scalar training loss of a batch in the place of the task's, or None for the task's."""
        return None

    def penalty(self, backbone: Backbone) -> Tensor | None:
        """A scalar added to the task's loss, or None."""
        return None

    def before_step(self, backbone: Backbone, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Called with complete gradients (after accumulation), before clipping and the optimizer's step ``step``."""

    def after_step(self, backbone: Backbone, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Called after optimizer step ``step`` (0-based)."""

    def finish(self, backbone: Backbone, about: Mapping[str, str]) -> None:
        """Called once with the reported weights of a run that is no trial. ``about``: ``task``, ``part``, ``run``."""

    def merge(self, backbone: Backbone) -> None:
        """Fold the update into plain weights. Outputs must not change. Here: every low-rank layer."""
        for name, layer in list(lowrank_layers(backbone.net)):
            replace_module(backbone.net, name, layer.merged())

    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        """Everything a trained backbone differs by from the pretrained one: trained parameters, moving statistics."""
        trained = {name: p.detach() for name, p in backbone.net.named_parameters() if p.requires_grad}
        return trained | backbone.statistics()

    def load_adapter(self, backbone: Backbone, state: dict[str, Tensor]) -> None:
        """Put ``adapter_state`` back into an adapted backbone. Raises ``ValueError`` naming keys that do not fit."""
        state_now = self.adapter_state(backbone)  # of what is neither parameter nor buffer, the tensors themselves
        own = state_now | dict(backbone.net.named_parameters()) | dict(backbone.net.named_buffers())
        expected = set(state_now)
        if missing := expected - set(state):
            raise ValueError(f"adapter lacks {len(missing)} tensors, e.g. {sorted(missing)[0]!r}")
        if unknown := set(state) - expected:
            raise ValueError(f"adapter has {len(unknown)} unknown tensors, e.g. {sorted(unknown)[0]!r}")
        for key, value in state.items():
            if own[key].shape != value.shape:
                raise ValueError(f"adapter tensor {key!r} is {tuple(value.shape)}, here {tuple(own[key].shape)}")
        with torch.no_grad():
            for key, value in state.items():
                own[key].copy_(value)

    def pairs(self, backbone: Backbone) -> list[Pair]:
        """The factor pairs (W, B, A) this method trains; empty for methods that have none."""
        return pairs(backbone.net)

    # Cost formulas for one adapted m x n matrix, in elements. `lrx info` prints them, contract tests count them.

    def trainable_per_matrix(self, m: int, n: int) -> int:
        """Trained elements for one adapted (m, n) matrix."""
        return 0

    def state_per_matrix(self, m: int, n: int) -> int:
        """Elements the optimizer keeps between steps for one adapted (m, n) matrix."""
        return 0


def split_trainable(backbone: Backbone) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """(adapter parameters, head parameters), each as (name, parameter), trainable ones only."""
    adapter: list[tuple[str, nn.Parameter]] = []
    head: list[tuple[str, nn.Parameter]] = []
    for name, p in backbone.net.named_parameters():
        if p.requires_grad:
            (head if backbone.in_head(name) else adapter).append((name, p))
    return adapter, head
