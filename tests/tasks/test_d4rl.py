"""The D4RL task: batches, rollouts that repeat, scores with their interval, whole runs."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lrx.errors import UserError
from lrx.models.base import Backbone, Inputs, Outputs
from lrx.models.mlp_policy import MLPPolicy
from lrx.modules.evaluate import predict_split, score_split
from lrx.results.record import read
from lrx.tasks.d4rl import COLUMNS, D4RL, OfflineTask
from tests.conftest import Result
from tests.models.building import build

pytest.importorskip("minari")
torch.set_num_threads(1)
SMALL: dict[str, Any] = {
    "env": "hopper", "dataset": "medium", "policy_steps": 600, "build_size": 300, "batch_size": 16, "episodes": 4,
    "parallel": 4, "select_limit": 50,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of the module's own, so that data is really made, and once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def task_of(**options: Any) -> OfflineTask:
    (task,) = D4RL(**SMALL | options).parts()
    assert isinstance(task, OfflineTask)
    return task


class Noisy(Backbone):
    """A policy that draws: the kind whose rollouts could depend on what runs beside an episode."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(11, 3), head=[], roles={}, reads="state")

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(batch["observations"]).tanh()

    def act(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        noise = 0.5 * torch.randn(len(observations), 3, generator=generator)
        return (self.net(observations).tanh() + noise).clamp(-1, 1)


def test_batches_are_what_policies_read() -> None:
    task = task_of(speed_limit=0.0)
    task.bind(Noisy(), 0)
    assert task.inputs == Inputs("state", features=11)
    assert task.outputs == Outputs("actions", size=3)
    batch = next(iter(task.train_dataloader()))
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in batch.items()}
    many, one = torch.float32, torch.int64
    assert shapes == {
        "observations": ((16, 11), many), "actions": ((16, 3), many), "rewards": ((16,), many),
        "next_observations": ((16, 11), many), "terminals": ((16,), many), "costs": ((16,), many),
        "dataset": ((16,), one), "index": ((16,), one),
    }  # fmt: skip
    columns = task.arrays("train")
    assert columns["costs"].any()
    assert columns["costs"].min() == 0
    assert np.abs(columns["actions"]).max() <= 1
    seen = [int(i) for each in task.train_dataloader() for i in each["index"]]
    assert sorted(seen) == list(range(task.size("train")))


def test_observations_are_standardised_by_the_training_data() -> None:
    task, plain = task_of(standardise=True), task_of()
    states = task.arrays("train")["observations"]
    np.testing.assert_allclose(states.mean(0), 0, atol=1e-4)
    assert np.abs(states.std(0) - 1).max() < 0.2  # std + 0.001
    mean, std = task.statistics
    for key in ("observations", "next_observations"):
        for split in ("train", "select"):
            np.testing.assert_allclose(
                task.arrays(split)[key] * std + mean, plain.arrays(split)[key], rtol=1e-4, atol=1e-4
            )


def test_further_data_is_trained_on_and_marked() -> None:
    task, alone = task_of(extra=["random"]), task_of()
    counts = np.bincount(task.arrays("train")["dataset"])
    assert counts[0] == alone.size("train")
    assert counts[1] >= 300
    assert task.size("select") == alone.size("select")


def test_a_model_that_is_no_policy_is_refused() -> None:
    with pytest.raises(UserError, match="needs a policy"):
        task_of().bind(build("tiny_bert"), 0)
    for inputs, outputs in ((Inputs("text"), Outputs("classes", 2)), (Inputs("state", features=3), Outputs("text"))):
        with pytest.raises(UserError, match="a policy reads states and gives actions"):
            MLPPolicy().build(inputs, outputs, 0)


def test_rollouts_repeat_and_do_not_depend_on_what_runs_beside() -> None:
    backbone, found = Noisy(), {}
    for parallel in (4, 3, 1):
        task = task_of(parallel=parallel)
        task.bind(backbone, parallel)
        found[parallel], starts = predict_split(backbone, task, "rollouts", "32-true")
        assert found[parallel].shape == (4, len(COLUMNS))
        assert len(set(starts.tolist())) == 4
    assert np.array_equal(found[4], found[3])
    assert np.array_equal(found[4], found[1])
    assert len(set(found[4][:, 0])) == 4  # each episode has a start and noise of its own
    other = predict_split(backbone, task_of(eval_seed=1), "rollouts", "32-true")[0]
    assert not np.array_equal(found[4], other)


def test_a_rollout_is_the_plain_loop() -> None:
    """Return, length, cost and objective of an episode, against Gymnasium's own loop."""
    import gymnasium

    class Still(Noisy):
        def act(self, observations: Tensor, generator: torch.Generator) -> Tensor:
            return self({"observations": observations})

    backbone = Still()
    weights = {"forward": 1.0, "control": 3.0}
    task = task_of(standardise=True, speed_limit=0.1, objective=weights)
    found, starts = predict_split(backbone, task, "rollouts", "32-true")
    mean, std = task.statistics
    env = gymnasium.make("Hopper-v5", disable_env_checker=True)
    for row, start in zip(found, starts, strict=True):
        state, _ = env.reset(seed=int(start))
        total, length, cost, objective, over = 0.0, 0, 0, 0.0, False
        while not over:
            with torch.no_grad():
                shown = torch.from_numpy(((state - mean) / std).astype(np.float32))[None]
                action = backbone({"observations": shown})[0].numpy()
            state, reward, terminated, truncated, info = env.step(action)
            total, length, over = total + float(reward), length + 1, terminated or truncated
            cost += int(state[5] > 0.1)
            objective += info["reward_forward"] + 3 * info["reward_ctrl"]
        np.testing.assert_allclose(row, [total, length, cost, objective], rtol=1e-3, atol=1e-3)
    env.close()


