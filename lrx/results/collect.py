"""Joining a grid's jobs with the records they left, and the numbers of one cell of a table.

A table takes exactly the records whose fingerprints are jobs of its grid: a run with another learning rate, another
scale or another version of the method cannot leak into it, and what is missing is seen to be missing.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrx.errors import UserError
from lrx.results import protocol as protocols
from lrx.results.protocol import METRIC_NAMES, Protocol, Reading, average, read
from lrx.results.record import Part, RunRecord
from lrx.results.sweep import Column, JobLike, Row, lookup

if TYPE_CHECKING:
    from lrx.results.items import Items

MISSING = "missing"
# The order in which outcomes are counted out in a cell, and their words in a table.
OUTCOMES = {
    "failed": "failed",
    "diverged": "diverged",
    "out_of_memory": "out of memory",
    "interrupted": "interrupted",
    MISSING: "missing",
}


@dataclass(frozen=True)
class Slot:
    """A job of the grid and its record, if it has left one."""

    job: JobLike
    record: RunRecord | None

    @property
    def status(self) -> str:
        return self.record.status if self.record else MISSING


@dataclass(frozen=True)
class Cell:
    """The values of one row in one column, by seed. NaN and infinities are kept but do not enter the mean.

    ``over_items``: ``std`` is the standard error over test items of one run, ``item_error``, where that is known.
    ``reason``: why finished runs have no value under the protocol.
    """

    values: dict[int, float] = field(default_factory=dict)
    over_items: bool = False
    item_error: float | None = None
    reason: str = ""

    @property
    def finite(self) -> list[float]:
        return [value for _, value in sorted(self.values.items()) if math.isfinite(value)]

    @property
    def n(self) -> int:
        return len(self.finite)

    @property
    def not_finite(self) -> int:
        return len(self.values) - self.n

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.finite) if self.finite else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds (n - 1); there is none for a single seed. See ``over_items``."""
        if self.over_items:
            return self.item_error
        return statistics.stdev(self.finite) if self.n > 1 else None


@dataclass(frozen=True)
class Line:
    """A row of the table with its jobs, by seed. ``by``: the sweep's ``parts_by``; without it a seed has one job."""

    row: Row
    slots: list[Slot]
    by: str = ""

    @property
    def finished(self) -> list[RunRecord]:
        return [slot.record for slot in self.slots if slot.record and slot.record.status == "finished"]

    def outcomes(self) -> dict[str, int]:
        """How many jobs did not finish, by outcome, in a fixed order."""
        counts = Counter(slot.status for slot in self.slots)
        return {status: counts[status] for status in OUTCOMES if counts[status]}

    def place(self, job: JobLike) -> tuple[str, int]:
        """What tells the jobs of the line apart: the part (empty without ``by``) and the seed."""
        return str(lookup(job.config, self.by)) if self.by else "", job.seed

    def of(self, parts: Iterable[str]) -> Line:
        """The line with the jobs that give one of ``parts``."""
        chosen = set(parts) if self.by else {""}
        return replace(self, slots=[slot for slot in self.slots if self.place(slot.job)[0] in chosen])

    def by_seed(self) -> dict[int, RunRecord]:
        """The finished record of each seed; with ``by`` one that has the parts of all its finished runs."""
        found: dict[int, RunRecord] = {}
        for record in self.finished:
            known = found.get(record.seed)
            found[record.seed] = replace(known, parts=known.parts | record.parts) if known else record
        return found

    def cost(self, name: str) -> Cell:
        """A cost of the finished runs, by seed; with ``by`` the mean over the seed's runs, where all have finished."""
        values: dict[int, list[float | None]] = {}
        for slot in self.slots:
            cost = slot.record.cost.get(name) if slot.record and slot.status == "finished" else None
            values.setdefault(slot.job.seed, []).append(cost)
        return Cell({seed: statistics.fmean(c for c in costs if c is not None)
                     for seed, costs in values.items() if None not in costs})  # fmt: skip


