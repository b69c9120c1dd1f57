"""LoRA-SB against its equations in NumPy float64: the estimate of the first update, the start and the training."""

import numpy as np
import pytest
import torch
from torch import nn

from lrx.methods.lora_sb import LoRASB
from lrx.methods.lora_xs import LoRAXS
from lrx.models.base import Backbone
from lrx.nn.svd import truncated_svd

torch.set_num_threads(1)
M, N, R = 6, 9, 3


class Plain(Backbone):
    def forward(self, batch):
        return self.net(batch["x"])


def plain(dropout=0.0, conv=False):
    torch.manual_seed(0)
    layer = nn.Conv2d(1, M, 3, bias=False) if conv else nn.Linear(N, M, bias=False)
    return Plain(nn.Sequential(nn.Dropout(dropout), layer), head=(), roles={}).double()


def examples(size=20, conv=False):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(size, N, generator=generator).double(), torch.randn(size, M, generator=generator).double()
    return x.view(size, 1, 3, 3) if conv else x, y


def batches(sizes, conv=False, order=None):
    x, y = examples(conv=conv)
    if order is not None:
        x, y = x[order], y[order]
    start = 0
    for size in sizes:
        yield {"x": x[start : start + size], "y": y[start : start + size], "name": "not a tensor"}
        start += size


def loss(backbone, batch):
    return 0.5 * (backbone(batch).flatten(1) - batch["y"]).square().sum(1).mean()


def started(sizes=(4, 4, 4), *, steps=100, dropout=0.0, conv=False, order=None, loss=loss, seed=0, **options):
    backbone = plain(dropout, conv)
    defaults = {"lr": 0.01, "rank": R, "samples": 10, "target_modules": "all"}
    method = LoRASB(**defaults | options)
    method.adapt(backbone, torch.Generator().manual_seed(seed))
    backbone.double()
    method.plan(backbone, steps)
    method.warm_start(backbone, batches(sizes, conv, order), loss)
    (pair,) = method.pairs(backbone)
    return backbone, method, pair


def per_example(count):
    """dL/dW of each of the first examples, (count, M, N)."""
    W = plain().net[1].weight.detach().numpy()
    x, y = (z.numpy()[:count] for z in examples())
    return np.einsum("bm,bn->bmn", x @ W.T - y, x)


def product(pair):
    B, A = pair.change()
    return pair.scaling * (B @ A).detach().numpy()


def truncated(X, r=R):
    U, S, Vt = np.linalg.svd(X)
    return U[:, :r] * S[:r] @ Vt[:r]


@pytest.mark.parametrize("alpha", [None, 12.0], ids=["s=1", "s=4"])
@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv"])
def test_the_start_is_the_best_rank_r_part_of_the_first_step(alpha, conv):
    _, _, pair = started(alpha=alpha, conv=conv)
    eta = 0.01 / round(0.06 * 100)
    dW = -eta * np.sign(per_example(10).sum(0))
    assert set(np.unique(np.round(np.abs(dW) / eta, 12))) <= {0.0, 1.0}
    np.testing.assert_allclose(product(pair), truncated(dW), atol=1e-12)
    B, A = pair.B.detach().numpy(), pair.A.detach().numpy()
    np.testing.assert_allclose(B.T @ B, np.eye(R), atol=1e-9)
    np.testing.assert_allclose(A @ A.T, np.eye(R), atol=1e-9)
    S = np.linalg.svd(dW)[1]
    np.testing.assert_allclose(pair.R.detach().numpy(), np.diag(S[:R]) / pair.scaling, atol=1e-12)
    np.testing.assert_allclose(np.sum((product(pair) - dW) ** 2), np.sum(S[R:] ** 2), rtol=1e-9)  # Eckart-Young


@pytest.mark.parametrize(
    ("options", "eta"),
    [({"steps": 1000}, 0.01 / 60), ({"steps": 0}, 0.01), ({"warmup_ratio": 0.0}, 0.01), ({"eta": 0.5}, 0.5)],
)
def test_eta_is_the_rate_of_the_first_warm_up_step(options, eta):
    _, _, pair = started(**options)
    np.testing.assert_allclose(product(pair), truncated(-eta * np.sign(per_example(10).sum(0))), atol=1e-12)


