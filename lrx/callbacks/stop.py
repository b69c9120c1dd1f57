"""SIGINT and SIGTERM end a run cleanly: finish the batch, save a checkpoint, say how to go on."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from lrx.errors import RunFailed


class StopSignals(pl.Callback):
    """While training, a first SIGINT or SIGTERM saves ``folder/stopped.ckpt`` after the batch and raises ``RunFailed``
    (outcome ``interrupted``, with ``signum``); a second one interrupts at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._signum: int | None = None
        self._seen_step = -1
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._received)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _received(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None:
            raise KeyboardInterrupt
        self._signum = signum

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        took_a_step = trainer.global_step != self._seen_step
        self._seen_step = trainer.global_step
        if self._signum is None or not took_a_step:  # an open accumulation window would be lost
            return
        trainer.save_checkpoint(self.folder / "stopped.ckpt")
        name = signal.Signals(self._signum).name
        stop = RunFailed(f"{name} at step {trainer.global_step}; the same command goes on from there", "interrupted")
        stop.signum = self._signum  # type: ignore[attr-defined]
        raise stop
