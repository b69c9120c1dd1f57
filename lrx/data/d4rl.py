"""D4RL's locomotion tasks as data: what a configuration asks for, whether it can be had, and reading or making it.

``check`` and ``digest`` are what the command line calls before anything heavy is imported. All take the ``task``
section of a configuration with the defaults of ``lrx.tasks.d4rl.D4RL`` for what it leaves out.

``embedded``: made on the spot (``lrx.data.d4rl_build``), not D4RL's own data. ``local``: a Minari data set or a file of
D4RL. ``hub``: Minari's ``mujoco/<environment>/<medium|expert>-v0``, which are not D4RL's own data either.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrx.data import d4rl_build, d4rl_envs, hub
from lrx.data.d4rl_files import Transitions, file_of, read
from lrx.data.d4rl_policies import STEPS
from lrx.data.d4rl_reference import DATASETS, ELSEWHERE, ENVIRONMENTS, Environment, normalised
from lrx.data.embedded import cache_dir
from lrx.data.splits import rank
from lrx.errors import UserError, did_you_mean

SOURCES = ("embedded", "local", "hub")
PACKAGES = {"gymnasium": "gymnasium[mujoco]", "mujoco": "gymnasium[mujoco]", "minari": "minari", "h5py": "h5py"}
ON_THE_HUB = ("medium", "expert")
DEFAULTS: dict[str, Any] = {
    "source": "embedded", "data_dir": None, "data_seed": 0, "policy_steps": None, "build_size": 20_000,
    "shift": None, "objective": None, "speed_limit": None, "extra": [], "trajectories": None, "limit": None,
    "holdout": 0.1, "select_limit": 2000, "standardise": False, "reward_scale": 1.0, "episodes": 10, "parallel": 10,
    "eval_seed": 0, "batch_size": 256, "track": False,
}  # fmt: skip
_AT_LEAST = {
    "batch_size": 1, "build_size": 100, "data_seed": 0, "episodes": 2, "eval_seed": 0, "limit": 1, "parallel": 1,
    "policy_steps": 1, "select_limit": 1, "trajectories": 1,
}  # fmt: skip


def environment(task: Mapping[str, Any]) -> Environment:
    """The environment that a configuration asks for. Raises ``UserError`` for one that there is not."""
    name = str(task.get("env"))
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]
    if name.partition("-")[0].partition("_")[0] in ELSEWHERE:
        raise UserError(
            f"task.env={name}: of D4RL, but its environment is not in gymnasium[mujoco]; there are "
            f"{', '.join(ENVIRONMENTS)}"
        )
    raise UserError(f"task.env={name}: no such environment; {did_you_mean(name, ENVIRONMENTS)}")


def check(task: Mapping[str, Any], mode: str = "train") -> None:
    """Look at the options and for files and packages; nothing is made. Raises ``UserError``."""
    task = {**DEFAULTS, **task}
    environment(task)
    for name in (task.get("dataset"), *task["extra"], task["standardise"]):
        if isinstance(name, bool):
            continue
        if name not in DATASETS:
            raise UserError(f"task.dataset={name}: no such data set; {did_you_mean(str(name), DATASETS)}")
        if task["source"] == "hub" and name not in ON_THE_HUB:
            raise UserError(
                f"task.dataset={name}: Minari's hub has {' and '.join(ON_THE_HUB)} alone; task.source=local"
            )
    _check_options(task)
    for module, package in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            raise UserError(f"task=d4rl needs the package {package}: pip install 'lrx[rl]'")
    if task["source"] == "local":
        file_of(_given(task))
    elif task["source"] == "hub" and not _downloaded(task).is_dir() and (problem := hub.unreachable()):
        raise UserError(
            f"task.source=hub: cannot get {_hub_id(task, task['dataset'])} ({problem}); connect, or use "
            "task.source=local task.data_dir=<Minari data set> or task.source=embedded"
        )


def _check_options(task: Mapping[str, Any]) -> None:
    if task["source"] not in SOURCES:
        raise UserError(f"task.source={task['source']}: {did_you_mean(str(task['source']), SOURCES)}")
    for key, least in _AT_LEAST.items():
        value = task.get(key)
        if value is not None and value < least:
            raise UserError(f"task.{key}={value}: must be at least {least}")
    if not 0 <= task["holdout"] < 1:
        raise UserError(f"task.holdout={task['holdout']}: a share of the trajectories, from 0 to below 1")
    scale = task["reward_scale"]
    if scale != "return_range" and (isinstance(scale, str) or not scale > 0):
        raise UserError(f"task.reward_scale={scale}: a factor above 0, or return_range")
    d4rl_envs.check_shift(task["shift"])
    for term in task["objective"] or ():
        if term not in d4rl_envs.TERMS:
            raise UserError(f"task.objective.{term}: no such term; {did_you_mean(term, d4rl_envs.TERMS)}")
    if task["source"] != "local" and task["data_dir"]:
        raise UserError(f"task.data_dir is read only with task.source=local (it is {task['source']})")
    if task["source"] == "local" and (task["extra"] or isinstance(task["standardise"], str)):
        raise UserError("task.extra and a data set's name in task.standardise need task.source=embedded or hub")


def _given(task: Mapping[str, Any]) -> Path:
    if not task["data_dir"]:
        raise UserError("task.source=local needs task.data_dir=<a Minari data set, or an HDF5 file of D4RL>")
    return Path(str(task["data_dir"])).expanduser()


def _hub_id(task: Mapping[str, Any], dataset: str) -> str:
    return f"mujoco/{task['env']}/{dataset}-v0"


def _downloaded(task: Mapping[str, Any], dataset: str | None = None) -> Path:
    return cache_dir() / "minari-hub" / _hub_id(task, dataset or task["dataset"]) / "data"


def digest(task: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over what a run reads: of data made on the spot its recipe, of a local file its content."""
    task = {**DEFAULTS, **task}
    source = task["source"]
    total = hashlib.sha256(f"d4rl {source} {task['env']}".encode())
    if source == "local":
        with file_of(_given(task)).open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
        return total.hexdigest()
    standard = task["standardise"]
    for name in (task["dataset"], *task["extra"], *([standard] if isinstance(standard, str) else [])):
        if source == "hub":
            total.update(_hub_id(task, name).encode())
        else:
            total.update(d4rl_build.recipe(task["env"], name, task["shift"], *_sizes(task)).encode())
    return total.hexdigest()


