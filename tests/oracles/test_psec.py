"""PSEC and IQL against literal restatements, and the invariants that skills in parameter space promise."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lrx import skills
from lrx.methods.base import Method
from lrx.methods.iql import IQL
from lrx.methods.psec import PSEC, strength_penalty
from lrx.models.base import Inputs, Outputs
from lrx.models.diffusion_policy import DiffusionPolicy, PolicyBackbone
from lrx.nn.iql import Critics, cost_weights, expectile_loss, reward_weights
from lrx.nn.skills import layers, library_of

torch.set_num_threads(1)
STATES, ACTIONS = 4, 2


def policy(width: int = 16, seed: int = 0) -> PolicyBackbone:
    model = DiffusionPolicy(width=width, blocks=1, dropout=0.1)
    backbone = model.build(Inputs("state", features=STATES), Outputs("actions", ACTIONS), seed)
    assert isinstance(backbone, PolicyBackbone)
    return backbone.eval()


def batch_of(seed: int, n: int = 24, costs: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(n, STATES, generator=generator)
    batch = {
        "observations": states,
        "actions": torch.tanh(states[:, :ACTIONS] + 0.3 * torch.randn(n, ACTIONS, generator=generator)),
        "rewards": torch.randn(n, generator=generator),
        "next_observations": states + 0.1 * torch.randn(n, STATES, generator=generator),
        "terminals": (torch.rand(n, generator=generator) < 0.2).float(),
        "index": torch.arange(n),
    }
    return batch | ({"costs": (torch.rand(n, generator=generator) < 0.4).float()} if costs else {})


def adapted(backbone: PolicyBackbone, total: int = 20, seed: int = 0, **options: Any) -> PSEC:
    method = PSEC(**{"lr": 1e-2, "rank": 4, "hidden": 16, "compose_lr": 1e-2, **options})
    method.adapt(backbone, torch.Generator().manual_seed(seed))
    method.plan(backbone, total)
    return method


def train(backbone: PolicyBackbone, method: Method, steps: int, first: int = 0, optimizer: Any = None) -> Any:
    optimizer = optimizer or method.optimizer(backbone)
    for step in range(first, first + steps):
        torch.manual_seed(step)
        loss = method.objective(backbone, batch_of(step, costs=True))
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        method.before_step(backbone, optimizer, step)
        optimizer.step()
        method.after_step(backbone, optimizer, step)
    return optimizer


def randomised(backbone: PolicyBackbone, seed: int = 1) -> None:
    """Skills as if trained: no factor is zero."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers(backbone.net).values():
        layer.mean_A.normal_(0, 0.3, generator=generator)
        layer.mean_B.normal_(0, 0.3 / 16, generator=generator)


