"""Networks and interpolations of depth super-resolution against literal restatements, and what they refuse."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lrx import registry
from lrx.errors import UserError
from lrx.models.base import Backbone, Inputs, Outputs
from lrx.models.gdnet import Attention, DepthBranch, ImageBranch, tokens
from tests.models.building import DEPTH, arguments, same

INPUTS, OUTPUTS = Inputs("image_depth", (3, 16, 24), factor=4), Outputs("depth", 1)
TRAINED = [name for name in DEPTH if name not in ("bicubic", "joint_bilateral")]


def build(name: str, inputs: Inputs = INPUTS, seed: int = 0, **changed: Any) -> Backbone:
    family, options = arguments(name)
    return registry.load("models", family)(**{**options, **changed}).build(inputs, OUTPUTS, seed)


def batch_of(count: int = 2, height: int = 16, width: int = 24, factor: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 1, height // factor, width // factor, generator=generator)
    return {"image": torch.rand(count, 3, height, width, generator=generator), "depth_low": low}


@pytest.mark.parametrize("name", DEPTH)
def test_sizes_types_and_dependence_on_both_inputs(name: str) -> None:
    backbone = build(name, rank=4) if name.startswith(("gdnet", "tiny")) else build(name)
    for height, width in ((16, 24), (32, 16)):  # whole images are of other sizes than training patches
        batch = batch_of(2, height, width)
        out = backbone(batch)
        assert (out.shape, out.dtype) == ((2, 1, height, width), torch.float32)
        assert out.isfinite().all()
        for key, alone in (("image", "depth"), ("depth_low", "image")):
            other = {**batch, key: batch[key].flip(0)}
            blind = name in {f"gdnet_{alone}"} or (name == "bicubic" and key == "image")
            assert torch.equal(backbone(other), out) == blind, key


@pytest.mark.parametrize("name", TRAINED)
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    changed = {} if name == "depth_unet" else {"rank": 4}
    first = build(name, **changed).net.state_dict()
    assert torch.equal(torch.rand(1), expected)
    assert same(first, build(name, **changed).net.state_dict())
    assert not same(first, build(name, seed=1, **changed).net.state_dict())


def test_the_unet_has_about_as_many_parameters() -> None:
    inputs = Inputs("image_depth", (3, 64, 64), factor=4)
    counts = [sum(p.numel() for p in build(name, inputs).parameters()) for name in ("gdnet", "depth_unet")]
    assert 0.9 < counts[1] / counts[0] < 1.1


def test_attention_is_the_equation() -> None:
    torch.manual_seed(0)
    layer = Attention(4).double()
    x, y = torch.randn(2, 7, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    found, weights = layer(x, y).detach().numpy(), layer.affinity(x, y).detach()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 7, dtype=torch.float64))
    Wq, Wk, Wv = (part.weight.detach().numpy().T for part in (layer.query, layer.key, layer.value))
    for b, i in itertools.product(range(2), range(7)):
        scores = [x[b, i].numpy() @ Wq @ (y[b, j].numpy() @ Wk) / math.sqrt(4) for j in range(3)]
        shares = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(weights[b, i].numpy(), shares, rtol=1e-10)
        value = x[b, i].numpy() + sum(shares[j] * (y[b, j].numpy() @ Wv) for j in range(3))
        np.testing.assert_allclose(found[b, i], value, rtol=1e-10)


def test_with_zero_values_the_image_branch_returns_its_detail_features() -> None:
    torch.manual_seed(0)
    branch = ImageBranch(8, 1, 1, 4)
    image = torch.rand(2, 3, 16, 16)
    detail = branch.fine(branch.stem(image * 2 - 1))
    assert not torch.equal(branch(image), detail)
    torch.nn.init.zeros_(branch.on_detail[0].value.weight)
    assert torch.equal(branch(image), detail)


def test_the_depth_branch_has_at_most_the_rank() -> None:
    torch.manual_seed(0)
    low = torch.rand(2, 1, 6, 5, dtype=torch.float64)
    for rank in (1, 3):
        found = tokens(DepthBranch(8, rank, 1e-3).double()(low))
        assert torch.linalg.matrix_rank(found).tolist() == [rank, rank]
    assert (torch.linalg.matrix_rank(tokens(DepthBranch(8, 0, 1e-3).double()(low))) > 3).all()


def test_gradients_reach_every_parameter() -> None:
    for name in ("tiny_gdnet", "depth_unet"):
        backbone = build(name)
        backbone(batch_of()).square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in backbone.parameters()), name


def test_bicubic_is_pil_s() -> None:
    batch = batch_of(height=32, width=48)
    found = build("bicubic")(batch)
    for low, one in zip(batch["depth_low"], found, strict=True):
        pil = Image.fromarray(low[0].numpy()).resize((48, 32), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(one[0].numpy(), np.asarray(pil), atol=2e-6)


def test_joint_bilateral_is_its_sum() -> None:
    s, radius, space, colour = 4, 1, 0.7, 0.2
    batch = {key: value.double() for key, value in batch_of(1, 12, 16).items()}
    backbone = build("joint_bilateral", radius=radius, sigma_space=space, sigma_range=colour)
    found = backbone.net(batch["image"], batch["depth_low"])[0, 0].numpy()
    image, low = batch["image"][0].numpy(), batch["depth_low"][0, 0].numpy()
    guide = image.reshape(3, 3, s, 4, s).mean(axis=(2, 4))
    for y, x in itertools.product(range(12), range(16)):
        total = weights = 0.0
        for i, j in itertools.product(
            range(y // s - radius, y // s + radius + 1), range(x // s - radius, x // s + radius + 1)
        ):
            if 0 <= i < 3 and 0 <= j < 4:
                f = ((y + 0.5) / s - 0.5 - i) ** 2 + ((x + 0.5) / s - 0.5 - j) ** 2
                g = ((image[:, y, x] - guide[:, i, j]) ** 2).sum()
                weight = max(math.exp(-f / (2 * space**2) - g / (2 * colour**2)), 1e-30)
                total, weights = total + weight * low[i, j], weights + weight
        assert found[y, x] == pytest.approx(total / weights, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("gdnet", {"rank": 0}, "model.rank=0: must be at least 1"),
        ("gdnet", {"rank": 25}, "model.rank=25: from 1 to 24"),
        ("gdnet", {"width": 1}, "model.width=1"),
        ("gdnet", {"self_attention": -1}, "model.self_attention=-1"),
        ("gdnet", {"context": 0}, "model.context=0"),
        ("depth_unet", {"depth": 0}, "model.depth=0"),
        ("joint_bilateral", {"sigma_range": 0.0}, "model.sigma_range=0.0"),
        ("joint_bilateral", {"radius": 0}, "model.radius=0"),
    ],
)
def test_what_does_not_fit_is_named(name: str, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        build(name, **changed)


@pytest.mark.parametrize("name", ["tiny_gdnet", "depth_unet", "bicubic"])
def test_other_tasks_and_sizes_are_refused(name: str) -> None:
    family, options = arguments(name)
    with pytest.raises(UserError, match="this one enlarges depth maps"):
        registry.load("models", family)(**options).build(Inputs("image", (3, 8, 8)), Outputs("classes", 3), 0)
    batch = batch_of()
    with pytest.raises(UserError, match="16 x 24 and 3 x 6 pixels, not 4 to 1"):
        build(name)({**batch, "depth_low": batch["depth_low"][:, :, :3]})


def test_roles_and_convolutions_can_be_adapted() -> None:
    for targets, count in (("all", 22), (["query", "value"], 4), (["mlp_in"], 1)):
        backbone, method = build("tiny_gdnet"), registry.load("methods", "lora")(lr=0.1, rank=2, target_modules=targets)
        before = backbone(batch_of())
        method.adapt(backbone, torch.Generator().manual_seed(0))
        assert len(method.pairs(backbone)) == count
        torch.testing.assert_close(backbone(batch_of()), before)
    with pytest.raises(UserError, match="selects no layer"):
        registry.load("methods", "lora")(lr=0.1, target_modules="all").adapt(build("bicubic"), torch.Generator())
