"""Training by batch, loss, step: the LightningModule of every method that does not need another loop."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from lrx.errors import RunFailed
from lrx.methods.base import Method
from lrx.models.base import Backbone
from lrx.seeds import derive
from lrx.tasks.base import Task


@dataclass(frozen=True)
class Schedule:
    """Learning-rate schedule: linear warm-up over ``warmup`` steps, then ``name``, over ``steps`` steps in all."""

    name: str
    steps: int
    warmup: int


class Supervised(pl.LightningModule):
    """Calls the task's loss and the method's hooks at Lightning's own points.

    A checkpoint holds what was trained, not the frozen backbone: ``state_dict`` is the method's ``adapter_state``.
    Random numbers of a batch are a pure function of (seed, number of batches seen), so a resumed run draws what the
    uninterrupted one would have drawn; Lightning stores no generator state.
    """

    def __init__(self, backbone: Backbone, task: Task, method: Method, schedule: Schedule, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.task = task
        self.method = method
        self.schedule = schedule
        self.seed = seed
        self.batches_seen = 0
        self.last_loss = torch.tensor(float("nan"))

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        from transformers import get_scheduler

        optimizer = self.method.optimizer(self.backbone)
        name = "constant_with_warmup" if self.schedule.name == "constant" else self.schedule.name
        scheduler = get_scheduler(name, optimizer, self.schedule.warmup, self.schedule.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        seed = derive(self.seed, "batch", self.batches_seen)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        self.batches_seen += 1

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self.method.objective(self.backbone, batch)
        if loss is None:
            loss = self.task.loss(self.backbone, batch)
        if (penalty := self.method.penalty(self.backbone)) is not None:
            loss = loss + penalty
        self.last_loss = loss.detach()
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.method.before_step(self.backbone, optimizer, self.global_step)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        step = self.global_step
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.method.after_step(self.backbone, getattr(optimizer, "optimizer", optimizer), step)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return dict(self.method.adapter_state(self.backbone))

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        try:
            self.method.load_adapter(self.backbone, dict(state_dict))
        except ValueError as error:
            raise RunFailed(f"the checkpoint does not fit this method ({error}); rerun=all trains anew") from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches_seen"] = self.batches_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_seen = checkpoint["batches_seen"]
