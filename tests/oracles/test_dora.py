"""DoRA against its equations in NumPy float64, peft's layers and training, and its promise of no m x n temporary.

The official layer (both gradients, with and without dropout) and ours, trained side by side for 30 steps in float64,
differed by at most 2e-15 in outputs and parameters.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lrx.methods.dora import DoRA
from lrx.nn.dora import DoRAConv2d, DoRALinear, dora_layers
from tests.contract.test_methods import adapted as adapted_bert
from tests.contract.test_methods import logits, train
from tests.oracles.one_matrix import Adam, batch, gradient, one_matrix, trained

torch.set_num_threads(1)


def adapted(**options):
    """In float64, with norms of that precision."""
    backbone = one_matrix(bias=True)
    method = DoRA(**{"lr": 0.01, "rank": 3, "alpha": 6.0, **options})
    method.adapt(backbone, torch.Generator().manual_seed(0))
    backbone.double()
    (layer,) = dora_layers(backbone.net)
    layer.squares.copy_(layer.weight.square().sum(1))
    with torch.no_grad():
        layer.magnitude.copy_(layer.norms())
    return backbone, method, layer


@pytest.mark.parametrize("norm_gradient", ["constant", "exact"])
def test_ten_steps_equal_the_equations(norm_gradient):
    backbone, method, layer = adapted(norm_gradient=norm_gradient, weight_decay=0.1)
    W0, A, B, s = layer.weight.numpy().copy(), layer.A.detach().numpy().copy(), np.zeros((5, 3)), 2.0
    bias, data = layer.bias.numpy(), batch()
    p = np.linalg.norm(W0, axis=1)
    trained(backbone, method, data, 10)
    step_A, step_B, step_p = Adam(0.01, 0.1), Adam(0.01, 0.1), Adam(0.01, 0.0)
    for _ in range(10):
        V = W0 + s * B @ A
        norm = np.linalg.norm(V, axis=1)
        G = gradient((p / norm)[:, None] * V, data, bias)
        gp = (G * V).sum(1) / norm  # (6)
        gV = (p / norm)[:, None] * G  # (11)
        if norm_gradient == "exact":
            gV -= (p / norm * gp / norm)[:, None] * V
        A, B, p = step_A(A, s * B.T @ gV), step_B(B, s * gV @ A.T), step_p(p, gp)
    np.testing.assert_allclose(layer.magnitude.detach().numpy(), p, rtol=1e-9)
    np.testing.assert_allclose(layer.B.detach().numpy(), B, rtol=1e-8)
    np.testing.assert_allclose(layer.A.detach().numpy(), A, rtol=1e-8)
    V = W0 + s * B @ A
    merged = (p / np.linalg.norm(V, axis=1))[:, None] * V
    np.testing.assert_allclose(layer.merged().weight.detach().numpy(), merged, rtol=0, atol=1e-6)


def test_rows_have_the_lengths_of_the_magnitudes():
    backbone, method, layer = adapted()
    trained(backbone, method, batch(), 10)
    magnitude = layer.magnitude.detach().clone()
    W = layer.merged().weight
    torch.testing.assert_close(torch.linalg.vector_norm(W, dim=1), magnitude, rtol=1e-6, atol=0)


def test_constant_norm_leaves_the_exact_gradient_along_the_rows():
    """The two gradients of V differ by a multiple of each row of V: (6) takes that component out."""
    grads = {}
    for kind in ("constant", "exact"):
        backbone, _, layer = adapted(norm_gradient=kind)
        nn.init.normal_(layer.B, generator=torch.Generator().manual_seed(1))
        backbone.loss(batch()).backward()
        V = (layer.weight + layer.scaling * layer.B @ layer.A).detach()
        grads[kind] = (layer.B.grad, layer.magnitude.grad, V, layer.A.detach(), layer.scaling)
    (constant, m1, V, A, s), (exact, m2, *_) = grads["constant"], grads["exact"]
    torch.testing.assert_close(m1, m2)
    along = s * V @ A.T  # what a multiple of the rows of V gives in gB
    ratio = (constant - exact) / along
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-6, atol=1e-9)
    assert ratio.abs().max() > 1e-3


def peft_layer(base, **options):
    from peft import LoraConfig, get_peft_model

    options = {"r": 3, "lora_alpha": 6, "use_dora": True, "target_modules": ["0"], **options}
    return get_peft_model(nn.Sequential(copy.deepcopy(base)), LoraConfig(**options)).base_model.model[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_outputs_and_gradients_are_those_of_peft(kind, dropout, bias):
    torch.manual_seed(0)
    if kind == "linear":
        base, x = nn.Linear(7, 5, bias=bias), torch.randn(4, 7)
        ours = DoRALinear(copy.deepcopy(base), 3, 2.0, dropout=dropout)
    else:
        base, x = nn.Conv2d(4, 6, 3, padding=1, stride=2, bias=bias), torch.randn(2, 4, 9, 8)
        ours = DoRAConv2d(copy.deepcopy(base), 3, 2.0, dropout=dropout)
    theirs = peft_layer(base, lora_dropout=dropout)
    A, B, m = (theirs.lora_A["default"].weight, theirs.lora_B["default"].weight,
               theirs.lora_magnitude_vector["default"].weight)  # fmt: skip
    torch.testing.assert_close(ours.magnitude, m.detach().flatten(), rtol=1e-6, atol=0)
    with torch.no_grad():
        nn.init.normal_(B)
        m.mul_(1.3)
        ours.A.copy_(A.flatten(1))
        ours.B.copy_(B.flatten(1))
        ours.magnitude.mul_(1.3)
    outputs = []
    for layer in (ours, theirs):
        torch.manual_seed(5)  # dropout
        y = layer(x)
        y.square().sum().backward()
        outputs.append(y)
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    for mine, other in ((ours.A, A), (ours.B, B), (ours.magnitude, m)):
        torch.testing.assert_close(mine.grad, other.grad.view_as(mine), rtol=1e-4, atol=1e-4)


def test_it_trains_as_peft_does():
    rates = {"lr": 1e-2, "head_lr": 1e-2, "weight_decay": 0.0}
    ours, method = adapted_bert("dora", rank=4, alpha=6.0, target_modules="all-linear", **rates)
    options = {"r": 4, "lora_alpha": 6}
    theirs, reference = adapted_bert("peft-dora", options=options, target_modules="all-linear", **rates)
    names = [name for name, module in ours.net.named_modules() if isinstance(module, DoRALinear)]
    with torch.no_grad():
        for name in names:
            layer = theirs.net.get_submodule(name)
            layer.lora_A["default"].weight.copy_(ours.net.get_submodule(name).A)
    a = train(ours, method, method.optimizer(ours), 10)
    b = train(theirs, reference, reference.optimizer(theirs), 10)
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-3, atol=1e-3)
    for name in names:
        magnitude = theirs.net.get_submodule(name).lora_magnitude_vector["default"].weight
        torch.testing.assert_close(ours.net.get_submodule(name).magnitude, magnitude, rtol=1e-4, atol=1e-5)


class Largest(TorchDispatchMode):
    """The most elements of a tensor that an operation made, views left out."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        held = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in held:
                self.elements = max(self.elements, t.numel())
        return result


