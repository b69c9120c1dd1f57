"""Joining a grid's jobs with the records they left, and the numbers of one cell of a table.

A table takes exactly the records whose fingerprints are jobs of its grid: a run with another learning rate, another
scale or another version of the method cannot leak into it, and what is missing is seen to be missing.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lrx.errors import UserError
from lrx.results.record import RunRecord
from lrx.results.sweep import Column, JobLike, Row, lookup

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
    """The values of one row in one column, by seed. NaN and infinities are kept but do not enter the mean."""

    values: dict[int, float] = field(default_factory=dict)

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
        """Sample standard deviation over seeds (n - 1); there is none for a single seed."""
        return statistics.stdev(self.finite) if self.n > 1 else None


@dataclass(frozen=True)
class Line:
    """A row of the table with its jobs, by seed."""

    row: Row
    slots: list[Slot]

    @property
    def finished(self) -> list[RunRecord]:
        return [slot.record for slot in self.slots if slot.record and slot.record.status == "finished"]

    def outcomes(self) -> dict[str, int]:
        """How many jobs did not finish, by outcome, in a fixed order."""
        counts = Counter(slot.status for slot in self.slots)
        return {status: counts[status] for status in OUTCOMES if counts[status]}

    def cost(self, name: str) -> Cell:
        """A cost of the finished runs, by seed."""
        found = {record.seed: record.cost.get(name) for record in self.finished}
        return Cell({seed: float(value) for seed, value in found.items() if value is not None})


@dataclass(frozen=True)
class Table:
    """The lines of a grid, the columns asked of them, and how many records were of other settings."""

    lines: list[Line]
    columns: list[Column]
    strays: int = 0

    def line(self, key: str) -> Line | None:
        """The line of the row called ``key``."""
        return next((line for line in self.lines if line.row.key == key), None)

    def cell(self, line: Line, column: Column) -> Cell:
        """The values of ``line`` in ``column``, from finished runs, at the selected checkpoint."""
        if column.mean_of:
            return _mean([self._component(line, item) for item in column.mean_of])
        found = {record.seed: value(record, column) for record in line.finished}
        return Cell({seed: number * column.factor for seed, number in found.items() if number is not None})

    def higher_is_better(self, column: Column) -> bool | None:
        """The direction that the records declare; None when averaged columns disagree."""
        if column.mean_of:
            names = [name for item in column.mean_of for name in ([item] if isinstance(item, str) else item)]
            directions = {self.higher_is_better(self._column(name)) for name in names}
            return directions.pop() if len(directions) == 1 else None
        for line in self.lines:
            for record in line.finished:
                if part := record.parts.get(column.part):
                    return part.higher_is_better.get(column.metric, True)
        return True

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

    def _column(self, key: str) -> Column:
        return next(column for column in self.columns if column.key == key)

    def _component(self, line: Line, item: str | list[str]) -> Cell:
        if isinstance(item, str):
            return self.cell(line, self._column(item))
        return _mean([self.cell(line, self._column(key)) for key in item])


def join(rows: Sequence[Row], columns: Sequence[Column], jobs: Iterable[JobLike], records: list[RunRecord]) -> Table:
    """The table of ``jobs``: each finds its row and its record. A job that no row describes gets a row of its own."""
    by_fingerprint = _newest(records)
    rows = list(rows)
    slots: dict[str, list[Slot]] = {row.key: [] for row in rows}
    used = set()
    for job in jobs:
        row = next((row for row in rows if row.matches(job.method, job.config)), None)
        if row is None:
            key = job.method if job.method not in slots else f"{job.method} (other settings)"
            row = Row(key=key, label=key, method=job.method)
            rows.append(row)
            slots[key] = []
        if clash := next((s.job for s in slots[row.key] if s.job.seed == job.seed), None):
            raise UserError(
                f"row {row.key!r}: two jobs with seed {job.seed} ({' '.join(clash.overrides)} | "
                f"{' '.join(job.overrides)}); tell them apart with 'where' in the sweep file"
            )
        record = by_fingerprint.get(job.fingerprint)
        used.add(job.fingerprint)
        slots[row.key].append(Slot(job, record))
    lines = [Line(row, sorted(slots[row.key], key=lambda slot: slot.job.seed)) for row in rows]
    strays = sum(fingerprint not in used for fingerprint in by_fingerprint)
    return Table(lines, list(columns), strays)


def value(record: RunRecord, column: Column) -> float | None:
    """The metric a column asks of a record, or None. Only splits that the record declares as reported count."""
    part = record.parts.get(column.part)
    if part is None:
        return None
    if not column.split and len(part.reported) > 1:
        raise UserError(
            f"column {column.key!r}: {column.part} reports {', '.join(part.reported)}; say which with 'split'"
        )
    split = column.split or (part.reported[0] if part.reported else "")
    return part.metrics.get(split, {}).get(column.metric) if split in part.reported else None


def _newest(records: list[RunRecord]) -> dict[str, RunRecord]:
    """One record per fingerprint: a finished one if there is any, then the one that ended last."""
    ordered = sorted(records, key=lambda record: (record.status == "finished", record.finished, record.run_id))
    return {record.fingerprint: record for record in ordered}


def _mean(cells: list[Cell]) -> Cell:
    """Per seed, over cells; a seed that lacks one of them has no mean."""
    seeds = set.intersection(*(set(cell.values) for cell in cells))
    return Cell({seed: math.fsum(cell.values[seed] for cell in cells) / len(cells) for seed in sorted(seeds)})
