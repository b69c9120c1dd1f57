"""What a method does with what it cannot or can hardly train: each case is one clear line, or a correct result."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lrx import registry
from lrx.errors import UserError
from lrx.models.base import Backbone
from tests.conftest import FOR_POLICIES
from tests.contract.test_everywhere import CASES, adapted, batch_of, loss_of, original, scores, train
from tests.contract.test_methods import NAMES, options_of

torch.set_num_threads(1)
TARGETED = [name for name in NAMES if "target_modules" in registry.find("methods", name).signature]
RANKED = [name for name in NAMES if "rank" in registry.find("methods", name).signature]


def build_method(name: str, **changed: Any) -> Any:
    """Small enough for the network and its few batches, and without dropout."""
    _, options = options_of(name)
    for key, value in {"dropout": 0.0, "samples": 12}.items():
        if key in options:
            options[key] = value
    options |= changed
    return registry.load("methods", name)(**options)


def adapt(name: str, backbone: Backbone, **changed: Any) -> Any:
    method = build_method(name, **changed)
    method.adapt(backbone, torch.Generator().manual_seed(0))
    method.plan(backbone, 6)
    method.optimizer(backbone)
    return method


class NoMatrices(Backbone):
    """A network in which no layer is linear or a convolution, besides the head."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)), head=["1"], roles={})

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        return self.net(batch["x"])


@pytest.mark.parametrize("name", RANKED)
def test_a_rank_of_zero_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"method\.rank=0: "):
        build_method(name, rank=0)


@pytest.mark.parametrize("name", RANKED)
def test_a_rank_above_the_matrix_is_refused(name: str) -> None:
    backbone = copy.deepcopy(original("encoder"))
    with pytest.raises(UserError, match=r"method\.rank=1000: layer '[\w.]+' is \d+ x \d+"):
        adapt(name, backbone, rank=1000, target_modules="all-linear")


@pytest.mark.parametrize("name", TARGETED)
def test_a_model_without_a_target_is_named(name: str) -> None:
    with pytest.raises(UserError, match=r"target_modules"):
        adapt(name, NoMatrices(), target_modules="all-linear")


@pytest.mark.parametrize("name", TARGETED)
def test_a_name_that_matches_nothing_is_named(name: str) -> None:
    with pytest.raises(UserError, match=r"'querry' matches no layer; did you mean 'query'"):
        adapt(name, copy.deepcopy(original("encoder")), target_modules=["querry"])


@pytest.mark.parametrize("case", [case for case in CASES if case not in FOR_POLICIES])
def test_a_gradient_that_is_nan_shows_in_the_weights_and_raises_nothing(case: str) -> None:
    backbone, method = adapted(case, "encoder")
    optimizer = method.optimizer(backbone)
    train(backbone, method, optimizer, "encoder", 0, 1)
    loss_of(backbone, batch_of("encoder", 1)).backward()
    for p in backbone.parameters():
        if p.grad is not None:
            p.grad.fill_(float("nan"))
    method.before_step(backbone, optimizer, 1)
    optimizer.step()
    method.after_step(backbone, optimizer, 1)
    assert not scores(backbone, "encoder").isfinite().all()


@pytest.mark.parametrize("name", TARGETED)
def test_a_frozen_layer_among_the_targets_is_trained_like_the_others_or_left_alone(name: str) -> None:
    """Freezing is the method's choice: what was frozen before changes nothing for an adapter or a trained matrix."""
    losses = []
    for frozen in (False, True):
        backbone = copy.deepcopy(original("encoder"))
        if frozen:
            next(module for module in backbone.net.modules() if isinstance(module, nn.Linear)).requires_grad_(False)
        method = build_method(name, target_modules="all-linear")
        method.adapt(backbone, torch.Generator().manual_seed(0))
        method.plan(backbone, 6)
        method.warm_start(backbone, (batch_of("encoder", 500 + i) for i in range(4)), loss_of)
        losses.append(train(backbone.eval(), method, method.optimizer(backbone), "encoder", 0, 3))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", TARGETED)
def test_weights_in_bfloat16_are_trained(name: str) -> None:
    backbone = copy.deepcopy(original("encoder"))
    backbone.net.to(torch.bfloat16)
    method = build_method(name, target_modules="all-linear", **({"rank": 4} if name in RANKED else {}))
    method.adapt(backbone, torch.Generator().manual_seed(0))
    method.plan(backbone, 6)
    method.warm_start(backbone, (batch_of("encoder", 500 + i) for i in range(4)), loss_of)
    before = {key: p.detach().clone() for key, p in backbone.net.named_parameters() if p.requires_grad}
    losses = train(backbone.eval(), method, method.optimizer(backbone), "encoder", 0, 3)
    assert all(torch.isfinite(torch.tensor(losses))), losses
    assert all(p.isfinite().all() for p in backbone.net.parameters())
    moved = [key for key, p in backbone.net.named_parameters() if key in before and not torch.equal(p, before[key])]
    assert any(not backbone.in_head(key) for key in moved)


@pytest.mark.parametrize("name", TARGETED)
def test_a_matrix_that_is_also_the_embeddings_is_no_target(name: str) -> None:
    backbone = copy.deepcopy(original("decoder"))
    net: Any = backbone.net
    net.config.tie_word_embeddings = True
    net.tie_weights()
    assert net.lm_head.weight is net.model.embed_tokens.weight
    with pytest.raises(UserError, match="matches no layer"):
        adapt(name, backbone, target_modules=["lm_head"])