def test_scores_and_their_interval() -> None:
    task = task_of()
    returns = np.array([1000.0, 2000.0, 500.0, 1500.0])
    rows = np.stack([returns, [10.0, 20, 30, 40], np.zeros(4), np.zeros(4)], axis=1)
    scores = task.score(rows, task._starts())
    per_episode = 100 * (returns + 20.272305) / (3234.3 + 20.272305)
    mean, error = per_episode.mean(), per_episode.std(ddof=1) / 2
    assert scores["normalised"] == pytest.approx(mean)
    assert scores["return"] == pytest.approx(1250)
    assert scores["length"] == pytest.approx(25)
    # Student's t, 3 degrees of freedom, 97.5%: 3.18245
    assert scores["normalised_low"] == pytest.approx(mean - 3.18245 * error, rel=1e-5)
    assert scores["normalised_high"] == pytest.approx(mean + 3.18245 * error, rel=1e-5)
    assert "cost" not in scores
    items = task.item_scores(rows, task._starts())
    np.testing.assert_allclose(items["normalised"], per_episode)
    assert set(items) == {"normalised", "return", "length"}
    assert set(task_of(speed_limit=1.0, objective={"forward": 1.0}).item_scores(rows, task._starts())) == {
        "normalised", "return", "length", "cost", "objective",
    }  # fmt: skip


def test_selection_is_the_error_of_the_action() -> None:
    backbone, task = Noisy(), task_of()
    task.bind(backbone, 0)
    first = score_split(backbone, task, "select", "32-true")
    assert first == score_split(backbone, task, "select", "32-true")
    columns = task.arrays("select")
    with torch.no_grad():
        means = backbone({"observations": torch.from_numpy(columns["observations"])}).numpy()
    plain = float(((means - columns["actions"]) ** 2).mean())
    assert set(first) == {"action_error"}
    assert plain < first["action_error"] < plain + 0.5  # the noise adds its variance, cut at the bounds
    assert task.tracked() == ()
    assert task_of(track=True).tracked() == ("rollouts",)


def test_the_mlp_policy_fits_a_policy() -> None:
    backbone = MLPPolicy(width=32).build(Inputs("state", features=11), Outputs("actions", size=3), 0)
    again = MLPPolicy(width=32).build(Inputs("state", features=11), Outputs("actions", size=3), 0)
    states = torch.randn(256, 11, generator=torch.Generator().manual_seed(0))
    batch = {"observations": states, "actions": (0.3 * states[:, :3]).tanh()}
    assert torch.equal(backbone(batch), again(batch))
    optimizer = torch.optim.Adam(backbone.parameters(), lr=1e-2)
    first = backbone.loss(batch).item()
    for _ in range(150):
        optimizer.zero_grad()
        backbone.loss(batch).backward()
        optimizer.step()
    assert backbone.loss(batch).item() < 0.01 * first
    assert torch.equal(backbone.act(states, torch.Generator()), backbone(batch))


def numbers(root: Path) -> tuple[Any, list[dict[str, str]]]:
    (path,) = (root / "records").glob("*.json")
    (episodes,) = root.glob("runs/*/*/predictions.rollouts.csv")
    part = read(path).parts["hopper-medium"]
    return part, list(csv.DictReader(episodes.open()))


def test_the_same_command_gives_the_same_score_twice(cli: Callable[..., Result], tmp_path: Path) -> None:
    found = []
    for number, parallel in enumerate((3, 2)):
        root = tmp_path / str(number)
        words = ["task=d4rl/hopper-medium", "model=mlp_policy", "scale=smoke", "logger=none", f"paths.root={root}"]
        result = cli(*words, f"task.parallel={parallel}")
        assert result.code == 0, result
        found.append(numbers(root))
        assert "data.self-generated, not D4RL's" in result.out
    (first, episodes), (second, others) = found
    assert first.metrics == second.metrics
    assert episodes == others
    assert first.best_step == first.steps  # the last step is reported
    scores = [float(each["item.normalised"]) for each in episodes]
    assert len(scores) == 3
    assert np.mean(scores) == pytest.approx(first.metrics["rollouts"]["normalised"])


def test_wrong_files_end_a_run_with_one_line(cli: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "main_data.hdf5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40))
    words = ["task=d4rl/hopper-medium", "model=mlp_policy", "scale=smoke", "logger=none", f"paths.root={tmp_path}/r"]
    result = cli(*words, "task.source=local", f"task.data_dir={path}")
    assert result.code == 2, result
    assert len(result.err.strip().splitlines()) == 1
    assert "truncated or damaged" in result.err


@pytest.mark.parametrize("name", ["hopper-random", "halfcheetah-medium-replay", "walker2d-medium"])
def test_tasks_compose_at_the_scale_of_the_paper(name: str) -> None:
    from lrx import config

    settings = config.settings_of(config.compose([f"task=d4rl/{name}", "scale=paper"]))
    assert settings.trainer.max_steps == 1_000_000
    assert settings.trainer.select == "last"
    assert settings.task["batch_size"] == 2048
    assert f"{settings.task['env']}-{settings.task['dataset'].replace('_', '-')}" == name
