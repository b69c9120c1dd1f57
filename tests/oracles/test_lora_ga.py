"""LoRA-GA against its equations in NumPy float64, its theorem on the first step, and how the gradient is estimated.

The official initialisation (every direction and scale, three shapes) and ours, from the same gradients and random
numbers in float32, differed by at most 1.2e-7 (relative), signs aligned.
"""

import numpy as np
import pytest
import torch
from torch import nn

from lrx.errors import UserError
from lrx.methods.lora_ga import LoRAGA
from lrx.models.base import Backbone
from lrx.nn.estimate import mean_gradients
from lrx.nn.lowrank import LowRankLinear, lowrank_layers
from tests.contract.test_methods import adapted as adapted_bert
from tests.contract.test_methods import batch_of, logits, method_of, tiny_bert
from tests.oracles.one_matrix import Adam, batch, gradient, one_matrix, trained

torch.set_num_threads(1)
OPTIONS = {"lr": 0.01, "rank": 2, "alpha": 6.0, "niter": None, "gamma": 4.0}


def adapted(m=5, n=7, data=(1, 2), **options):
    """Started from the gradients of two batches, all in float64."""
    backbone, method = one_matrix(m, n), LoRAGA(**{**OPTIONS, **options})
    method.adapt(backbone, torch.Generator().manual_seed(0))
    backbone.double()
    batches = (batch(m, n, seed=seed) for seed in data)
    method.warm_start(backbone, batches, lambda network, one: network.loss(one))
    ((_, layer),) = lowrank_layers(backbone.net)
    return backbone, method, layer


def mean_gradient(layer, m=5, n=7):
    return sum(gradient(layer.weight.numpy(), batch(m, n, seed=seed)) for seed in (1, 2)) / 2


def test_start_has_the_directions_of_the_mean_gradient():
    """(1), signs free: A's rows and B's columns come from different triplets."""
    backbone, _, layer = adapted(data=(1, 2, 3), init_batches=2)
    U, _, Vt = np.linalg.svd(mean_gradient(layer))
    zeta = 5**0.25 / 2
    B, A = layer.B.detach().numpy(), layer.A.detach().numpy()
    np.testing.assert_allclose(np.abs(U.T[2:4] @ B), zeta * np.eye(2), atol=1e-10)
    np.testing.assert_allclose(np.abs(Vt[:2] @ A.T), zeta * np.eye(2), atol=1e-10)
    assert layer.scaling == pytest.approx(6 / 2**0.5)
    x = batch()["x"]
    assert torch.equal(backbone({"x": x}), one_matrix().double()({"x": x}))


@pytest.mark.parametrize(
    ("direction", "of_A", "of_B"), [("ArB2r", [0, 1], [2, 3]), ("A2rBr", [2, 3], [0, 1]), ("ArBr", [1, 3], [0, 2])]
)
@pytest.mark.parametrize(("scale", "zeta"), [("stable", 5**0.25 / 2), ("unit", 1.0), ("gd", 1 / 3)])
def test_directions_and_scales(direction, of_A, of_B, scale, zeta):
    _, _, layer = adapted(direction=direction, scale=scale, rslora=False)
    assert layer.scaling == 3
    U, _, Vt = np.linalg.svd(mean_gradient(layer))
    np.testing.assert_allclose(np.abs(U.T[of_B] @ layer.B.detach().numpy()), zeta * np.eye(2), atol=1e-10)
    np.testing.assert_allclose(np.abs(Vt[of_A] @ layer.A.detach().numpy().T), zeta * np.eye(2), atol=1e-10)