@pytest.mark.parametrize("weighting", ["sum", "official"])
def test_weights_of_the_examples(weighting):
    """Batches of 4, 4 and (cut) 2: the official code divides the mean loss of a batch by its size once more."""
    _, _, pair = started(weighting=weighting, estimate="gradient", eta=1.0)
    g = per_example(10)
    weights = np.ones(10) if weighting == "sum" else np.array([1 / 16] * 8 + [1 / 4] * 2)
    np.testing.assert_allclose(product(pair), truncated(-np.einsum("b,bmn->mn", weights, g)), atol=1e-9)


def test_without_the_sign_it_is_the_truncated_gradient_step():
    _, _, pair = started(estimate="gradient", eta=0.3)
    np.testing.assert_allclose(product(pair), truncated(-0.3 * per_example(10).sum(0)), atol=1e-9)


def test_the_scale_of_the_loss_and_the_order_of_examples_do_not_matter():
    _, _, pair = started()
    _, _, scaled = started(loss=lambda backbone, batch: 1000 * loss(backbone, batch))
    _, _, turned = started(order=[*reversed(range(10)), *range(10, 20)])
    _, _, again = started(seed=5)
    for other in (scaled, turned, again):
        np.testing.assert_allclose(product(other), product(pair), atol=1e-12)


def test_the_output_differs_from_the_backbone_by_the_merged_change():
    backbone, method, pair = started()
    x = {"x": examples()[0]}
    with torch.no_grad():
        difference = backbone(x) - plain()(x)
        torch.testing.assert_close(difference, x["x"] @ torch.tensor(product(pair)).T)
        assert difference.abs().max() > 1e-6
        expected = backbone(x)
        method.merge(backbone)
        torch.testing.assert_close(backbone(x), expected, rtol=1e-5, atol=1e-6)  # merged in float32


def test_only_the_core_is_trained_and_the_backbone_is_as_before():
    backbone, method, pair = started()
    assert torch.equal(pair.weight, plain().net[1].weight)
    assert [name for name, p in backbone.net.named_parameters() if p.requires_grad] == ["1.R"]
    assert all(p.grad is None for p in backbone.parameters())
    assert method.trainable_per_matrix(M, N) == R * R == pair.R.numel()
    x, _ = examples()
    out = backbone({"x": x})
    seed = torch.randn(out.shape).double()
    out.backward(seed)
    G = (seed.T @ x).numpy()  # dL/dW
    s, B, A = pair.scaling, pair.B.detach().numpy(), pair.A.detach().numpy()
    np.testing.assert_allclose(pair.R.grad.numpy(), s * B.T @ G @ A.T, rtol=1e-9, atol=1e-12)
    assert pair.A.grad is None
    assert pair.B.grad is None


@pytest.mark.parametrize("alpha", [None, 12.0], ids=["s=1", "s=4"])
def test_a_step_along_the_core_gradient_projects_the_full_gradient(alpha):
    """s B gR A with gR = (1/s^2) dL/dR (orthonormal bases) is Pi_B G Pi_A, whatever s; with s = 1 gR is dL/dR."""
    backbone, _, pair = started(alpha=alpha)
    x, y = examples()
    batch = {"x": x, "y": y}
    loss(backbone, batch).backward()
    G = (backbone(batch) - y).T.detach().numpy() @ x.numpy() / len(x)
    s, B, A = pair.scaling, pair.B.detach().numpy(), pair.A.detach().numpy()
    change = s * B @ (pair.R.grad.numpy() / s**2) @ A
    np.testing.assert_allclose(change, B @ B.T @ G @ A.T @ A, rtol=1e-9, atol=1e-12)
    assert np.sum(G * change) > 0


def test_training_stays_between_the_bases():
    backbone, method, pair = started(weight_decay=0.01)
    x, y = examples()
    optimizer = method.optimizer(backbone)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        value = loss(backbone, {"x": x, "y": y})
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0]
    change, B, A = product(pair), pair.B.detach().numpy(), pair.A.detach().numpy()
    np.testing.assert_allclose(B @ B.T @ change @ A.T @ A, change, atol=1e-12)
    off = pair.R.detach().numpy() - np.diag(np.diag(pair.R.detach().numpy()))
    assert np.abs(off).max() > 1e-3, "R is a full matrix, only its start is diagonal"


