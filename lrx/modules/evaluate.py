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
    """(predictions, references) of ``split`` in file order: arrays of length n of numbers, or of texts (objects).

    References of an unlabelled split are empty. Modes of the modules are restored afterwards.
    """
    device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    predictions, labels, order = [], [], []
    references = task.references(split)
    try:
        for batch in task.eval_dataloader(split):
            on_device = {key: value.to(device) for key, value in batch.items() if isinstance(value, torch.Tensor)}
            with autocast(precision, device.type):
                predictions.append(task.infer(backbone, on_device))
            order.append(batch["index"].numpy())
            if references is None and "labels" in batch:
                labels.append(batch["labels"].numpy())
    finally:
        for module, mode in modes.items():
            module.training = mode
    place = np.argsort(np.concatenate(order))
    if references is None:
        references = np.concatenate(labels)[place] if labels else np.empty(0)
    return np.concatenate(predictions)[place], references


def score_split(backbone: Backbone, task: Task, split: str, precision: str) -> dict[str, float]:
    """The metrics of ``split`` in float64."""
    return task.measure(split, *predict_split(backbone, task, split, precision))