@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr"])
def test_the_first_step_is_the_best_approximation_of_the_gradient(direction):
    """Theorem 3.1: B0 B0^T G + G A0^T A0 is zeta^2 times G truncated to its 2 r largest triplets."""
    _, _, layer = adapted(9, 8, direction=direction)
    G = mean_gradient(layer, 9, 8)
    B, A = layer.B.detach().numpy(), layer.A.detach().numpy()
    U, S, Vt = np.linalg.svd(G, full_matrices=False)
    truncated = (U[:, :4] * S[:4]) @ Vt[:4]
    np.testing.assert_allclose(B @ B.T @ G + G @ A.T @ A, (9**0.5 / 4) * truncated, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr"])
def test_directions_overlap_where_there_are_too_few(direction):
    """r = 4 of a 5 x 7 matrix: together A0 and B0 still hold every direction."""
    _, _, layer = adapted(rank=4, direction=direction, scale="unit")
    U, _, Vt = np.linalg.svd(mean_gradient(layer), full_matrices=False)
    of_B = np.abs(U.T @ layer.B.detach().numpy()).max(1) > 0.99
    of_A = np.abs(Vt @ layer.A.detach().numpy().T).max(1) > 0.99
    assert of_B.sum() == of_A.sum() == 4
    assert (of_A | of_B).all()


def test_ten_steps_equal_the_equations():
    """(2) with W0 - s B0 A0 formed, as the paper has it."""
    backbone, method, layer = adapted(weight_decay=0.1)
    before, data, s = layer.weight.clone(), batch(), layer.scaling
    B, A = layer.B.detach().numpy().copy(), layer.A.detach().numpy().copy()
    residual = before.numpy() - s * B @ A
    trained(backbone, method, data, 10)
    step_A, step_B = Adam(0.01, 0.1), Adam(0.01, 0.1)
    for _ in range(10):
        G = gradient(residual + s * B @ A, data)
        A, B = step_A(A, s * B.T @ G), step_B(B, s * G @ A.T)
    np.testing.assert_allclose(layer.B.detach().numpy(), B, rtol=1e-9)
    np.testing.assert_allclose(layer.A.detach().numpy(), A, rtol=1e-9)
    assert torch.equal(layer.weight, before), "the backbone's matrix stays as it was"


def test_the_fast_svd_finds_the_leading_directions():
    for niter in (4, None):
        _, _, layer = adapted(40, 30, niter=niter, rank=3)
        U, S, Vt = np.linalg.svd(mean_gradient(layer, 40, 30))
        assert S[5] > 10 * S[9], "gradients of two batches of four rows have rank 8"
        np.testing.assert_allclose(np.abs(Vt[:3] @ layer.A.detach().numpy().T) / (40**0.25 / 2), np.eye(3), atol=1e-3)
        np.testing.assert_allclose(np.abs(U.T[3:6] @ layer.B.detach().numpy()) / (40**0.25 / 2), np.eye(3), atol=1e-3)


# The estimate.


class Net(Backbone):
    def forward(self, batch):
        return self.net(batch["x"])


def several():
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), shared, nn.Tanh(), shared, nn.Linear(6, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize("held", [1, 60, 10**6])
def test_gradients_are_means_whatever_is_held_at_a_time(held):
    net = several().double()
    net.requires_grad_(False)
    net[5].weight.requires_grad_(True)
    net[5].weight.grad = torch.ones(3, 6, dtype=torch.float64)
    xs = [torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    weights = {"first": net[0].weight, "shared": net[2].weight, "last": net[5].weight}
    calls = []

    def loss(x):
        calls.append(sum(p.requires_grad for p in net.parameters()))
        return net(x).pow(3).mean()

    found = dict(mean_gradients(net, weights, [lambda x=x: loss(x) for x in xs], held=held))
    assert len(calls) == 3 * {1: 3, 60: 2, 10**6: 1}[held]
    assert max(calls) <= {1: 1, 60: 2, 10**6: 3}[held]
    assert [p.requires_grad for p in net.parameters()] == [p is net[5].weight for p in net.parameters()]
    assert torch.equal(net[5].weight.grad, torch.ones(3, 6, dtype=torch.float64))
    net.requires_grad_(True)
    expected = torch.autograd.grad(sum(net(x).pow(3).mean() for x in xs) / 3, list(weights.values()))
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert list(found) == list(weights)


def test_a_matrix_that_no_loss_reaches_has_gradient_zero():
    net = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    weights = {"used": net[0].weight, "idle": net[1].weight}
    found = dict(mean_gradients(net, weights, [lambda: net[0](torch.ones(1, 3)).sum()], held=1))
    assert found["used"].abs().sum() > 0
    assert not found["idle"].any()


def test_warm_start_leaves_the_network_and_the_random_numbers_alone():
    backbone = Net(several(), head=["6"], roles={})
    backbone.net[1] = nn.Dropout(0.5)
    method = LoRAGA(lr=0.1, rank=2, target_modules=["0", "5"])
    method.adapt(backbone, torch.Generator().manual_seed(0))
    backbone.train()
    before = {name: value.clone() for name, value in backbone.net.state_dict().items()}
    flags = [p.requires_grad for p in backbone.net.parameters()]
    state = torch.get_rng_state()
    draw = [{"x": torch.randn(5, 4, generator=torch.Generator().manual_seed(i))} for i in range(9)]
    left = iter(draw)
    method.warm_start(backbone, left, lambda network, one: network(one).pow(3).mean())
    assert torch.equal(torch.get_rng_state(), state)
    assert len(list(left)) == 5, "four batches are taken"
    assert [p.requires_grad for p in backbone.net.parameters()] == flags
    assert all(p.grad is None for p in backbone.net.parameters())
    assert backbone.training
    for name, value in backbone.net.state_dict().items():
        moved = name.rpartition(".")[2] in ("A", "B", "A0", "B0")
        assert torch.equal(value, before[name]) != moved, name


def test_its_start_depends_on_the_data_and_is_part_of_the_adapter():
    backbone, method = adapted_bert("lora_ga", rank=4)
    other = tiny_bert()
    again = method_of("lora_ga", rank=4)
    again.adapt(other, torch.Generator().manual_seed(0))
    for pair, plain in zip(method.pairs(backbone), again.pairs(other), strict=True):
        assert pair.B.abs().sum() > 0
        assert not plain.B.any(), "without data it is a plain LoRA"
    torch.testing.assert_close(logits(other), logits(backbone), rtol=0, atol=0)
    with torch.no_grad():
        for pair in method.pairs(backbone):
            pair.A.add_(0.1)
    again.load_adapter(other, method.adapter_state(backbone))
    assert torch.equal(logits(other), logits(backbone))


def test_a_diverged_gradient_ends_in_nan_not_in_an_error():
    backbone, method = tiny_bert(), method_of("lora_ga")
    method.adapt(backbone, torch.Generator().manual_seed(0))
    inputs = [batch_of(0)[0]]
    method.warm_start(backbone, iter(inputs), lambda network, one: network(one).sum() * float("nan"))
    assert logits(backbone).isnan().all()


def test_no_batch_is_a_user_error():
    backbone, method = tiny_bert(), method_of("lora_ga")
    method.adapt(backbone, torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=r"method=lora_ga starts from gradients .* training split has none"):
        method.warm_start(backbone, iter([]), lambda network, one: network(one).sum())


def test_a_layer_is_started_in_half_precision_too():
    layer = LowRankLinear(nn.Linear(9, 8).bfloat16(), 2, 1.0)
    method = LoRAGA(**OPTIONS)
    method.start(layer, torch.randn(8, 9).bfloat16(), torch.Generator())
    assert layer.B0.dtype == layer.A.dtype == torch.float32
    x = torch.randn(3, 9).bfloat16()
    assert torch.equal(layer(x), layer.base(x))
