"""Offline data sets in HDF5: Minari's layout, and D4RL's original one. Every irregularity is one ``UserError``.

Minari (``main_data.hdf5``): a group ``episode_<n>`` with ``observations`` (t + 1, o), ``actions`` (t, a), ``rewards``,
``terminations``, ``truncations`` (t,), and perhaps ``infos``. D4RL: one file with ``observations``, ``actions``,
``rewards``, ``terminals`` and in version 2 ``timeouts``, all of one length; as in ``d4rl.qlearning_dataset`` rows with
a time-out and the last row are left out, since the state after them is not recorded, and an episode is cut after 1,000
steps where there are no time-outs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from lrx.data.d4rl_reference import HORIZON, Environment
from lrx.errors import UserError

MINARI = ("observations", "actions", "rewards", "terminations", "truncations")
D4RL = ("observations", "actions", "rewards", "terminals")


@dataclass(frozen=True)
class Transitions:
    """n transitions in the order of their episodes.

    ``observations``, ``next_observations`` (n, o), ``actions`` (n, a) in [-1, 1], ``rewards``,
    ``terminals`` (n,): float32; a time-out is no terminal. ``episodes`` (n,) int64: the number of the episode.
    ``terms``: key of the reward's terms in the infos -> values (n,) float32, where the file has them.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminals: np.ndarray
    episodes: np.ndarray
    terms: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rewards)

    def take(self, chosen: np.ndarray) -> Transitions:
        """The transitions at ``chosen``: positions or a mask."""
        arrays = {each.name: getattr(self, each.name)[chosen] for each in fields(self) if each.name != "terms"}
        return Transitions(**arrays, terms={key: values[chosen] for key, values in self.terms.items()})

    def returns(self) -> np.ndarray:
        """Undiscounted returns (episodes,) float64, in the order of the episodes' numbers."""
        _, place = np.unique(self.episodes, return_inverse=True)
        return np.bincount(place, weights=self.rewards.astype(np.float64))


def joined(several: Iterable[Transitions]) -> Transitions:
    """All transitions of several sets; the episodes are numbered on."""
    parts, first = [], 0
    for each in several:
        parts.append(replace(each, episodes=each.episodes + first))
        first = int(parts[-1].episodes.max()) + 1
    names = [each.name for each in fields(Transitions) if each.name != "terms"]
    common = set.intersection(*(set(part.terms) for part in parts))
    return Transitions(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names},
        terms={key: np.concatenate([part.terms[key] for part in parts]) for key in sorted(common)},
    )


def file_of(folder: Path) -> Path:
    """The one HDF5 file that a path means: itself, a folder of Minari (with or without its ``data``), or of one file.

    Raises ``UserError`` where there is none, several, or Minari's other format.
    """
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise UserError(f"task.data_dir={folder}: no such file or folder")
    for path in (folder / "main_data.hdf5", folder / "data" / "main_data.hdf5"):
        if path.is_file():
            return path
    if any(folder.rglob("*.arrow")):
        raise UserError(f"{folder} is a Minari data set in the arrow format; write it with data_format='hdf5'")
    found = sorted(path for path in folder.rglob("*") if path.suffix in {".hdf5", ".h5"})
    if len(found) != 1:
        what = "no HDF5 file" if not found else f"{len(found)} HDF5 files"
        raise UserError(f"{folder} holds {what}; give the folder of one Minari data set, or one file of D4RL")
    return found[0]


