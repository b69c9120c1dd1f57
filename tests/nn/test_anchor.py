"""Anchored low-rank layers: exact at the start, an untouched W, and a plain LoRA of twice the rank for PEFT."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lrx import registry
from lrx.callbacks.lens import look_at
from lrx.methods.export import to_merged, to_peft
from lrx.nn.lowrank import LowRank, LowRankConv2d, LowRankLinear, anchors, lowrank_layers, matrix, pairs
from lrx.nn.spectrum import factored_svd
from tests.contract.test_convolutions import backbone_ as tiny_conv
from tests.contract.test_convolutions import data as images
from tests.contract.test_methods import adapted, batch_of, logits, tiny_bert, train

torch.set_num_threads(1)
BASES = {
    "linear": (lambda: nn.Linear(7, 5), LowRankLinear, (3, 7)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2), LowRankConv2d, (2, 4, 9, 8)),
}


def anchored(kind: str, rank: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Any, torch.Tensor]:
    make, layer, size = BASES[kind]
    torch.manual_seed(0)
    base = make().to(dtype)
    found = layer(base, rank, 0.7)
    m, n = matrix(base).shape
    found.anchor(torch.randn(m, rank), torch.randn(rank, n))
    return found, torch.randn(size, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", BASES)
def test_it_starts_as_the_base_exactly_and_leaves_w_alone(kind: str, dtype: torch.dtype) -> None:
    layer, x = anchored(kind, dtype=dtype)
    before = layer.weight.clone()
    assert torch.equal(layer(x), layer.base(x))
    assert torch.equal(layer.weight, before)
    assert layer.B0.abs().sum() > 0
    assert {name for name, _ in layer.named_parameters()} == {"A", "B", "base.weight", "base.bias"}
    assert torch.equal(layer.merged().weight, before)


@pytest.mark.parametrize("kind", BASES)
def test_it_is_the_layer_with_the_offset_matrix(kind: str) -> None:
    layer, x = anchored(kind)
    with torch.no_grad():
        layer.A += 0.3 * torch.randn_like(layer.A)
        layer.B += 0.3 * torch.randn_like(layer.B)
    expected = copy.deepcopy(layer.base)
    offset = matrix(expected) - 0.7 * layer.B0 @ layer.A0
    W = offset + 0.7 * layer.B @ layer.A
    loss = layer(x).square().sum()
    loss.backward()
    W = W.detach().requires_grad_(True)
    tensors = {"weight": W.view(expected.weight.shape), "bias": expected.bias}
    y = torch.func.functional_call(expected, tensors, (x,))
    y.square().sum().backward()
    torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.B.grad, 0.7 * W.grad @ layer.A.T, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(layer.A.grad, 0.7 * layer.B.T @ W.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(matrix(layer.merged()), W, rtol=1e-5, atol=1e-5)


def test_the_change_is_taken_apart_through_its_factors() -> None:
    layer, _ = anchored("linear", rank=2)
    (pair,) = pairs(nn.Sequential(layer))
    values, _ = factored_svd(*pair.change(), pair.scaling)
    assert not values.any(), "zero at the start"
    with torch.no_grad():
        layer.A += 1
    values, _ = factored_svd(*pair.change(), pair.scaling)
    expected = torch.linalg.svdvals(0.7 * (layer.B @ layer.A - layer.B0 @ layer.A0).double())
    torch.testing.assert_close(values[:2], expected[:2], rtol=1e-5, atol=1e-5)


def test_a_layer_without_an_anchor_is_as_before() -> None:
    layer = LowRankLinear(nn.Linear(4, 3), 2, 1.0)
    assert layer.change() == (layer.B, layer.A)
    assert set(layer.state_dict()) == {"A", "B", "base.weight", "base.bias"}
    assert not anchors(nn.Sequential(layer))
    layer.anchor()
    assert set(anchors(nn.Sequential(layer))) == {"0.B0", "0.A0"}


@pytest.mark.parametrize("name", ["pissa", "lora_ga"])
def test_peft_loads_it_as_a_lora_of_twice_the_rank(name: str, tmp_path) -> None:
    from peft import PeftModel

    backbone, method = adapted(name, rank=4, alpha=6.0, target_modules=["query", "mlp_out"], lr=0.01, head_lr=0.01)
    train(backbone, method, method.optimizer(backbone), 4)
    start = logits(tiny_bert())
    assert not torch.allclose(logits(backbone), start, atol=1e-2)
    to_peft(method, backbone, tmp_path, base_model_name="somewhere/tiny")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == 8
    assert config["lora_alpha"] / config["r"] == pytest.approx(method.pairs(backbone)[0].scaling)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert stored["base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"].shape == (8, 16)
    model = PeftModel.from_pretrained(tiny_bert().net, str(tmp_path)).eval()
    with torch.no_grad():
        found = model(**batch_of(7)[0]).logits
        merged = model.merge_and_unload()(**batch_of(7)[0]).logits
    torch.testing.assert_close(found, logits(backbone), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merged, logits(backbone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["pissa", "lora_ga"])
def test_transformers_loads_the_merged_model(name: str, tmp_path) -> None:
    from transformers import AutoModelForSequenceClassification

    backbone, method = adapted(name, rank=4, lr=0.01, head_lr=0.01)
    train(backbone, method, method.optimizer(backbone), 4)
    expected = logits(backbone)
    to_merged(method, backbone, tmp_path)
    assert sum(isinstance(module, LowRank) for module in backbone.net.modules()) == 13, "the backbone is not changed"
    other = tiny_bert()
    other.net = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(other), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["pissa", "lora_ga"])
def test_the_lens_sees_the_change_and_not_the_factors(name: str) -> None:
    backbone, method = adapted(name, rank=4, lr=0.01)
    start = {name: layer.weight.clone() for name, layer in lowrank_layers(backbone.net)}
    found = look_at(method, backbone, None)
    assert len(found) == len(start) == 13
    assert not any(looking.update()[0].any() for looking in found)
    train(backbone, method, method.optimizer(backbone), 3)
    seen = {looking.name: (looking.update()[0], looking.weight()) for looking in found}
    method.merge(backbone)
    for where, (values, weight) in seen.items():
        now = backbone.net.get_submodule(where).weight
        torch.testing.assert_close(weight.float(), now, rtol=1e-5, atol=1e-5)
        expected = torch.linalg.svdvals((now - start[where]).double())
        torch.testing.assert_close(values[:4], expected[:4], rtol=1e-3, atol=1e-5)


def test_a_convolution_is_anchored_too(tmp_path) -> None:
    from peft import PeftModel

    backbone, method = tiny_conv(), registry.load("methods", "pissa")(lr=0.01, rank=4, target_modules="all")
    method.adapt(backbone, torch.Generator().manual_seed(0))
    optimizer = method.optimizer(backbone)
    for step in range(3):
        batch, labels = images(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(backbone(batch), labels).backward()
        optimizer.step()
    assert len(list(lowrank_layers(backbone.net))) == 15
    to_peft(method, backbone, tmp_path, None)
    model = PeftModel.from_pretrained(tiny_conv().net, str(tmp_path)).eval()
    backbone.eval()
    with torch.no_grad():
        pixels = images(99)[0]["pixel_values"]
        torch.testing.assert_close(model(pixels), backbone({"pixel_values": pixels}), rtol=1e-4, atol=1e-4)
