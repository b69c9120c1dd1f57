"""A picture of what a depth network does: per image its guidance, input, prediction, truth and error."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lrx.files import write_atomic

Row = tuple[str, dict[str, Tensor], Tensor]


def draw(rows: Sequence[Row], path: Path, factor: int, unit: str) -> Path:
    """Write a PNG. ``rows``: name, batch of one image, prediction (1, 1, H, W). The path.

    The maps of an image share the scale of its truth; errors have a scale of their own, the same in all rows. Pixels
    without a known depth are grey. ``unit``: of both scales.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.2, 2.45 * len(rows) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 5, squeeze=False)
    shown = [_maps(batch, found) for _, batch, found in rows]
    errors = np.concatenate([error[valid] for *_, error, valid in shown])
    worst = max(float(np.quantile(errors, 0.99)), 1e-6) if np.isfinite(errors).all() else 1.0
    for line, (name, batch, _), (low, found, truth, error, valid) in zip(axes, rows, shown, strict=True):
        known = truth[valid]
        depth = {"cmap": "viridis", "vmin": float(known.min()), "vmax": float(known.max())}
        rmse, mae = float(np.sqrt(np.mean(error[valid] ** 2))), float(np.mean(error[valid]))
        titles = (
            "image",
            f"input, {factor}x enlarged",
            "prediction",
            "truth",
            f"error: RMSE {rmse:.1f}, MAE {mae:.1f}",
        )
        line[0].imshow(batch["image"][0].permute(1, 2, 0).cpu().numpy())
        line[0].set_ylabel(name, fontsize=8)
        for axis, values in zip(line[1:4], (low, found, np.where(valid, truth, np.nan)), strict=True):
            scale = axis.imshow(values, **depth)
        wrong = line[4].imshow(np.where(valid, error, np.nan), cmap="magma", vmin=0, vmax=worst)
        for axis, title in zip(line, titles, strict=True):
            axis.set_title(title, fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_facecolor("0.6")
        for bar, axis, label in ((scale, line[3], f"depth, {unit}"), (wrong, line[4], f"|error|, {unit}")):
            drawn = figure.colorbar(bar, ax=axis, fraction=0.046, pad=0.03)
            drawn.ax.tick_params(labelsize=7)
            drawn.set_label(label, fontsize=7)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    write_atomic(path, stream.getvalue())
    return path


def _maps(batch: dict[str, Tensor], found: Tensor) -> tuple[np.ndarray, ...]:
    """Input, prediction, truth and absolute error (H, W), in the unit of the metrics, and where they are known."""
    span = float(batch["span"][0])
    size = batch["depth"].shape[-2:]
    low = F.interpolate(batch["depth_low"].cpu(), size=size, mode="nearest")
    truth, valid = batch["depth"].cpu(), batch["valid"].cpu()
    error = (found - truth).abs()
    shown = [torch.squeeze(each).mul(span).numpy() for each in (low, found, truth, error)]
    return (*shown, torch.squeeze(valid).numpy())