def read(path: Path, env: Environment) -> Transitions:
    """The transitions of a file for ``env``. Raises ``UserError`` naming the file and what is wrong with it."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            names = sorted((name for name in file if _number(name) >= 0), key=_number)
            if names:
                found = joined(_episode(path, file[name], name, env) for name in names)
            elif "observations" in file:
                found = _flat(path, file, env)
            else:
                raise UserError(f"{path} holds no episodes and no observations: it is no data set of Minari or D4RL")
    except (OSError, RuntimeError, KeyError) as error:  # what h5py says of truncated and damaged files
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is truncated or damaged ({reason}); get it again") from None
    if not len(found):
        raise UserError(f"{path} holds no transition")
    return found


def _number(name: str) -> int:
    head, _, digits = name.partition("_")
    return int(digits) if head == "episode" and digits.isdecimal() else -1


def _episode(path: Path, group: Any, name: str, env: Environment) -> Transitions:
    where = f"{path}, {name}"
    arrays = _arrays(where, group, MINARI)
    steps = len(arrays["rewards"])
    for key, length in {"observations": steps + 1, "actions": steps, "terminations": steps}.items():
        if len(arrays[key]) != length:
            raise UserError(f"{where}: {len(arrays[key])} {key} for {steps} rewards; expected {length}")
    _fits(where, arrays, env)
    infos = group.get("infos", {})
    terms = {
        key: np.asarray(infos[key][-steps:], dtype=np.float32)
        for key in infos
        if key.startswith("reward_") and len(infos[key]) in (steps, steps + 1)
    }
    observations = arrays["observations"].astype(np.float32)
    return Transitions(
        observations[:-1],
        arrays["actions"].astype(np.float32),
        arrays["rewards"].astype(np.float32),
        observations[1:],
        arrays["terminations"].astype(np.float32),
        np.zeros(steps, dtype=np.int64),
        terms,
    )


def _flat(path: Path, file: Any, env: Environment) -> Transitions:
    arrays = _arrays(str(path), file, D4RL)
    n = len(arrays["rewards"])
    for key in D4RL:
        if len(arrays[key]) != n:
            raise UserError(f"{path}: {len(arrays[key])} {key} for {n} rewards")
    _fits(str(path), arrays, env)
    ends = arrays["terminals"].astype(bool)
    if "timeouts" in file:
        timeouts = np.asarray(file["timeouts"][()]).astype(bool)
        if len(timeouts) != n:
            raise UserError(f"{path}: {len(timeouts)} timeouts for {n} rewards")
    else:
        timeouts = _cut_after(ends, HORIZON)
    episodes = np.cumsum(np.r_[0, (ends | timeouts)[:-1]]).astype(np.int64)
    observations = arrays["observations"].astype(np.float32)
    found = Transitions(
        observations[:-1],
        arrays["actions"][:-1].astype(np.float32),
        arrays["rewards"][:-1].astype(np.float32),
        observations[1:],
        ends[:-1].astype(np.float32),
        episodes[:-1],
    )
    return found.take(~timeouts[:-1])


def _cut_after(ends: np.ndarray, horizon: int) -> np.ndarray:
    """Where an episode of ``horizon`` steps is over without having ended."""
    cut, length = np.zeros(len(ends), dtype=bool), 0
    for step, ended in enumerate(ends):
        length += 1
        cut[step] = length == horizon and not ended
        if ended or cut[step]:
            length = 0
    return cut


def _arrays(where: str, group: Any, keys: Iterable[str]) -> dict[str, np.ndarray]:
    if missing := [key for key in keys if key not in group]:
        raise UserError(f"{where} lacks {', '.join(missing)}")
    arrays = {}
    for key in keys:
        if not hasattr(group[key], "dtype"):
            raise UserError(f"{where}: {key} is a group of arrays; data sets with one array of each are read")
        arrays[key] = np.asarray(group[key][()])
    if not len(arrays["rewards"]):
        raise UserError(f"{where} is empty")
    return arrays


def _fits(where: str, arrays: Mapping[str, np.ndarray], env: Environment) -> None:
    for key, size in {"observations": env.states, "actions": env.actions}.items():
        shape = arrays[key].shape
        if len(shape) != 2 or shape[1] != size:
            has = f"{shape[1]} numbers" if len(shape) == 2 else f"shape {shape[1:]}"
            raise UserError(f"{where}: {key} of {has} each; {env.id} has {size}")
    for key in ("observations", "actions", "rewards"):
        if arrays[key].dtype.kind not in "fiu":
            raise UserError(f"{where}: {key} are no numbers ({arrays[key].dtype})")
        bad = ~np.isfinite(arrays[key]).reshape(len(arrays[key]), -1).all(axis=1)
        if bad.any():
            raise UserError(
                f"{where}: {int(bad.sum())} {key} are NaN or infinite, the first at step {int(bad.argmax())}"
            )