def inputs(n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    states, noisy = torch.randn(n, STATES, generator=generator), torch.randn(n, ACTIONS, generator=generator)
    return states, noisy, torch.arange(n) % 5


def fingerprints(backbone: PolicyBackbone, place: int | None = None) -> dict[str, str]:
    """Hashes of W_0, or of skill number ``place``."""
    found = {}
    for name, value in backbone.net.state_dict().items():
        if place is None and (".base." in name or not any(part in name for part in (".A.", ".B.", "mean_", "skills."))):
            found[name] = hashlib.sha256(value.numpy().tobytes()).hexdigest()
        elif place is not None and "mean_" in name:
            found[name] = hashlib.sha256(value[place].numpy().tobytes()).hexdigest()
    assert found
    return found


def merged(backbone: PolicyBackbone, weights: Any) -> PolicyBackbone:
    """A plain policy with the matrices W_0 + sum_i weights_i B_i A_i, merged in float64 one by one."""
    plain = policy()
    for name, layer in layers(backbone.net).items():
        matrix = layer.base.weight.double().clone()
        for i, weight in enumerate(weights):
            matrix += float(weight) * layer.mean_B[i].double().T @ layer.mean_A[i].double()
        target = plain.net.get_submodule(name)
        target.weight.data.copy_(matrix)
        target.bias.data.copy_(layer.base.bias)
    plain.net.fourier.load_state_dict(backbone.net.fourier.state_dict())
    for block, other in zip(plain.net.blocks, backbone.net.blocks, strict=True):
        block.norm.load_state_dict(other.norm.state_dict())
    return plain


@pytest.mark.parametrize("compose", ["parameter", "noise", "action", "fixed"])
def test_untrained_skills_are_the_policy_itself(compose: str) -> None:
    """Invariant 1, to the last bit: for any weights, in training and mixed."""
    backbone = policy()
    states, noisy, steps = inputs()
    expected, acted = backbone.net(states, noisy, steps), backbone({"observations": states})
    adapted(backbone, compose=compose)
    library = library_of(backbone.net)
    assert torch.equal(backbone({"observations": states}), acted)
    for weights in (torch.zeros(2), torch.tensor([3.0, -200.0]), torch.randn(6, 2)):
        with library.mixed(weights):
            assert torch.equal(backbone.net(states, noisy, steps), expected)
    for place in (0, 1):
        with library.training_of(place):
            assert torch.equal(backbone.net(states, noisy, steps), expected)


def test_constant_weights_equal_one_pass_with_merged_matrices() -> None:
    """Invariant 2: 0 is skill 0, s e_i skill i, any constants the merged matrix."""
    backbone = policy()
    adapted(backbone, new=["imitation", "reward"])
    randomised(backbone)
    library = library_of(backbone.net)
    states, noisy, steps = inputs()
    for weights in ([0.0, 0.0], [16.0, 0.0], [0.0, 16.0], [7.5, -3.25]):
        with library.mixed(torch.tensor(weights)):
            ours = backbone.net(states, noisy, steps)
        torch.testing.assert_close(ours, merged(backbone, weights).net(states, noisy, steps), rtol=1e-4, atol=1e-5)
    with library.mixed(torch.zeros(2)):
        assert torch.equal(backbone.net(states, noisy, steps), policy().net(states, noisy, steps))
    with library.mixed(library.alone(1)):
        mixed = backbone.net(states, noisy, steps)
    assert not torch.allclose(mixed, policy().net(states, noisy, steps), atol=1e-2), "a skill that does nothing"


def test_weights_that_vary_over_the_batch_equal_a_merge_for_each_sample() -> None:
    """Invariant 3."""
    backbone = policy()
    adapted(backbone, new=["imitation", "reward", "cost"])
    randomised(backbone)
    states, noisy, steps = inputs()
    alpha = torch.randn(6, 3, generator=torch.Generator().manual_seed(4)) * 10
    with library_of(backbone.net).mixed(alpha):
        ours = backbone.net(states, noisy, steps)
    for i in range(6):
        one = merged(backbone, alpha[i]).net(states[i : i + 1], noisy[i : i + 1], steps[i : i + 1])
        torch.testing.assert_close(ours[i : i + 1], one, rtol=1e-4, atol=1e-4)


def test_training_a_skill_leaves_the_policy_and_stored_skills_as_they_were(tmp_path: Any) -> None:
    """Invariant 4, over two runs: the second trains beside the first's stored skill."""
    first = policy()
    method = adapted(first, new=["imitation"], compose="fixed", library=str(tmp_path), save="stand")
    untouched = fingerprints(first)
    train(first, method, 6)
    assert fingerprints(first) == untouched
    method.finish(first, {"task": "d4rl", "part": "toy", "run": "run-1"})
    states, noisy, steps = inputs()
    with library_of(first.net).mixed(torch.tensor([16.0])):
        expected = first.net(states, noisy, steps)

    second = policy()
    method = adapted(second, new=["reward"], skills=["stand"], library=str(tmp_path), expand=0.5, seed=5)
    stored, base = fingerprints(second, 0), fingerprints(second)
    new = fingerprints(second, 1)
    train(second, method, 12)
    assert fingerprints(second) == base == untouched
    assert fingerprints(second, 0) == stored
    assert fingerprints(second, 1) != new
    with library_of(second.net).mixed(torch.tensor([16.0, 0.0])):
        torch.testing.assert_close(second.net(states, noisy, steps), expected, rtol=1e-5, atol=1e-5)


def test_outputs_depend_on_the_product_alone() -> None:
    """Invariant 5: (A, B) -> (R A, B R^-1)."""
    backbone = policy()
    adapted(backbone, new=["imitation"], compose="fixed")
    randomised(backbone)
    states, noisy, steps = inputs()
    library = library_of(backbone.net)
    with library.mixed(torch.tensor([16.0])):
        before = backbone.net(states, noisy, steps)
    generator = torch.Generator().manual_seed(2)
    for layer in layers(backbone.net).values():
        R = torch.eye(4) + 0.3 * torch.randn(4, 4, generator=generator)
        layer.mean_A[0] = R @ layer.mean_A[0]
        layer.mean_B[0] = torch.linalg.inv(R).T @ layer.mean_B[0]
    with library.mixed(torch.tensor([16.0])):
        torch.testing.assert_close(backbone.net(states, noisy, steps), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compose", ["parameter", "noise", "action"])
def test_composing_trains_the_weights_alone(compose: str) -> None:
    """Invariant 6: no gradient anywhere else, and nothing else moves."""
    backbone = policy()
    method = adapted(backbone, compose=compose, expand=0.5, total=8)
    optimizer = train(backbone, method, 4)
    assert library_of(backbone.net).composing
    before = {name: value.clone() for name, value in backbone.net.state_dict().items()}
    train(backbone, method, 3, first=4, optimizer=optimizer)
    for name, p in backbone.net.named_parameters():
        assert (p.grad is not None) == name.startswith("skills.alpha."), name
    moved = {name for name, value in backbone.net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith("skills.alpha.")}


def test_expanding_gives_no_gradient_to_the_weights_and_none_to_the_policy() -> None:
    backbone = policy()
    method = adapted(backbone)
    train(backbone, method, 2)
    for name, p in backbone.net.named_parameters():
        trained = (
            ".A." in name or ".B." in name or name.startswith(("skills.critics.reward.q", "skills.critics.reward.v"))
        )
        assert (p.grad is not None) == trained, name


def test_penalty_is_least_where_the_last_skill_is_at_full_strength() -> None:
    """Invariant 8."""
    assert strength_penalty(torch.tensor([[0.0, 16.0]] * 5), 16.0) == 0
    spread = torch.tensor([[-2.0, 10.0], [2.0, 22.0]])  # by their means alone
    assert strength_penalty(spread, 16.0) == 0
    alpha = torch.tensor([1.0, 3.0], requires_grad=True)
    for _ in range(400):
        (gradient,) = torch.autograd.grad(strength_penalty(alpha.expand(7, 2), 16.0), alpha)
        alpha = (alpha - 0.3 * gradient).detach().requires_grad_(True)
    torch.testing.assert_close(alpha.detach(), torch.tensor([0.0, 16.0]), atol=1e-3, rtol=0)
    # Literally, for two skills: (mean(alpha) - 8)^2 + (mean(alpha_2) - 16)^2.
    values = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)) * 5
    expected = (values.mean() - 8) ** 2 + (values[:, 1].mean() - 16) ** 2
    torch.testing.assert_close(strength_penalty(values, 16.0), expected)


