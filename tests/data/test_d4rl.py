"""D4RL's data: reference scores, options, files and their faults, splits, rewards, statistics."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrx.data import d4rl, d4rl_envs, d4rl_files, d4rl_reference
from lrx.data.d4rl_reference import ENVIRONMENTS
from lrx.errors import UserError

h5py = pytest.importorskip("h5py")
pytest.importorskip("minari")
HOPPER = ENVIRONMENTS["hopper"]
SMALL = {"env": "hopper", "dataset": "medium", "policy_steps": 600, "build_size": 300}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of the module's own, so that data is really made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


# Reference scores


def test_normalised_scores_are_the_official_ones() -> None:
    # REF_MIN_SCORE and REF_MAX_SCORE of d4rl 1.1 (infos.py); ant has 111 observations there, 105 in Gymnasium.
    official = {
        "hopper": (-20.272305, 3234.3),
        "halfcheetah": (-280.178953, 12135.0),
        "walker2d": (1.629008, 4592.3),
        "ant": (-325.6, 3879.7),
    }
    assert {name: (each.ref_min, each.ref_max) for name, each in ENVIRONMENTS.items()} == official
    for env, value, expected in (("hopper", 1000, 31.35), ("halfcheetah", 5000, 42.53), ("walker2d", 0, -0.04)):
        assert d4rl_reference.normalised(env, np.array([value]))[0] == pytest.approx(expected, abs=0.005)
    ends = np.array(official["walker2d"])
    np.testing.assert_allclose(d4rl_reference.normalised("walker2d", ends), [0.0, 100.0], atol=1e-12)
    assert d4rl_reference.normalised("hopper", np.array([4000.0]))[0] > 100  # nothing is cut


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environments_are_what_the_table_says(name: str) -> None:
    known, env = ENVIRONMENTS[name], d4rl_envs.make(name)
    assert env.observation_space.shape == (known.states,)
    assert env.action_space.shape == (known.actions,)
    assert (env.action_space.low == -1).all()
    assert (env.action_space.high == 1).all()
    env.reset(seed=0)
    state, *_ = env.step(env.action_space.sample() * 0 + 0.5)
    assert state[known.speed] == pytest.approx(np.clip(env.unwrapped.data.qvel[0], -10, 10))
    assert env.spec.max_episode_steps == d4rl_reference.HORIZON
    env.close()


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"env": "hoper"}, ["task.env=hoper", "did you mean 'hopper'"]),
        ({"env": "antmaze-umaze"}, ["task.env=antmaze-umaze", "not in gymnasium"]),
        ({"dataset": "full_replay"}, ["task.dataset=full_replay"]),
        ({"extra": ["experts"]}, ["task.dataset=experts", "'expert'"]),
        ({"source": "hub", "dataset": "random"}, ["hub has medium and expert"]),
        ({"source": "local"}, ["task.data_dir=<"]),
        ({"source": "local", "data_dir": "/nowhere"}, ["task.data_dir=/nowhere", "no such"]),
        ({"data_dir": "/nowhere"}, ["only with task.source=local"]),
        ({"episodes": 1}, ["task.episodes=1", "at least 2"]),
        ({"holdout": 1.0}, ["task.holdout=1.0"]),
        ({"shift": {"wind": 2.0}}, ["task.shift.wind", "gravity"]),
        ({"shift": {"gravity": 0}}, ["task.shift.gravity=0"]),
        ({"objective": {"speed": 1.0}}, ["task.objective.speed", "forward"]),
        ({"reward_scale": -1.0}, ["task.reward_scale=-1.0"]),
        ({"standardise": "mediums"}, ["task.dataset=mediums"]),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        d4rl.check(SMALL | options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "minari" else find(name))
    with pytest.raises(UserError, match=r"needs the package minari: pip install 'lrx\[rl\]'"):
        d4rl.check(SMALL)


def test_the_hub_without_network_is_one_line_and_quick(monkeypatch: pytest.MonkeyPatch, cache: None) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(UserError, match=r"cannot get mujoco/hopper/medium-v0 .*127\.0\.0\.1"):
        d4rl.check(SMALL | {"source": "hub"})
    assert time.monotonic() - started < 5


def test_the_digest_names_the_data() -> None:
    base = d4rl.digest(SMALL)
    assert d4rl.digest(SMALL | {"episodes": 20, "batch_size": 7}) == base
    for change in ({"build_size": 400}, {"data_seed": 1}, {"shift": {"gravity": 0.5}}, {"extra": ["expert"]}):
        assert d4rl.digest(SMALL | change) != base
    assert d4rl.digest(SMALL | {"shift": {"gravity": 1.0}}) == base
    one = SMALL | {"dataset": "random"}
    assert d4rl.digest(one | {"policy_steps": 700}) == d4rl.digest(one)  # no policy acts in it


# Files


def minari_file(path: Path, change: Callable[[Any], None] | None = None, lengths: tuple[int, ...] = (4, 3)) -> Path:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number, steps in enumerate(lengths):
            group = file.create_group(f"episode_{number}")
            group["observations"] = rng.normal(size=(steps + 1, 11))
            group["actions"] = rng.uniform(-1, 1, (steps, 3)).astype(np.float32)
            group["rewards"] = rng.normal(size=steps)
            group["terminations"] = np.arange(steps) == steps - 1
            group["truncations"] = np.zeros(steps, dtype=bool)
        if change:
            change(file)
    return path


def put(name: str, key: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name][key]
        file[name][key] = value

    return change


def poisoned(key: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file["episode_1"][key][1] = np.nan

    return change


def without(key: str) -> Callable[[Any], None]:
    return lambda file: file["episode_1"].__delitem__(key)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (poisoned("rewards"), ["episode_1", "1 rewards are NaN", "step 1"]),
        (poisoned("observations"), ["1 observations are NaN"]),
        (poisoned("actions"), ["1 actions are NaN"]),
        (put("episode_0", "actions", np.zeros((4, 2))), ["episode_0", "actions of 2 numbers", "Hopper-v5 has 3"]),
        (put("episode_0", "observations", np.zeros((5, 17))), ["observations of 17 numbers", "has 11"]),
        (put("episode_0", "observations", np.zeros((4, 11))), ["4 observations for 4 rewards; expected 5"]),
        (put("episode_1", "rewards", np.zeros(0)), ["episode_1 is empty"]),
        (without("terminations"), ["episode_1 lacks terminations"]),
        (without("rewards"), ["episode_1 lacks rewards"]),
        (lambda file: file.clear(), ["no episodes and no observations"]),
    ],
)
def test_faults_of_a_file_are_one_line(tmp_path: Path, change: Callable[[Any], None], words: list[str]) -> None:
    path = minari_file(tmp_path / "main_data.hdf5", change)
    with pytest.raises(UserError) as caught:
        d4rl.load(SMALL | {"source": "local", "data_dir": str(tmp_path)})
    for word in [str(path), *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
def test_a_truncated_file_is_one_line(tmp_path: Path, share: float) -> None:
    path = minari_file(tmp_path / "main_data.hdf5", lengths=(400, 300))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"main_data\.hdf5 is truncated or damaged") as caught:
        d4rl_files.read(path, HOPPER)
    assert "\n" not in str(caught.value)


def test_folders_of_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no HDF5 file"):
        d4rl_files.file_of(tmp_path)
    (tmp_path / "data").mkdir()
    path = minari_file(tmp_path / "data" / "main_data.hdf5")
    assert d4rl_files.file_of(tmp_path) == d4rl_files.file_of(path) == path
    for name in ("a.hdf5", "b.hdf5"):
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / name).touch()
    with pytest.raises(UserError, match="holds 2 HDF5 files"):
        d4rl_files.file_of(tmp_path / "two")
    (tmp_path / "arrow" / "0").mkdir(parents=True)
    (tmp_path / "arrow" / "0" / "data.arrow").touch()
    with pytest.raises(UserError, match="arrow format"):
        d4rl_files.file_of(tmp_path / "arrow")


def test_a_file_of_d4rl_reads_as_its_own_function_does(tmp_path: Path) -> None:
    rng, n = np.random.default_rng(1), 40
    columns = {
        "observations": rng.normal(size=(n, 11)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, 3)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "terminals": np.isin(np.arange(n), [6, 20]),
        "timeouts": np.isin(np.arange(n), [13, 29, 39]),
    }
    with h5py.File(tmp_path / "hopper_medium-v2.hdf5", "w") as file:
        for key, values in columns.items():
            file[key] = values
    found = d4rl_files.read(d4rl_files.file_of(tmp_path), HOPPER)
    expected: dict[str, list[Any]] = {"observations": [], "actions": [], "next": [], "terminals": []}
    for i in range(n - 1):  # the loop of d4rl.qlearning_dataset
        if columns["timeouts"][i]:
            continue
        expected["observations"].append(columns["observations"][i])
        expected["actions"].append(columns["actions"][i])
        expected["next"].append(columns["observations"][i + 1])
        expected["terminals"].append(float(columns["terminals"][i]))
    np.testing.assert_array_equal(found.observations, expected["observations"])
    np.testing.assert_array_equal(found.actions, expected["actions"])
    np.testing.assert_array_equal(found.next_observations, expected["next"])
    np.testing.assert_array_equal(found.terminals, expected["terminals"])
    assert np.bincount(found.episodes).tolist() == [7, 6, 7, 8, 9]


def test_without_time_outs_an_episode_is_cut_after_the_horizon(tmp_path: Path) -> None:
    n = 2 * d4rl_reference.HORIZON + 5
    with h5py.File(tmp_path / "one.hdf5", "w") as file:
        file["observations"], file["actions"] = np.zeros((n, 11)), np.zeros((n, 3))
        file["rewards"], file["terminals"] = np.ones(n), np.arange(n) == 9
    found = d4rl_files.read(tmp_path / "one.hdf5", HOPPER)
    assert np.bincount(found.episodes).tolist() == [10, d4rl_reference.HORIZON - 1, n - 10 - d4rl_reference.HORIZON - 1]


# Splits, rewards, statistics


def test_splits_are_whole_trajectories_and_disjoint(tmp_path: Path) -> None:
    minari_file(tmp_path / "main_data.hdf5", lengths=tuple(range(3, 23)))
    task = SMALL | {"source": "local", "data_dir": str(tmp_path), "holdout": 0.25}
    whole, found = d4rl.load(task), d4rl.splits(task)
    train, select = set(found["train"].episodes), set(found["select"].episodes)
    assert len(select) == 5
    assert train | select == set(range(20))
    assert not train & select
    assert len(found["train"]) + len(found["select"]) == len(whole)
    few = d4rl.splits(task | {"trajectories": 4})
    assert set(few["train"].episodes) < train
    assert set(few["select"].episodes) == select
    assert len(d4rl.splits(task | {"trajectories": 4, "limit": 9})["train"]) == 9
    assert len(d4rl.splits(task | {"select_limit": 6})["select"]) == 6
    assert not len(d4rl.splits(task | {"holdout": 0.0})["select"])
    with pytest.raises(UserError, match=r"task\.trajectories=16: the data has 15"):
        d4rl.splits(task | {"trajectories": 16})


def test_rewards_by_objective_and_scale(cache: None) -> None:
    task = d4rl.DEFAULTS | SMALL
    data = d4rl.load(task)
    np.testing.assert_array_equal(d4rl.rewards(task, data), data.rewards)
    np.testing.assert_allclose(d4rl.rewards(task | {"reward_scale": 0.5}, data), 0.5 * data.rewards)
    weights = {"forward": 1.0, "control": 10.0}
    expected = data.terms["reward_forward"] + 10 * data.terms["reward_ctrl"]
    np.testing.assert_allclose(d4rl.rewards(task | {"objective": weights}, data), expected, rtol=1e-6)
    scaled = d4rl.rewards(task | {"reward_scale": "return_range"}, data)
    totals = [scaled[data.episodes == number].sum() for number in np.unique(data.episodes)]
    assert np.ptp(totals) == pytest.approx(1000, rel=1e-4)
    plain = d4rl_files.Transitions(
        **{key: getattr(data, key) for key in data.__dataclass_fields__ if key != "terms"},
    )
    with pytest.raises(UserError, match=r"task\.objective\.forward: the data has no reward_forward"):
        d4rl.rewards(task | {"objective": weights}, plain)


def test_costs_and_statistics(cache: None) -> None:
    task = d4rl.DEFAULTS | SMALL | {"speed_limit": 0.5}
    states = np.zeros((3, 11), dtype=np.float32)
    states[:, 5] = [0.4, 0.6, -2.0]
    assert d4rl.costs(task, states).tolist() == [0, 1, 0]
    assert d4rl.costs(task | {"speed_limit": None}, states).tolist() == [0, 0, 0]
    data = d4rl.load(task)
    mean, std = d4rl.statistics(task, data)
    assert not mean.any()
    assert (std == 1).all()
    mean, std = d4rl.statistics(task | {"standardise": True}, data)
    np.testing.assert_allclose(mean, data.observations.astype(np.float64).mean(0), rtol=1e-5, atol=1e-6)
    other = d4rl.load(task, "random", shifted=False)
    mean, _ = d4rl.statistics(task | {"standardise": "random", "shift": {"gravity": 0.5}}, data)
    np.testing.assert_allclose(mean, other.observations.astype(np.float64).mean(0), rtol=1e-5, atol=1e-6)
