"""Writes losses and scores to ``metrics.jsonl`` beside the run and mirrors them to the tracker."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from lrx.callbacks.selection import Selection
from lrx.errors import RunFailed
from lrx.files import write_atomic
from lrx.modules.supervised import Supervised
from lrx.results.history import read_history
from lrx.trackers import Tracker


class MetricLog(pl.Callback):
    """One JSON line per ``every`` optimizer steps and per evaluation; the local file is the truth.

    Each line is handed to the system whole and before anything else is done with its values, so that a kill loses none;
    at most the last line is torn, which readers pass over. The tracker gets the same values afterwards under
    ``<part>/...``. Raises ``RunFailed`` (outcome ``diverged``) when the loss is not finite.
    """

    def __init__(
        self, path: Path, part: str, every: int, selection: Selection, tracker: Tracker, *, verbose: bool
    ) -> None:
        self.path, self.part, self.every = path, part, every
        self.selection, self.tracker, self.verbose = selection, tracker, verbose
        self._logged_step, self._evaluations = 0, 0
        self._started = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Drop what was logged after the checkpoint that this run resumes from: those steps are taken again."""
        self._logged_step, self._evaluations = trainer.global_step, len(self.selection.history)
        self._started = time.monotonic()
        if not trainer.is_global_zero:
            return
        kept = [line for line in read_history(self.path) if line["step"] <= trainer.global_step]
        write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._stream = self.path.open("a", buffering=1)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        assert isinstance(module, Supervised)
        if not trainer.is_global_zero:
            return
        if step != self._logged_step and (step % self.every == 0 or step == 1 or step == module.schedule.steps):
            self._logged_step = step
            loss = float(module.last_loss)
            values = {"train/loss": loss, "lr": trainer.optimizers[0].param_groups[0]["lr"]}
            self._write(step, values)
            if not math.isfinite(loss):
                raise RunFailed(f"{self.part}: loss is {loss} at step {step}; a smaller method.lr may help", "diverged")
        for scores in self.selection.history[self._evaluations :]:
            self._evaluations += 1
            values = {f"select/{name}": value for name, value in scores.items() if name != "step"}
            self._write(step, values)
            if self.verbose:
                shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
                seconds = time.monotonic() - self._started
                print(f"{self.part}: step {step}/{module.schedule.steps}  loss {float(module.last_loss):.4f}  {shown}"
                      f"  {seconds:.0f} s", flush=True)  # fmt: skip

    def _write(self, step: int, values: dict[str, float]) -> None:
        self._stream.write(json.dumps({"step": step, **values}) + "\n")
        self.tracker.log({f"{self.part}/{name}": value for name, value in values.items()}, step)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if hasattr(self, "_stream"):
            self._stream.close()
