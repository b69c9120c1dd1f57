"""Bit-exact resume at any step, for every method: from any checkpoint a run reaches the weights of the whole run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lrx.methods.base import Method
from lrx.models.base import Backbone
from tests.conftest import each
from tests.faults.forked import METHODS, numbers, small

# 12 steps over epochs of 8 batches, two to a step: epochs end at steps 4 and 8. Everything that remembers something is
# on: accumulation, clipping, a schedule with warm-up, selection of the best weights, grouping by length.
ALL_ON = [
    "trainer.accumulate=2", "trainer.clip=0.5", "trainer.schedule=cosine", "trainer.warmup_ratio=0.3",
    "trainer.evaluations=6", "task.group_by_length=true", "task.train_limit=60",
    "callbacks.checkpoint.every_n_steps=1",
]  # fmt: skip
STEPS = range(1, 13)


@pytest.fixture
def resumed(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``resumed(method, *overrides, steps)``: checks a run resumed at each of ``steps`` against the whole one."""
    from lrx import checkpoints

    write = checkpoints.AtomicCheckpoints.save_checkpoint
    kept = tmp_path / "kept"
    kept.mkdir()

    def keep(self: Any, checkpoint: dict[str, Any], path: Path, storage_options: Any = None) -> None:
        write(self, checkpoint, path, storage_options)
        shutil.copy(path, kept)
        best = Path(path).parent.parent / "best.safetensors"
        if best.exists():
            shutil.copy(best, kept)

    def check(method: str, *overrides: str, steps: Any) -> None:
        choice = small(method, *overrides)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.AtomicCheckpoints, "save_checkpoint", keep)
            result = cli(*choice, f"paths.root={tmp_path / 'whole'}")
            assert result.code == 0, result
        (part,) = (tmp_path / "whole").glob("runs/*/sentiment")
        whole = numbers(tmp_path / "whole")
        assert sorted(path.name for path in kept.glob("*.ckpt")) == sorted(f"step-{s}.ckpt" for s in STEPS)
        for step in steps:
            root = tmp_path / f"from-{step}"
            folder = root / part.relative_to(tmp_path / "whole")
            (folder / "checkpoints").mkdir(parents=True)
            shutil.copy(kept / f"step-{step}.ckpt", folder / "checkpoints")
            shutil.copy(part / "metrics.jsonl", folder)
            shutil.copy(kept / "best.safetensors", folder)  # of a later step than the checkpoint, as a kill leaves it
            result = cli(*choice, f"paths.root={root}")
            assert result.code == 0, result
            assert f"sentiment: going on from step-{step}.ckpt" in result.out
            assert numbers(root) == whole, f"resumed at step {step}"

    return check


@pytest.mark.parametrize("method", each(METHODS))
def test_every_method_goes_on_from_the_middle_of_an_epoch(method: str, resumed) -> None:
    resumed(method, *ALL_ON, "trainer.select=last", steps=[1 + sum(map(ord, method)) % 11])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_from_every_step(method: str, resumed) -> None:
    resumed(method, *ALL_ON, "trainer.select=last", steps=STEPS)


def test_a_run_goes_on_from_the_steps_that_are_special(resumed) -> None:
    """The first, those at an epoch's end and behind it, the last two."""
    resumed("altlora", *ALL_ON, "method.flip_every=3", "trainer.select=last", steps=[1, 4, 5, 11, 12])


def test_with_workers(resumed) -> None:
    resumed("lora", *ALL_ON, "task.workers=2", "trainer.select=last", steps=[5])


class Refreshed(Method):
    """Full training of one layer in a subspace that is computed anew from the gradient every third step (GaLore's way).

    P (rank, in): the leading right singular vectors of the gradient G; the step is W -= lr * sign-free momentum M P
    with M (out, rank) the running mean of G P^T.
    """

    name = "lora"
    every = 3

    def __init__(self, **options: Any) -> None:
        self.lr = 0.05

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        backbone.freeze()
        for name, p in backbone.net.named_parameters():
            p.requires_grad_(backbone.in_head(name) or name.endswith("query.weight"))

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        return Subspace([p for p in backbone.net.parameters() if p.requires_grad], lr=self.lr, every=self.every)


class Subspace(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float, every: int) -> None:
        super().__init__(params, {"lr": lr, "every": every})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                gradient = p.grad if p.ndim == 2 else p.grad[None]
                state["step"] = state.get("step", 0) + 1
                if state["step"] % group["every"] == 1:
                    state["basis"] = torch.linalg.svd(gradient, full_matrices=False).Vh[:2]
                projected = gradient @ state["basis"].T
                state["momentum"] = 0.9 * state["momentum"] + projected if "momentum" in state else projected
                p -= group["lr"] * (state["momentum"] @ state["basis"]).view_as(p)
        return loss


def test_a_state_that_is_refreshed_every_third_step(resumed, monkeypatch: pytest.MonkeyPatch) -> None:
    from lrx import registry

    load = registry.load
    monkeypatch.setattr(registry, "load", lambda kind, name: Refreshed if kind == "methods" else load(kind, name))
    resumed("lora", *ALL_ON, "trainer.select=last", steps=[2, 4])


def test_the_best_weights_survive_too(resumed) -> None:
    resumed("lora", *ALL_ON, "method.lr=0.03", "trainer.select=best", steps=[2, 6])
