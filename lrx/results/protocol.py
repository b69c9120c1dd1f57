"""Reporting protocols: which checkpoint, which metric and which spread a table shows, switched on stored curves.

Papers differ in what they report: the last epoch, the best on validation, the mean of the last evaluations; accuracy
or F1; a deviation over seeds or over test items. A record holds the whole curve, so a table follows any of these
without running again, and its caption says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lrx.errors import UserError, did_you_mean
from lrx.results.record import Part, RunRecord

PREFIX = "protocol."
METRIC_NAMES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews_correlation": "Matthews",
    "pearson": "Pearson",
    "spearman": "Spearman",
}
# The pairs whose mean GLUE takes as the score of a task (MRPC and QQP; STS-B).
PAIRS = (("accuracy", "f1"), ("pearson", "spearman"))

Pick = Callable[[Mapping[str, float]], "float | None"]  # from the metrics of a split to the number wanted


class Protocol(BaseModel):
    """What a table reports of each run.

    ``checkpoint``: ``selected``, the one that the run kept (by ``trainer.select``); ``last``, the last step; ``best``,
    the best evaluation on the selection split by what selects models; ``mean_last_k``, the mean over the last
    ``k`` evaluations; ``best_on_test``, the evaluation that is best in the reported number itself, which is optimistic
    and refused without ``unsafe=best_on_test``.
    ``std``: what ± means, the standard deviation over ``seeds`` or the standard error over test ``items``.
    ``metric``: ``column``, what each column says; or a metric's name, for the parts that report it; or ``both``, the
    mean of accuracy and F1 (of Pearson and Spearman) for the parts that report the two, as GLUE does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: Literal["selected", "last", "best", "mean_last_k", "best_on_test"] = "selected"
    k: Annotated[int, Field(ge=1)] = 3
    std: Literal["seeds", "items"] = "seeds"
    metric: str = "column"
    unsafe: Literal["no", "best_on_test"] = "no"

    @model_validator(mode="before")
    @classmethod
    def _unsafe_names_its_checkpoint(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("unsafe") == "best_on_test":
            return {"checkpoint": "best_on_test", **given}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if (self.checkpoint == "best_on_test") != (self.unsafe == "best_on_test"):
            if self.unsafe == "no":
                raise ValueError(
                    "checkpoint=best_on_test selects on the very split that the table reports and is refused; "
                    "protocol.unsafe=best_on_test allows it, and the table is then marked"
                )
            raise ValueError(f"unsafe=best_on_test and checkpoint={self.checkpoint} contradict each other; give one")
        if "k" in self.model_fields_set and self.checkpoint != "mean_last_k":
            raise ValueError(f"k={self.k} means nothing with checkpoint={self.checkpoint}; give checkpoint=mean_last_k")
        return self

    @property
    def on_test(self) -> bool:
        """Whether the checkpoint is chosen by the numbers that are reported."""
        return self.checkpoint == "best_on_test"

    def chooses_on_reported(self, record: RunRecord) -> bool:
        """Whether a run's numbers are chosen by the split that is reported: its checkpoint, or when it stopped."""
        if not any(part.selects_on_reported for part in record.parts.values()):
            return False
        if _lookup(record.config, "trainer", "patience") is not None:
            return True
        return self.checkpoint == "best" or (self.checkpoint == "selected" and kept(record) == "best")

    def sentence(self, kept: Sequence[str] = ()) -> str:
        """The protocol in words, for a caption. ``kept``: the values of ``trainer.select`` of the runs."""
        words = {"best": "best on the selection split", "last": "the last step"}
        by = " or ".join(f"trainer.select={name}: {words.get(name, name)}" for name in kept)
        checkpoint = {
            "selected": "the checkpoint that each run kept" + (f" ({by})" if by else ""),
            "last": "the last step",
            "best": "the evaluation that is best on the selection split",
            "mean_last_k": f"mean over the last {self.k} evaluations" if self.k > 1 else "the last evaluation",
            "best_on_test": "UNSAFE, the evaluation that is best on the reported split: scores are optimistic",
        }[self.checkpoint]
        metric = {
            "column": "",
            "both": "; mean of both metrics where a task has accuracy and F1, or Pearson and Spearman",
        }.get(self.metric, f"; {METRIC_NAMES.get(self.metric, self.metric)} where a task reports it")
        return f"Protocol: {checkpoint}{metric}."

    def code(self) -> str:
        """The protocol as the command line would give it, for the CSV."""
        given = {"checkpoint": self.checkpoint, "std": self.std, "metric": self.metric}
        if self.checkpoint == "mean_last_k":
            given["k"] = str(self.k)
        if self.on_test:
            given["unsafe"] = self.unsafe
        return " ".join(f"{PREFIX}{key}={value}" for key, value in given.items())

    def metric_of(self, metrics: Mapping[str, float], column_metric: str) -> tuple[str, ...]:
        """The metrics whose mean stands for a column, given those that its part reports."""
        if self.metric == "both":
            pairs = (pair for pair in PAIRS if column_metric in pair and set(pair) == set(metrics))
            return next(pairs, (column_metric,))
        return (self.metric,) if self.metric in metrics else (column_metric,)

    def pick(self, column_metric: str) -> Pick:
        """The number of a column among the metrics of a split."""

        def picked(metrics: Mapping[str, float]) -> float | None:
            names = self.metric_of(metrics, column_metric)
            found = [metrics[name] for name in names if name in metrics]
            return average(found) if len(found) == len(names) else None

        return picked


def average(values: Sequence[float]) -> float:
    """The arithmetic mean; NaN for infinities of both signs, where the library's raises."""
    return sum(values) / len(values)


def kept(record: RunRecord) -> str:
    """The run's ``trainer.select``, what the checkpoint that it kept was selected by."""
    return str(_lookup(record.config, "trainer", "select") or "best")


def _lookup(config: Mapping[str, Any], section: str, key: str) -> Any:
    values = config.get(section)
    return values.get(key) if isinstance(values, Mapping) else None


@dataclass(frozen=True)
class Reading:
    """A number read from a record. ``step``: of which weights; None for a mean of several. ``reason``: why none."""

    value: float | None
    step: int | None = None
    reason: str = ""


def read(part: Part, split: str, metric: str, protocol: Protocol, kept: str = "best") -> Reading:
    """The number that ``protocol`` reports of ``part``. ``kept``: the run's ``trainer.select``, what it selected by.

    Records made before there were curves answer as far as the kept and the last metrics go.
    """
    pick = protocol.pick(metric)
    if protocol.checkpoint == "selected":
        return Reading(pick(part.metrics.get(split, {})), part.best_step)
    if protocol.checkpoint == "last":
        return Reading(pick(part.last.get(split, {})), part.steps)
    if not part.curve:
        if protocol.checkpoint == "best" and kept == "best":
            return Reading(pick(part.metrics.get(split, {})), part.best_step)
        return Reading(None, reason="no curve in the record")
    if protocol.checkpoint == "mean_last_k":
        return _mean_of_last(part, split, pick, protocol.k)
    if protocol.checkpoint == "best":
        entry = best_entry(part)
        if entry is None:
            return Reading(None, reason="there is no selection split to be best on")
        return Reading(pick(entry["splits"].get(split, {})), entry["step"])
    sign = 1 if part.higher_is_better.get(metric, True) else -1
    points = [(value, e["step"]) for e in part.curve if (value := pick(e["splits"].get(split, {}))) is not None]
    if not points:
        return Reading(None, reason=f"the curve has no {split}")
    value, step = max(points, key=lambda point: -math.inf if math.isnan(point[0]) else sign * point[0])
    return Reading(value, step)


def best_entry(part: Part) -> dict[str, Any] | None:
    """The evaluation that is best on the selection split: the first of equal ones, as training keeps.

    NaN never wins over a number. None when the selection split was never scored.
    """
    sign = 1 if part.higher_is_better.get(part.selects_by, True) else -1
    best, best_score = None, math.nan
    for entry in part.curve:
        score = entry["splits"].get("select", {}).get(part.selects_by)
        if score is None:
            continue
        if best is None or sign * score > sign * best_score or (math.isnan(best_score) and not math.isnan(score)):
            best, best_score = entry, score
    return best


def _mean_of_last(part: Part, split: str, pick: Pick, k: int) -> Reading:
    found = [pick(entry["splits"].get(split, {})) for entry in part.curve[-k:]]
    if len(found) < k:
        return Reading(None, reason=f"the curve is shorter than k={k}")
    numbers = [value for value in found if value is not None]
    if len(numbers) < k:
        return Reading(None, reason=f"{split} was not scored at each of the last {k} evaluations")
    return Reading(average(numbers), part.steps if k == 1 else None)


def take(overrides: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split overrides into those of the grid and ``{"checkpoint": "last"}``, those of the protocol.

    Raises ``UserError`` for a protocol override without a key or a value.
    """
    grid: list[str] = []
    given: dict[str, str] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.strip().lstrip("+")
        if key == PREFIX[:-1] or (key.startswith(PREFIX) and not (equals and value.strip())):
            raise UserError(f"{text}: give a key and a value, such as {PREFIX}checkpoint=last")
        if key.startswith(PREFIX):
            given[key.removeprefix(PREFIX)] = value.strip()
        else:
            grid.append(text)
    return grid, given


def changed(protocol: Protocol, given: Mapping[str, str]) -> Protocol:
    """``protocol`` with what the command line gives. Raises ``UserError`` in one line, naming the key.

    A checkpoint given anew takes away the sweep file's ``k`` and ``unsafe``, which belong to its own.
    """
    if not given:
        return protocol
    for key in given:
        if key not in Protocol.model_fields:
            raise UserError(f"{PREFIX}{key}: no such key; {did_you_mean(key, Protocol.model_fields)}")
    base = protocol.model_dump(exclude_unset=True)
    if "checkpoint" in given or "unsafe" in given:
        base = {key: value for key, value in base.items() if key not in {"checkpoint", "k", "unsafe"}}
    try:
        return Protocol.model_validate({**base, **given})
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{key}={given.get(str(key), '')}: " for key in first["loc"])
        raise UserError(PREFIX + where + first["msg"].removeprefix("Value error, ")) from None