def _sizes(task: Mapping[str, Any]) -> tuple[int, int, int]:
    return task["policy_steps"] or STEPS[task["env"]], task["build_size"], task["data_seed"]


def load(task: Mapping[str, Any], dataset: str | None = None, *, shifted: bool = True) -> Transitions:
    """All transitions of ``dataset`` (None: the task's own) as they are: not standardised, rewards and actions as such.

    ``shifted=False``: under the environment's own dynamics, whatever ``task.shift`` says. Of ``task`` only ``env`` is
    needed beside ``dataset``. Made or downloaded first where it has to be; a local file is the task's own data set.
    """
    task = {**DEFAULTS, **task}
    env, name = environment(task), dataset or str(task["dataset"])
    if task["source"] == "local":
        return read(file_of(_given(task)), env)
    if task["source"] == "hub":
        return read(file_of(_fetched(task, name)), env)
    shift = task["shift"] if shifted else None
    return read(file_of(d4rl_build.built(task["env"], name, shift, *_sizes(task))), env)


def _fetched(task: Mapping[str, Any], dataset: str) -> Path:
    place = _downloaded(task, dataset)
    if place.is_dir():
        return place
    import minari

    try:
        with d4rl_build.minari_at(cache_dir() / "minari-hub"):
            minari.download_dataset(_hub_id(task, dataset))
    except Exception as error:  # of several libraries
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"task.source=hub: cannot get {_hub_id(task, dataset)} ({reason})") from None
    return place


