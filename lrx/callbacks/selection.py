"""Scores the splits during training, keeps the weights that are best on the selection split, stops early."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from safetensors.torch import save

from lrx.files import write_atomic
from lrx.modules.evaluate import score_split
from lrx.modules.supervised import Supervised


class Selection(pl.Callback):
    """Evaluates ``task`` on its selection split at ``steps`` and remembers the best weights.

    It runs at the end of a training batch and before the checkpoint callbacks (Lightning calls those last), so a
    checkpoint of step t always knows the evaluation of step t and a resumed run neither repeats nor skips one.

    ``best_file``: where the best weights go (safetensors, replaced atomically). ``patience``: evaluations without a
    better score after which training stops, or None. Without a selection split no weights are kept.

    ``curve``: one entry per evaluation, ``{"step": 40, "splits": {"select": {"accuracy": 0.8}, "test": {...}}}``, with
    the reported splits that the task tracks, so that a table can follow another reporting protocol without running
    again. Nothing here is decided by them. The entry of the last step lacks them: the final scoring computes the same.
    """

    def __init__(self, steps: set[int], split: str | None, best_file: Path, precision: str, patience: int | None):
        self.steps, self.split, self.best_file = steps, split, best_file
        self.precision, self.patience = precision, patience
        self.best_score, self.best_step = math.nan, -1
        self.last: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self.curve: list[dict[str, Any]] = []
        self.waited = 0
        self._done_step = -1

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """A run that had stopped early when it broke off does not train on."""
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        if step == self._done_step or step not in self.steps:
            return
        self._done_step = step
        assert isinstance(module, Supervised)
        splits: dict[str, dict[str, float]] = {}
        if self.split is not None:
            splits[self.split] = self._select(module, step)
        stops = self.patience is not None and self.waited >= self.patience
        if stops:
            trainer.should_stop = True
        if step != module.schedule.steps and not stops:
            for split in module.task.tracked():
                splits[split] = score_split(module.backbone, module.task, split, self.precision)
        self.curve.append({"step": step, "splits": splits})

    def _select(self, module: Supervised, step: int) -> dict[str, float]:
        """Score the selection split and keep the weights if they are the best so far."""
        assert self.split is not None
        task = module.task
        self.last = score_split(module.backbone, task, self.split, self.precision)
        self.history.append({"step": step, **self.last})
        metric = task.selector or task.primary
        score = self.last[metric]
        sign = 1 if task.higher_is_better[metric] else -1
        # NaN (a constant regression output) never wins over a number, but the first evaluation is always kept.
        better = sign * score > sign * self.best_score or (math.isnan(self.best_score) and not math.isnan(score))
        if better or self.best_step < 0:
            self.best_score, self.best_step, self.best, self.waited = score, step, self.last, 0
            state = {k: v.contiguous().cpu() for k, v in module.method.adapter_state(module.backbone).items()}
            write_atomic(self.best_file, save(state))
        else:
            self.waited += 1
        return self.last

    def state_dict(self) -> dict[str, Any]:
        keys = ("best_score", "best_step", "last", "best", "history", "curve", "waited", "_done_step")
        return {key: getattr(self, key) for key in keys}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.__dict__.update(state_dict)
