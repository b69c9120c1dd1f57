"""ReLoRA against its procedure written out in NumPy float64, and what the paper and the official code state."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lrx.callbacks.lens import look_at
from lrx.methods.relora import ReLoRA, merge_and_restart, prune_, quantile
from lrx.models.base import Backbone
from lrx.nn.lowrank import lowrank_layers, matrix
from lrx.seeds import derive

torch.set_num_threads(1)


class Net(Backbone):
    def forward(self, batch):
        return self.net(batch["x"])


def adapted(m=12, n=16, rank=4, *, seed=0, dtype=torch.float64, **options):
    """A backbone of one (m, n) matrix and a head under ReLoRA, its layer and the method."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(n, m, bias=False), nn.Linear(m, 2, bias=False))
    backbone = Net(net, head=["1"], roles={})
    method = ReLoRA(**({"lr": 0.01, "rank": rank, "alpha": 8.0, "cycle": 6, "restart_warmup": 3} | options))
    method.adapt(backbone, torch.Generator().manual_seed(seed))
    backbone.to(dtype)
    ((_, layer),) = lowrank_layers(backbone.net)
    return backbone, layer, method


def steps(backbone, method, optimizer, count, *, first=0, scheduler=None):
    """Training steps on random data that depend on their number; the rates that the groups had in each."""
    rates = []
    for t in range(first, first + count):
        generator = torch.Generator().manual_seed(t)
        weight = backbone.net[1].weight
        x = torch.randn(8, 16, generator=generator, dtype=weight.dtype)
        optimizer.zero_grad()
        ((backbone({"x": x}) - 1) ** 2).sum().backward()
        method.before_step(backbone, optimizer, t)
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        method.after_step(backbone, optimizer, t)
        if scheduler is not None:
            scheduler.step()
    return rates


class Adam:
    def __init__(self, p):
        self.p, self.M, self.V, self.t = p.copy(), np.zeros_like(p), np.zeros_like(p), 0

    def step(self, g, lr, decay):
        self.t += 1
        self.M, self.V = 0.9 * self.M + 0.1 * g, 0.999 * self.V + 0.001 * g * g
        root = np.sqrt(self.V / (1 - 0.999**self.t)) + 1e-8
        self.p = self.p * (1 - lr * decay) - lr * (self.M / (1 - 0.9**self.t)) / root

    def prune(self, kind, share, generator):
        for name in ("M", "V"):
            value = getattr(self, name)
            if kind == "random":
                kept = torch.rand(value.shape, generator=generator).numpy() > share
            else:
                kept = np.abs(value) > np.quantile(np.abs(value), share)
            setattr(self, name, value * kept)


