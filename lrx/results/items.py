"""What test items contribute to the uncertainty of a score: bootstrap over the items of stored predictions.

All runs of a part are resampled with the same weights, so that differences between runs are paired over items. The
metrics are those of ``lrx.tasks.metrics``, computed on many weighted samples at once; a run enters only if they give
its recorded score, which tells a file of another run, or another metric, before it is believed.
"""

from __future__ import annotations

import csv
import functools
import io
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrx.results.protocol import METRIC_NAMES, Protocol, Reading
from lrx.results.record import Part, RunRecord

RESAMPLES = 1000
# Resamples times items of a part; a split of 40,000 items is then resampled 100 times, enough for a standard error.
MOST_DRAWS = 4_000_000
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Sample:
    """A split to be resampled. ``weights`` (n, R): how often each item is drawn, the same for all runs."""

    references: NDArray[np.float64]
    weights: Floats
    ranks: dict[str, Floats] = field(default_factory=dict)  # of the references in each resample, when first needed

    @functools.cached_property
    def total(self) -> NDArray[np.float64]:
        """How many items each resample has (R,): not n where whole documents are drawn."""
        return self.weights.sum(axis=0, dtype=np.float64)


@dataclass(frozen=True)
class _Table:
    """A file of predictions, each column (n,). References that are texts stand as numbers that tell them apart;
    predictions that are texts have none, and only ``items``, the values of single items, can be resampled.
    """

    predictions: NDArray[np.float64]
    references: NDArray[np.float64]
    groups: NDArray[np.float64] | None
    items: dict[str, NDArray[np.float64]]


