"""A progress bar over optimizer steps: Lightning's own counts epochs, which a run of so many steps has not."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lrx.callbacks.selection import Selection
from lrx.modules.supervised import Supervised


class StepProgress(pl.Callback):
    """Part, steps done of all, loss, newest selection score, time. Redrawn a few times a second at most."""

    def __init__(self, part: str, selection: Selection) -> None:
        self.selection = selection
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            refresh_per_second=4,
        )
        self.bar = self.progress.add_task(part, total=None, values="")

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Supervised)
        self.progress.update(self.bar, total=module.schedule.steps, completed=trainer.global_step)
        self.progress.start()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        values = self.progress.tasks[0].fields["values"]
        if step % 5 == 0 or step in self.selection.steps:  # reading the loss waits for the device
            assert isinstance(module, Supervised)
            metric = module.task.selector or module.task.primary
            score = self.selection.last.get(metric)
            values = f"loss {float(module.last_loss):.4f}"
            values += "" if score is None else f"  select {metric} {score:.4f}"
        self.progress.update(self.bar, completed=step, values=values)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self.progress.stop()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self.progress.stop()
