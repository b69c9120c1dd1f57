"""Which methods of a column differ: every pair compared over seeds and test items, and the letters that say so.

Two methods differ when they would differ for new seeds and for new test items: the p of a pair is the larger one of
the paired t test over seeds and, where predictions are stored, of the paired bootstrap over test items (seeds
averaged), adjusted by Holm's method over the pairs of the column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from lrx.results import stats
from lrx.results.collect import Line, Table
from lrx.results.sweep import Column


@dataclass(frozen=True)
class Effect:
    """A difference of two rows (a − b) over the seeds that both have, with 95% intervals, in the column's unit.

    ``items``: interval over test items, None where predictions are not stored. ``spread``: standard deviation of the
    differences over seeds. ``differences``: by seed, in order.
    """

    differences: list[float]
    mean: float
    seeds: tuple[float, float]
    spread: float
    p_seeds: float
    items: tuple[float, float] | None = None
    p_items: float | None = None

    @property
    def n(self) -> int:
        return len(self.differences)

    @property
    def p(self) -> float:
        return self.p_seeds if self.p_items is None else max(self.p_seeds, self.p_items)


@dataclass(frozen=True)
class Pair:
    """Two rows, by key. ``adjusted``: Holm's p.

    ``needed``: seeds with 80% power, at 5% divided by the number of pairs, for the difference as it was seen. Where the
    runs have as many and do not differ, it is the test items that are too few.
    """

    a: str
    b: str
    effect: Effect
    adjusted: float
    needed: int | None

    @property
    def differ(self) -> bool:
        return self.adjusted < stats.ALPHA


@dataclass(frozen=True)
class Comparison:
    """All pairs of a column with at least two seeds in common.

    ``letters``: by row; rows that share one are not told apart. ``best``: the row that is significantly better than
    every other row with a value, or None. ``over_items``: how many of the pairs are compared over items too.
    """

    pairs: list[Pair]
    letters: dict[str, str]
    best: str | None
    over_items: int


def compare(table: Table, column: Column) -> Comparison:
    """The comparison of a column; computed once per table."""
    key = ("compare", column.key)
    if key not in table.cache:
        table.cache[key] = _compare(table, column)
    return table.cache[key]


def effect(table: Table, a: Line, b: Line, column: Column) -> Effect | None:
    """The difference of two lines, or None with fewer than two seeds in common."""
    left, right = table.cell(a, column).values, table.cell(b, column).values
    seeds = [seed for seed in sorted(left.keys() & right.keys()) if math.isfinite(left[seed] + right[seed])]
    differences = [left[seed] - right[seed] for seed in seeds]
    if len(seeds) < 2:
        return None
    mean, low, high = stats.interval(differences)
    found = Effect(differences, mean, (low, high), stats.deviation(differences), stats.p_of_mean(differences))
    error = _item_error(table, a, b, column, seeds)
    if error is None:
        return found
    half = 1.959963984540054 * error
    return replace(found, items=(mean - half, mean + half), p_items=stats.p_normal(mean, error))


def _compare(table: Table, column: Column) -> Comparison:
    higher = table.higher_is_better(column)
    lines = [line for line in table.lines if table.cell(line, column).n]
    sign = -1 if higher is False else 1
    lines.sort(key=lambda line: -sign * (table.cell(line, column).mean or 0.0))  # stable: the table's order for equals
    found = [(a.row.key, b.row.key, it) for a, b in combinations(lines, 2) if (it := effect(table, a, b, column))]
    adjusted = stats.holm([it.p for _, _, it in found])
    pairs = [
        Pair(a, b, it, p, stats.seeds_needed(it.mean, it.spread, stats.ALPHA / len(found)))
        for (a, b, it), p in zip(found, adjusted, strict=True)
    ]
    compared = [line.row.key for line in lines if any(line.row.key in (pair.a, pair.b) for pair in pairs)]
    letters = stats.letters(compared, [(pair.a, pair.b) for pair in pairs if pair.differ]) if compared else {}
    best = None
    if higher is not None and len(lines) > 1:
        first = lines[0].row.key
        beaten = {pair.b for pair in pairs if pair.a == first and pair.differ}
        best = first if len(beaten) == len(lines) - 1 else None
    return Comparison(pairs, letters, best, sum(pair.effect.items is not None for pair in pairs))


def _item_error(table: Table, a: Line, b: Line, column: Column, seeds: list[int]) -> float | None:
    """Bootstrap standard error over test items of the difference of the seed averages."""
    left, right = _resampled(table, a, column, seeds), _resampled(table, b, column, seeds)
    if left is None or right is None:
        return None
    drawn = left - right
    drawn = drawn[abs(drawn) < math.inf]  # a resample may have no value, such as a correlation with a constant
    return float(drawn.std(ddof=1)) if len(drawn) > 1 else None


def _resampled(table: Table, line: Line, column: Column, seeds: list[int]) -> Any:
    """The line's mean over ``seeds`` in each bootstrap sample of the items, (R,); None if predictions are missing."""
    key = ("resampled", line.row.key, column.key, *seeds)
    if key not in table.cache:
        records = {record.seed: record for record in line.finished}
        several = [table.resampled(records[seed], column, paired=True) for seed in seeds]
        table.cache[key] = None if any(values is None for values in several) else sum(several) / len(several)
    return table.cache[key]