@pytest.mark.parametrize(("reset", "share"), [("random", 0.6), ("magnitude", 0.8), ("random", 1.0)])
def test_three_cycles_equal_the_procedure(reset, share):
    lr, decay, cycle, warm = 0.01, 0.1, 6, 3
    backbone, layer, method = adapted(reset=reset, prune=share, weight_decay=decay)
    optimizer = method.optimizer(backbone)
    A, B, C = (Adam(p.detach().numpy()) for p in (layer.A, layer.B, backbone.net[1].weight))
    W, s, n = layer.base.weight.numpy().copy(), 2.0, 16
    seed = optimizer.param_groups[0]["seed"]
    for t in range(20):
        x = torch.randn(8, n, generator=torch.Generator().manual_seed(t), dtype=torch.float64).numpy()
        h = x @ (W + s * B.p @ A.p).T
        e = 2 * (h @ C.p.T - 1)
        G = (e @ C.p).T @ x
        gA, gB, gC = s * B.p.T @ G, s * G @ A.p.T, e.T @ h
        rate = lr * (min(1.0, (t % cycle) / warm) if t >= cycle else 1.0)
        for adam, g in ((A, gA), (B, gB), (C, gC)):
            adam.step(g, rate, decay)
        if t > 0 and t % cycle == 0:
            W += s * B.p @ A.p
            generator = torch.Generator().manual_seed(derive(seed, "restart", t))
            A.p = (2 * torch.rand(A.p.shape, generator=generator).double().numpy() - 1) / np.sqrt(n)
            B.p = np.zeros_like(B.p)
            A.prune(reset, share, generator)
            B.prune(reset, share, generator)
        steps(backbone, method, optimizer, 1, first=t)
        for ours, theirs in ((layer.A, A.p), (layer.B, B.p), (layer.base.weight, W), (backbone.net[1].weight, C.p)):
            np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-6, atol=1e-7)
        for p, adam in ((layer.A, A), (layer.B, B)):
            np.testing.assert_allclose(optimizer.state[p]["exp_avg"].numpy(), adam.M, rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(optimizer.state[p]["exp_avg_sq"].numpy(), adam.V, rtol=1e-6, atol=1e-9)
            assert optimizer.state[p]["step"] == t + 1


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_merge_keeps_the_outputs_and_starts_anew(kind):
    torch.manual_seed(0)
    net = nn.Linear(20, 12) if kind == "linear" else nn.Conv2d(5, 12, 2)
    backbone = Net(nn.Sequential(net), head=(), roles={})
    ReLoRA(lr=1, rank=3, target_modules="all").adapt(backbone, torch.Generator().manual_seed(0))
    ((_, layer),) = lowrank_layers(backbone.net)
    x = torch.randn(4, 20) if kind == "linear" else torch.randn(2, 5, 6, 6)
    with torch.no_grad():
        layer.B.normal_()
        expected, old = backbone({"x": x}), layer.A.clone()
        merge_and_restart(layer, torch.Generator().manual_seed(1))
        torch.testing.assert_close(backbone({"x": x}), expected, rtol=1e-4, atol=1e-4)
    assert not layer.B.any()
    assert not torch.equal(layer.A, old)
    bound = 1 / math.sqrt(20)
    assert 0.9 * bound < layer.A.abs().max() <= bound


def test_pruning_keeps_what_it_says():
    values = torch.randn(200, 100, generator=torch.Generator().manual_seed(0))
    for q in (0.0, 0.3, 0.9, 0.999, 1.0):
        torch.testing.assert_close(quantile(values, q), torch.quantile(values, q), rtol=1e-6, atol=1e-6)
    for reset in ("random", "magnitude"):
        moment = values.clone()
        prune_(moment, reset, 0.9, torch.Generator().manual_seed(1))
        kept = moment != 0
        assert torch.equal(moment[kept], values[kept])
        assert kept.float().mean().item() == pytest.approx(0.1, abs=0.01)
        if reset == "magnitude":
            assert values[kept].abs().min() > values[~kept].abs().max()


def official_factor(t, *, total, first, restart, cycle, least):
    """The official schedule of rates (cosine with restarts), without ``adjust_step``."""

    def cosine(u):
        return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * (u - first) / (total - first)))

    if t < first:
        return t / first
    q, s = divmod(t, cycle)
    return s / restart * cosine(q * cycle + restart) if s < restart and t >= cycle else cosine(t)


def test_rates_follow_the_official_schedule_but_for_the_height_within_a_warm_up():
    """The warm-up multiplies the run's schedule at t, the official one that at its own end: little, and only there."""
    total, first, restart, cycle, least = 100, 5, 4, 20, 0.1
    backbone, _, method = adapted(cycle=cycle, restart_warmup=restart, head_lr=0.02)
    optimizer = method.optimizer(backbone)

    def cosine(t):  # the run's own schedule
        return min(t / first, official_factor(t, total=total, first=first, restart=1, cycle=10**6, least=least))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)
    rates = steps(backbone, method, optimizer, total, scheduler=scheduler)
    for t, (adapter, head) in enumerate(rates):
        factor = official_factor(t, total=total, first=first, restart=restart, cycle=cycle, least=least)
        assert head == pytest.approx(2 * adapter)
        warming = t >= cycle and t % cycle < restart
        assert adapter == pytest.approx(0.01 * factor, rel=0.2 if warming else 1e-9)
    assert [rates[t][0] for t in (20, 40, 60, 80)] == [0.0] * 4
    assert all("scheduled_lr" not in group for group in optimizer.param_groups)


