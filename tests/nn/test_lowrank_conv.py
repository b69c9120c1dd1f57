"""Low-rank updates of convolutions: one matrix of kernels, the layer of PEFT, and which convolutions are chosen."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lrx.errors import UserError
from lrx.nn.lowrank import LowRankConv2d, LowRankLinear, lowrank_layers, matrix, pairs, replace_module
from lrx.nn.targets import find_targets

torch.set_num_threads(1)
SHAPES = {
    "pointwise": {"kernel_size": 1},
    "three": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": (3, 5), "stride": (2, 3), "padding": (1, 0)},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "same": {"kernel_size": 3, "padding": "same"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "no-bias": {"kernel_size": 3, "bias": False},
}


def made(shape: str, rank: int = 3, channels: int = 4, out: int = 6) -> LowRankConv2d:
    torch.manual_seed(0)
    layer = LowRankConv2d(
        nn.Conv2d(channels, out, **SHAPES[shape]), rank, 0.7, generator=torch.Generator().manual_seed(1)
    )
    nn.init.normal_(layer.B)
    return layer


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_convolution_with_the_updated_matrix(shape: str) -> None:
    layer, x = made(shape), torch.randn(2, 4, 12, 13)
    expected = copy.deepcopy(layer.base)
    W = matrix(expected)
    n = 4 * expected.kernel_size[0] * expected.kernel_size[1]
    assert (W.shape, layer.A.shape, layer.B.shape) == ((6, n), (3, n), (6, 3))
    with torch.no_grad():
        W += 0.7 * layer.B @ layer.A  # a view: this changes the kernels
    torch.testing.assert_close(layer(x), expected(x), rtol=1e-5, atol=1e-5)
    trained = layer(x)
    plain = layer.merged()
    assert type(plain) is nn.Conv2d
    torch.testing.assert_close(plain(x), trained, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_starts_as_the_base_exactly_and_trains_the_factors_alone(shape: str) -> None:
    x = torch.randn(2, 4, 12, 13)
    base = made(shape).base
    layer = LowRankConv2d(copy.deepcopy(base), 2, 2.0, generator=torch.Generator().manual_seed(3))
    assert torch.equal(layer(x), base(x))
    bound = matrix(base).shape[1] ** -0.5
    assert 0.5 * bound < layer.A.abs().max() <= bound
    nn.init.normal_(layer.B)
    layer(x).square().mean().backward()
    assert {name for name, p in layer.named_parameters() if p.grad is not None} == {"A", "B"}
    assert layer.A.grad is not None
    assert layer.A.grad.abs().min() > 0


def test_pairs_are_matrices_that_share_the_weights_memory() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.Flatten(), nn.Linear(5, 2))
    for name in ("0", "2"):
        replace_module(net, name, LowRankConv2d(net.get_submodule(name), 2, 1.0))
    replace_module(net, "4", LowRankLinear(net.get_submodule("4"), 2, 1.0))
    found = pairs(net)
    assert [(pair.name, tuple(pair.weight.shape)) for pair in found] == [("0", (8, 27)), ("2", (5, 8)), ("4", (2, 5))]
    for pair, (_, layer) in zip(found, lowrank_layers(net), strict=True):
        assert pair.weight.data_ptr() == layer.weight.data_ptr()
        assert not pair.weight.requires_grad


def test_equal_to_peft() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 4, 1, bias=False))
    ours, x = copy.deepcopy(net), torch.randn(5, 3, 9, 9)
    theirs = inject_adapter_in_model(LoraConfig(r=3, lora_alpha=6, target_modules=["0", "1"]), net)
    for name in ("0", "1"):
        replace_module(ours, name, LowRankConv2d(ours.get_submodule(name), 3, 2.0))
        layer, other = ours.get_submodule(name), theirs.get_submodule(name)
        with torch.no_grad():
            layer.A.copy_(other.lora_A["default"].weight.flatten(1))
            layer.B.normal_()
            other.lora_B["default"].weight.copy_(layer.B[:, :, None, None])
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for name in ("0", "1"):
        layer, other = ours.get_submodule(name), theirs.get_submodule(name)
        torch.testing.assert_close(layer.A.grad, other.lora_A["default"].weight.grad.flatten(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.B.grad, other.lora_B["default"].weight.grad.flatten(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [11, 12])
def test_padding_of_a_subclass_is_kept(size: int) -> None:
    """timm's convolutions that pad as TensorFlow does: by an amount that depends on the image, on one side more."""
    from timm.layers import Conv2dSame

    torch.manual_seed(0)
    base = Conv2dSame(3, 6, 3, stride=2)
    layer = LowRankConv2d(copy.deepcopy(base), 2, 1.0)
    nn.init.normal_(layer.B)
    with torch.no_grad():
        matrix(base).add_(layer.B @ layer.A)
    x = torch.randn(2, 3, size, size)
    torch.testing.assert_close(layer(x), base(x), rtol=1e-5, atol=1e-5)
    assert isinstance(layer.merged(), Conv2dSame)


