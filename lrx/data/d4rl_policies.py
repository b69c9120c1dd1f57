"""Policies for data that is made on the spot: Augmented Random Search, V2-t (Mania, Guy, Recht 2018, arXiv 1803.07055).

A linear policy on standardised observations; n, a, o: directions, actions, observations.

    a = clip(M (s - mean) / std, -1, 1),   M (a, o)
    r(k, +-) = return with M +- noise D_k,   D_k (a, o) of independent N(0, 1),  k = 1..n
    M <- M + rate / (top sigma) sum over the ``top`` directions with the largest max(r(k, +), r(k, -)) of
             (r(k, +) - r(k, -)) D_k                                              (Algorithm 2)

sigma is the standard deviation of those 2 ``top`` returns, mean and std are over all states met before the update. In
environments that pay for staying alive the bonus is left out of the returns during the search, as in the paper (A.3).
Departure: every ``every`` updates the policy itself is rolled out in three episodes; these evaluations choose what the
data calls ``medium`` and ``expert``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrx.data import d4rl_envs
from lrx.data.d4rl_reference import HORIZON
from lrx.data.store import stored


@dataclass(frozen=True)
class Search:
    """``directions``, ``top``, ``rate``, ``noise``: of the updates; ``bonus``: of a step, left out of the returns."""

    directions: int
    top: int
    rate: float
    noise: float
    bonus: float


# Directions, rates and noises among those of the paper's appendix (Table 9), the same for every change of dynamics.
SEARCHES = {
    "hopper": Search(8, 4, 0.02, 0.03, 1.0),
    "halfcheetah": Search(16, 8, 0.02, 0.03, 0.0),
    "walker2d": Search(40, 30, 0.03, 0.025, 1.0),
    "ant": Search(60, 20, 0.015, 0.025, 1.0),
}
# Environment steps of a search: minutes on one core. Hopper learns in them; docs/d4rl.md has the returns.
STEPS = {"hopper": 600_000, "halfcheetah": 1_000_000, "walker2d": 1_000_000, "ant": 1_000_000}
EVERY = 10  # updates between two evaluations
JUDGED_BY = 3  # episodes of an evaluation
MEDIUM = 1 / 3  # of the way from the first policy's return to the best one's: D4RL's "about a third of the expert's"


@dataclass(frozen=True)
class Policies:
    """Checkpoints of a search in order: ``weights`` (k, a, o), ``offsets`` (k, a), mean ``returns`` (k,), ``steps``."""

    weights: np.ndarray
    offsets: np.ndarray
    returns: np.ndarray
    steps: np.ndarray

    @property
    def expert(self) -> int:
        """The checkpoint with the best return."""
        return int(np.argmax(self.returns))

    @property
    def medium(self) -> int:
        """The first checkpoint that is a third of the way to the best one's return."""
        first, best = self.returns[0], self.returns[self.expert]
        return int(np.argmax(self.returns >= first + MEDIUM * (best - first)))

    def act(self, k: int, observation: np.ndarray) -> np.ndarray:
        """Actions (a,) in [-1, 1] of checkpoint k for an observation (o,)."""
        return np.clip(self.weights[k] @ observation + self.offsets[k], -1, 1)


def policies(env: str, shift: Mapping[str, float] | None, steps: int, seed: int, root: Path | None = None) -> Policies:
    """The checkpoints of a search of ``steps`` environment steps, from the cache once it has been made."""
    search = SEARCHES[env]
    key = ("ars", env, sorted((shift or {}).items()), steps, seed, search, EVERY, JUDGED_BY)
    return Policies(**stored("d4rl-policies", key, lambda: _search(env, shift, steps, seed), root))


def _search(name: str, shift: Mapping[str, float] | None, steps: int, seed: int) -> dict[str, np.ndarray]:
    print(f"note: d4rl: searching for policies of {name}, {steps:,} steps; once, then from the cache", flush=True)
    search, env, rng = SEARCHES[name], d4rl_envs.make(name, shift, horizon=None), np.random.default_rng(seed)
    seen = Moments(env.observation_space.shape[0])
    m = np.zeros((env.action_space.shape[0], env.observation_space.shape[0]))
    found: dict[str, list[Any]] = {"weights": [], "offsets": [], "returns": [], "steps": []}
    taken, update = 0, 0
    while True:
        if update % EVERY == 0 or taken >= steps:
            weights, offset = seen.folded(m)
            judged = [_episode(env, weights, offset, 10**6 + i, 0.0)[0] for i in range(JUDGED_BY)]
            for key, value in zip(found, (weights, offset, np.mean(judged), taken), strict=True):
                found[key].append(value)
        if taken >= steps:
            env.close()
            return {key: np.asarray(value) for key, value in found.items()}
        directions = rng.standard_normal((search.directions, *m.shape))
        returns, met = np.empty((search.directions, 2)), []
        for k, side in np.ndindex(returns.shape):
            perturbed = m + (1, -1)[side] * search.noise * directions[k]
            episode = _episode(env, *seen.folded(perturbed), int(rng.integers(2**31)), search.bonus)
            returns[k, side] = episode[0]
            met.append(episode[1])
        best = np.argsort(-returns.max(axis=1), kind="stable")[: search.top]
        ascent = np.tensordot(returns[best, 0] - returns[best, 1], directions[best], axes=1)
        m = m + search.rate / (search.top * (returns[best].std() + 1e-8)) * ascent  # Algorithm 2, line 7
        for states in met:
            seen.add(states)
            taken += len(states)
        update += 1


def _episode(env: Any, weights: np.ndarray, offset: np.ndarray, seed: int, bonus: float) -> tuple[float, np.ndarray]:
    """(return less ``bonus`` per step, states met (t, o)) of one episode."""
    state, _ = env.reset(seed=seed)
    total, states = 0.0, np.empty((HORIZON, len(state)))
    for t in range(HORIZON):
        states[t] = state
        state, reward, terminated, _, _ = env.step(np.clip(weights @ state + offset, -1, 1))
        total += float(reward) - bonus
        if terminated:
            break
    return total, states[: t + 1]


class Moments:
    """Running mean and standard deviation of states (o,), by Chan's update for whole episodes."""

    def __init__(self, size: int) -> None:
        self.count, self.mean, self.squares = 0, np.zeros(size), np.zeros(size)

    def add(self, states: np.ndarray) -> None:
        """Take in states (t, o)."""
        n, mean = len(states), states.mean(axis=0)
        delta, total = mean - self.mean, self.count + len(states)
        self.squares += ((states - mean) ** 2).sum(axis=0) + delta**2 * self.count * n / total
        self.mean += delta * n / total
        self.count = total

    def folded(self, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """M (a, o) on standardised states as (weights, offset) on states as they are; a constant one is ignored."""
        if not self.count:
            return m, np.zeros(len(m))
        std = np.sqrt(self.squares / self.count)
        weights = m / np.where(std < 1e-7, np.inf, std)
        return weights, -weights @ self.mean
