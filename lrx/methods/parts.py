"""What several methods share: checks of their options, attaching low-rank layers, adding the head to an optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from lrx.errors import UserError
from lrx.methods.base import split_trainable
from lrx.models.base import Backbone
from lrx.nn.lowrank import LowRankConv2d, LowRankLinear, matrix, replace_module
from lrx.nn.optim import CompositeOptimizer, adamw
from lrx.nn.targets import find_targets


def require(holds: bool, key: str, value: Any, accepted: str) -> None:
    """Raise ``UserError`` ``method.<key>=<value>: <accepted>`` unless ``holds``."""
    if not holds:
        raise UserError(f"method.{key}={value}: {accepted}")


def check_training(lr: float, weight_decay: float, head_lr: float | None) -> None:
    """The options that every method takes."""
    require(0 < lr < math.inf, "lr", lr, "a learning rate must be positive and finite")
    require(0 <= weight_decay < math.inf, "weight_decay", weight_decay, "a weight decay must not be negative")
    if head_lr is not None:
        require(0 < head_lr < math.inf, "head_lr", head_lr, "a learning rate must be positive and finite (null: lr)")


def check_lowrank(rank: int, alpha: float, dropout: float) -> None:
    """The options of every low-rank adapter."""
    require(rank >= 1, "rank", rank, "the rank must be at least 1")
    require(
        0 < alpha < math.inf, "alpha", alpha, "alpha must be positive and finite (the update is scaled by alpha/rank)"
    )
    require(0 <= dropout < 1, "dropout", dropout, "a dropout probability lies in [0, 1)")


def check_beta(key: str, value: float) -> None:
    require(0 <= value < 1, key, value, "an averaging coefficient lies in [0, 1)")


def check_eps(value: float) -> None:
    require(0 < value < math.inf, "eps", value, "must be positive: a zero gradient divides by it")


def check_nonnegative(key: str, value: float) -> None:
    require(0 <= value < math.inf, key, value, "must not be negative")


def check_values(
    critic_lr: float,
    expectile: float,
    temperature: float,
    discount: float,
    reward_factor: float,
    soft: float,
    hidden: int,
) -> None:
    """The options of methods that train values of an offline data set."""
    for key, rate in (("critic_lr", critic_lr), ("reward_factor", reward_factor)):
        require(0 < rate < math.inf, key, rate, "must be positive and finite")
    require(0 < expectile < 1, "expectile", expectile, "an expectile lies in (0, 1)")
    check_nonnegative("temperature", temperature)
    check_beta("discount", discount)
    require(0 < soft <= 1, "soft", soft, "the rate of an average lies in (0, 1]")
    require(hidden >= 1, "hidden", hidden, "must be at least 1")


def check_rest(rest_lr: float | None) -> None:
    """The rate of what a method with an optimizer for matrices trains besides them."""
    if rest_lr is not None:
        require(0 < rest_lr < math.inf, "rest_lr", rest_lr, "a learning rate must be positive and finite (null: lr)")


def attach_lowrank(
    backbone: Backbone,
    generator: torch.Generator,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: str | list[str],
    linear: type[LowRankLinear] = LowRankLinear,
    conv: type[LowRankConv2d] = LowRankConv2d,
    rank_stabilized: bool = False,
) -> None:
    """Freeze all but the head and put a low-rank layer with scaling alpha/rank over each target.

    Targets are linear layers and ungrouped convolutions; ``linear``, ``conv``: the low-rank layers' classes.
    ``rank_stabilized``: scaling alpha/sqrt(rank) instead. Raises ``UserError`` when a target matches nothing or a
    grouped convolution, or the rank exceeds a matched matrix.
    """
    targets = find_targets(backbone.net, target_modules, roles=backbone.roles, head=backbone.head)
    for name, layer in targets.items():
        m, n = matrix(layer).shape
        accepted = f"layer {name!r} is {m} x {n}, so the rank must lie in 1..{min(m, n)}"
        require(rank <= min(m, n), "rank", rank, accepted)
    backbone.freeze()
    scaling = alpha / math.sqrt(rank) if rank_stabilized else alpha / rank
    for name, layer in targets.items():
        options: dict[str, Any] = {"dropout": dropout, "generator": generator}
        if isinstance(layer, nn.Conv2d):
            replace_module(backbone.net, name, conv(layer, rank, scaling, **options))
        else:
            assert isinstance(layer, nn.Linear)
            replace_module(backbone.net, name, linear(layer, rank, scaling, **options))


def linear_targets(backbone: Backbone, target_modules: str | list[str], method: str) -> dict[str, nn.Linear]:
    """The layers that ``target_modules`` selects, for a method that knows linear layers only.

    Raises ``UserError`` when it selects nothing, or a convolution.
    """
    found: dict[str, nn.Linear] = {}
    for name, layer in find_targets(
        backbone.net, target_modules, roles=backbone.roles, head=backbone.head, grouped=True
    ).items():
        accepted = f"method={method} adapts linear layers, and {name!r} is a convolution"
        require(isinstance(layer, nn.Linear), "target_modules", target_modules, accepted)
        found[name] = cast(nn.Linear, layer)
    return found


def with_head(
    parts: Sequence[torch.optim.Optimizer], backbone: Backbone, *, lr: float, weight_decay: float
) -> CompositeOptimizer:
    """``parts`` and an AdamW for the task head as one optimizer."""
    _, head = split_trainable(backbone)
    return CompositeOptimizer([*parts, adamw(head, lr=lr, weight_decay=weight_decay)] if head else list(parts))


def train_all(backbone: Backbone, target_modules: str | list[str], rank: int | None = None) -> None:
    """Let everything be trained, for a method whose optimizer moves the whole matrices that ``target_modules`` selects.

    Raises ``UserError`` when that is nothing or a grouped convolution, or ``rank`` exceeds one of the matrices.
    """
    for name, layer in find_targets(backbone.net, target_modules, roles=backbone.roles, head=backbone.head).items():
        m, n = matrix(layer).shape
        accepted = f"layer {name!r} is {m} x {n}, so the rank must lie in 1..{min(m, n)}"
        require(rank is None or rank <= min(m, n), "rank", rank, accepted)
    backbone.net.requires_grad_(True)


def with_rest(
    matrices: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    backbone: Backbone,
    *,
    target_modules: str | list[str],
    rest_lr: float,
    head_lr: float,
    weight_decay: float,
) -> CompositeOptimizer:
    """``matrices(weights)`` over the trained weights of the targets, AdamW for all else that is trained, as one.

    A weight that several layers share is passed once.
    """
    targets = find_targets(backbone.net, target_modules, roles=backbone.roles, head=backbone.head)
    weights: list[nn.Parameter] = list(dict.fromkeys(cast(nn.Parameter, layer.weight) for layer in targets.values()))
    weights = [p for p in weights if p.requires_grad]
    ours = {id(p) for p in weights}
    rest = [(name, p) for name, p in split_trainable(backbone)[0] if id(p) not in ours]
    found = [matrices(weights)] if weights else []
    if rest:
        found.append(adamw(rest, lr=rest_lr, weight_decay=weight_decay))
    return with_head(found, backbone, lr=head_lr, weight_decay=weight_decay)