@pytest.mark.parametrize("exact", [False, True])
def test_no_operation_makes_a_matrix_of_full_size(exact):
    m, n, r, tokens = 300, 400, 4, 6
    layer = DoRALinear(nn.Linear(n, m), r, 2.0)
    layer.detach_norm = not exact
    x = torch.randn(tokens, n)
    with Largest() as seen:
        layer(x).square().sum().backward()
    assert 0 < seen.elements <= max(m, n) * max(r, tokens)
    theirs = peft_layer(nn.Linear(n, m), r=r)
    with Largest() as seen:
        theirs(x).square().sum().backward()
    assert seen.elements >= m * n, "the check sees what peft makes"


def test_norms_of_a_half_precision_matrix_are_of_float32():
    torch.manual_seed(0)
    base = nn.Linear(300, 200).bfloat16()
    W = base.weight.detach().double()
    layer = DoRALinear(base, 4, 2.0)
    nn.init.normal_(layer.B)
    expected = torch.linalg.vector_norm(W + 2 * layer.B.double() @ layer.A.double(), dim=1)
    torch.testing.assert_close(layer.norms().double(), expected, rtol=1e-5, atol=0)
    assert layer.magnitude.dtype == torch.float32
    assert layer(torch.randn(3, 300).bfloat16()).dtype == torch.bfloat16


def test_a_row_of_zeros_is_trained_without_nan():
    base = nn.Linear(6, 4)
    with torch.no_grad():
        base.weight[1] = 0
    layer, x = DoRALinear(base, 2, 2.0), torch.randn(8, 6)
    assert torch.equal(layer(x), base(x))
    optimizer = torch.optim.Adam([layer.A, layer.B, layer.magnitude], lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        (layer(x) - 1).square().mean().backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in layer.parameters())
    assert layer(x).isfinite().all()