@dataclass(frozen=True)
class Table:
    """The lines of a grid, the columns asked of them, and how many records were of other settings.

    ``root``: the folder (``paths.root``) below which predictions of test items are; None to do without them.
    """

    lines: list[Line]
    columns: list[Column]
    strays: int = 0
    protocol: Protocol = field(default_factory=Protocol)
    root: Path | None = None
    cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def items(self) -> Items:
        """The bootstrap over test items."""
        if "items" not in self.cache:
            from lrx.results.items import Items

            self.cache["items"] = Items(self.root, self.protocol, self.records())
        return self.cache["items"]

    def line(self, key: str) -> Line | None:
        """The line of the row called ``key``."""
        return next((line for line in self.lines if line.row.key == key), None)

    def only(self, line: Line, column: Column) -> Line:
        """The line with the jobs that ``column`` is about."""
        return line.of(self.parts(column))

    def parts(self, column: Column) -> set[str]:
        """The parts that stand in a column, or in those that it is a mean of."""
        return {column.part}.union(*(self.parts(self.column(name)) for name in names_of(column)))

    def cell(self, line: Line, column: Column) -> Cell:
        """The values of ``line`` in ``column``, from finished runs, as the protocol reads them."""
        key = ("cell", line.row.key, column.key)
        if key not in self.cache:
            self.cache[key] = self._cell(line, column)
        return self.cache[key]

    def _cell(self, line: Line, column: Column) -> Cell:
        if column.mean_of:
            cell = _mean([self._component(line, item) for item in column.mean_of])
        else:
            found = {record.seed: self.reading(record, column) for record in self.only(line, column).finished}
            reasons = [reading.reason for reading in found.values() if reading.value is None]
            values = {seed: r.value * column.factor for seed, r in found.items() if r.value is not None}
            cell = Cell(values, reason=reasons[0] if reasons else "")
        if self.protocol.std == "seeds":
            return cell
        return Cell(cell.values, over_items=True, item_error=self._item_error(line, column, cell), reason=cell.reason)

    def reading(self, record: RunRecord, column: Column) -> Reading:
        """What the protocol reads of a record for a column that is no mean of others, without the column's factor."""
        return reading(record, column, self.protocol)

    def _item_error(self, line: Line, column: Column, cell: Cell) -> float | None:
        """Standard error over test items of a single run: root mean square over the seeds. None unless all have it."""
        from lrx.results.resample import resampled

        errors = []
        for record in self.only(line, column).by_seed().values():
            if math.isfinite(cell.values.get(record.seed, math.nan)):
                values = resampled(self, record, column, paired=False)
                if values is None:
                    return None
                errors.append(float(values[abs(values) < math.inf].var(ddof=1)))  # resamples without a value: none
        return math.sqrt(statistics.fmean(errors)) if errors else None

    def own_metric(self, column: Column) -> bool:
        """Whether what stands in a column, or in all that it is a mean of, is the metric that the column names."""
        if column.mean_of:
            return all(self.own_metric(self.column(name)) for name in names_of(column))
        return self._shown_metrics(column) in ((), (column.metric,))

    def heading(self, column: Column) -> str:
        """The column's label, or what stands there when the protocol puts another metric in its place."""
        if column.mean_of and not self.own_metric(column):
            return f"{column.label} ({'both metrics' if self.protocol.metric == 'both' else self.protocol.metric})"
        shown = self._shown_metrics(column)
        if not shown or shown == (column.metric,):
            return column.label
        return f"{column.part} {' and '.join(METRIC_NAMES.get(name, name) for name in shown)}"

    def distinct_columns(self) -> list[Column]:
        """The columns without those that the protocol makes equal to an earlier one."""
        first: dict[Any, Column] = {}
        for column in self.columns:
            shown = self._shown_metrics(column)
            first.setdefault((column.part, column.split, shown) if shown else column.key, column)
        return list(first.values())

    def _shown_metrics(self, column: Column) -> tuple[str, ...]:
        """The metrics that really stand in a column; empty for a mean of columns and where nothing is reported."""
        for part in self._parts(column.part):
            for metrics in part.metrics.values():
                return self.protocol.metric_of(metrics, column.metric)
        return ()

    def _parts(self, name: str) -> list[Part]:
        records = (record for line in self.lines for record in line.finished)
        return [record.parts[name] for record in records if name in record.parts]

    def higher_is_better(self, column: Column) -> bool | None:
        """The direction that the records declare; None when averaged columns disagree."""
        if column.mean_of:
            directions = {self.higher_is_better(self.column(name)) for name in names_of(column)}
            return directions.pop() if len(directions) == 1 else None
        shown = self._shown_metrics(column)
        for part in self._parts(column.part):
            return part.higher_is_better.get(shown[0] if shown else column.metric, True)
        return True

    @property
    def on_reported(self) -> bool:
        """Whether some number was chosen on the split that is shown, by the protocol or already by the run."""
        return self.protocol.on_test or any(self.protocol.chooses_on_reported(record) for record in self.records())

    def protocol_sentence(self) -> str:
        """The protocol in words, with what the runs at hand selected by."""
        return self.protocol.sentence(list(dict.fromkeys(map(protocols.kept, self.records()))))

    def seeds(self) -> list[int]:
        """The seeds of the grid."""
        return sorted({slot.job.seed for line in self.lines for slot in line.slots})

    def facts(self, dotted: str) -> list[str]:
        """The distinct values of a config key over the grid, in order: ``facts("scale.name") == ["mini"]``."""
        found = [str(lookup(slot.job.config, dotted)) for line in self.lines for slot in line.slots]
        return list(dict.fromkeys(found))

    def records(self) -> list[RunRecord]:
        """All records behind the table."""
        return [slot.record for line in self.lines for slot in line.slots if slot.record]

    def jobs(self) -> list[JobLike]:
        """All jobs of the grid."""
        return [slot.job for line in self.lines for slot in line.slots]

    def column(self, key: str) -> Column:
        """The column called ``key``."""
        return next(column for column in self.columns if column.key == key)

    def _component(self, line: Line, item: str | list[str]) -> Cell:
        if isinstance(item, str):
            return self.cell(line, self.column(item))
        return _mean([self.cell(line, self.column(key)) for key in item])


