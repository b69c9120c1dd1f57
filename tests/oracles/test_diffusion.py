"""The diffusion policy against literal float64 restatements of its schedule, noising, sampler and network."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lrx.errors import UserError
from lrx.models.base import Inputs, Outputs
from lrx.models.diffusion_policy import DiffusionPolicy, PolicyBackbone
from lrx.nn.diffusion import Diffusion, vp_betas
from lrx.nn.policy_net import lecun_normal_

torch.set_num_threads(1)


def policy(seed: int = 0, width: int = 16, blocks: int = 2, **options: float) -> PolicyBackbone:
    model = DiffusionPolicy(width=width, blocks=blocks, **options)
    backbone = model.build(Inputs("state", features=4), Outputs("actions", 2), seed)
    assert isinstance(backbone, PolicyBackbone)
    return backbone.eval()


def restated_betas(steps: int) -> list[float]:
    return [1 - math.exp(-0.1 / steps - 0.5 * (10 - 0.1) * (2 * t - 1) / steps**2) for t in range(1, steps + 1)]


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 100])
def test_schedule(steps: int) -> None:
    betas = vp_betas(steps)
    assert betas.tolist() == pytest.approx(restated_betas(steps), rel=1e-14)
    abar = (1 - betas).cumprod(0)
    assert ((abar > 0) & (abar < 1)).all()
    assert (abar.diff() < 0).all()
    # The product telescopes: b_min + (b_max - b_min) / 2 is what the whole of it takes away, whatever the steps.
    assert abar[-1].item() == pytest.approx(math.exp(-0.1 - 4.95), rel=1e-12)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        vp_betas(0)


def test_forward_noising() -> None:
    diffusion = Diffusion(5)
    rng = np.random.default_rng(0)
    actions, noise = rng.uniform(-1, 1, (7, 3)), rng.standard_normal((7, 3))
    steps = np.array([0, 1, 2, 3, 4, 0, 4])
    abar = np.cumprod(1 - np.array(restated_betas(5)))
    expected = [np.sqrt(abar[t]) * a + np.sqrt(1 - abar[t]) * e for t, a, e in zip(steps, actions, noise, strict=True)]
    ours = diffusion.noised(torch.tensor(actions).float(), torch.tensor(noise).float(), torch.tensor(steps))
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_sampler() -> None:
    """With a made-up noise prediction that depends on action and step, row by row in float64."""
    diffusion = Diffusion(5)
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((6, 5, 3))
    betas = restated_betas(5)
    expected = []
    for row in noise:
        x = row[0].copy()
        for number, t in enumerate([4, 3, 2, 1, 0]):
            alpha, abar = 1 - betas[t], float(np.prod([1 - b for b in betas[: t + 1]]))
            x = (x - (1 - alpha) / math.sqrt(1 - abar) * (np.tanh(x) + 0.1 * t)) / math.sqrt(alpha)
            if t > 0:
                x = x + math.sqrt(betas[t]) * row[number + 1]
            x = np.clip(x, -1, 1)
        expected.append(x)
    ours = diffusion.sample(lambda x, t: x.tanh() + 0.1 * t.unsqueeze(-1), torch.tensor(noise).float())
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert (ours.abs() <= 1).all()
    assert (ours.abs() < 1).any(), "not everything is cut off, or the test would see nothing"


def test_network() -> None:
    """Layer by layer in NumPy, float64."""
    backbone = policy(seed=3)
    w = {name: value.detach().double().numpy() for name, value in backbone.net.named_parameters()}
    rng = np.random.default_rng(2)
    states, noisy, steps = rng.standard_normal((5, 4)), rng.uniform(-1, 1, (5, 2)), np.array([0, 1, 2, 3, 4])

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def mish(x: np.ndarray) -> np.ndarray:
        return x * np.tanh(np.log1p(np.exp(x)))

    f = 2 * np.pi * steps[:, None] @ w["fourier.kernel"].T
    code = dense("time_out", mish(dense("time_in", np.concatenate([np.cos(f), np.sin(f)], 1))))
    x = dense("input", np.concatenate([noisy, states, code], 1))
    for block in ("blocks.0", "blocks.1"):
        normal = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        normal = normal * w[f"{block}.norm.weight"] + w[f"{block}.norm.bias"]
        x = x + dense(f"{block}.down", mish(dense(f"{block}.up", normal)))
    expected = dense("output", mish(x))
    ours = backbone.net(torch.tensor(states).float(), torch.tensor(noisy).float(), torch.tensor(steps))
    np.testing.assert_allclose(ours.detach(), expected, atol=1e-5)


def test_loss_is_the_mean_of_sums_over_action_dimensions() -> None:
    backbone = policy()
    generator = torch.Generator().manual_seed(0)
    batch = {"observations": torch.randn(64, 4, generator=generator), "actions": torch.rand(64, 2, generator=generator)}
    torch.manual_seed(7)
    loss = backbone.loss(batch)
    torch.manual_seed(7)
    steps = torch.randint(5, (64,))
    noise = torch.randn(64, 2)
    assert set(steps.tolist()) == {0, 1, 2, 3, 4}
    predicted = backbone.net(
        batch["observations"], backbone.net.diffusion.noised(batch["actions"], noise, steps), steps
    )
    expected = sum(((predicted[i] - noise[i]) ** 2).sum() for i in range(64)) / 64
    torch.testing.assert_close(loss, expected)


def test_initial_weights() -> None:
    backbone = policy(width=128)
    net = backbone.net
    assert net.fourier.kernel.shape == (32, 1)
    up = net.blocks[0].up.weight
    assert up.shape == (512, 128)
    assert up.std().item() == pytest.approx(1 / math.sqrt(128), rel=0.02)
    assert up.abs().max().item() <= 2 / math.sqrt(128) / 0.8796 + 1e-6
    bound = math.sqrt(6 / (net.input.in_features + 128))
    assert 0.98 * bound < net.input.weight.abs().max().item() <= bound
    assert not any(p.any() for name, p in net.named_parameters() if name.endswith("bias"))
    torch.testing.assert_close(policy(width=128).net.input.weight, net.input.weight, rtol=0, atol=0)
    assert not torch.equal(policy(seed=1, width=128).net.input.weight, net.input.weight)


def test_lecun_normal_has_variance_one_over_the_inputs() -> None:
    weight = lecun_normal_matrix(2000, 50)
    assert weight.var().item() == pytest.approx(1 / 50, rel=0.02)


def lecun_normal_matrix(m: int, n: int) -> torch.Tensor:
    weight = torch.empty(m, n)
    lecun_normal_(weight, torch.Generator().manual_seed(0))
    return weight


def test_actions_are_seeded_and_in_the_box() -> None:
    backbone = policy()
    states = 3 * torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    first = backbone.act(states, torch.Generator().manual_seed(5))
    torch.manual_seed(123)  # the global generator has no say
    assert torch.equal(backbone.act(states, torch.Generator().manual_seed(5)), first)
    assert not torch.equal(backbone.act(states, torch.Generator().manual_seed(6)), first)
    assert first.dtype == torch.float32
    assert (first.abs() <= 1).all()
    changed = states.clone()
    changed[4] += 1
    others = [i for i in range(9) if i != 4]
    torch.testing.assert_close(backbone.act(changed, torch.Generator().manual_seed(5))[others], first[others])


def test_cloning_learns_a_mapping_from_states_to_actions() -> None:
    backbone = policy(width=32, dropout=0.0).train()
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=3e-3)
    torch.manual_seed(0)
    states = torch.randn(256, 4)
    batch = {"observations": states, "actions": torch.tanh(states[:, :2]) * 0.8}

    def error() -> float:
        acted = backbone.act(states, torch.Generator().manual_seed(1))
        return (acted - batch["actions"]).square().mean().item()

    before = error()
    for _ in range(150):
        loss = backbone.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert error() < 0.1 * before, (before, error())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "model.width=0"),
        ({"steps": 0}, "model.steps=0"),
        ({"dropout": 1.0}, "model.dropout=1.0"),
        ({"weights": "made"}, "needs model.pretrain"),
    ],
)
def test_wrong_options_are_told_in_one_line(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DiffusionPolicy(**options)


def test_other_tasks_are_refused() -> None:
    with pytest.raises(UserError, match="reads states and gives actions, this task has text and classes"):
        DiffusionPolicy().build(Inputs("text"), Outputs("classes", 3), 0)
