"""A paper's claims as data, each judged by the runs at hand: holds, does not hold, or not enough evidence.

Runs of two methods with equal seeds share the backbone's initialisation and the data order, so they are compared in
pairs: the mean difference over the seeds with its 95% Student t interval. A claim holds when the whole interval
agrees with it, does not hold when the whole interval disagrees, and is open otherwise.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lrx.results.collect import Cell, Table
from lrx.results.sweep import COSTS, Claim, Sweep

Verdict = Literal["holds", "does not hold", "not enough evidence"]
CONFIDENCE = 0.95
MINUS = "−"


@dataclass(frozen=True)
class Judged:
    """A claim and what the runs say. ``mean``, ``low``, ``high``: difference or cost ratio with its interval."""

    claim: Claim
    text: str
    verdict: Verdict
    statistic: str
    published: str
    n: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None


def judge(sweep: Sweep, table: Table) -> list[Judged]:
    """All claims of a sweep, judged by its table."""
    return [_judge(sweep, table, claim) for claim in sweep.claims]


def interval(sample: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95% t interval of at least two numbers. Equal numbers have an interval of no width."""
    mean = statistics.fmean(sample)
    spread = statistics.stdev(sample)
    if spread == 0:
        return mean, mean, mean
    from scipy.special import stdtrit  # the quantile alone: scipy.stats takes a second to import

    half = float(stdtrit(len(sample) - 1, 0.5 + CONFIDENCE / 2)) * spread / math.sqrt(len(sample))
    return mean, mean - half, mean + half


def _judge(sweep: Sweep, table: Table, claim: Claim) -> Judged:
    a, b = _cells(sweep, table, claim)
    seeds = sorted(s for s in a.values.keys() & b.values.keys() if math.isfinite(a.values[s] + b.values[s]))
    text, published = _text(sweep, claim), _published(sweep, claim)
    if len(seeds) < 2:
        statistic = f"seeds in pairs: {len(seeds)}, 2 needed"
        return Judged(claim, text, "not enough evidence", statistic, published, len(seeds))
    if claim.kind == "cost_ratio":
        mean, low, high = (math.exp(x) for x in interval([math.log(a.values[s] / b.values[s]) for s in seeds]))
        verdict = _inside(low, high, -math.inf, claim.at_most)
        statistic = f"ratio {mean:.3f}, 95% [{low:.3f}, {high:.3f}], n = {len(seeds)}"
    else:
        mean, low, high = interval([a.values[s] - b.values[s] for s in seeds])
        digits = sweep.column(claim.column).digits
        if claim.kind == "close":
            verdict = _inside(low, high, -claim.within, claim.within)
        else:
            verdict = _better(low, high, table.higher_is_better(sweep.column(claim.column)))
        bounds = f"{signed(low, digits)}, {signed(high, digits)}"
        statistic = f"difference {signed(mean, digits)}, 95% [{bounds}], n = {len(seeds)}"
    if low == high and claim.kind != "cost_ratio":
        statistic += ", equal in every seed"
    return Judged(claim, text, verdict, statistic, published, len(seeds), mean, low, high)


def _cells(sweep: Sweep, table: Table, claim: Claim) -> tuple[Cell, Cell]:
    cells = []
    for key in (claim.a, claim.b):
        line = table.line(key)
        if line is None:
            cells.append(Cell())
        elif claim.kind == "cost_ratio":
            cells.append(Cell({seed: cost for seed, cost in line.cost(claim.cost).values.items() if cost > 0}))
        else:
            cells.append(table.cell(line, sweep.column(claim.column)))
    return cells[0], cells[1]


def _inside(low: float, high: float, least: float, most: float) -> Verdict:
    """Whether the interval lies wholly inside the allowed range, wholly outside, or across its border.

    The border itself counts as inside, up to rounding: a ratio of equal counts is 1 and at most 1.
    """
    slack = 1e-9 * max(1.0, abs(most))
    if low >= least - slack and high <= most + slack:
        return "holds"
    return "does not hold" if high < least - slack or low > most + slack else "not enough evidence"


def _better(low: float, high: float, higher_is_better: bool | None) -> Verdict:
    if higher_is_better is None:
        return "not enough evidence"
    if not higher_is_better:
        low, high = -high, -low
    if low > 0:
        return "holds"
    return "does not hold" if high <= 0 else "not enough evidence"


def _text(sweep: Sweep, claim: Claim) -> str:
    a, b = sweep.row(claim.a).label, sweep.row(claim.b).label
    if claim.kind == "cost_ratio":
        return f"{a} needs at most {claim.at_most:g} times the {COSTS[claim.cost].split(' (')[0]} of {b}"
    column = sweep.column(claim.column).label
    if claim.kind == "close":
        return f"{a} is within {claim.within:g} of {b} in {column}"
    return f"{a} is better than {b} in {column}"


def _published(sweep: Sweep, claim: Claim) -> str:
    """The published difference that a claim rests on, with its source."""
    if claim.published is None:
        return "no published number"
    table = next(table for table in sweep.published if table.key == claim.published.table)
    a, b = (table.value(key, claim.published.column) for key in (claim.a, claim.b))
    if a is None or b is None:
        return "no published number"
    return f"{a:g} {MINUS} {b:g} = {signed(a - b, 2)} (scale {table.scale}, Table {table.source.table})"


def signed(number: float, digits: int) -> str:
    """``+0.42`` or ``−0.33``."""
    text = f"{abs(number):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if number > 0 else MINUS}{text}"