def splits(task: Mapping[str, Any]) -> dict[str, Transitions]:
    """``train`` and ``select`` of the task: whole trajectories, drawn by a hash of their number, rewards as asked for.

    ``trajectories`` of what is left after ``holdout`` are kept, then ``limit`` transitions.
    """
    task = {**DEFAULTS, **task}
    whole = load(task)
    numbers = sorted(np.unique(whole.episodes), key=lambda number: rank("d4rl", int(number)))
    held = numbers[: max(1, round(task["holdout"] * len(numbers)))] if task["holdout"] else []
    kept = numbers[len(held) :]
    if task["trajectories"] is not None:
        if task["trajectories"] > len(kept):
            raise UserError(f"task.trajectories={task['trajectories']}: the data has {len(kept)} beside those held out")
        kept = kept[: task["trajectories"]]
    if not len(kept):
        raise UserError(f"task.holdout={task['holdout']} leaves no trajectory of {len(numbers)} to train on")
    train, select = (whole.take(np.isin(whole.episodes, chosen)) for chosen in (kept, held))
    train = train.take(np.arange(min(len(train), task["limit"] or len(train))))
    positions = sorted(range(len(select)), key=lambda i: rank("select", i))[: task["select_limit"]]
    return {"train": train, "select": select.take(np.asarray(sorted(positions), dtype=np.int64))}


def further(task: Mapping[str, Any]) -> list[Transitions]:
    """The data sets of ``task.extra``, whole."""
    return [load(task, name) for name in task["extra"]]


def rewards(task: Mapping[str, Any], data: Transitions) -> np.ndarray:
    """Rewards (n,) float32 as ``task.objective`` weighs their terms, scaled by ``task.reward_scale``.

    ``return_range``: 1000 / (largest - smallest return), as IQL scales locomotion.
    """
    found = data.rewards
    if task["objective"]:
        found = np.zeros_like(data.rewards)
        for term, weight in task["objective"].items():
            key = d4rl_envs.TERMS[term]
            if key not in data.terms:
                raise UserError(f"task.objective.{term}: the data has no {key} in its infos")
            found = found + np.float32(weight) * data.terms[key]
    if task["reward_scale"] == "return_range":
        _, place = np.unique(data.episodes, return_inverse=True)
        totals = np.bincount(place, weights=found.astype(np.float64))
        return (found * np.float32(1000.0 / max(float(np.ptp(totals)), 1e-6))).astype(np.float32)
    return (found * np.float32(task["reward_scale"])).astype(np.float32)


def costs(task: Mapping[str, Any], states: np.ndarray) -> np.ndarray:
    """(n,) float32: 1 where the state after a step (n, o) is faster than ``task.speed_limit``, else 0."""
    if task["speed_limit"] is None:
        return np.zeros(len(states), dtype=np.float32)
    return (states[:, environment(task).speed] > task["speed_limit"]).astype(np.float32)


def statistics(task: Mapping[str, Any], train: Transitions) -> tuple[np.ndarray, np.ndarray]:
    """(mean, std + 0.001) of observations (o,) float32 as ``task.standardise`` says; (0, 1) where it is false.

    A data set's name: of that one, under the environment's own dynamics, so that runs on other data share them.
    """
    chosen = {**DEFAULTS, **task}["standardise"]
    if chosen is False:
        size = train.observations.shape[1]
        return np.zeros(size, dtype=np.float32), np.ones(size, dtype=np.float32)
    states = (train if chosen is True else load(task, chosen, shifted=False)).observations.astype(np.float64)
    return states.mean(axis=0).astype(np.float32), (states.std(axis=0) + 1e-3).astype(np.float32)


def describe() -> list[str]:
    """A line per environment for ``lrx info``."""
    return [
        f"{name}: {each.id}, {each.states} -> {each.actions}; {', '.join(DATASETS)}; normalised score of rollouts"
        for name, each in ENVIRONMENTS.items()
    ]


def table(task: Mapping[str, Any]) -> list[str]:
    """What the data sets of an environment are worth: a line of each kind, made first where it has to be."""
    lines = [f"{'data set':<14} transitions  episodes  normalised score: mean, standard deviation"]
    for name in DATASETS:
        data = load(task, name)
        scores = normalised(task["env"], data.returns())
        lines.append(f"{name:<14} {len(data):>11}  {len(scores):>8}  {scores.mean():.1f}, {scores.std():.1f}")
    return lines


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "hopper"
    try:
        environment({"env": chosen})
        print("\n".join(table({"env": chosen})))
    except UserError as error:
        sys.exit(str(error))