def test_the_change_reaches_more_than_the_rank():
    backbone, layer, method = adapted(12, 16, 2, prune=1.0, cycle=8, restart_warmup=2)
    (seen,) = look_at(method, backbone, ["0"])
    original = layer.base.weight.clone()
    optimizer = method.optimizer(backbone)
    ranks = []
    for first in range(0, 45, 9):  # each ends with the merge of a cycle, but for the first step
        steps(backbone, method, optimizer, 9, first=first)
        change = matrix(layer.base) + layer.scaling * layer.B.detach() @ layer.A.detach() - original
        values = torch.linalg.svdvals(change)
        torch.testing.assert_close(seen.update()[0], values, rtol=1e-6, atol=1e-9)
        ranks.append(int((values > 1e-6 * values[0]).sum()))
    assert ranks[0] == 2
    assert ranks == sorted(ranks)
    assert ranks[-1] >= 8, ranks


def test_the_warm_start_trains_the_matrix_and_then_the_factors():
    backbone, layer, method = adapted(full_steps=4, full_lr=0.003, weight_decay=0.1)
    optimizer = method.optimizer(backbone)
    W, A, C = layer.base.weight, layer.A.detach().clone(), backbone.net[1].weight
    plain = nn.Sequential(nn.Linear(16, 12, bias=False), nn.Linear(12, 2, bias=False)).double()
    with torch.no_grad():
        plain[0].weight.copy_(W)
        plain[1].weight.copy_(C)
    groups = [{"params": [plain[0].weight], "lr": 0.003}, {"params": [plain[1].weight], "lr": 0.01}]
    reference = torch.optim.AdamW(groups, weight_decay=0.1)
    for t in range(4):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        reference.zero_grad()
        ((plain(x) - 1) ** 2).sum().backward()
        reference.step()
    steps(backbone, method, optimizer, 4)
    torch.testing.assert_close(W, plain[0].weight, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(C, plain[1].weight, rtol=1e-9, atol=1e-11)
    assert torch.equal(layer.A, A)
    assert not layer.B.any()

    rates = steps(backbone, method, optimizer, 7, first=4)  # the last of them merges
    assert [rate[0] for rate in rates] == pytest.approx([0, 0.01 / 3, 0.02 / 3, 0.01, 0.01, 0.01, 0])
    assert not W.requires_grad
    assert W.grad is None
    assert W not in optimizer.state
    assert not layer.B.any()
    assert not torch.equal(layer.A, A)
    assert not torch.equal(W, plain[0].weight)


def test_the_official_start_leaves_the_factors_still_until_the_first_merge():
    backbone, layer, method = adapted(start="zero")
    assert not layer.A.any()
    optimizer = method.optimizer(backbone)
    head = backbone.net[1].weight.detach().clone()
    steps(backbone, method, optimizer, 6)
    assert not layer.A.any()
    assert not layer.B.any()
    assert not torch.equal(head, backbone.net[1].weight)
    steps(backbone, method, optimizer, 4, first=6)
    assert layer.A.any()
    assert layer.B.any()


def test_half_precision_and_a_gradient_that_is_no_number():
    backbone, layer, method = adapted(dtype=torch.float32)
    backbone.net[0].base.bfloat16()
    merge_and_restart(layer, torch.Generator())
    assert layer.base.weight.dtype == torch.bfloat16
    backbone, layer, method = adapted(dtype=torch.float32, reset="magnitude", prune=0.5)
    optimizer = method.optimizer(backbone)
    for t in range(8):
        for p in (layer.A, layer.B):
            p.grad = torch.full_like(p, math.nan)
        method.before_step(backbone, optimizer, t)
        optimizer.step()
        method.after_step(backbone, optimizer, t)
    assert backbone({"x": torch.randn(2, 16)}).isnan().all()
