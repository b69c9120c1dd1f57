"""Gymnasium's MuJoCo environments as D4RL's tasks use them: made quietly, with changed dynamics, rolled out together.

Dynamics shift multiplies ``gravity`` (model.opt.gravity), ``friction`` (sliding friction of every geom) and
``thickness`` (radius of the thighs' capsules; masses and inertias are computed anew from the new shape).
gymnasium and mujoco are imported when an environment is made.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lrx.data.d4rl_reference import ENVIRONMENTS, HORIZON
from lrx.errors import UserError, did_you_mean

SHIFTS = ("gravity", "friction", "thickness")
# A term of the reward -> its key in the information of a step. What an environment does not report is 0.
TERMS = {"forward": "reward_forward", "control": "reward_ctrl", "alive": "reward_survive", "contact": "reward_contact"}


def check_shift(shift: Mapping[str, float] | None) -> None:
    """Raise ``UserError`` for a change of the dynamics that there is not."""
    for key, factor in (shift or {}).items():
        if key not in SHIFTS:
            raise UserError(f"task.shift.{key}: no such change of the dynamics; {did_you_mean(key, SHIFTS)}")
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 100:
            raise UserError(f"task.shift.{key}={factor}: a factor above 0 (1: as it is) is needed")


def make(name: str, shift: Mapping[str, float] | None = None, horizon: int | None = HORIZON) -> Any:
    """The environment, by its short name. ``horizon``: steps after which an episode is cut; None: never."""
    import gymnasium

    known = ENVIRONMENTS[name]
    changed = {key: float(factor) for key, factor in (shift or {}).items() if factor != 1}
    with quiet():
        options: dict[str, Any] = {"disable_env_checker": True}
        if horizon is not None:
            options["max_episode_steps"] = horizon
        if "thickness" in changed:
            plain = gymnasium.make(known.id, **options)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "shifted.xml"
                path.write_text(_thickened(plain.unwrapped.fullpath, known.thigh, changed["thickness"]))  # type: ignore[attr-defined]
                plain.close()
                env = gymnasium.make(known.id, xml_file=str(path), **options)
        else:
            env = gymnasium.make(known.id, **options)
    model = env.unwrapped.model  # type: ignore[attr-defined]
    model.opt.gravity[:] *= changed.get("gravity", 1.0)
    model.geom_friction[:, 0] *= changed.get("friction", 1.0)
    return env if horizon is not None else env.unwrapped


def _thickened(path: str, thigh: str, factor: float) -> str:
    import mujoco

    spec = mujoco.MjSpec.from_file(path)
    for geom in spec.geoms:
        if thigh in geom.name:
            geom.size[0] *= factor
    spec.compile()
    return str(spec.to_xml())


@contextmanager
def quiet() -> Iterator[None]:
    """Without MuJoCo 4's warnings about Gymnasium's files, which go to the terminal and to a file in the folder."""
    import mujoco

    log = getattr(mujoco, "MjLogConfig", None)  # MuJoCo 3 has none, nor these warnings
    if log is None:
        yield
        return
    before, silent = log.get(), log.get()
    silent.logto_console = silent.logto_file = False
    silent.set()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "compiler attribute", UserWarning)
            yield
    finally:
        before.set()


class Episodes:
    """What n episodes gave: ``returns``, ``lengths``, ``costs`` (steps faster than the limit), ``terms``, each (n,)."""

    def __init__(self, n: int) -> None:
        self.returns, self.lengths, self.costs = np.zeros(n), np.zeros(n), np.zeros(n)
        self.terms = {term: np.zeros(n) for term in TERMS}


def rollout(
    envs: Sequence[Any],
    seeds: Sequence[int],
    act: Callable[[int, np.ndarray, np.ndarray], np.ndarray],
    costly: Callable[[np.ndarray], float] | None = None,
) -> Episodes:
    """One episode in each environment, all in the same step.

    ``act(step, live, observations)``: ``live`` (n,) bool and observations (n, o) float64 (of an episode that has ended,
    its last) -> actions (n, a), cut to [-1, 1]. ``costly``: what the state
    (o,) after a step costs. An environment whose
    episode has ended is not stepped again: Gymnasium's own vector environments would go on with another episode.
    """
    observations = np.stack([env.reset(seed=int(seed))[0] for env, seed in zip(envs, seeds, strict=True)])
    found, live, step = Episodes(len(envs)), np.ones(len(envs), dtype=bool), 0
    while live.any():
        actions = np.clip(act(step, live, observations), -1, 1)
        for i in np.flatnonzero(live).tolist():
            observations[i], reward, terminated, truncated, info = envs[i].step(actions[i])
            found.returns[i] += reward
            found.lengths[i] += 1
            found.costs[i] += 0.0 if costly is None else costly(observations[i])
            for term, key in TERMS.items():
                found.terms[term][i] += info.get(key, 0.0)
            live[i] = not (terminated or truncated)
        step += 1
    return found
