"""trainer=fsdp: a unit for each decoder layer, and one line for what it cannot do."""

from __future__ import annotations

import copy

import pytest
from pytorch_lightning.strategies import FSDPStrategy

from lrx import sharding
from lrx.config import compose, settings_of
from lrx.errors import UserError
from lrx.models.causal_lm import prepared
from lrx.models.tokenizers import bytes_tokenizer
from tests.models.building import build
from tests.models.causal import KINDS, adapted, backbone_of, plain


@pytest.mark.parametrize("kind", KINDS)
def test_each_decoder_layer_is_a_unit(kind: str) -> None:
    backbone = adapted(backbone_of(kind))
    (unit,) = sharding.units(backbone)
    assert [type(module) for module in backbone.net.modules()].count(unit) == 2
    strategy = sharding.strategy("fsdp", backbone, None)
    assert isinstance(strategy, FSDPStrategy)
    (policy,) = (value for key, value in strategy.kwargs.items() if key == "auto_wrap_policy")
    wrapped = [m for m in backbone.modules() if policy(module=m, recurse=False, nonwrapped_numel=0)]
    assert {type(module) for module in wrapped} == {unit}


def test_an_encoder_has_units_too() -> None:
    assert "BertLayer" in {unit.__name__ for unit in sharding.units(build("tiny_bert"))}


def test_what_sharding_cannot_do_is_one_line() -> None:
    import torch

    mixed = adapted(prepared(copy.deepcopy(plain("llama")).to(torch.bfloat16), bytes_tokenizer()))
    with pytest.raises(UserError, match=r"these are bfloat16 and float32; give model\.dtype=float32"):
        sharding.strategy("fsdp", mixed, None)
    with pytest.raises(UserError, match=r"give trainer\.clip=null"):
        sharding.strategy("fsdp", backbone_of("llama"), 1.0)
    assert sharding.strategy("ddp", mixed, 1.0) == "ddp"
    trainer = settings_of(compose(["trainer=fsdp", "task=gsm8k", "scale=paper"])).trainer
    assert (trainer.strategy, trainer.clip) == ("fsdp", None)
