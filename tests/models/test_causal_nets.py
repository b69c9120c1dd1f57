"""The networks of causal language models: their layers, their weights, and every method on them."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from lrx import registry
from lrx.config import compose, settings_of
from lrx.errors import UserError
from lrx.methods.export import to_merged, to_peft
from lrx.models.base import Decoding, Inputs, Outputs
from lrx.models.causal_lm import CausalLM, prepared
from lrx.models.tokenizers import bytes_tokenizer
from lrx.nn.targets import find_targets
from tests.conftest import FOR_POLICIES, ROOT, each
from tests.models.building import arguments
from tests.models.causal import KINDS, PROMPTS, SMALL, TEXT, WRITTEN, adapted, backbone_of, labelled, left, plain


@pytest.mark.parametrize("kind", KINDS)
def test_roles_select_one_matrix_in_each_layer_and_never_the_output_layer(kind: str) -> None:
    backbone = backbone_of(kind)
    by_role = {role: find_targets(backbone.net, [role], roles=backbone.roles) for role in backbone.roles}
    assert {len(found) for found in by_role.values()} == {2}
    assert set(by_role) >= {"query", "key", "value", "output", "mlp_in", "mlp_out"}
    every = find_targets(backbone.net, "all-linear", roles=backbone.roles)
    assert set(every) == {name for found in by_role.values() for name in found}
    tied = backbone.net.config.tie_word_embeddings
    if tied:
        with pytest.raises(UserError, match="'lm_head' matches no layer"):
            find_targets(backbone.net, ["lm_head"], roles=backbone.roles)
    else:
        assert list(find_targets(backbone.net, ["lm_head"], roles=backbone.roles)) == ["lm_head"]


def test_an_adapted_output_layer_has_its_part_in_the_loss() -> None:
    backbone = backbone_of("mistral")
    before = backbone.loss(labelled())
    adapted(backbone, target_modules=["lm_head"])
    after = backbone.loss(labelled())
    assert abs(after - before) > 1e-3
    after.backward()
    assert all(p.grad is not None for p in backbone.net.lm_head.parameters() if p.requires_grad)


def test_gpt2_is_the_same_function_with_linear_layers(tmp_path: Path) -> None:
    net = plain("gpt2")
    backbone = prepared(copy.deepcopy(net), bytes_tokenizer())
    assert sum(p.numel() for p in backbone.net.parameters()) == sum(p.numel() for p in net.parameters())
    backbone.eval()
    ids = labelled()["input_ids"]
    torch.testing.assert_close(backbone.net(input_ids=ids).logits, net(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    stock = backbone.stock().state_dict()
    assert stock.keys() == net.state_dict().keys()
    assert all(torch.equal(stock[name], tensor) for name, tensor in net.state_dict().items())
    method = registry.load("methods", "lora")(lr=1e-3, rank=4, alpha=8.0, target_modules=["query", "value"])
    adapted(backbone)
    expected = backbone.eval()({"input_ids": ids})
    with pytest.raises(UserError, match="export the merged weights"):
        to_peft(method, backbone, tmp_path / "peft", None)
    to_merged(method, backbone, tmp_path / "merged")
    read = t.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(read(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert t.AutoTokenizer.from_pretrained(tmp_path / "merged")("ab").input_ids == bytes_tokenizer()("ab").input_ids


def test_full_trains_tied_embeddings_once_and_head_has_nothing_to_train() -> None:
    backbone = backbone_of("llama", tie_word_embeddings=True)
    registry.load("methods", "full")(lr=1e-3).adapt(backbone, torch.Generator())
    trained = [p for p in backbone.net.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum({id(p): p.numel() for p in backbone.net.parameters()}.values())
    assert backbone.net.lm_head.weight is backbone.net.model.embed_tokens.weight
    with pytest.raises(UserError, match="this model has none") as caught:
        registry.load("methods", "head")(lr=1e-3).adapt(backbone, torch.Generator())
    assert "\n" not in str(caught.value)


def test_bfloat16_weights_under_float32_factors() -> None:
    net = copy.deepcopy(plain("llama")).to(torch.bfloat16)
    backbone = adapted(prepared(net, bytes_tokenizer()))
    assert {p.dtype for p in backbone.net.parameters() if p.requires_grad} == {torch.float32}
    losses = backbone.token_losses(labelled())
    assert losses.dtype == torch.float32
    losses.mean().backward()
    assert backbone.generate(left(backbone.tokenizer, PROMPTS), Decoding(4)).shape == (3, 4)


@pytest.mark.parametrize("name", ["tiny_lm", "tiny_gpt2"])
def test_random_models_are_a_function_of_the_seed(name: str) -> None:
    family, options = arguments(name)
    assert family == "causal_lm"
    built = [CausalLM(**options).build(TEXT, WRITTEN, seed) for seed in (0, 0, 1)]
    states = [backbone.net.state_dict() for backbone in built]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(*(next(iter(state.values())) for state in states[1:]))
    assert built[0].training
    assert built[0].reads == "causal"
    text = "Zwölf — 12 %\n#### 1,000"
    assert built[0].tokenizer.decode(built[0].tokenizer(text).input_ids) == text


def test_what_a_causal_model_cannot_do_is_one_line() -> None:
    def refused(words: str, inputs: Inputs = TEXT, outputs: Outputs = WRITTEN, **changed: Any) -> None:
        _, options = arguments("tiny_lm")
        with pytest.raises(UserError, match=words) as caught:
            CausalLM(**{**options, **changed}).build(inputs, outputs, 0)
        assert "\n" not in str(caught.value)

    refused("asks for classes", outputs=Outputs("classes", 3))
    refused("reads images", inputs=Inputs("image", (3, 8, 8)))
    refused("model_type='bert'", config={"model_type": "bert"})
    refused("model.config.hidden: LlamaConfig", config={"model_type": "llama", "hidden": 3})
    refused("needs model.config and model.tokenizer", tokenizer=None)
    refused("needs model.path", weights="hub")
    refused("model.dropout=1.5", dropout=1.5)
    refused("model.dtype='float16'", dtype="float16")
    refused("scaled_dot_product_attention", config={"model_type": "gemma2", **SMALL["gemma2"]})


def test_a_classifier_writes_no_text() -> None:
    family, options = arguments("tiny_bert")
    with pytest.raises(UserError, match="this task needs a causal language model"):
        registry.load("models", family)(**options).build(TEXT, WRITTEN, 0)


def test_dropout_reaches_every_layer_that_drops() -> None:
    for kind in ("gpt2", "llama"):
        backbone = prepared(copy.deepcopy(plain(kind)), bytes_tokenizer(), dropout=0.3)
        ids = labelled()["input_ids"]
        backbone.train()
        assert not torch.equal(backbone({"input_ids": ids}), backbone({"input_ids": ids}))
        still = prepared(copy.deepcopy(plain(kind)), bytes_tokenizer(), dropout=0.0)
        assert torch.equal(still({"input_ids": ids}), still({"input_ids": ids}))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_from_a_folder(kind: str, tmp_path: Path) -> None:
    net = plain(kind)
    net.generation_config = t.GenerationConfig(do_sample=True, temperature=0.6, eos_token_id=[256, 11])
    net.save_pretrained(tmp_path)
    bytes_tokenizer().save_pretrained(tmp_path)
    options = {"weights": "local", "path": str(tmp_path), "attention": "eager"}
    backbone = CausalLM(**options).build(TEXT, WRITTEN, 0)
    assert backbone.training
    backbone.eval()
    ids = labelled()["input_ids"]
    torch.testing.assert_close(backbone({"input_ids": ids}), net(input_ids=ids).logits.float(), rtol=1e-4, atol=1e-4)
    assert backbone.end_tokens() == [11, 256]
    half = CausalLM(**options, dtype="bfloat16", gradient_checkpointing=True).build(TEXT, WRITTEN, 0)
    assert {p.dtype for p in half.net.parameters()} == {torch.bfloat16}
    assert half.net.is_gradient_checkpointing
    config = json.loads((tmp_path / "config.json").read_text())
    layers = "n_layer" if kind == "gpt2" else "num_hidden_layers"
    longer = {**config, layers: 3}
    longer.pop("layer_types", None)
    (tmp_path / "config.json").write_text(json.dumps(longer))
    with pytest.raises(UserError, match="they would be random"):
        CausalLM(**options).build(TEXT, WRITTEN, 0)
    started = time.monotonic()
    with pytest.raises(UserError, match="no config"):
        CausalLM(weights="local", path=str(tmp_path / "none")).build(TEXT, WRITTEN, 0)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", each(sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))))
def test_every_method_trains_and_merges_a_gpt2(name: str) -> None:
    settings = settings_of(compose([f"method={name}", "task=gsm8k", "scale=smoke", "model=tiny_gpt2"]))
    options = {key: value for key, value in settings.method.items() if key != "name"}
    method = registry.load("methods", settings.method["name"])(**options)
    backbone = prepared(copy.deepcopy(plain("gpt2")), bytes_tokenizer(), dropout=0.0)
    if name == "head" or name in FOR_POLICIES:
        with pytest.raises(UserError, match="has none" if name == "head" else "is for policies"):
            method.adapt(backbone, torch.Generator().manual_seed(0))
        return
    method.adapt(backbone, torch.Generator().manual_seed(0))
    backbone.train()
    method.plan(backbone, 3)
    method.warm_start(backbone, iter([labelled()] * 8), lambda network, batch: network.loss(batch))
    if method.trains:
        optimizer = method.optimizer(backbone)
        losses = []
        for step in range(3):
            loss = backbone.loss(labelled())
            loss.backward()
            method.before_step(backbone, optimizer, step)
            optimizer.step()
            method.after_step(backbone, optimizer, step)
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
    if not method.mergeable:
        with pytest.raises(UserError, match="cannot be merged"):
            method.merge(backbone)
        return
    backbone.eval()
    before = backbone(labelled())
    prompts = left(backbone.tokenizer, PROMPTS)
    written = backbone.generate(prompts, Decoding(6))
    method.merge(backbone)
    torch.testing.assert_close(backbone(labelled()), before, rtol=1e-3, atol=1e-3)
    assert torch.equal(backbone.generate(prompts, Decoding(6)), written)
