"""The GLUE leaderboard's submission format: one ``index<TAB>prediction`` file per test set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lrx.data.glue_spec import GLUE, Spec
from lrx.errors import UserError, did_you_mean
from lrx.files import write_atomic

_AS_WORDS = ("mnli", "qnli", "rte")  # their predictions are written as the label's name


def write_submission(
    folder: str | Path, predictions: Mapping[str, Mapping[str, Sequence[float]]]
) -> tuple[list[Path], list[str]]:
    """Write ``predictions[sub-task][test split]`` (class ids or values in file order) into ``folder``.

    Returns the files written, each atomically, and the names of those that a complete submission still lacks. STS-B's
    values are clipped to 0..5. Raises ``UserError`` for an unknown sub-task or split and for a prediction that is no
    class of the task (-1, NaN).
    """
    target = Path(folder)
    written = []
    for name, splits in predictions.items():
        if name not in GLUE:
            raise UserError(f"{name} has no leaderboard; {did_you_mean(name, GLUE)}")
        for split, values in splits.items():
            if split not in GLUE[name].submission:
                raise UserError(f"{name} has no test split {split!r}; {did_you_mean(split, GLUE[name].submission)}")
            rows = [f"{i}\t{_text(GLUE[name], split, i, value)}" for i, value in enumerate(values)]
            path = target / GLUE[name].submission[split]
            write_atomic(path, "\n".join(["index\tprediction", *rows]) + "\n")
            written.append(path)
    complete = {file for described in GLUE.values() for file in described.submission.values()}
    return written, sorted(complete - {path.name for path in target.iterdir()} if target.is_dir() else complete)


def _text(described: Spec, split: str, index: int, value: float) -> str:
    number = float(value)
    if described.bounds is not None and not math.isnan(number):
        low, high = described.bounds
        return f"{min(max(number, low), high):.6f}"
    if described.bounds is not None or not number.is_integer() or not 0 <= number < len(described.classes):
        raise UserError(f"{described.name}, {split}, index {index}: {value} is no prediction to submit")
    return described.labels[int(number)] if described.name in _AS_WORDS else str(int(number))
