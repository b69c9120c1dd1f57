"""A paper's claims as data, each judged by the runs at hand: holds, fails, or not enough evidence.

Runs of two methods with equal seeds share the backbone's initialisation and the data order, so they are compared in
pairs: the mean difference over the seeds with its 95% Student t interval and, where predictions are stored, its 95%
bootstrap interval over test items. A claim holds when both intervals agree with it wholly, fails when both disagree
wholly, and is open otherwise. Each claim is judged by itself, at 95%.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lrx.results import compare, stats
from lrx.results.collect import Cell, Line, Table
from lrx.results.stats import interval
from lrx.results.sweep import COSTS, Claim, Sweep

__all__ = ["MINUS", "Judged", "Verdict", "interval", "judge", "signed", "summary"]

Verdict = Literal["holds", "fails", "not enough evidence"]
OPEN: Verdict = "not enough evidence"
MINUS = "−"


@dataclass(frozen=True)
class Judged:
    """A claim and what the runs say. ``mean``, ``low``, ``high``: difference or cost ratio with its interval.

    ``items_low``, ``items_high``: interval of a difference over test items, where predictions are stored. ``needed``:
    the number of seeds that would decide an open claim with 80% power, were the truth as seen so far; None if none
    would. ``advice``: the same in words; empty for a decided claim. ``gap_needed``: seeds with 80% power to tell the
    published difference from none, given the spread seen here.
    """

    claim: Claim
    text: str
    verdict: Verdict
    statistic: str
    published: str
    n: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    items_low: float | None = None
    items_high: float | None = None
    needed: int | None = None
    advice: str = ""
    gap_needed: int | None = None


def judge(sweep: Sweep, table: Table) -> list[Judged]:
    """All claims of a sweep, judged by its table."""
    return [_judge(sweep, table, claim) for claim in sweep.claims]


def summary(judged: Sequence[Judged]) -> str:
    """``3 hold, 1 fails, 2 not enough evidence``."""
    counts = {verdict: sum(item.verdict == verdict for item in judged) for verdict in ("holds", "fails", OPEN)}
    words = {"holds": ("holds", "hold"), "fails": ("fails", "fail"), OPEN: (OPEN, OPEN)}
    return ", ".join(f"{count} {words[verdict][count != 1]}" for verdict, count in counts.items())


def _judge(sweep: Sweep, table: Table, claim: Claim) -> Judged:
    judged = Judged(claim, _text(sweep, claim), OPEN, "", _published(sweep, claim), 0)
    a, b = table.line(claim.a), table.line(claim.b)
    if claim.kind == "cost_ratio":
        return _judge_ratio(judged, a, b)
    column = sweep.column(claim.column)
    found = compare.effect(table, a, b, column) if a and b else None
    if found is None:
        cells = [table.cell(line, column) if line else Cell() for line in (a, b)]
        return _too_few(judged, len(_in_pairs(*cells)))
    digits, (low, high) = column.digits, found.seeds
    over_seeds = _decide(claim, low, high, table.higher_is_better(column))
    over_items = _decide(claim, *found.items, table.higher_is_better(column)) if found.items else over_seeds
    statistic = f"difference {signed(found.mean, digits)}, 95% {_range(found.seeds, digits)} over seeds"
    statistic += f", {_range(found.items, digits)} over test items" if found.items else ""
    statistic += f", n = {found.n}" + (", equal in every seed" if found.spread == 0 else "")
    gap = _gap(sweep, claim)
    gap_needed = stats.seeds_needed(gap, found.spread) if gap is not None and column.factor == 100 else None
    if gap is not None and gap_needed is not None and gap_needed > found.n:
        statistic += f"; to tell the published {signed(gap, 2)} from 0 takes {gap_needed:,} seeds"
    judged = replace(
        judged,
        verdict=over_seeds if over_seeds == over_items else OPEN,
        statistic=statistic,
        n=found.n,
        mean=found.mean,
        low=low,
        high=high,
        items_low=found.items[0] if found.items else None,
        items_high=found.items[1] if found.items else None,
        gap_needed=gap_needed,
    )
    distance = abs(claim.within - abs(found.mean)) if claim.kind == "close" else abs(found.mean)
    return _with_advice(judged, distance, found.spread, over_seeds, over_items)


def _judge_ratio(judged: Judged, a: Line | None, b: Line | None) -> Judged:
    claim = judged.claim
    costs = [line.cost(claim.cost).values if line else {} for line in (a, b)]
    left, right = (Cell({seed: cost for seed, cost in values.items() if cost > 0}) for values in costs)
    ratios = [math.log(left.values[seed] / right.values[seed]) for seed in _in_pairs(left, right)]
    if len(ratios) < 2:
        return _too_few(judged, len(ratios))
    mean, low, high = (math.exp(x) for x in interval(ratios))
    verdict = _inside(low, high, -math.inf, claim.at_most)
    statistic = f"ratio {mean:.3f}, 95% [{low:.3f}, {high:.3f}] over seeds, n = {len(ratios)}"
    judged = replace(judged, verdict=verdict, statistic=statistic, n=len(ratios), mean=mean, low=low, high=high)
    distance = abs(math.log(claim.at_most / mean))
    return _with_advice(judged, distance, stats.deviation(ratios), verdict, verdict)


def _with_advice(judged: Judged, distance: float, spread: float, over_seeds: Verdict, over_items: Verdict) -> Judged:
    """An open claim with what would decide it. ``distance``: of the effect as seen from the claim's border."""
    if judged.verdict != OPEN:
        return judged
    if over_seeds != OPEN:
        return replace(judged, advice="more test items, not more seeds")
    needed = stats.seeds_needed(distance, spread)
    needed = None if needed is None else max(needed, judged.n + 1)
    advice = f"about {needed:,} seeds" if needed else "no number of seeds, at a difference this close to the border"
    if judged.items_low is not None and over_items == OPEN:
        advice += " and more test items"
    return replace(judged, needed=needed, advice=advice)


