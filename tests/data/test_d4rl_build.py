"""D4RL's data made on the spot: the search for policies, collecting, changed dynamics, rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrx.data import d4rl, d4rl_build, d4rl_envs, d4rl_files, d4rl_policies
from lrx.data.d4rl_reference import ENVIRONMENTS
from lrx.errors import UserError

pytest.importorskip("minari")
HOPPER = ENVIRONMENTS["hopper"]
SMALL = {"env": "hopper", "dataset": "medium", "policy_steps": 600, "build_size": 300}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of the module's own, so that data is really made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


# Data made on the spot


def test_made_data_is_a_data_set_of_minari(cache: None) -> None:
    import minari

    folder = d4rl_build.built("hopper", "medium_expert", None, 600, 300, 0)
    assert folder.parts[-4:] == ("lrx", "hopper", "medium_expert-v0", "data")
    whole = minari.MinariDataset(folder)
    assert whole.spec.dataset_id == "lrx/hopper/medium_expert-v0"
    assert "not D4RL's data" in whole.storage.metadata["description"]
    assert whole.storage.metadata["ref_max_score"] == HOPPER.ref_max
    found = d4rl.load(SMALL | {"dataset": "medium_expert"})
    assert len(found) == whole.total_steps >= 600
    for number, episode in enumerate(whole):
        mine = found.take(found.episodes == number)
        np.testing.assert_array_equal(mine.observations, episode.observations[:-1].astype(np.float32))
        np.testing.assert_array_equal(mine.next_observations, episode.observations[1:].astype(np.float32))
        np.testing.assert_array_equal(mine.actions, episode.actions)
        np.testing.assert_array_equal(mine.rewards, episode.rewards.astype(np.float32))
        np.testing.assert_array_equal(mine.terminals, episode.terminations)
        assert (episode.terminations | episode.truncations)[-1]
    terms = sum(found.terms[key] for key in ("reward_forward", "reward_ctrl", "reward_survive"))
    np.testing.assert_allclose(terms, found.rewards, atol=1e-4)
    halves = [d4rl.load(SMALL | {"dataset": name}) for name in ("medium", "expert")]
    np.testing.assert_array_equal(found.rewards, np.concatenate([half.rewards for half in halves]))


def test_the_table_of_what_data_is_worth(cache: None) -> None:
    head, *lines = d4rl.table(SMALL)
    assert head.startswith("data set")
    assert [line.split()[0] for line in lines] == list(d4rl.DATASETS)
    data = d4rl.load(SMALL, "expert")
    scores = d4rl.normalised("hopper", data.returns())
    expected = ["expert", str(len(data)), str(len(scores)), f"{scores.mean():.1f},", f"{scores.std():.1f}"]
    assert lines[2].split() == expected


def test_making_again_gives_the_same(cache: None, tmp_path: Path) -> None:
    first = d4rl_build.built("hopper", "medium_replay", None, 600, 300, 0)
    second = d4rl_build.built("hopper", "medium_replay", None, 600, 300, 0, root=tmp_path)
    assert first != second
    one, two = (d4rl_files.read(d4rl_files.file_of(folder), HOPPER) for folder in (first, second))
    np.testing.assert_array_equal(one.observations, two.observations)
    np.testing.assert_array_equal(one.actions, two.actions)


def test_actions_are_those_of_the_policy_with_noise(cache: None) -> None:
    found = d4rl_policies.policies("hopper", None, 600, d4rl_build.derive(0, "ars") % 2**31)
    data = d4rl.load(SMALL | {"dataset": "expert"})
    mean = np.clip(
        data.observations @ found.weights[found.expert].T.astype(np.float32) + found.offsets[found.expert], -1, 1
    )
    inside = np.abs(mean) < 0.5  # where nothing was cut
    spread = (data.actions - mean)[inside]
    assert spread.std() == pytest.approx(d4rl_build.NOISE, rel=0.2)
    assert abs(spread.mean()) < 0.03


def test_the_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "minari").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .* set LRX_CACHE to another folder"):
        d4rl_build.built("hopper", "random", None, 600, 300, 0, root=tmp_path)


def test_the_search_is_algorithm_2_of_the_paper() -> None:
    """Against a literal restatement, update by update, on the same draws."""
    steps, seed, search = 900, 5, d4rl_policies.SEARCHES["hopper"]
    found = d4rl_policies._search("hopper", None, steps, seed)
    env, rng = d4rl_envs.make("hopper", horizon=None), np.random.default_rng(seed)
    m, states, taken = np.zeros((3, 11)), np.zeros((0, 11)), 0
    while taken < steps:
        mean, std = (states.mean(0), states.std(0)) if len(states) else (np.zeros(11), np.ones(11))
        draws = rng.standard_normal((search.directions, 3, 11))
        results, met = [], []
        for k in range(search.directions):
            pair = []
            for sign in (1, -1):
                s, _ = env.reset(seed=int(rng.integers(2**31)))
                total, over = 0.0, False
                for _ in range(1000):
                    met.append(s)
                    action = np.clip((m + sign * search.noise * draws[k]) @ ((s - mean) / std), -1, 1)
                    s, reward, over, _, _ = env.step(action)
                    total += reward - 1.0  # the bonus for staying alive
                    if over:
                        break
                pair.append(total)
            results.append(pair)
        order = sorted(range(search.directions), key=lambda k: -max(results[k]))[: search.top]
        sigma = np.std([value for k in order for value in results[k]])
        m = m + search.rate / (search.top * sigma) * sum((results[k][0] - results[k][1]) * draws[k] for k in order)
        states = np.concatenate([states, np.array(met)])
        taken += len(met)
    assert found["steps"][-1] == taken
    np.testing.assert_allclose(found["weights"][-1] * states.std(0), m, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found["offsets"][-1], -(m / states.std(0)) @ states.mean(0), rtol=1e-6, atol=1e-9)


def test_which_checkpoints_are_medium_and_expert() -> None:
    blank = np.zeros((5, 1, 1))
    found = d4rl_policies.Policies(blank, blank[..., 0], np.array([10.0, 90.0, 120.0, 310.0, 250.0]), np.arange(5))
    assert (found.medium, found.expert) == (2, 3)  # a third of the way from 10 to 310 is 110


# Changed dynamics


def falls(shift: dict[str, float] | None, name: str = "hopper") -> d4rl_envs.Episodes:
    envs = [d4rl_envs.make(name, shift, horizon=60) for _ in range(2)]
    return d4rl_envs.rollout(envs, [1, 2], lambda step, live, states: np.full((2, envs[0].action_space.shape[0]), 0.3))


@pytest.mark.parametrize("shift", [{"gravity": 0.4}, {"friction": 0.1}, {"thickness": 1.6}])
def test_a_shift_changes_what_happens_and_a_factor_of_one_nothing(shift: dict[str, float]) -> None:
    assert not np.array_equal(falls(shift, "halfcheetah").returns, falls(None, "halfcheetah").returns)
    same = dict.fromkeys(shift, 1.0)
    assert np.array_equal(falls(same).returns, falls(None).returns)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_what_a_shift_changes_in_the_model(name: str) -> None:
    plain = d4rl_envs.make(name).unwrapped.model
    model = d4rl_envs.make(name, {"gravity": 0.5, "friction": 0.3, "thickness": 2.0}).unwrapped.model
    np.testing.assert_allclose(model.opt.gravity, 0.5 * plain.opt.gravity)
    np.testing.assert_allclose(model.geom_friction[:, 0], 0.3 * plain.geom_friction[:, 0])
    np.testing.assert_allclose(model.geom_friction[:, 1:], plain.geom_friction[:, 1:])
    names = [plain.geom(i).name for i in range(plain.ngeom)]
    thick = [i for i, each in enumerate(names) if ENVIRONMENTS[name].thigh in each]
    assert thick
    for i in range(plain.ngeom):
        assert model.geom_size[i, 0] == pytest.approx(plain.geom_size[i, 0] * (2.0 if i in thick else 1.0))
    assert not np.allclose(model.body_inertia, plain.body_inertia)  # computed anew from the shape


def test_an_ended_episode_is_counted_once() -> None:
    envs = [d4rl_envs.make("hopper", horizon=50), d4rl_envs.make("hopper", horizon=8)]
    seen: list[list[bool]] = []

    def act(step: int, live: np.ndarray, states: np.ndarray) -> np.ndarray:
        seen.append(live.tolist())
        return np.zeros((2, 3))

    found = d4rl_envs.rollout(envs, [3, 3], act, lambda state: 1.0)
    assert found.lengths.tolist() == found.costs.tolist() == [sum(live[0] for live in seen), 8]
    assert seen[8] == [True, False]
    alone = d4rl_envs.rollout([d4rl_envs.make("hopper", horizon=8)], [3], lambda *_: np.zeros((1, 3)))
    assert alone.returns[0] == found.returns[1]


def test_nothing_is_written_or_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo's log of warnings would go there
    for shift in (None, {"thickness": 1.5}):
        d4rl_envs.make("halfcheetah", shift).close()
    d4rl_build.built("halfcheetah", "random", None, 1, 100, 0, root=tmp_path / "cache")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_the_search_learns_to_hop(tmp_path: Path) -> None:
    found = d4rl_policies.policies("hopper", None, 60_000, 0, root=tmp_path)
    assert found.returns[found.expert] > 1.5 * found.returns[0]
    assert found.returns[0] < found.returns[found.medium] < found.returns[found.expert]
