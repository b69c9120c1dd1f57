"""D4RL's locomotion tasks (Fu et al. 2020, arXiv 2004.07219): policies from fixed data, scored by rolling them out.

Trained on transitions of a data set; the reported split ``rollouts`` are episodes of 1,000 steps at most in Gymnasium's
MuJoCo environments (version 5; D4RL's numbers are of version 2, whose contact forces and rewards differ a little).
``normalised``: 100 (mean undiscounted return - ref_min) / (ref_max - ref_min), D4RL's reference returns;
``normalised_low`` and ``normalised_high``: its 95% interval over the episodes (Student's t). Models are not chosen by
rollouts, since offline learning has no environment: the recipes report the last step, as D4RL's protocol does, and
``select`` are held-out trajectories, measured by the squared error of the action (with fixed noise).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lrx import warm
from lrx.data import d4rl, d4rl_envs
from lrx.data.d4rl_files import Transitions
from lrx.data.d4rl_reference import normalised
from lrx.data.loader import Batches, EpochBatches, Positions, ResumableLoader, evaluation_loader
from lrx.errors import UserError
from lrx.models.base import Backbone, Inputs, Outputs
from lrx.seeds import derive
from lrx.tasks.base import Suite, Task

SELECT_BATCH = 500
COLUMNS = ("return", "length", "cost", "objective")


class D4RL(Suite):
    """One environment and data set.

    Arguments:
        env: hopper, halfcheetah, walker2d, ant. dataset: random, medium, expert, medium_expert, medium_replay.
        source: ``embedded`` (made on the spot: not D4RL's data), ``local`` (``data_dir``: a Minari data set, or an HDF5
            file of D4RL) or ``hub`` (Minari's mujoco/<env>/<dataset>-v0: not D4RL's data either).
        data_seed, policy_steps, build_size: of embedded data: seed, environment steps of the search for policies (None:
            as ``lrx.data.d4rl_policies`` has them), transitions of a data set.
        shift: factors of ``gravity``, ``friction`` (of the ground and the body) and ``thickness`` (of the thighs), for
            embedded data and for rollouts.
        objective: weights of the reward's terms (forward, control, alive, contact) that make the training rewards, and
            whose mean return is reported as ``objective``; None: the environment's reward.
        speed_limit: m/s; a step that ends faster costs 1, and the episodes' mean cost is reported as ``cost``.
        extra: further data sets that are trained on too; of theirs nothing is held out.
        trajectories: of the data set that are kept; limit: transitions that are kept of those; None: all.
        holdout: share of the trajectories for ``select``, at most ``select_limit`` transitions; 0: no such split.
        standardise: observations by mean and standard deviation: false, true (of the training data), or of the data set
            of this name under the environment's own dynamics.
        reward_scale: a factor, or ``return_range``: 1000 / (largest - smallest return of the data).
        episodes: rolled out; parallel: at a time; eval_seed: of start states and the policy's noise.
        track: whether to roll out at every evaluation during training, for the curve.
    """

    name: ClassVar[str] = "d4rl"
    version: ClassVar[int] = 1
    named_by: ClassVar[str] = "env"

    def __init__(
        self,
        *,
        env: str,
        dataset: Literal["random", "medium", "expert", "medium_expert", "medium_replay"],
        source: Literal["embedded", "local", "hub"] = "embedded",
        data_dir: str | None = None,
        data_seed: int = 0,
        policy_steps: int | None = None,
        build_size: int = 20000,
        shift: dict[str, float] | None = None,
        objective: dict[str, float] | None = None,
        speed_limit: float | None = None,
        extra: list[str] | None = None,
        trajectories: int | None = None,
        limit: int | None = None,
        holdout: float = 0.1,
        select_limit: int = 2000,
        standardise: bool | str = False,
        reward_scale: float | str = 1.0,
        batch_size: int = 256,
        episodes: int = 10,
        parallel: int = 10,
        eval_seed: int = 0,
        track: bool = False,
    ) -> None:
        self.options: dict[str, Any] = {
            "env": env,
            "dataset": dataset,
            "source": source,
            "data_dir": data_dir,
            "data_seed": data_seed,
            "policy_steps": policy_steps,
            "build_size": build_size,
            "shift": shift,
            "objective": objective,
            "speed_limit": speed_limit,
            "extra": extra or [],
            "trajectories": trajectories,
            "limit": limit,
            "holdout": holdout,
            "select_limit": select_limit,
            "standardise": standardise,
            "reward_scale": reward_scale,
            "batch_size": batch_size,
            "episodes": episodes,
            "parallel": parallel,
            "eval_seed": eval_seed,
            "track": track,
        }

    def parts(self) -> list[Task]:
        """One part, called ``<env>-<dataset>``."""
        return [OfflineTask(self.options)]


class OfflineTask(Task):
    """One data set and its environment. Data is read, or made, when first needed."""

    primary = "normalised"
    selector = "action_error"
    higher_is_better: Mapping[str, bool] = {
        "normalised": True, "normalised_low": True, "normalised_high": True, "return": True, "length": True,
        "cost": False, "objective": True, "action_error": False,
    }  # fmt: skip

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.options = dict(options)
        self.environment = d4rl.environment(options)
        self.name = f"{options['env']}-{options['dataset']}"
        self.inputs = Inputs("state", features=self.environment.states)
        self.outputs = Outputs("actions", size=self.environment.actions)
        self.reported = ("rollouts",)
        self.notes: dict[str, float] = {}
        self._arrays: dict[str, dict[str, np.ndarray]] = {}
        self._statistics: tuple[np.ndarray, np.ndarray] | None = None
        self._seed = 0

    def bind(self, backbone: Backbone, seed: int) -> None:
        """Take over the seed of the order. Raises ``UserError`` for a model that is no policy."""
        if backbone.reads != "state":
            raise UserError(f"task d4rl/{self.name} needs a policy; this model is none (model=mlp_policy is)")
        self._seed = derive(seed, "data", self.name)

    def arrays(self, split: str) -> dict[str, np.ndarray]:
        """The columns of a batch for all of ``train`` or ``select``, by name; observations standardised."""
        if split not in self._arrays:
            loose = ("batch_size", "episodes", "parallel", "eval_seed", "track")
            key = ("d4rl", *(f"{key}={value}" for key, value in self.options.items() if key not in loose))
            self._arrays, self._statistics, self.notes = warm.keep(key, self._load)
        return self._arrays[split]

    def _load(self) -> tuple[dict[str, dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray], dict[str, float]]:
        found = d4rl.splits(self.options)
        mean, std = d4rl.statistics(self.options, found["train"])
        more = d4rl.further(self.options)
        parts = [self._columns(each, mean, std, number) for number, each in enumerate([found["train"], *more])]
        train = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        returns = found["train"].returns()
        notes = {
            "train.trajectories": float(len(returns)),
            "train.mean_return": float(returns.mean()),
            "train.normalised": float(normalised(self.options["env"], returns).mean()),
        }
        own = {"embedded": "self-generated, not D4RL's", "hub": "Minari's, not D4RL's"}
        if what := own.get(self.options["source"]):
            notes[f"data.{what}"] = 1.0
        return {"train": train, "select": self._columns(found["select"], mean, std, 0)}, (mean, std), notes

    def _columns(self, data: Transitions, mean: np.ndarray, std: np.ndarray, number: int) -> dict[str, np.ndarray]:
        return {
            "observations": (data.observations - mean) / std,
            "actions": np.clip(data.actions, -1, 1),
            "rewards": d4rl.rewards(self.options, data),
            "next_observations": (data.next_observations - mean) / std,
            "terminals": data.terminals,
            "costs": d4rl.costs(self.options, data.next_observations),
            "dataset": np.full(len(data), number, dtype=np.int64),
        }

    @property
    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (o,) float32 that observations are standardised by."""
        self.arrays("train")
        assert self._statistics is not None
        return self._statistics

    def size(self, split: str) -> int:
        """Transitions of ``train`` and ``select``, episodes of ``rollouts``."""
        return self.options["episodes"] if split == "rollouts" else len(self.arrays(split)["rewards"])

    def train_dataloader(self) -> DataLoader:  # type: ignore[override]
        columns = self.arrays("train")
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        order = EpochBatches(len(columns["rewards"]), self.options["batch_size"], self._seed, rank, world)
        return ResumableLoader(Positions(len(columns["rewards"]), Collate(columns)), order)

    def eval_dataloader(self, split: str) -> DataLoader:
        """Every held-out transition, or the numbers of the episodes to roll out, once."""
        columns = {} if split == "rollouts" else self.arrays(split)
        size = self.options["parallel"] if split == "rollouts" else SELECT_BATCH
        count = self.size(split)
        return evaluation_loader(Positions(count, Collate(columns)), Batches([1] * count, size))

    def loss(self, backbone: Backbone, batch: dict[str, Any]) -> Tensor:
        """The policy's own loss: behaviour cloning."""
        loss = backbone.loss(batch)
        assert loss is not None
        return loss

    def infer(self, backbone: Backbone, batch: dict[str, Any]) -> np.ndarray:
        """Of ``select`` squared errors (batch,) of the action; of ``rollouts`` (batch, 4): return, length, cost, ..."""
        if "actions" in batch:
            generator = torch.Generator().manual_seed(derive(self.options["eval_seed"], int(batch["index"][0])))
            errors = backbone.act(batch["observations"], generator) - batch["actions"]
            return errors.square().mean(dim=-1).double().cpu().numpy()
        return self._roll_out(backbone, batch["index"].cpu().numpy())

    @torch.no_grad()
    def _roll_out(self, backbone: Backbone, numbers: np.ndarray) -> np.ndarray:
        """Always acts for all ``episodes`` rows, an episode in the row of its number, whatever runs beside it.

        So an episode's noise, and the last digit of its actions, do not depend on ``parallel``.
        """
        options, seed = self.options, self.options["eval_seed"]
        device = next(backbone.parameters()).device
        mean, std = self.statistics
        rows = torch.zeros(options["episodes"], self.environment.states)

        def act(step: int, live: np.ndarray, states: np.ndarray) -> np.ndarray:
            rows[numbers] = torch.from_numpy(((states.astype(np.float32) - mean) / std).astype(np.float32))
            generator = torch.Generator().manual_seed(derive(seed, "noise", step))
            return backbone.act(rows.to(device), generator).double().cpu().numpy()[numbers]

        envs = [d4rl_envs.make(options["env"], options["shift"]) for _ in numbers]
        try:
            found = d4rl_envs.rollout(
                envs, self._starts()[numbers].tolist(), act, lambda state: float(d4rl.costs(options, state[None])[0])
            )
        finally:
            for env in envs:
                env.close()
        weights = options["objective"] or {}
        objective = sum((weight * found.terms[term] for term, weight in weights.items()), np.zeros(len(numbers)))
        return np.stack([found.returns, found.lengths, found.costs, objective], axis=1)

    def _starts(self) -> np.ndarray:
        """Seeds (episodes,) of the start states, the same for every run and method."""
        seed = self.options["eval_seed"]
        return np.asarray([derive(seed, "start", number) % 2**31 for number in range(self.options["episodes"])])

    def references(self, split: str) -> np.ndarray | None:
        """Of ``rollouts`` the seeds of the start states, so that tables compare equal episodes; of ``select`` zeros."""
        return self._starts() if split == "rollouts" else np.zeros(self.size(split))

    def item_scores(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """What each episode gave, by metric (n,)."""
        found = {"normalised": normalised(self.options["env"], predictions[:, 0])}
        return found | {metric: predictions[:, COLUMNS.index(metric)] for metric in self._metrics()}

    def _metrics(self) -> list[str]:
        asked = {"cost": self.options["speed_limit"] is not None, "objective": bool(self.options["objective"])}
        return [metric for metric in COLUMNS if asked.get(metric, True)]

    def score(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """Means over the episodes, in float64, and the interval of the normalised score."""
        from scipy.stats import t

        items = self.item_scores(predictions, references)
        scores, n = items["normalised"], len(predictions)
        half = float(t.ppf(0.975, n - 1) * scores.std(ddof=1) / np.sqrt(n))
        mean = float(scores.mean())
        interval = {"normalised_low": mean - half, "normalised_high": mean + half}
        return {"normalised": mean, **interval, **{key: float(items[key].mean()) for key in self._metrics()}}

    def measure(self, split: str, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """``select`` by the mean squared error of the action, the others by ``score``."""
        if split == "select":
            return {"action_error": float(predictions.mean())}
        return self.score(predictions, references)

    def tracked(self) -> Sequence[str]:
        """Nothing unless ``track``: rolling out costs more than training."""
        return self.reported if self.options["track"] else ()


class Collate:
    """Positions -> a batch of the columns (batch, ...) and ``index`` (batch,) int64."""

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        self.columns = columns

    def __call__(self, positions: list[int]) -> dict[str, Tensor]:
        chosen = np.asarray(positions, dtype=np.int64)
        batch = {key: torch.from_numpy(np.ascontiguousarray(values[chosen])) for key, values in self.columns.items()}
        return batch | {"index": torch.from_numpy(chosen)}