class Items:
    """Bootstrap values of a table's scores. Files are read when first asked for, and once.

    ``root``: the folder (``paths.root``) that the paths of predictions start from; None if there is none. ``records``:
    the runs that are compared; the test items of a split are those of most of them.
    ``reasons``: why predictions could not be used -> the files or runs concerned.
    """

    def __init__(self, root: Path | None, protocol: Protocol, records: Sequence[RunRecord] = ()) -> None:
        self.root, self.protocol, self.records = root, protocol, records
        self.reasons: dict[str, list[str]] = {}
        self._tables: dict[str, _Table | None] = {}
        self._samples: dict[tuple[str, str], _Sample] = {}
        self._files: dict[tuple[str, str, str], _Table | None] = {}
        self._values: dict[tuple[str, str, str, str], NDArray[np.float64] | None] = {}

    def values(
        self, record: RunRecord, part: str, split: str, metric: str, reading: Reading, *, note: bool = True
    ) -> NDArray[np.float64] | None:
        """Bootstrap values (R,) of ``reading``, or None with a reason noted, unless ``note`` is false."""
        if not note and _stored(record.parts[part], split, reading.step) is None:
            return None
        names = self.protocol.metric_of(record.parts[part].metrics.get(split, {}), metric)
        found = [self._metric(record, part, split, name, reading) for name in names]
        several = [values for values in found if values is not None]
        if len(several) < len(names):
            return None
        mean = sum(several[1:], several[0]) / len(several)
        # Of weights that are measured again a hair's breadth matters not; of another run's file everything does.
        original, drawn = reading.value, mean[0]
        if original is not None and not math.isclose(original, drawn, rel_tol=1e-4, abs_tol=1e-4):
            self._because("predictions that do not give the recorded score", f"{record.run_id} {part} {split}")
            return None
        return mean[1:]

    def binomial(
        self, record: RunRecord, part: str, split: str, metric: str, reading: Reading
    ) -> NDArray[np.float64] | None:
        """Like ``values`` for an accuracy, whose resampled values are binomial without predictions; None for others."""
        names = self.protocol.metric_of(record.parts[part].metrics.get(split, {}), metric)
        n = record.parts[part].sizes.get(split, 0)
        if names == ("accuracy",) and n and reading.step is not None and _is_share(reading.value):
            seed = zlib.crc32(f"{record.run_id} {part} {split}".encode())
            return np.random.default_rng(seed).binomial(n, reading.value or 0.0, RESAMPLES) / n
        return None

    def _metric(
        self, record: RunRecord, part: str, split: str, metric: str, reading: Reading
    ) -> NDArray[np.float64] | None:
        """Values (1 + R,): of the split itself, then of the resamples."""
        path = _stored(record.parts[part], split, reading.step)
        if path is None:
            what = "no predictions are stored of the reported weights"
            self._because(what, f"{record.run_id} {part} {split}")
            return None
        key = (path, part, split, metric)
        if key not in self._values:
            self._values[key] = self._compute(path, part, split, metric)
        return self._values[key]

    def _compute(self, path: str, part: str, split: str, metric: str) -> NDArray[np.float64] | None:
        table = self._read(path, part, split)
        if table is None:
            return None
        if metric in table.items:
            sample = self._samples[part, split]
            means = (table.items[metric].astype(np.float32) @ sample.weights) / sample.total.astype(np.float32)
            return np.asarray(means, dtype=np.float64)
        if metric not in METRICS:
            self._because(f"no bootstrap of the metric {METRIC_NAMES.get(metric, metric)}", f"{part} {split}")
            return None
        with np.errstate(invalid="ignore", divide="ignore"):
            return METRICS[metric](table.predictions, self._samples[part, split]).astype(np.float64)

    def _read(self, path: str, part: str, split: str) -> _Table | None:
        """The predictions in a file; its references become the part's sample or must be the same."""
        key = (path, part, split)
        if key not in self._files:
            self._files[key] = None
            table = self._table(path)
            if table is None:
                self._because("missing or unreadable prediction files", path)
            elif self._same_items(table.references, part, split):
                self._files[key] = table
            else:
                self._because("predictions of other test items than the other runs'", path)
        return self._files[key]

    def _same_items(self, own: NDArray[np.float64], part: str, split: str) -> bool:
        sample = self._samples.get((part, split))
        if sample is None:
            references, groups = self._majority(part, split, np.ascontiguousarray(own))
            weights = draw(len(references), f"{part} {split}", groups)
            sample = self._samples[part, split] = _Sample(references, weights)
        return np.array_equal(sample.references, own)

    def _majority(
        self, part: str, split: str, first: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """The references that most runs have, of equally many the first's: one foreign file must not rule them all.

        With them their groups, if a file of these items has some; files of earlier versions have none.
        """
        votes: dict[bytes, list[_Table]] = {first.tobytes(): []}
        for record in self.records:
            found = record.parts.get(part)
            path = (found.predictions.get(split) or found.last_predictions.get(split)) if found else None
            table = self._table(path) if path else None
            if table is not None:
                votes.setdefault(table.references.tobytes(), []).append(table)
        most = max(votes.values(), key=len)
        groups = next((table.groups for table in most if table.groups is not None), None)
        return (most[0].references if most else first), groups

    def _table(self, path: str) -> _Table | None:
        """The file's table, read once."""
        if path not in self._tables:
            self._tables[path] = _parse(self.root, path) if self.root is not None else None
        return self._tables[path]

    def _because(self, reason: str, what: str) -> None:
        found = self.reasons.setdefault(reason, [])
        if what not in found:
            found.append(what)


def draw(n: int, name: str, groups: NDArray[np.float64] | None = None) -> Floats:
    """Weights (n, 1 + R): a column of ones, the split itself, then R bootstrap samples of n items.

    ``groups`` (n,): the document of each item; documents are then drawn, as many as there are, with all their items.
    The weights depend on n, ``name`` and ``groups`` alone.
    """
    if groups is not None:
        _, place = np.unique(groups, return_inverse=True)
        return draw(int(place.max()) + 1, name)[place]
    resamples = max(100, min(RESAMPLES, MOST_DRAWS // n))
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    chosen = generator.integers(n, size=(resamples, n), dtype=np.int32)
    chosen += np.arange(resamples, dtype=np.int32)[:, None] * np.int32(n)
    counts = np.bincount(chosen.ravel(), minlength=resamples * n).reshape(resamples, n)
    weights = np.ones((n, 1 + resamples), dtype=np.float32)
    weights[:, 1:] = counts.T
    return weights


def _parse(root: Path, name: str) -> _Table | None:
    """The columns of a file of predictions; None if it is missing, no such file, or not below root.

    A record may come from elsewhere: it must not make us read a device or wander off.
    """
    path = root / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_file():
        return None
    try:
        head, _, body = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, ValueError):
        return None
    names = head.split(",")
    if names[:3] != ["index", "prediction", "reference"] or not body:
        return None
    try:  # numbers alone: much faster than the csv module
        table = np.array(body.replace("\n", ",").rstrip(",").split(","), dtype=np.float64).reshape(-1, len(names))
    except ValueError:
        return _of_texts(names, body)
    return _columns(names, [np.ascontiguousarray(column) for column in table.T])


def _of_texts(names: Sequence[str], body: str) -> _Table | None:
    try:
        rows = list(csv.reader(io.StringIO(body, newline=""), strict=True))
        columns = list(zip(*rows, strict=True))
        numbers = [np.array(column, dtype=np.float64) for column in columns[3:]]
    except (csv.Error, ValueError):
        return None
    if len(columns) != len(names) or len(names) == 3:
        return None
    references = np.array([zlib.crc32(text.encode()) for text in columns[2]], dtype=np.float64)
    nothing = np.full(len(rows), np.nan)
    return _columns(names, [nothing, nothing, references, *numbers])


def _columns(names: Sequence[str], columns: Sequence[NDArray[np.float64]]) -> _Table:
    found = dict(zip(names, columns, strict=True))
    items = {name.removeprefix("item."): column for name, column in found.items() if name.startswith("item.")}
    return _Table(found["prediction"], found["reference"], found.get("group"), items)


def _stored(part: Part, split: str, step: int | None) -> str | None:
    """The predictions of the weights of ``step``, if they are among those stored."""
    if step is None:
        return None
    if step == part.best_step and split in part.predictions:
        return part.predictions[split]
    return part.last_predictions.get(split) if step == part.steps else None


def _is_share(value: float | None) -> bool:
    return value is not None and 0 <= value <= 1


def _accuracy(predictions: NDArray[np.float64], sample: _Sample) -> Floats:
    right = (predictions == sample.references).astype(np.float32)
    return (right @ sample.weights) / sample.total.astype(np.float32)


def _f1(predictions: NDArray[np.float64], sample: _Sample) -> Floats:
    positive, actual = predictions == 1, sample.references == 1
    both, predicted, true = np.stack([positive & actual, positive, actual]).astype(np.float32) @ sample.weights
    return np.where(both > 0, 2 * both / np.maximum(predicted + true, 1), 0)


def _matthews(predictions: NDArray[np.float64], sample: _Sample) -> Floats:
    kinds = np.union1d(predictions, sample.references)
    predicted = (predictions == kinds[:, None]).astype(np.float32) @ sample.weights  # (kinds, R)
    actual = (sample.references == kinds[:, None]).astype(np.float32) @ sample.weights
    right = (predictions == sample.references).astype(np.float32) @ sample.weights
    predicted, actual, n = predicted.astype(np.float64), actual.astype(np.float64), sample.total
    above = right * n - (predicted * actual).sum(0)
    below = (n * n - (predicted**2).sum(0)) * (n * n - (actual**2).sum(0))
    return np.where(below > 0, above / np.sqrt(np.maximum(below, 1)), 0)


def _pearson(predictions: NDArray[np.float64], sample: _Sample) -> Floats:
    x, y = _centred(predictions), _centred(sample.references)
    moments = np.stack([x, y, x * x, y * y, x * y]).astype(np.float32) @ sample.weights
    return _correlation(*(moments.astype(np.float64) / sample.total))


def _spearman(predictions: NDArray[np.float64], sample: _Sample) -> Any:
    """The ranks are those within each resample, ties sharing their average."""
    if "references" not in sample.ranks:
        sample.ranks["references"] = _ranks(sample.references, sample.weights)
    x, y, weights = _ranks(predictions, sample.weights), sample.ranks["references"], sample.weights
    wx, wy = weights * x, weights * y
    # The mean rank is 0 in every resample, see _ranks.
    xy, xx, yy = (np.einsum("ij,ij->j", a, b) for a, b in ((wx, y), (wx, x), (wy, y)))
    return xy / np.sqrt(xx * yy)


def _ranks(values: NDArray[np.float64], weights: Floats) -> Any:
    """Average ranks (n, R) of the items within each weighted sample, less their mean."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    drawn = np.add.reduceat(weights[order], starts, axis=0) if len(starts) < len(values) else weights[order]
    last = drawn.copy()
    for index in range(1, len(last)):  # several times faster than cumsum over rows
        last[index] += last[index - 1]
    drawn *= 0.5
    last -= drawn
    last -= weights.sum(axis=0) / 2
    group = np.empty(len(values), dtype=np.int64)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))
    return last[group]


def _correlation(mx: Any, my: Any, mxx: Any, myy: Any, mxy: Any) -> Any:
    return (mxy - mx * my) / np.sqrt((mxx - mx * mx) * (myy - my * my))


def _centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean 0 and largest entry 1, so that single precision serves."""
    values = values - values.mean()
    largest = np.abs(values).max()
    return values / largest if largest > 0 else values


def _perplexity(predictions: NDArray[np.float64], sample: _Sample) -> Any:
    """Of a block the prediction is its summed loss and the reference the number of its tokens."""
    losses, tokens = np.stack([predictions, sample.references]).astype(np.float32) @ sample.weights
    return np.exp(losses.astype(np.float64) / tokens)


METRICS: dict[str, Callable[[NDArray[np.float64], _Sample], Any]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "perplexity": _perplexity,
    "spearman": _spearman,
}
