"""D4RL's environments and reference returns (Fu et al. 2020, arXiv 2004.07219), and the normalised score made of them.

The pairs are those of ``infos.py`` in the package d4rl 1.1 (REF_MIN_SCORE, REF_MAX_SCORE), one per environment and the
same for all its data sets: the return of a random policy and of an expert (SAC, trained until it no longer improved).

    normalised(R) = 100 (R - ref_min) / (ref_max - ref_min),   R the undiscounted return of an episode

Scores below 0 and above 100 are left as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Environment:
    """A MuJoCo environment of Gymnasium; actions lie in [-1, 1] in all of them.

    ``states``, ``actions``: sizes of what is observed and done. ``speed``: where in an observation the forward speed is
    (m/s). ``thigh``: what the names of its thigh capsules contain.
    """

    id: str
    states: int
    actions: int
    ref_min: float
    ref_max: float
    speed: int
    thigh: str


ENVIRONMENTS = {
    "hopper": Environment("Hopper-v5", 11, 3, -20.272305, 3234.3, 5, "thigh"),
    "halfcheetah": Environment("HalfCheetah-v5", 17, 6, -280.178953, 12135.0, 8, "thigh"),
    "walker2d": Environment("Walker2d-v5", 17, 6, 1.629008, 4592.3, 8, "thigh"),
    "ant": Environment("Ant-v5", 105, 8, -325.6, 3879.7, 13, "leg_geom"),
}
# Of D4RL, but not to be rolled out with gymnasium[mujoco] alone.
ELSEWHERE = ("antmaze", "maze2d", "kitchen", "pen", "hammer", "door", "relocate", "carla", "flow", "minigrid", "bullet")
DATASETS = ("random", "medium", "expert", "medium_expert", "medium_replay")
HORIZON = 1000  # steps of an episode at most


def normalised(env: str, returns: np.ndarray) -> np.ndarray:
    """Undiscounted returns (n,) -> normalised scores (n,) float64 in per cent."""
    low, high = ENVIRONMENTS[env].ref_min, ENVIRONMENTS[env].ref_max
    return 100.0 * (np.asarray(returns, dtype=np.float64) - low) / (high - low)