def join(
    rows: Sequence[Row],
    columns: Sequence[Column],
    jobs: Iterable[JobLike],
    records: list[RunRecord],
    protocol: Protocol | None = None,
    root: Path | None = None,
    parts_by: str = "",
) -> Table:
    """The table of ``jobs``: each finds its row and its record. A job that no row describes gets a row of its own.

    ``parts_by``: as in ``Sweep``. Raises ``UserError`` for two jobs in one place.
    """
    by_fingerprint = _newest(records)
    lines = {row.key: Line(row, [], parts_by) for row in rows}
    for job in jobs:
        line = next((line for line in lines.values() if line.row.matches(job.method, job.config)), None)
        if line is None:
            key = job.method if job.method not in lines else f"{job.method} (other settings)"
            line = lines[key] = Line(Row(key=key, label=key, method=job.method), [], parts_by)
        if clash := next((s.job for s in line.slots if line.place(s.job) == line.place(job)), None):
            raise UserError(
                f"row {line.row.key!r}: two jobs with seed {job.seed} ({' '.join(clash.overrides)} | "
                f"{' '.join(job.overrides)}); tell them apart with 'where' in the sweep file"
            )
        line.slots.append(Slot(job, by_fingerprint.get(job.fingerprint)))
    for line in lines.values():
        line.slots.sort(key=lambda slot: slot.job.seed)
    strays = len(by_fingerprint.keys() - {slot.job.fingerprint for line in lines.values() for slot in line.slots})
    return Table(list(lines.values()), list(columns), strays, protocol or Protocol(), root)


def reading(record: RunRecord, column: Column, protocol: Protocol) -> Reading:
    """What ``protocol`` reads of a record for a column. Only splits that the record declares as reported count."""
    part = record.parts.get(column.part)
    if part is None:
        return Reading(None, reason=f"no {column.part} in the run")
    split = split_of(part, column)
    if split not in part.reported:
        return Reading(None, reason=f"no reported split {split!r}" if split else "no reported split")
    found = read(part, split, column.metric, protocol, protocols.kept(record))
    return found if found.value is not None or found.reason else Reading(None, reason=f"no {column.metric}")


def split_of(part: Part, column: Column) -> str:
    """The split a column means: its own, or the only reported one. Raises ``UserError`` where there are several."""
    if not column.split and len(part.reported) > 1:
        raise UserError(
            f"column {column.key!r}: {column.part} reports {', '.join(part.reported)}; say which with 'split'"
        )
    return column.split or (part.reported[0] if part.reported else "")


def _newest(records: list[RunRecord]) -> dict[str, RunRecord]:
    """One record per fingerprint: a finished one if there is any, then the one that ended last."""
    ordered = sorted(records, key=lambda record: (record.status == "finished", record.finished, record.run_id))
    return {record.fingerprint: record for record in ordered}


def _mean(cells: list[Cell]) -> Cell:
    """Per seed, over cells; a seed that lacks one of them has no mean."""
    seeds = set.intersection(*(set(cell.values) for cell in cells))
    values = {seed: average([cell.values[seed] for cell in cells]) for seed in sorted(seeds)}
    return Cell(values, reason=next((cell.reason for cell in cells if cell.reason), ""))


def names_of(column: Column) -> list[str]:
    """The columns that ``column`` is the mean of."""
    return [name for item in column.mean_of for name in ([item] if isinstance(item, str) else item)]
