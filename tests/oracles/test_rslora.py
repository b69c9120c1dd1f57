"""rsLoRA against its equation in NumPy float64, what it promises about ranks, and peft."""

import numpy as np
import pytest
import torch
from torch import nn

from lrx.methods.lora import LoRA
from lrx.methods.rslora import RsLoRA
from tests.oracles.one_matrix import Adam, batch, gradient, one_matrix, trained

torch.set_num_threads(1)


def adapted(cls, m=5, n=7, **options):
    backbone, method = one_matrix(m, n), cls(**{"lr": 0.01, **options})
    method.adapt(backbone, torch.Generator().manual_seed(0))
    backbone.double()
    (pair,) = method.pairs(backbone)
    return backbone, method, pair


def test_ten_steps_equal_the_equations():
    backbone, method, pair = adapted(RsLoRA, rank=3, alpha=6.0, weight_decay=0.1)
    W, A, B, s, data = pair.weight.numpy(), pair.A.detach().numpy().copy(), np.zeros((5, 3)), 6.0 / 3**0.5, batch()
    trained(backbone, method, data, 10)
    step_A, step_B = Adam(0.01, 0.1), Adam(0.01, 0.1)
    for _ in range(10):
        G = gradient(W + s * B @ A, data)
        A, B = step_A(A, s * B.T @ G), step_B(B, s * G @ A.T)
    np.testing.assert_allclose(pair.B.detach().numpy(), B, rtol=1e-9)
    np.testing.assert_allclose(pair.A.detach().numpy(), A, rtol=1e-9)


def first_change_of_outputs(cls, rank):
    """How far a step of gradient descent on B moves an input's own output, per unit of its gradient; mean of 100.

    dL/dW = g x^T, so B = -s g (A x)^T and s B A x = -s^2 ||A x||^2 g.
    """
    _, _, pair = adapted(cls, 200, 300, rank=rank, alpha=4.0)
    x = torch.randn(300, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return float(pair.scaling**2 * (pair.A.detach() @ x).square().sum(0).mean())


def test_the_first_change_of_the_outputs_does_not_shrink_with_the_rank():
    stable, shrinking = ([first_change_of_outputs(cls, rank) for rank in (8, 128)] for cls in (RsLoRA, LoRA))
    assert stable[1] / stable[0] == pytest.approx(1, abs=0.15)
    assert shrinking[1] / shrinking[0] == pytest.approx(8 / 128, rel=0.15)


def test_it_is_the_layer_of_peft():
    from peft import LoraConfig, get_peft_model

    backbone, _, pair = adapted(RsLoRA, rank=3, alpha=6.0)
    nn.init.normal_(pair.B)
    model = get_peft_model(one_matrix().net, LoraConfig(r=3, lora_alpha=6, use_rslora=True, target_modules=["0"]))
    layer = model.double().base_model.model[0]
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(pair.A)
        layer.lora_B["default"].weight.copy_(pair.B)
    x = batch()["x"]
    torch.testing.assert_close(backbone({"x": x}), layer(x), rtol=1e-12, atol=1e-12)
