"""From the records of a trial's runs to its outcome: the mean selection score after the last step."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from lrx.results.record import Part, RecordError, RunRecord, read, record_path
from lrx.tuning.journal import OPEN, Trial


def judge(trial: Trial, folder: Path) -> Trial:
    """The trial with what its runs below ``folder`` gave; still open while one of them has no final record.

    The score is the mean over parts and seeds of what selects models on the selection split after the last step,
    negative where lower is better. A run that failed, or a score that is no number, makes the trial a failed one.
    """
    records = []
    for run in trial.runs:
        path = record_path(folder, run)
        if not path.exists():
            return trial
        try:
            records.append(read(path))
        except RecordError:  # a broken file is no outcome; the run itself says what to do about it
            return trial
    return _of_records(trial, records)


def _of_records(trial: Trial, records: Sequence[RunRecord]) -> Trial:
    for record in records:
        if record.status == "interrupted":
            return trial
        if record.status != "finished":
            return dataclasses.replace(trial, outcome=record.status, message=" ".join(record.message.split())[:300])
    scores: dict[str, list[float]] = {}
    signed = []
    for record in records:
        for name, part in record.parts.items():
            value = selection_score(part)
            scores.setdefault(f"{name} {part.selects_by}", []).append(value)
            signed.append(value if part.higher_is_better.get(part.selects_by, True) else -value)
    parts = {name: statistics.fmean(values) for name, values in scores.items()}
    finite = {name: value for name, value in parts.items() if math.isfinite(value)}
    if len(finite) < len(parts):
        bad = next(name for name in parts if name not in finite)
        return dataclasses.replace(trial, outcome="nan", parts=finite, message=f"{bad} is no number")
    return dataclasses.replace(trial, outcome="finished", parts=parts, score=statistics.fmean(signed))


def selection_score(part: Part) -> float:
    """What selects models, of the last step's weights on the selection split; NaN when it was not scored."""
    return float(part.last.get("select", {}).get(part.selects_by, math.nan))


def metric_text(trial: Trial) -> str:
    """What the score is: ``mean of sentiment accuracy, intensity pearson on the selection split, last step``."""
    names = ", ".join(trial.parts)
    return f"{'mean of ' if len(trial.parts) > 1 else ''}{names} on the selection split, last step"


def preview(trials: Sequence[Trial], folder: Path) -> list[Trial]:
    """The trials with what the open ones have already given, for showing."""
    return [judge(trial, folder) if trial.outcome == OPEN else trial for trial in trials]