def test_factors_stay_in_float32_below_autocast_and_over_half_precision() -> None:
    layer, x = made("three"), torch.randn(2, 4, 8, 8)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.05)
    layer.base.bfloat16()
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert (layer.A.dtype, layer.B.dtype) == (torch.float32, torch.float32)


def test_dropout_falls_on_the_updates_input() -> None:
    base = nn.Conv2d(4, 6, 3)
    layer = LowRankConv2d(base, 2, 1.0, dropout=0.5)
    nn.init.normal_(layer.B)
    x = torch.randn(2, 4, 8, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_what_has_no_single_matrix_or_too_small_a_one_is_refused() -> None:
    with pytest.raises(ValueError, match="4 groups"):
        LowRankConv2d(nn.Conv2d(4, 8, 3, groups=4), 2, 1.0)
    with pytest.raises(ValueError, match=r"rank 5 does not fit a 4 x 36 matrix: it must lie in 1\.\.4"):
        LowRankConv2d(nn.Conv2d(4, 4, 3), 5, 1.0)


def network() -> nn.Module:
    return nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 8, 3),
            "block": nn.ModuleDict(
                {"conv_pw": nn.Conv2d(8, 8, 1), "conv_dw": nn.Conv2d(8, 8, 3, groups=8), "fc": nn.Linear(8, 8)}
            ),
            "head": nn.ModuleDict({"conv": nn.Conv2d(8, 8, 1), "fc": nn.Linear(8, 2)}),
        }
    )


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", ["block.fc"]),
        ("all-conv", ["stem", "block.conv_pw"]),
        ("all", ["stem", "block.conv_pw", "block.fc"]),
        (["conv_pw", "fc"], ["block.conv_pw", "block.fc"]),
        (["expand"], ["block.conv_pw"]),
        ("stem|.*fc", ["stem", "block.fc"]),
    ],
)
def test_what_targets_select(targets: str | list[str], expected: list[str]) -> None:
    found = find_targets(network(), targets, roles={"expand": "conv_pw"}, head=["head"])
    assert list(found) == expected


@pytest.mark.parametrize("targets", [["conv_dw"], ["depthwise"], r"block\.conv_.*"])
def test_naming_a_grouped_convolution_is_one_clear_line(targets: str | list[str]) -> None:
    with pytest.raises(UserError, match=r"'block\.conv_dw', a convolution in 8 groups.*all-conv") as caught:
        find_targets(network(), targets, roles={"depthwise": "conv_dw"}, head=["head"])
    assert "\n" not in str(caught.value)


def test_a_keyword_without_layers_names_those_that_have_some() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))
    with pytest.raises(UserError, match="all-linear selects no layer of this model; this model has all-conv"):
        find_targets(net, "all-linear", roles={}, head=["1"])
    with pytest.raises(UserError, match=r"'query' matches no layer; .*all-conv"):
        find_targets(net, ["query"], roles={}, head=["1"])
