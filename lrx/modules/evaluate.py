"""Scoring a split: predictions over all of it, then the official metrics once."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from lrx.models.base import Backbone
from lrx.tasks.base import Task


def autocast(precision: str, device_type: str) -> AbstractContextManager[object]:
    """The context a trainer of this precision runs the forward pass in."""
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast(device_type, dtype=kinds[precision]) if precision in kinds else nullcontext()


@torch.no_grad()
def predict_split(backbone: Backbone, task: Task, split: str, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """(predictions, references) of ``split`` in file order, as float64 or int64 arrays of length n.

    References of an unlabelled split are empty. Modes of the modules are restored afterwards.
    """
    device = next(backbone.parameters()).device
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    predictions, references, order = [], [], []
    try:
        for batch in task.eval_dataloader(split):
            on_device = {key: value.to(device) for key, value in batch.items() if isinstance(value, torch.Tensor)}
            with autocast(precision, device.type):
                outputs = backbone(on_device)
            predictions.append(task.predict(outputs).cpu().numpy())
            order.append(batch["index"].numpy())
            if "labels" in batch:
                references.append(batch["labels"].numpy())
    finally:
        for module, mode in modes.items():
            module.training = mode
    place = np.argsort(np.concatenate(order))
    labels = np.concatenate(references)[place] if references else np.empty(0)
    return np.concatenate(predictions)[place], labels


def score_split(backbone: Backbone, task: Task, split: str, precision: str) -> dict[str, float]:
    """The official metrics of ``split`` in float64."""
    return task.score(*predict_split(backbone, task, split, precision))
