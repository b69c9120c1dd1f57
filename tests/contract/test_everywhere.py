"""Every method on an encoder, a decoder, a vision transformer, a depth network and a policy.

Fit, checkpoint, resume, merge, save, load.
"""

from __future__ import annotations

import copy
import functools
import io
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from lrx import registry
from lrx.errors import UserError
from lrx.methods.base import Method
from lrx.models.base import Backbone, Inputs, Outputs
from tests.conftest import FOR_POLICIES, USUAL
from tests.contract.test_methods import FAST, NAMES, options_of
from tests.models.building import build

torch.set_num_threads(1)
MODELS = {
    "encoder": "tiny_bert",
    "decoder": "tiny_lm",
    "vision": "tiny_vit",
    "depth": "tiny_gdnet",
    "policy": "tiny_diffusion_policy",
}
TUNERS: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 6, "target_r": 3, "tinit": 1, "tfinal": 1},
    "vera": {"r": 8},
    "oft": {"oft_block_size": 8},
    "fourierft": {"n_frequency": 50},
    "ia3": {},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in NAMES},
    "lora_sb": ("lora_sb", {"samples": 12}),
    "psec": ("psec", {"hidden": 16, "expand": 0.5, "compose_lr": 1e-2}),
    "iql": ("iql", {"hidden": 16}),
    **{f"peft-{tuner}": ("peft", {"tuner": tuner, "options": options}) for tuner, options in TUNERS.items()},
}
STEPS = 6


@functools.cache
def original(model: str) -> Backbone:
    if model == "decoder":
        return build(MODELS[model], inputs=Inputs("text", max_length=32), outputs=Outputs("text"))
    if model == "vision":
        return build(MODELS[model], inputs=Inputs("image", (3, 8, 8)))
    if model == "depth":
        inputs = Inputs("image_depth", (3, 16, 16), factor=4)
        return build(MODELS[model], inputs=inputs, outputs=Outputs("depth", 1), rank=8)
    if model == "policy":
        return build(MODELS[model], inputs=Inputs("state", features=5), outputs=Outputs("actions", 3))
    return build(MODELS[model])


def batch_of(model: str, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.arange(6) % 3
    if model == "policy":
        states = torch.randn(6, 5, generator=generator)
        batch = {"observations": states, "actions": torch.tanh(states[:, :3]), "next_observations": states + 0.1}
        return batch | {"rewards": states.sum(1), "terminals": (states[:, 0] > 1).float(), "labels": labels}
    if model == "vision":
        return {
            "pixel_values": torch.randn(6, 3, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1),
            "labels": labels,
        }
    if model == "depth":
        low = torch.rand(6, 1, 4, 4, generator=generator)
        image = torch.rand(6, 3, 16, 16, generator=generator)
        return {"image": image, "depth_low": low, "labels": low.repeat_interleave(4, 2).repeat_interleave(4, 3)}
    ids = torch.randint(5, 200, (6, 9), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return batch | {"labels": torch.where(torch.arange(9) > 3, ids, -100) if model == "decoder" else labels}


def loss_of(backbone: Backbone, batch: dict[str, Any]) -> Tensor:
    if backbone.reads in ("causal", "state"):
        torch.manual_seed(0)  # a policy draws steps and noise
        return backbone.loss(batch)
    if backbone.reads == "depth":
        return (backbone(batch) - batch["labels"]).square().mean()
    return nn.functional.cross_entropy(backbone({k: v for k, v in batch.items() if k != "labels"}), batch["labels"])


def scores(backbone: Backbone, model: str) -> Tensor:
    with torch.no_grad():
        return backbone({key: value for key, value in batch_of(model, 99).items() if key != "labels"})


def adapted(case: str, model: str, seed: int = 0) -> tuple[Backbone, Method]:
    """At a rate that moves the outputs in a few steps."""
    name, own = CASES[case]
    lr = FAST.get(case, FAST.get(name, 1e-2))
    _, options = options_of(name, **{"lr": lr, "target_modules": "all-linear", **own})
    options = {key: value for key, value in options.items() if key in registry.find("methods", name).signature}
    if options.get("dropout"):
        options["dropout"] = 0.0
    if options.get("rank"):
        options["rank"] = min(options["rank"], 8)
    backbone, method = copy.deepcopy(original(model)), registry.load("methods", name)(**options)
    method.adapt(backbone, torch.Generator().manual_seed(seed))
    method.plan(backbone, STEPS)
    method.warm_start(backbone, (batch_of(model, 500 + i) for i in range(4)), loss_of)
    return backbone.eval(), method


def train(
    backbone: Backbone, method: Method, optimizer: torch.optim.Optimizer, model: str, first: int, last: int
) -> list[float]:
    losses = []
    for step in range(first, last):
        batch = batch_of(model, step)
        torch.manual_seed(step)
        loss = method.objective(backbone, batch)
        loss = loss_of(backbone, batch) if loss is None else loss
        losses.append(loss.item())
        penalty = method.penalty(backbone)
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        method.before_step(backbone, optimizer, step)
        optimizer.step()
        method.after_step(backbone, optimizer, step)
    return losses


@pytest.mark.parametrize(
    ("case", "model"),
    [
        pytest.param(case, model, marks=[] if model == "encoder" or case in USUAL | FOR_POLICIES else pytest.mark.slow)
        for case in CASES
        for model in MODELS
    ],
)
def test_fit_checkpoint_resume_save_load_merge(case: str, model: str) -> None:
    if case in FOR_POLICIES and model != "policy":
        with pytest.raises(UserError, match="is for policies"):
            adapted(case, model)
        return
    if (case, model) == ("head", "decoder"):
        with pytest.raises(UserError, match="this model has none"):
            adapted(case, model)
        return
    backbone, method = adapted(case, model)
    start = scores(backbone, model)
    optimizer = method.optimizer(backbone)
    train(backbone, method, optimizer, model, 0, 3)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "adapter": method.adapter_state(backbone)}, file)
    losses = train(backbone, method, optimizer, model, 3, STEPS)
    end = scores(backbone, model)
    assert all(torch.isfinite(torch.tensor(losses))), losses
    assert end.isfinite().all()
    assert not torch.equal(start, end)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, again = adapted(case, model)
    again.load_adapter(other, saved["adapter"])
    resumed = again.optimizer(other)
    resumed.load_state_dict(saved["optimizer"])
    assert train(other, again, resumed, model, 3, STEPS) == losses
    assert torch.equal(scores(other, model), end)

    stored = load(save({name: tensor.contiguous() for name, tensor in method.adapter_state(backbone).items()}))
    fresh, loader = adapted(case, model)
    loader.load_adapter(fresh, stored)
    assert torch.equal(scores(fresh, model), end)

    if not method.mergeable:
        with pytest.raises(UserError, match="merge"):
            method.merge(backbone)
        return
    plain = {name: type(module) for name, module in original(model).net.named_modules()}
    method.merge(backbone)
    torch.testing.assert_close(scores(backbone, model), end, rtol=1e-4, atol=1e-4)
    assert {name: type(module) for name, module in backbone.net.named_modules()} == plain