def test_dropout_is_on_and_global_random_numbers_are_not_touched():
    backbone, _, pair = started(dropout=0.5)
    _, _, same = started(dropout=0.5)
    _, _, other = started(dropout=0.5, seed=3)
    _, _, off = started(dropout=0.0)
    torch.manual_seed(0)  # what building the network leaves
    plain()
    expected = torch.get_rng_state()
    plain()
    started(dropout=0.5)
    assert backbone.training
    assert torch.equal(product_tensor(pair), product_tensor(same))
    assert not torch.equal(product_tensor(pair), product_tensor(other))
    assert not torch.equal(product_tensor(pair), product_tensor(off))
    assert torch.equal(torch.get_rng_state(), expected)


def product_tensor(pair):
    return torch.tensor(product(pair))


def test_a_gradient_that_is_not_finite_ends_in_nan_not_in_an_error():
    backbone, _, _ = started(loss=lambda backbone, batch: loss(backbone, batch) * float("nan"))
    assert backbone({"x": examples()[0]}).isnan().all()


def test_the_randomised_decomposition_is_near_the_exact_one():
    """A sign matrix has a flat spectrum, the hard case; the card: squared error at most 1.005 times the optimum."""
    X = torch.sign(torch.randn(40, 40, generator=torch.Generator().manual_seed(0))).double()
    state = torch.get_rng_state()
    U, S, V = truncated_svd(X, 8, iterations=10, generator=torch.Generator().manual_seed(42))
    assert torch.equal(torch.get_rng_state(), state)
    best = torch.linalg.svdvals(X)[8:].square().sum()
    assert best <= (X - U * S @ V.mT).square().sum() < 1.03 * best
    torch.testing.assert_close(U.mT @ U, torch.eye(8).double())


# The card's mini-scale claim: a linear regression whose change is not aligned with the pretrained matrix.


def regression(method, seed, lr):
    generator = torch.Generator().manual_seed(seed)
    m, n, r = 48, 40, 6
    W0 = torch.randn(m, n, generator=generator).double() / n**0.5
    change = torch.randn(m, 4, generator=generator).double() @ torch.randn(4, n, generator=generator).double()
    x = torch.randn(256, n, generator=generator).double()
    y = x @ (W0 + change / torch.linalg.matrix_norm(change, 2)).T
    backbone = Plain(nn.Sequential(nn.Linear(n, m, bias=False)), head=(), roles={}).double()
    with torch.no_grad():
        backbone.net[0].weight.copy_(W0)
    method.adapt(backbone, torch.Generator().manual_seed(seed))
    backbone.double()
    method.plan(backbone, 200)
    whole = {"x": x, "y": y}
    first = 0.5 * (x @ W0.T - y).square().sum(1).mean()
    method.warm_start(backbone, iter([whole]), loss)
    for p in backbone.parameters():
        p.requires_grad_(p.shape == (r, r))
    optimizer = torch.optim.Adam([p for p in backbone.parameters() if p.requires_grad], lr=lr)
    for _ in range(200):
        optimizer.zero_grad()
        loss(backbone, whole).backward()
        optimizer.step()
    return float(loss(backbone, whole).detach() / first)


def mean_of(make):
    return np.mean([regression(make(), seed, 0.1) for seed in range(2)])


def test_bases_of_the_estimate_beat_those_of_the_pretrained_matrix():
    common = {"lr": 0.1, "rank": 6, "target_modules": "all"}
    xs = mean_of(lambda: LoRAXS(alpha=6.0, **common))
    sb = mean_of(lambda: LoRASB(samples=256, **common))
    unsigned = mean_of(lambda: LoRASB(samples=256, estimate="gradient", eta=1e-3, **common))
    assert 0.95 < xs < 1.0  # the card: 0.984, 0.262, 0.064
    assert 0.1 < sb < 0.4
    assert unsigned < sb / 2
