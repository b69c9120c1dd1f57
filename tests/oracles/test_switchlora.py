"""SwitchLoRA against its procedure written out in NumPy float64, and what the paper states about it."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lrx.callbacks.lens import look_at
from lrx.methods.lora import LoRA
from lrx.methods.switchlora import SwitchLoRA, SwitchOptimizer
from lrx.models.base import Backbone
from lrx.nn.lowrank import lowrank_layers, matrix
from lrx.nn.step_adam import StepAdamW
from lrx.nn.switching import draw, ring_of

torch.set_num_threads(1)


class Net(Backbone):
    def forward(self, batch):
        return self.net(batch["x"])


def linear(m, n, rank, *, seed=0, total=40, dtype=torch.float32, **options):
    """A backbone of one (m, n) matrix under SwitchLoRA, and its method; also the matrix as it was."""
    torch.manual_seed(seed)
    backbone = Net(nn.Sequential(nn.Linear(n, m, bias=False)), head=(), roles={})
    original = backbone.net[0].weight.detach().clone().to(dtype)
    method = SwitchLoRA(**({"lr": 0.02, "rank": rank} | options))
    method.adapt(backbone, torch.Generator().manual_seed(seed))
    method.plan(backbone, total)
    if dtype == torch.float64:  # start again in float64 from the same pools
        backbone.double()
        layer = only(backbone)
        ring = ring_of(layer)
        ring.pool_A, ring.pool_B = ring.pool_A.double(), ring.pool_B.double()
        with torch.no_grad():
            layer.base.weight.copy_(original - layer.scaling * layer.B @ layer.A)
    return backbone, method, original


def only(backbone):
    ((_, layer),) = lowrank_layers(backbone.net)
    return layer


def effective(layer):
    with torch.no_grad():
        return matrix(layer.base) + layer.scaling * layer.B @ layer.A


class Literal:
    """The official procedure for one matrix: lists of slots, pointers, freeze counters; one vector at a time."""

    def __init__(self, W, pool_A, pool_B, r, s, N):
        self.W, self.r, self.s, self.N = W.copy(), r, s, N
        K = self.K = len(pool_A)
        self.pool = {"A": pool_A.copy(), "B": pool_B.copy()}  # both as rows
        ring = list(range(K - r, K))
        self.slot = {"A": ring, "B": [ring[i - r // 2] for i in range(r)]}
        self.rows = {f: np.array([self.pool[f][j] for j in self.slot[f]]) for f in "AB"}
        self.next = {"A": 0, "B": r // 2}
        self.still = {f: [0] * r for f in "AB"}
        self.M = {f: np.zeros_like(self.rows[f]) for f in "AB"}
        self.V = {f: np.zeros_like(self.rows[f]) for f in "AB"}
        self.t = {f: np.zeros((r, 1)) for f in "AB"}

    def whole(self):
        return self.W + self.s * self.rows["B"].T @ self.rows["A"]

    def step(self, gradient, q, lr, decay):
        """``gradient``: of the effective matrix, before the switch."""
        g = {"A": self.s * self.rows["B"] @ gradient, "B": self.s * self.rows["A"] @ gradient.T}
        frozen = {f: sum(c > 0 for c in self.still[f]) for f in "AB"}
        a, b, r = self.next["A"], self.next["B"], self.r
        q = min(q, (a - frozen["A"] - b) % r, (b - frozen["B"] - a) % r, self.K - r)
        for f, other in (("A", "B"), ("B", "A")):
            for i in [(self.next[f] + k) % r for k in range(q)]:
                new = (self.slot[f][i - 1] + 1) % self.K
                difference = np.outer(self.rows[other][i], self.rows[f][i] - self.pool[f][new])
                self.W += self.s * (difference if f == "A" else difference.T)
                self.pool[f][self.slot[f][i]] = self.rows[f][i]
                self.rows[f][i], self.slot[f][i] = self.pool[f][new], new
                self.still[other][i] = self.N
                self.M[other][i], self.V[other][i], self.t[other][i] = 0, 0, 0
            self.next[f] = (self.next[f] + q) % r
        for f in "AB":
            for i in range(r):
                if self.still[f][i] > 0:
                    g[f][i] = 0
                    self.still[f][i] -= 1
            self.t[f] += 1
            self.M[f] = 0.9 * self.M[f] + 0.1 * g[f]
            self.V[f] = 0.999 * self.V[f] + 0.001 * g[f] ** 2
            self.rows[f] *= 1 - lr * decay
            root = np.sqrt(self.V[f] / (1 - 0.999 ** self.t[f]))
            self.rows[f] -= lr * self.M[f] / (1 - 0.9 ** self.t[f]) / (root + 1e-8)
        return q


CASES = [(12, 16, 4, 4, 2), (20, 14, 7, 3, 1), (16, 16, 6, 10, 5), (30, 24, 8, 2, 0), (9, 9, 2, 4, 2), (10, 9, 8, 2, 1)]


@pytest.mark.parametrize(("m", "n", "r", "interval", "freeze"), CASES)
def test_sixty_steps_equal_the_procedure(m, n, r, interval, freeze):
    """All switched vectors, slots and matrices; 10 x 9 at rank 8 has one spare vector for up to four switches."""
    lr, decay, total = 0.02, 0.1, 60
    options = {"interval": interval, "freeze_steps": freeze, "decay_fraction": 1.0, "weight_decay": decay, "lr": lr}
    backbone, method, _ = linear(m, n, r, total=total, dtype=torch.float64, **options)
    layer, optimizer = only(backbone), method.optimizer(backbone)
    ring = ring_of(layer)
    W = layer.base.weight.numpy()
    slow = Literal(W, ring.pool_A.numpy(), ring.pool_B.numpy(), r, 1 / r, freeze)
    x, y = torch.randn(32, n, dtype=torch.float64), torch.randn(32, m, dtype=torch.float64)
    switched = 0
    for t in range(total):
        optimizer.zero_grad()
        (0.05 * (backbone({"x": x}) - y).square().sum()).backward()
        gradient = 0.1 * (x.numpy() @ slow.whole().T - y.numpy()).T @ x.numpy()
        seed = optimizer.param_groups[0]["seed"]
        switched += slow.step(gradient, draw(method.expected(t), 1, seed, t)[0], lr, decay)
        optimizer.step()
    assert switched == ring.switched > total / interval / 2
    assert slow.slot == {"A": ring.slots("A"), "B": ring.slots("B")}
    for ours, theirs in (
        (layer.A, slow.rows["A"]), (layer.B.mT, slow.rows["B"]), (layer.base.weight, slow.W),
        (ring.pool_A, slow.pool["A"]), (ring.pool_B, slow.pool["B"]),
    ):  # fmt: skip
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-9, atol=1e-11)


def test_without_switches_it_is_adamw():
    backbone, method, _ = linear(12, 16, 4, total=1000, weight_decay=0.1, decay_fraction=1e-3)
    other = copy.deepcopy(backbone)
    ours = StepAdamW(method.pairs(backbone), lr=0.02, weight_decay=0.1)
    theirs = torch.optim.AdamW([only(other).A, only(other).B], lr=0.02, weight_decay=0.1)
    x = torch.randn(8, 16)
    for _ in range(20):
        for net, optimizer in ((backbone, ours), (other, theirs)):
            optimizer.zero_grad()
            net({"x": x}).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(only(backbone).A, only(other).A, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(only(backbone).B, only(other).B, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_frozen_counterpart_rests_for_exactly_n_steps(decay):
    """Its moments and count are zero at the switch; decay still falls on it; nothing else is disturbed."""
    lr, freeze = 0.02, 5
    backbone, method, _ = linear(16, 12, 6, weight_decay=decay, lr=lr, freeze_steps=freeze, interval=10)
    layer = only(backbone)
    wanted = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    optimizer = SwitchOptimizer(
        method.pairs(backbone), [layer], lr=lr, weight_decay=decay, expected=lambda t: wanted[t], seed=0
    )
    x = torch.randn(8, 12)
    for t in range(len(wanted)):
        optimizer.zero_grad()
        (backbone({"x": x}) ** 2).sum().backward()
        B, A = layer.B.detach().clone(), layer.A.detach().clone()
        optimizer.step()
        steps_B, steps_A = optimizer.state[layer.B]["steps"][0], optimizer.state[layer.A]["steps"][:, 0]
        if t >= 3:  # A's row 0 was exchanged, so B's column 0 rests; and the other way round for component 3
            assert (steps_B[0], steps_A[3]) == (t - 2, t - 2)
        assert steps_B[1:].tolist() == [t + 1] * 5
        assert steps_A[[0, 1, 2, 4, 5]].tolist() == [t + 1] * 5
        resting = 3 <= t < 3 + freeze
        assert torch.allclose(layer.B[:, 0], B[:, 0] * (1 - lr * decay), rtol=1e-6, atol=0) == resting
        assert torch.allclose(layer.A[3], A[3] * (1 - lr * decay), rtol=1e-6, atol=0) == resting
        moments = optimizer.state[layer.B]["exp_avg"][:, 0], optimizer.state[layer.A]["exp_avg_sq"][3]
        assert all(bool((moment == 0).all()) == resting for moment in moments)
    assert ring_of(layer).idle()


def test_the_rate_falls_and_the_draws_have_its_mean():
    _, method, _ = linear(16, 12, 6, total=400, decay_fraction=0.25)
    assert method.expected(99) == pytest.approx(0.3 * 6 / 40)
    assert method.expected(10**9) == pytest.approx(1e-8 * 6 / 40)
    assert method.expected(0) > method.expected(1) > method.expected(399)
    layers, means = 200, [method.expected(t) for t in range(400)]
    draws = torch.tensor([draw(mean, layers, 7, t) for t, mean in enumerate(means)], dtype=torch.float64)
    # A sum of independent draws with p (1 - p) variance each.
    deviation = math.sqrt(layers * sum(mean * (1 - mean) for mean in means))
    assert abs(draws.sum().item() - layers * sum(means)) < 4 * deviation
    assert draw(2.3, 5, 7, 3) == draw(2.3, 5, 7, 3)
    assert set(draw(2.3, 500, 7, 3)) == {2, 3}
    assert draw(2.3, 500, 7, 3) != draw(2.3, 500, 7, 4)


def trained(method_of, m=24, n=20, steps=120, target=None, seed=0):
    """Regression on a full-rank target by whatever method; the change of the effective matrix, and the losses."""
    torch.manual_seed(seed)
    backbone = Net(nn.Sequential(nn.Linear(n, m, bias=False)), head=(), roles={})
    original = backbone.net[0].weight.detach().clone()
    goal = torch.randn(m, n) if target is None else target
    method = method_of()
    method.adapt(backbone, torch.Generator().manual_seed(seed))
    method.plan(backbone, steps)
    optimizer = method.optimizer(backbone)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / steps)
    inputs = torch.Generator().manual_seed(seed + 1)
    for _ in range(steps):
        x = torch.randn(64, n, generator=inputs)
        optimizer.zero_grad()
        ((backbone({"x": x}) - x @ goal.T) ** 2).mean().backward()
        optimizer.step()
        scheduler.step()
    final = effective(only(backbone))
    error = ((final - goal).norm() / (original - goal).norm()).item()
    return final - original, error, backbone


def rank(change):
    values = torch.linalg.svdvals(change.double())
    return int((values > 1e-4 * values[0]).sum())


def test_the_change_reaches_ranks_that_lora_cannot_and_grows_with_the_switches():
    plain, _, _ = trained(lambda: LoRA(lr=0.05, rank=2, alpha=1))
    ranks, counts = [], []
    for interval in (200, 20, 4):
        options = {"interval": interval, "freeze_steps": 2, "decay_fraction": 1.0}
        change, _, backbone = trained(lambda options=options: SwitchLoRA(lr=0.05, rank=2, **options))
        ranks.append(rank(change))
        counts.append(ring_of(only(backbone)).switched)
    assert rank(plain) <= 2
    assert counts == sorted(counts)
    assert ranks == sorted(ranks)
    assert ranks[-1] > 2 * 2 + 4, (counts, ranks)


@pytest.mark.parametrize("r", [1, 9])
def test_rank_one_and_full_rank_never_switch(r):
    options = {"interval": 2, "freeze_steps": 1, "decay_fraction": 1.0}
    _, _, backbone = trained(lambda: SwitchLoRA(lr=0.02, rank=r, **options), m=9, n=12, steps=30)
    assert ring_of(only(backbone)).switched == 0


def test_a_nan_gradient_reaches_the_outputs():
    backbone, method, _ = linear(12, 16, 6, interval=2, freeze_steps=1)
    optimizer = method.optimizer(backbone)
    for _ in range(4):
        for pair in method.pairs(backbone):
            pair.A.grad, pair.B.grad = torch.full_like(pair.A, math.nan), torch.ones_like(pair.B)
        optimizer.step()
    assert backbone({"x": torch.randn(2, 16)}).isnan().all()


def test_the_lens_sees_what_the_matrix_has_absorbed():
    backbone, method, original = linear(16, 12, 4, lr=0.05, interval=4, freeze_steps=2, decay_fraction=1.0)
    (seen,) = look_at(method, backbone, None)
    optimizer = method.optimizer(backbone)
    x = torch.randn(32, 12)
    for _ in range(30):
        optimizer.zero_grad()
        (backbone({"x": x}) ** 2).mean().backward()
        optimizer.step()
    change = effective(only(backbone)) - original
    values, _ = seen.update()
    torch.testing.assert_close(values.double(), torch.linalg.svdvals(change.double()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen.weight().double(), effective(only(backbone)).double(), rtol=0, atol=1e-6)


class Largest(TorchDispatchMode):
    """The largest tensor that an operation has made, those that share the memory of ``known`` ones left out."""

    def __init__(self, *known):
        super().__init__()
        self.known, self.elements = {tensor.untyped_storage().data_ptr() for tensor in known}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.elements = max(self.elements, tensor.numel())
        return made


def test_a_step_with_switches_makes_nothing_as_large_as_the_matrix():
    m, n, r = 300, 200, 8
    backbone, method, _ = linear(m, n, r, interval=2, freeze_steps=1, decay_fraction=1.0)
    layer, optimizer = only(backbone), method.optimizer(backbone)
    ring = ring_of(layer)
    for _ in range(3):
        backbone({"x": torch.randn(4, n)}).square().sum().backward()
        with Largest(layer.base.weight, ring.pool_A, ring.pool_B) as seen:
            optimizer.step()
    assert ring.switched > 4
    assert 0 < seen.elements <= r * max(m, n)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_the_regression_that_lora_cannot_learn(seed):
    """32 x 32, a target of full rank, rank 4, 600 steps, each at its best rate of 0.02, 0.05, 0.1, 0.2 and 0.4."""
    goal = torch.randn(32, 32, generator=torch.Generator().manual_seed(50 + seed))
    often = {"interval": 10, "decay_fraction": 0.3}
    lora, error, backbone = trained(lambda: LoRA(lr=0.1, rank=4, alpha=1), 32, 32, 600, goal, seed)
    values = torch.linalg.svdvals(goal - (effective(only(backbone)) - lora))
    assert rank(lora) == 4
    assert error >= (values[4:].norm() / values.norm()).item() - 1e-6 > 0.75  # no matrix of rank 4 is nearer
    change, error, backbone = trained(lambda: SwitchLoRA(lr=0.2, rank=4, **often), 32, 32, 600, goal, seed)
    assert rank(change) == 32
    assert error < 0.15
    assert ring_of(only(backbone)).switched > 28  # every spare vector of the pools has been at work
