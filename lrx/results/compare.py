"""Which methods of a column differ: every pair compared over seeds and test items, and the letters that say so.

Two methods differ when they would differ for new seeds and new test items together: the p of a pair is the larger one
of the paired t test over seeds and, where predictions are stored, of the test whose standard error has both sources in
it, the seeds and the paired bootstrap over test items; adjusted by Holm's method over the pairs of the column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from lrx.results import stats
from lrx.results.collect import OUTCOMES, Line, Table
from lrx.results.resample import resampled
from lrx.results.sweep import Column

SEEDS_ONLY = "seeds only"  # said of a verdict for which no predictions were at hand: it is easier to reach
EQUAL = "equal in every seed"
_NORMAL = 1.959963984540054


@dataclass(frozen=True)
class Effect:
    """A difference of two rows (a − b) over the seeds that both have, with 95% intervals, in the column's unit.

    ``differences``: by seed, in order; ``spread``: their standard deviation. ``seeds``: interval over seeds, None where
    all differences are equal. ``item_error``: standard error over test items, None where predictions are not stored.
    ``both``, ``p_both``: interval and p over seeds and test items together, None where one of the two is not known.
    ``left_out``: the jobs that do not enter, in words: ``["LoRA diverged at seed 2"]``.
    """

    differences: list[float]
    mean: float
    seeds: tuple[float, float] | None
    spread: float
    p_seeds: float
    item_error: float | None = None
    both: tuple[float, float] | None = None
    p_both: float | None = None
    left_out: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        return len(self.differences)

    @property
    def p(self) -> float:
        return self.p_seeds if self.p_both is None else max(self.p_seeds, self.p_both)

    @property
    def seeds_only(self) -> bool:
        """Whether nothing is known about test items."""
        return self.item_error is None

    @property
    def over_items(self) -> tuple[float, float] | None:
        """The interval for other test items and these very seeds: what more seeds would not make narrower."""
        if self.item_error is None:
            return None
        return self.mean - _NORMAL * self.item_error, self.mean + _NORMAL * self.item_error


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

    @property
    def verdict(self) -> str:
        """``differ``, ``differ (seeds only)`` without predictions, ``not resolved``."""
        if self.differ:
            return f"differ ({SEEDS_ONLY})" if self.effect.seeds_only else "differ"
        return f"not resolved ({EQUAL})" if self.effect.seeds is None else "not resolved"


@dataclass(frozen=True)
class Comparison:
    """All pairs of a column with at least two seeds in common.

    ``letters``: by row; rows that share one are not told apart. ``best``: the row that is significantly better than
    every other row with a value and never diverged, or None. ``over_items``: how many of the pairs are compared over
    items too. ``unequal``: whether rows with a value have it at different seeds.
    """

    pairs: list[Pair]
    letters: dict[str, str]
    best: str | None
    over_items: int
    unequal: bool = False


def compare(table: Table, column: Column) -> Comparison:
    """The comparison of a column; computed once per table."""
    key = ("compare", column.key)
    if key not in table.cache:
        table.cache[key] = _compare(table, column)
    return table.cache[key]


def effect(table: Table, a: Line, b: Line, column: Column) -> Effect | None:
    """The difference of two lines, or None with fewer than two seeds in common."""
    left, right = table.cell(a, column).values, table.cell(b, column).values
    seeds = common_seeds(left, right)
    differences = [left[seed] - right[seed] for seed in seeds]
    if len(seeds) < 2:
        return None
    known = stats.interval(differences)
    spread, p = stats.deviation(differences), stats.p_of_mean(differences)
    mean = math.fsum(differences) / len(differences)
    over_seeds = known[1:] if known else None
    found = Effect(differences, mean, over_seeds, spread, p, left_out=left_out(table, a, b, column))
    error = _item_error(table, a, b, column, seeds)
    if error is None:
        return found
    test = stats.combined(differences, error)
    if test is None:
        return replace(found, item_error=error)
    return replace(found, item_error=error, both=test.interval, p_both=test.p)


def common_seeds(a: dict[int, float], b: dict[int, float]) -> list[int]:
    """The seeds at which both have a finite value."""
    return sorted(s for s in a.keys() & b.keys() if math.isfinite(a[s]) and math.isfinite(b[s]))


def left_out(table: Table, a: Line, b: Line, column: Column | None) -> tuple[str, ...]:
    """Why seeds of the grid do not enter a comparison: ``("LoRA diverged at seeds 2, 3", ...)``.

    Without ``column`` only jobs that did not finish are named, as they are missing from costs.
    """
    found: dict[str, list[int]] = {}
    for line in (a, b):
        for seed, word in absent(table, line, column).items():
            found.setdefault(f"{line.row.label} {word}", []).append(seed)
    return tuple(f"{what} at seed{'s' * (len(at) > 1)} {', '.join(map(str, at))}" for what, at in found.items())


def diverged(table: Table, line: Line, column: Column) -> bool:
    """Whether some seed of the line diverged or has a value that is not finite: its mean is that of survivors."""
    return bool({"diverged", "NaN"} & set(absent(table, line, column).values()))


def absent(table: Table, line: Line, column: Column | None) -> dict[int, str]:
    """Seed -> why it has no finite value in ``column``: ``diverged``, ``missing``, ``NaN``, ``without a value``, ..."""
    values = table.cell(line, column).values if column else None
    found = {}
    for slot in (table.only(line, column) if column else line).slots:
        seed = slot.job.seed
        if slot.status != "finished":
            found[seed] = OUTCOMES[slot.status]
        elif values is None:
            continue
        elif seed not in values:
            found[seed] = "without a value"
        elif not math.isfinite(values[seed]):
            found[seed] = "NaN"
    return found


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
        # Means are over each row's own seeds and pairs over common ones: the highest mean need not win its pairs.
        winners = [pair.a if sign * pair.effect.mean > 0 else pair.b for pair in pairs if pair.differ]
        steady = [line.row.key for line in lines if not diverged(table, line, column)]
        best = next((key for key in steady if winners.count(key) == len(lines) - 1), None)
    sets = {tuple(seed for seed, v in sorted(table.cell(x, column).values.items()) if math.isfinite(v)) for x in lines}
    return Comparison(pairs, letters, best, sum(not pair.effect.seeds_only for pair in pairs), len(sets) > 1)


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
        records = table.only(line, column).by_seed()
        several = [resampled(table, records[seed], column, paired=True) for seed in seeds]
        table.cache[key] = None if any(values is None for values in several) else sum(several) / len(several)
    return table.cache[key]