def test_weights_of_samples() -> None:
    """Invariant 9."""
    advantage = torch.tensor([-1000.0, -3.0, -0.5, 0.0, 0.5, 3.0, 1000.0])
    costs, rewards = cost_weights(advantage, 1.0), reward_weights(advantage, 1.0)
    assert costs[3:].tolist() == [0, 0, 0, 0]
    assert costs.tolist()[:3] == pytest.approx([100, np.exp(3), np.exp(0.5)])
    assert rewards.tolist() == pytest.approx([0, np.exp(-3), np.exp(-0.5), 1, np.exp(0.5), np.exp(3), 100])
    assert reward_weights(advantage, 0.0).tolist() == [1.0] * 7


def test_size_of_stored_skills(tmp_path: Any) -> None:
    """Invariant 10: k sum_l r (m + n)."""
    backbone = policy()
    method = adapted(backbone, library=str(tmp_path), save="walk")
    expected = sum(4 * sum(layer.base.weight.shape) for layer in layers(backbone.net).values())
    method.finish(backbone, {"task": "d4rl", "part": "toy", "run": "run-1"})
    assert skills.names(tmp_path) == ["walk-imitation", "walk-reward"]
    for skill in skills.load(["walk-imitation", "walk-reward"], tmp_path):
        assert sum(tensor.numel() for tensor in skill.tensors.values()) == expected == skill.about["parameters"]
    for layer in layers(backbone.net).values():
        m, n = layer.base.weight.shape
        own = sum(p.numel() for name, p in layer.named_parameters() if p.requires_grad)
        assert own == method.trainable_per_matrix(m, n) == 2 * 4 * (m + n)


