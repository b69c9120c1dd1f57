"""Scores the selection split during training, keeps the best weights, stops early."""

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
    better score after which training stops, or None. Nothing is scored when the selection split is empty.
    """

    def __init__(self, steps: set[int], split: str | None, best_file: Path, precision: str, patience: int | None):
        self.steps, self.split, self.best_file = steps, split, best_file
        self.precision, self.patience = precision, patience
        self.best_score, self.best_step = math.nan, -1
        self.last: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self.waited = 0
        self._done_step = -1

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """A run that had stopped early when it broke off does not train on."""
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        if step == self._done_step or step not in self.steps or self.split is None:
            return
        self._done_step = step
        assert isinstance(module, Supervised)
        task = module.task
        self.last = score_split(module.backbone, task, self.split, self.precision)
        self.history.append({"step": step, **self.last})
        score = self.last[task.primary]
        sign = 1 if task.higher_is_better[task.primary] else -1
        # NaN (a constant regression output) never wins over a number, but the first evaluation is always kept.
        better = sign * score > sign * self.best_score or (math.isnan(self.best_score) and not math.isnan(score))
        if better or self.best_step < 0:
            self.best_score, self.best_step, self.best, self.waited = score, step, self.last, 0
            state = {k: v.contiguous().cpu() for k, v in module.method.adapter_state(module.backbone).items()}
            write_atomic(self.best_file, save(state))
        else:
            self.waited += 1
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        keys = ("best_score", "best_step", "last", "best", "history", "waited", "_done_step")
        return {key: getattr(self, key) for key in keys}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.__dict__.update(state_dict)
