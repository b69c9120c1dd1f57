"""A signal that comes while training: finish the batch, save a checkpoint, end the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from lrx import slurm, stop


class StopSignals(pl.Callback):
    """Saves ``folder/stopped.ckpt`` after the batch in which a signal came, and raises ``lrx.stop.Stopped``.

    At Slurm's signal Lightning's own handler saves ``hpc_ckpt_<n>.ckpt`` in the trainer's root folder and requeues the
    job; called here and not when the signal comes, which may be in the middle of an optimizer step.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen_step = -1

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        stop.take_over()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        took_a_step = trainer.global_step != self._seen_step
        self._seen_step = trainer.global_step
        if stop.requested() is None or not took_a_step:  # an open accumulation window would be lost
            return
        with stop.held():
            if stop.requested() == slurm.SIGNAL and slurm.found():
                trainer._signal_connector._slurm_sigusr_handler_fn(slurm.SIGNAL, None)  # type: ignore[arg-type]
                slurm.has_requeued()
            else:
                trainer.save_checkpoint(self.folder / "stopped.ckpt")
        stop.end_at(trainer.global_step)
