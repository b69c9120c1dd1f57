"""GLUE's official metrics in float64 from the predictions of a whole split, under their official names.

Formulas and rules for degenerate input as in the "glue" metric that papers use (scikit-learn's and SciPy's values):
nothing is averaged over batches. torchmetrics' own versions differ there (a collapsed model has a Matthews correlation
other than 0, a constant prediction a Spearman correlation of 0), so it only collects here.

A class prediction that is NaN or no class (-1) counts as wrong, explicitly: it equals no label and is not positive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric

_WRONG = -1


def _classes(predictions: ArrayLike, references: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    p, t = np.asarray(predictions), np.asarray(references)
    if p.shape != t.shape or p.ndim != 1:
        raise ValueError(f"predictions {p.shape} and references {t.shape} must be equally long vectors")
    if not np.issubdtype(p.dtype, np.integer):
        whole = np.isfinite(p) & (p == np.floor(p))
        p = np.where(whole, p, _WRONG)
    p = p.astype(np.int64)
    return np.where(p < 0, _WRONG, p), t.astype(np.int64)


def accuracy(predictions: ArrayLike, references: ArrayLike) -> float:
    """Share of right predictions; NaN for no examples."""
    p, t = _classes(predictions, references)
    return float(np.mean(p == t)) if len(t) else math.nan


def f1(predictions: ArrayLike, references: ArrayLike) -> float:
    """Binary F1 of class 1, 2TP / (2TP + FP + FN); 0 when there is no true positive, also for 0/0."""
    p, t = _classes(predictions, references)
    true_positive = int(np.sum((p == 1) & (t == 1)))
    predicted, actual = int(np.sum(p == 1)), int(np.sum(t == 1))
    return 2 * true_positive / (predicted + actual) if true_positive else 0.0


def matthews_correlation(predictions: ArrayLike, references: ArrayLike) -> float:
    """(c s - sum_k p_k t_k) / sqrt((s^2 - sum_k p_k^2) (s^2 - sum_k t_k^2)) for any number of classes.

    s: examples; c: right ones; p_k, t_k: how often class k was predicted and is true. 0 when a factor is 0: everything
    predicted, or everything labelled, as one class. For two classes it is the usual formula. Exact in integers up to
    the root.
    """
    p, t = _classes(predictions, references)
    kinds = np.union1d(p, t)
    predicted = [int(np.sum(p == k)) for k in kinds]
    actual = [int(np.sum(t == k)) for k in kinds]
    s, c = len(t), int(np.sum(p == t))
    above = c * s - sum(a * b for a, b in zip(predicted, actual, strict=True))
    below = (s * s - sum(a * a for a in predicted)) * (s * s - sum(b * b for b in actual))
    return above / math.sqrt(below) if below else 0.0


def pearson(predictions: ArrayLike, references: ArrayLike) -> float:
    """Pearson's r; NaN for a constant vector, a NaN or infinite value, or fewer than two examples."""
    x, y = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"predictions {x.shape} and references {y.shape} must be equally long vectors")
    if len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.nan
    if (x == x[0]).all() or (y == y[0]).all():
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    # scaled by the largest entry first: squares neither overflow nor vanish
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    return float(np.clip(x @ y / math.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def spearman(predictions: ArrayLike, references: ArrayLike) -> float:
    """Pearson's r of the ranks, ties getting their average rank; NaN where ``pearson`` gives it (infinities rank)."""
    x, y = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    if np.isnan(x).any() or np.isnan(y).any():
        return math.nan
    return pearson(_ranks(x), _ranks(y))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """1-based ranks; equal values share the average of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts).astype(np.float64)
    return (last - (counts - 1) / 2)[place]


OFFICIAL: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearman": spearman,
}


def compute(names: Sequence[str], predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """The metrics called ``names``."""
    return {name: OFFICIAL[name](predictions, references) for name in names}


class Collected(Metric):
    """Collects predictions, references and positions over batches and processes, then scores the whole split once.

    ``function(predictions, references)`` gets float64 or int64 vectors in file order. A position seen twice (the
    filling-up of distributed samplers) counts once.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, function: Callable[[NDArray[Any], NDArray[Any]], Any], **options: Any) -> None:
        super().__init__(**options)
        self.function = function
        self.predictions: list[Tensor]
        self.references: list[Tensor]
        self.positions: list[Tensor]
        for state in ("predictions", "references", "positions"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, references: Tensor, positions: Tensor) -> None:
        """Add a batch: three vectors (batch,)."""
        self.predictions.append(predictions.detach())
        self.references.append(references.detach())
        self.positions.append(positions.detach())

    def compute(self) -> Any:
        """``function`` of everything collected."""
        predictions, references, positions = (
            torch.cat(list(state)) if isinstance(state, list) else state
            for state in (self.predictions, self.references, self.positions)
        )
        _, first = np.unique(positions.cpu().numpy(), return_index=True)
        return self.function(predictions.cpu().numpy()[first], references.cpu().numpy()[first])
