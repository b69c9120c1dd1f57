"""Data sets of D4RL's kinds, made on the spot: real Minari data sets of real MuJoCo episodes. Not D4RL's own data.

``random``: actions uniform in the box. ``expert``: the best policy of the search in ``lrx.data.d4rl_policies``.
``medium``: the first that is a third of the way to it. ``medium_expert``: both of these sets, one behind the other.
``medium_replay``: equally much of every checkpoint up to medium. Policies act with N(0, 0.05^2) on top, so that a state
is met with different actions. Whole episodes are collected until there are ``size`` transitions.

They lie below ``<cache>/minari/<digest of the recipe>`` with ids such as ``lrx/hopper/medium-v0``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lrx.data import d4rl_envs
from lrx.data.d4rl_policies import Policies, policies
from lrx.data.d4rl_reference import ENVIRONMENTS
from lrx.data.embedded import cache_dir
from lrx.errors import UserError
from lrx.seeds import derive

VERSION = 1  # of the recipe; raise it when it would make other data
NOISE = 0.05  # at 0.1 the best policy of the mini scale falls in every other episode
Act = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def recipe(env: str, dataset: str, shift: Mapping[str, float] | None, steps: int, size: int, seed: int) -> str:
    """64 hex digits of everything that decides what is made."""
    changed = sorted((key, float(factor)) for key, factor in (shift or {}).items() if factor != 1)
    key = (VERSION, NOISE, env, dataset, changed, 0 if dataset == "random" else steps, size, seed)
    return hashlib.sha256(repr(key).encode()).hexdigest()


def built(
    env: str,
    dataset: str,
    shift: Mapping[str, float] | None,
    steps: int,
    size: int,
    seed: int,
    root: Path | None = None,
) -> Path:
    """The folder with ``main_data.hdf5`` of a data set, made by one process unless it is there; others wait for it.

    ``steps``: of the search for policies. Raises ``UserError`` where the cache cannot be written.
    """
    place = (root or cache_dir()) / "minari" / recipe(env, dataset, shift, steps, size, seed)[:32]
    data = place / "lrx" / env / f"{dataset}-v0" / "data"
    if data.is_dir():
        return data
    from filelock import FileLock

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.parent / f".{place.name}.lock"):
            if not data.is_dir():
                found = None if dataset == "random" else policies(env, shift, steps, derive(seed, "ars") % 2**31, root)
                _write(place, env, dataset, _episodes(env, dataset, shift, found, size, seed), shift)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or place}: {error.strerror or error}; set LRX_CACHE to another folder"
        ) from None
    return data


def _episodes(
    env_name: str, dataset: str, shift: Mapping[str, float] | None, found: Policies | None, size: int, seed: int
) -> list[dict[str, Any]]:
    env = d4rl_envs.make(env_name, shift)
    episodes: list[dict[str, Any]] = []
    try:
        for label, share, act in _actors(env_name, dataset, found):
            collected, number = 0, 0
            while collected < share * size:
                one = derive(seed, "episode", env_name, label, number) % 2**31
                episodes.append(_episode(env, act, one))
                collected, number = collected + len(episodes[-1]["rewards"]), number + 1
    finally:
        env.close()
    return episodes


def _actors(env: str, dataset: str, found: Policies | None) -> list[tuple[str, float, Act]]:
    """(label, share of the size, policy) of each part of a data set."""
    if dataset == "random":
        return [("random", 1.0, lambda state, rng: rng.uniform(-1, 1, ENVIRONMENTS[env].actions))]
    assert found is not None
    parts = {
        "medium": [("medium", 1.0, found.medium)],
        "expert": [("expert", 1.0, found.expert)],
        "medium_expert": [("medium", 1.0, found.medium), ("expert", 1.0, found.expert)],
        "medium_replay": [(f"replay {k}", 1 / (found.medium + 1), k) for k in range(found.medium + 1)],
    }[dataset]
    return [(label, share, _noisy(found, k)) for label, share, k in parts]


def _noisy(found: Policies, k: int) -> Act:
    def act(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        action = found.act(k, state)
        return np.clip(action + NOISE * rng.standard_normal(len(action)), -1, 1)

    return act


def _episode(env: Any, act: Act, seed: int) -> dict[str, Any]:
    """Arrays of one episode: observations (t + 1, o) float64, actions (t, a) float32, and what each step gave."""
    rng = np.random.default_rng(seed)
    state, _ = env.reset(seed=seed)
    episode: dict[str, Any] = {key: [] for key in ("actions", "rewards", "terminations", "truncations")}
    infos: dict[str, list[float]] = {term: [] for term in d4rl_envs.TERMS}
    observations, over = [state], False
    while not over:
        action = np.asarray(act(state, rng), dtype=np.float32)
        state, reward, terminated, truncated, info = env.step(action)
        for key, value in zip(episode, (action, float(reward), terminated, truncated), strict=True):
            episode[key].append(value)
        for term, key in d4rl_envs.TERMS.items():
            infos[term].append(float(info.get(key, 0.0)))
        observations.append(state)
        over = terminated or truncated
    arrays = {key: np.asarray(value) for key, value in episode.items()}
    named = {d4rl_envs.TERMS[term]: np.asarray(values) for term, values in infos.items()}
    return {"observations": np.asarray(observations), **arrays, "infos": named, "seed": seed}


def _write(
    place: Path, env: str, dataset: str, episodes: list[dict[str, Any]], shift: Mapping[str, float] | None
) -> None:
    """All of the data set or nothing: Minari writes it beside, and it is moved to its place as one folder."""
    import gymnasium
    from minari import create_dataset_from_buffers
    from minari.data_collector import EpisodeBuffer

    known = ENVIRONMENTS[env]
    beside = Path(tempfile.mkdtemp(dir=place.parent, prefix=".making-"))
    changed = ", ".join(f"{key} x {factor}" for key, factor in (shift or {}).items() if factor != 1)
    try:
        with minari_at(beside), d4rl_envs.quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no e-mail address of an author
            create_dataset_from_buffers(
                dataset_id=f"lrx/{env}/{dataset}-v0",
                buffer=[EpisodeBuffer(id=number, **episode) for number, episode in enumerate(episodes)],
                env=gymnasium.spec(known.id),
                algorithm_name="uniform actions" if dataset == "random" else "Augmented Random Search V2-t",
                author="lrx",
                ref_min_score=known.ref_min,
                ref_max_score=known.ref_max,
                description="Made by lrx.data.d4rl_build, not D4RL's data. Dynamics: " + (changed or "as they are"),
                data_format="hdf5",
            )
        shutil.rmtree(place, ignore_errors=True)  # what is left of a damaged one
        os.replace(beside, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def minari_at(folder: Path) -> Iterator[None]:
    """With Minari's own store at ``folder``; it reads the place from the environment alone."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