def test_noise_and_action_composition_restated() -> None:
    """NSEC and ASEC: every skill as a merged network, its noise or its sampled action weighted and summed."""
    for compose in ("noise", "action"):
        backbone = policy()
        adapted(backbone, compose=compose)
        randomised(backbone)
        library = library_of(backbone.net)
        library.composing.fill_(1)
        states, _, _ = inputs()
        noise = torch.randn(6, 5, ACTIONS, generator=torch.Generator().manual_seed(8))
        parts = [merged(backbone, weights) for weights in ([16.0, 0.0], [0.0, 16.0])]
        alpha = library.alpha(states).detach()
        ours = library.sample(backbone.net, states, noise)
        if compose == "action":
            expected = sum(alpha[:, i : i + 1] * part.sample(states, noise) for i, part in enumerate(parts)).clamp(
                -1, 1
            )
        else:

            def summed(x: Tensor, t: Tensor) -> Tensor:
                return sum(alpha[:, i : i + 1] * part.net(states, x, t) for i, part in enumerate(parts))  # noqa: B023

            expected = backbone.net.diffusion.sample(summed, noise)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        assert (ours.abs() < 1).any()


def test_averages_follow_the_factors() -> None:
    backbone = policy()
    method = adapted(backbone, new=["imitation"], compose="fixed", ema=0.1)
    layer = layers(backbone.net)["input"]
    a, b = layer.mean_A[0].double().clone(), layer.mean_B[0].double().clone()
    optimizer = method.optimizer(backbone)
    for step in range(5):
        train(backbone, method, 1, first=step, optimizer=optimizer)
        a = 0.9 * a + 0.1 * layer.A[0].detach().double()
        b = 0.9 * b + 0.1 * layer.B[0].detach().double().T
    torch.testing.assert_close(layer.mean_A[0].double(), a, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(layer.mean_B[0].double(), b, rtol=1e-5, atol=1e-7)
    assert b.abs().max() > 0


def restated_values(critics: Critics, batch: dict[str, Tensor], tau: float, discount: float) -> tuple[Any, Any, Any]:
    """(advantage, loss of V, loss of Q) in NumPy, float64, of a critic of rewards or costs."""
    w = {name: value.detach().double().numpy() for name, value in critics.state_dict().items()}
    data = {name: value.double().numpy() for name, value in batch.items()}

    def net(prefix: str, x: np.ndarray, first: int = 0) -> np.ndarray:
        for number in (first, first + 2, first + 4):
            x = x @ w[f"{prefix}.{number}.weight"].T + w[f"{prefix}.{number}.bias"]
            x = np.maximum(x, 0) if number < first + 4 else x
        return x[:, 0]

    def value(x: np.ndarray) -> np.ndarray:
        normal = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        return net("v", normal * w["v.0.weight"] + w["v.0.bias"], 1)

    pairs = np.concatenate([data["observations"], data["actions"]], 1)
    q = [net(f"q.members.{i}", pairs) for i in range(2)]
    slow = [net(f"slow.members.{i}", pairs) for i in range(2)]
    v, after, m = value(data["observations"]), value(data["next_observations"]), 1 - data["terminals"]
    if critics.cost:
        advantage = np.maximum(*slow) - v
        c = np.where(data["costs"] > 0, 25.0, -1.0)
        target = m * ((1 - discount) * c + discount * np.maximum(c, after)) + (1 - m) * c
        share = np.where(advantage < 0, tau, 1 - tau)
    else:
        advantage = np.minimum(*slow) - v
        target = data["rewards"] + discount * m * after
        share = np.where(advantage < 0, 1 - tau, tau)
    return advantage, (share * advantage**2).mean(), np.mean([(one - target) ** 2 for one in q])


@pytest.mark.parametrize("cost", [False, True])
def test_critics_restated(cost: bool) -> None:
    critics = Critics(STATES, ACTIONS, 16, torch.Generator().manual_seed(0), cost=cost)
    with torch.no_grad():
        for p in critics.slow.parameters():
            p.add_(0.1)
    batch = batch_of(3, costs=True)
    advantage, of_v, of_q = restated_values(critics, batch, 0.8, 0.97)
    ours = critics.advantage(batch)
    np.testing.assert_allclose(ours.detach(), advantage, atol=1e-5)
    loss = critics.loss(batch, ours, expectile=0.8, discount=0.97)
    assert loss.item() == pytest.approx(of_v + of_q, rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in critics.slow.parameters())


def test_expectile_of_one_half_is_the_mean() -> None:
    samples = torch.tensor([1.0, 2.0, 6.0])
    grid = torch.linspace(0, 7, 7001)
    for tau, expected in ((0.5, 3.0), (0.9, 5.0)):
        best = grid[torch.stack([expectile_loss(samples - v, tau).sum() for v in grid]).argmin()].item()
        if tau == 0.5:
            assert best == pytest.approx(expected, abs=2e-3)
        else:
            assert best > expected - 0.5, "an upper expectile lies above the mean"


def test_slow_critics_follow() -> None:
    critics = Critics(STATES, ACTIONS, 8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in critics.q.parameters():
            p.add_(1.0)
    start = [p.clone() for p in critics.slow.parameters()]
    critics.follow(0.25)
    for before, after in zip(start, critics.slow.parameters(), strict=True):
        torch.testing.assert_close(after, before + 0.25)


def test_losses_of_the_new_skills_restated() -> None:
    """Each skill's own draw of step and noise; reward and cost weighted by their critics."""
    backbone = policy()
    method = adapted(backbone, new=["imitation", "reward", "cost"], temperature=2.0, cost_temperature=0.5)
    train(backbone, method, 3)
    backbone.eval()
    library, batch = library_of(backbone.net), batch_of(50, costs=True)
    torch.manual_seed(9)
    ours = method.objective(backbone, batch)
    torch.manual_seed(9)
    expected = torch.zeros(())
    for place, kind in enumerate(["imitation", "reward", "cost"]):
        steps, noise = torch.randint(5, (24,)), torch.randn(24, ACTIONS)
        with library.training_of(place):
            noisy = backbone.net.diffusion.noised(batch["actions"], noise, steps)
            errors = (backbone.net(batch["observations"], noisy, steps) - noise).square().sum(1)
        if kind != "imitation":
            critics = library.critic(kind)
            advantage, of_v, of_q = restated_values(critics, batch, {"reward": 0.7, "cost": 0.9}[kind], 0.99)
            raw = np.exp(2.0 * advantage) if kind == "reward" else np.exp(-0.5 * advantage) * (advantage < 0)
            errors = errors * torch.tensor(np.clip(raw, 0, 100)).float()
            expected = expected + of_v + of_q
        expected = expected + errors.mean()
    torch.testing.assert_close(ours, expected.float(), rtol=1e-4, atol=1e-4)


def test_iql_loss_restated() -> None:
    backbone = policy()
    method = IQL(lr=1e-3, hidden=16, temperature=2.0, reward_factor=0.5)
    method.adapt(backbone, torch.Generator().manual_seed(0))
    batch = batch_of(4)
    torch.manual_seed(1)
    ours = method.objective(backbone, batch)
    critics: Any = backbone.net.critics
    scaled = {**batch, "rewards": 0.5 * batch["rewards"]}
    advantage, of_v, of_q = restated_values(critics, scaled, 0.7, 0.99)
    torch.manual_seed(1)
    steps, noise = torch.randint(5, (24,)), torch.randn(24, ACTIONS)
    predicted = backbone.net(
        batch["observations"], backbone.net.diffusion.noised(batch["actions"], noise, steps), steps
    )
    weights = torch.tensor(np.clip(np.exp(2.0 * advantage), 0, 100))
    expected = (weights * (predicted - noise).square().sum(1)).mean() + of_v + of_q
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compose", ["parameter", "noise", "action"])
def test_composing_by_the_reward_restated(compose: str) -> None:
    """The weights of samples scale the loss that alpha learns from, and its gradient."""
    backbone = policy()
    method = adapted(backbone, compose=compose, guide="reward", temperature=2.0, expand=0.5, total=8)
    train(backbone, method, 4)
    randomised(backbone)
    library, batch = library_of(backbone.net), batch_of(60)
    torch.manual_seed(3)
    ours = method.objective(backbone, batch)
    torch.manual_seed(3)
    steps, noise = torch.randint(5, (24,)), torch.randn(24, ACTIONS)
    states, alpha = batch["observations"], library.alpha(batch["observations"])
    if compose == "parameter":
        with library.mixed(alpha):
            predicted = backbone.net(states, backbone.net.diffusion.noised(batch["actions"], noise, steps), steps)
        errors = (predicted - noise).square().sum(1)
    else:
        acted = library.sampled(backbone.net, states, torch.randn(24, 5, ACTIONS), alpha)
        errors = (acted - batch["actions"]).square().sum(1)
    advantage, _, _ = restated_values(library.critic("reward"), batch, 0.7, 0.99)
    expected = (torch.tensor(np.clip(np.exp(2.0 * advantage), 0, 100)).float() * errors).mean()
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    weights = list(library.alpha.parameters())
    for a, b in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert torch.autograd.grad(library.alpha(states).sum(), weights)[0].any()