def _too_few(judged: Judged, n: int) -> Judged:
    return replace(judged, n=n, statistic=f"seeds in pairs: {n}, 2 needed", advice="at least 2 seeds in pairs")


def _in_pairs(a: Cell, b: Cell) -> list[int]:
    """The seeds at which both cells are finite."""
    return sorted(s for s in a.values.keys() & b.values.keys() if math.isfinite(a.values[s] + b.values[s]))


def _decide(claim: Claim, low: float, high: float, higher_is_better: bool | None) -> Verdict:
    if claim.kind == "close":
        return _inside(low, high, -claim.within, claim.within)
    return _better(low, high, higher_is_better)


def _inside(low: float, high: float, least: float, most: float) -> Verdict:
    """Whether the interval lies wholly inside the allowed range, wholly outside, or across its border.

    The border itself counts as inside, up to rounding: a ratio of equal counts is 1 and at most 1.
    """
    slack = 1e-9 * max(1.0, abs(most))
    if low >= least - slack and high <= most + slack:
        return "holds"
    return "fails" if high < least - slack or low > most + slack else OPEN


def _better(low: float, high: float, higher_is_better: bool | None) -> Verdict:
    if higher_is_better is None:
        return OPEN
    if not higher_is_better:
        low, high = -high, -low
    if low > 0:
        return "holds"
    return "fails" if high <= 0 else OPEN


def _text(sweep: Sweep, claim: Claim) -> str:
    a, b = sweep.row(claim.a).label, sweep.row(claim.b).label
    if claim.kind == "cost_ratio":
        return f"{a} needs at most {claim.at_most:g} times the {COSTS[claim.cost].split(' (')[0]} of {b}"
    column = sweep.column(claim.column).label
    if claim.kind == "close":
        return f"{a} is within {claim.within:g} of {b} in {column}"
    return f"{a} is better than {b} in {column}"


def _gap(sweep: Sweep, claim: Claim) -> float | None:
    """The published difference that a claim rests on."""
    if claim.published is None:
        return None
    table = next(table for table in sweep.published if table.key == claim.published.table)
    a, b = (table.value(key, claim.published.column) for key in (claim.a, claim.b))
    return None if a is None or b is None else a - b


def _published(sweep: Sweep, claim: Claim) -> str:
    """The published difference in words, with its source."""
    gap = _gap(sweep, claim)
    if gap is None or claim.published is None:
        return "no published number"
    table = next(table for table in sweep.published if table.key == claim.published.table)
    a, b = (table.value(key, claim.published.column) for key in (claim.a, claim.b))
    return f"{a:g} {MINUS} {b:g} = {signed(gap, 2)} (scale {table.scale}, Table {table.source.table})"


def _range(bounds: tuple[float, float], digits: int) -> str:
    return f"[{signed(bounds[0], digits)}, {signed(bounds[1], digits)}]"


def signed(number: float, digits: int) -> str:
    """``+0.42`` or ``−0.33``."""
    text = f"{abs(number):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if number > 0 else MINUS}{text}"
