"""LoRA-XS against its equations in NumPy float64."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lrx.methods.export import to_peft
from lrx.methods.lora_xs import LoRAXS
from lrx.models.base import Backbone
from lrx.nn.lowrank import matrix

torch.set_num_threads(1)


class Plain(Backbone):
    def forward(self, batch):
        return self.net(batch["x"])


def plain(kind="linear", m=5, n=8):
    torch.manual_seed(0)
    layer = nn.Linear(n, m, bias=False) if kind == "linear" else nn.Conv2d(2, m, 2, bias=False)
    return Plain(nn.Sequential(layer), head=(), roles={})


def adapted(kind="linear", dtype=torch.float64, **options):
    backbone = plain(kind)
    method = LoRAXS(**{"lr": 0.01, "rank": 3, "alpha": 6.0, "target_modules": "all"} | options)
    method.adapt(backbone, torch.Generator().manual_seed(0))
    backbone.to(dtype)
    (pair,) = method.pairs(backbone)
    return backbone, method, pair


@pytest.mark.parametrize("svd", ["exact", "randomized"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_bases_are_the_leading_singular_vectors(svd, kind):
    _, _, pair = adapted(kind, svd=svd)
    W = pair.weight.numpy()
    U, S, Vt = np.linalg.svd(W)
    B, A = pair.B.detach().numpy(), pair.A.detach().numpy()
    np.testing.assert_allclose(B.T @ B, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(B @ A, U[:, :3] * S[:3] @ Vt[:3], atol=1e-5)
    np.testing.assert_allclose(A, B.T @ W, atol=1e-5)  # the singular values are on the input's side
    np.testing.assert_array_equal(np.take_along_axis(B, np.abs(B).argmax(0)[None], 0) > 0, True)
    R = pair.R.detach().numpy()
    assert 2e-6 < np.std(R) < 3e-5


def test_ten_steps_equal_the_equations():
    lr, decay = 0.01, 0.1
    backbone, method, pair = adapted(lr=lr, weight_decay=decay)
    W, A, B, s = pair.weight.numpy(), pair.A.detach().numpy().copy(), pair.B.detach().numpy().copy(), 2.0
    R = pair.R.detach().numpy().copy()
    x, y = torch.randn(4, 8, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    optimizer = method.optimizer(backbone)
    M, V = np.zeros_like(R), np.zeros_like(R)
    for t in range(1, 11):
        loss = 0.5 * (backbone({"x": x}) - y).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        G = (x.numpy() @ (W + s * B @ R @ A).T - y.numpy()).T @ x.numpy()
        g = s * B.T @ G @ A.T
        M, V = 0.9 * M + 0.1 * g, 0.999 * V + 0.001 * g * g
        R = R - lr * decay * R - lr * (M / (1 - 0.9**t)) / (np.sqrt(V / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(pair.R.detach().numpy(), R, rtol=1e-9)
    np.testing.assert_array_equal(pair.A.detach().numpy(), A)
    np.testing.assert_array_equal(pair.B.detach().numpy(), B)
    assert pair.A.grad is None
    assert pair.B.grad is None


def test_it_starts_as_the_backbone_but_for_the_noise():
    backbone, _, _ = adapted(dtype=torch.float32)
    x = {"x": torch.randn(20, 8)}
    with torch.no_grad():
        difference = (backbone(x) - plain()(x)).abs().max()
    assert 0 < difference < 1e-3
    silent, _, _ = adapted(dtype=torch.float32, init_std=0.0)
    with torch.no_grad():
        assert torch.equal(silent(x), plain()(x))


def test_r_squared_parameters_per_matrix():
    backbone, method, _ = adapted()
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == 9 == method.trainable_per_matrix(5, 8)


def test_half_precision_weights_have_bases_in_float32():
    backbone = plain().bfloat16()
    method = LoRAXS(lr=0.1, rank=3)
    method.adapt(backbone, torch.Generator().manual_seed(0))
    (pair,) = method.pairs(backbone)
    assert (pair.weight.dtype, pair.A.dtype, pair.R.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    torch.testing.assert_close(pair.B.T @ pair.B, torch.eye(3), rtol=0, atol=1e-5)


def test_a_weight_that_is_not_finite_ends_in_nan_not_in_an_error():
    backbone = plain()
    with torch.no_grad():
        backbone.net[0].weight[0, 0] = float("nan")
    LoRAXS(lr=0.1, rank=3).adapt(backbone, torch.Generator().manual_seed(0))
    assert backbone({"x": torch.randn(2, 8)}).isnan().any()


def test_shapes_are_known_without_weights():
    backbone = plain()
    backbone.to("meta")
    method = LoRAXS(lr=0.1, rank=3)
    method.adapt(backbone, torch.Generator().manual_seed(0))
    assert method.pairs(backbone)[0].R.shape == (3, 3)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_product_is_a_plain_lora(kind, tmp_path):
    from peft import PeftModel

    backbone, method, pair = adapted(kind, dtype=torch.float32)
    with torch.no_grad():
        pair.R.normal_()
    to_peft(method, backbone, tmp_path, None)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 6)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    torch.testing.assert_close(stored["base_model.model.0.lora_B.weight"].flatten(1), pair.B @ pair.R.detach())
    model = PeftModel.from_pretrained(plain(kind).net, str(tmp_path)).eval()
    x = torch.randn(4, 8) if kind == "linear" else torch.randn(4, 2, 5, 5)
    with torch.no_grad():
        expected = backbone({"x": x})
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
        method.merge(backbone)
        torch.testing.assert_close(backbone({"x": x}), expected, rtol=1e-4, atol=1e-5)
    assert matrix(backbone.net[0]).shape == pair.weight.shape
