"""A paper's claims as data, each judged by the runs at hand: holds, fails, or not enough evidence.

Runs of two methods with equal seeds share the backbone's initialisation and the data order, so they are compared in
pairs: the mean difference over the seeds with its 95% Student t interval and, where predictions are stored, its 95%
interval over seeds and test items together. A claim holds when both intervals agree with it wholly, fails when both
disagree wholly, and is open otherwise. Each claim is judged by itself, at 95%.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lrx.results import compare, stats
from lrx.results.collect import Cell, Line, Table
from lrx.results.compare import EQUAL, SEEDS_ONLY, Effect
from lrx.results.sweep import COSTS, Claim, Sweep

__all__ = ["MINUS", "Judged", "Verdict", "by_origin", "judge", "signed", "summary"]

Verdict = Literal["holds", "fails", "not enough evidence"]
OPEN: Verdict = "not enough evidence"
MINUS = "−"
# Costs that are counted, not measured: equal ones are really equal.
COUNTS = ("trainable_parameters", "adapter_parameters", "optimizer_state_bytes")
MACHINE = ("cpu", "cpu_capability", "gpu", "threads")  # of a record's environment, what times and memory depend on


@dataclass(frozen=True)
class Judged:
    """A claim and what the runs say. ``mean``, ``low``, ``high``: difference or cost ratio with its interval.

    ``both_low``, ``both_high``: interval of a difference over seeds and test items, where predictions are stored.
    ``seeds_only``: whether a verdict on scores was reached without them. ``needed``: the number of seeds that would
    decide an open claim with 80% power, were the truth as seen so far; None if none would. ``advice``: the same in
    words; empty for a decided claim. ``because``: why it is open though there are intervals, or none. ``gap_needed``:
    seeds with 80% power to tell the published difference from none, given the spread seen here.
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
    both_low: float | None = None
    both_high: float | None = None
    seeds_only: bool = False
    needed: int | None = None
    advice: str = ""
    because: str = ""
    gap_needed: int | None = None

    @property
    def words(self) -> str:
        """The verdict with what weakens it: ``holds (seeds only)``, ``not enough evidence (equal in every seed)``."""
        remark = SEEDS_ONLY if self.seeds_only and self.verdict != OPEN else self.because
        return f"{self.verdict} ({remark})" if remark else self.verdict


def judge(sweep: Sweep, table: Table) -> list[Judged]:
    """All claims of a sweep, judged by its table."""
    return [_judge(sweep, table, claim) for claim in sweep.claims]


def summary(judged: Sequence[Judged]) -> str:
    """``3 hold, 1 fails, 2 not enough evidence``."""
    counts = {verdict: sum(item.verdict == verdict for item in judged) for verdict in ("holds", "fails", OPEN)}
    words = {"holds": ("holds", "hold"), "fails": ("fails", "fail"), OPEN: (OPEN, OPEN)}
    return ", ".join(f"{count} {words[verdict][count != 1]}" for verdict, count in counts.items())


def by_origin(judged: Sequence[Judged]) -> str:
    """What papers claim and what are checks of our own, counted apart."""
    papers, own = ([item for item in judged if item.claim.own == is_own] for is_own in (False, True))
    parts = [f"{len(papers)} of papers: {summary(papers)}"] if papers else []
    parts += [f"{len(own)} checks of our own: {summary(own)}"] if own else []
    return "; ".join(parts)


def _judge(sweep: Sweep, table: Table, claim: Claim) -> Judged:
    judged = Judged(claim, _text(sweep, table, claim), OPEN, "", _published(sweep, claim), 0)
    a, b = table.line(claim.a), table.line(claim.b)
    if claim.kind == "cost_ratio":
        return _judge_ratio(judged, table, a, b)
    column = sweep.column(claim.column)
    found = compare.effect(table, a, b, column) if a and b else None
    if found is None:
        cells = [table.cell(line, column) if line else Cell() for line in (a, b)]
        away = compare.left_out(table, a, b, column) if a and b else ()
        return _too_few(judged, len(compare.common_seeds(cells[0].values, cells[1].values)), away)
    gap = _gap(sweep, claim) if column.factor == 100 and table.own_metric(column) else None
    gap_needed = stats.seeds_needed(gap, found.spread) if gap is not None else None
    statistic = _statistic(found, column.digits)
    if gap is not None and gap_needed is not None and gap_needed > found.n:
        statistic += f"; to tell the published {signed(gap, 2)} from 0 takes {gap_needed:,} seeds"
    judged = replace(
        judged,
        statistic=statistic + _away(found.left_out),
        n=found.n,
        mean=found.mean,
        low=found.seeds[0] if found.seeds else None,
        high=found.seeds[1] if found.seeds else None,
        both_low=found.both[0] if found.both else None,
        both_high=found.both[1] if found.both else None,
        seeds_only=found.seeds_only,
        gap_needed=gap_needed,
    )
    if found.seeds is None:
        return replace(judged, because=EQUAL, advice="more seeds, for these show no spread")
    higher = table.higher_is_better(column)
    over_seeds = _decide(claim, found.seeds, higher)
    over_both = _decide(claim, found.both, higher) if found.both else over_seeds
    over_items = _decide(claim, found.over_items, higher) if found.over_items else over_seeds
    verdict = over_seeds if over_seeds == over_both else OPEN
    assert a is not None
    assert b is not None
    favoured = _favoured(claim, verdict, a, b)
    if survivors := [line.row.label for line in favoured if compare.diverged(table, line, column)]:
        because = f"{' and '.join(survivors)} diverged or gave NaN at some seeds, which the difference leaves out"
        return replace(judged, because=because)
    return _with_advice(replace(judged, verdict=verdict), claim, found, over_seeds, over_items)


def _favoured(claim: Claim, verdict: Verdict, a: Line, b: Line) -> list[Line]:
    """The rows that a verdict speaks for: what they lost at seeds where they diverged is not in the difference."""
    if verdict == "holds":
        return [a] if claim.kind == "better" else [a, b]
    return [b] if verdict == "fails" and claim.kind == "better" else []


def _statistic(found: Effect, digits: int) -> str:
    text = f"difference {signed(found.mean, digits)}"
    if found.seeds is None:
        return f"{text}, {EQUAL}, n = {found.n}"
    text += f", 95% {_range(found.seeds, digits)} over seeds"
    text += f", {_range(found.both, digits)} over seeds and test items" if found.both else ""
    return f"{text}, n = {found.n}"


def _away(left_out: Sequence[str]) -> str:
    return f"; left out: {', '.join(left_out)}" if left_out else ""


def _judge_ratio(judged: Judged, table: Table, a: Line | None, b: Line | None) -> Judged:
    claim = judged.claim
    away = compare.left_out(table, a, b, None) if a and b else ()
    costs = [line.cost(claim.cost).values if line else {} for line in (a, b)]
    left, right = ({seed: cost for seed, cost in values.items() if cost > 0} for values in costs)
    seeds = compare.common_seeds(left, right)
    ratios = [math.log(left[seed] / right[seed]) for seed in seeds]
    if len(ratios) < 2:
        return _too_few(judged, len(ratios), away)
    assert a is not None
    assert b is not None
    other = _other_machines(claim, a, b, seeds) + _away(away)
    found = stats.interval(ratios)
    middle = math.fsum(ratios) / len(ratios)
    if found is None and claim.cost not in COUNTS:
        statistic = f"ratio {math.exp(middle):.3f}, {EQUAL}, n = {len(ratios)}{other}"
        judged = replace(judged, statistic=statistic, n=len(ratios), mean=math.exp(middle), because=EQUAL)
        return replace(judged, advice="more seeds, for these show no spread")
    mean, low, high = (math.exp(x) for x in found or (middle, middle, middle))
    verdict = _inside(low, high, -math.inf, claim.at_most)
    statistic = f"ratio {mean:.3f}, 95% [{low:.3f}, {high:.3f}] over seeds, n = {len(ratios)}"
    statistic = f"ratio {mean:.3f}, a count, {EQUAL}, n = {len(ratios)}" if found is None else statistic
    statistic += other
    judged = replace(judged, verdict=verdict, statistic=statistic, n=len(ratios), mean=mean, low=low, high=high)
    if verdict != OPEN:
        return judged
    return _with_seeds(judged, abs(math.log(claim.at_most / mean)), stats.deviation(ratios))


def _other_machines(claim: Claim, a: Line, b: Line, seeds: Sequence[int]) -> str:
    """A note when paired runs did not run on the same machine; counts do not depend on it."""
    if claim.cost in COUNTS:
        return ""
    left, right = ({record.seed: record.environment for record in line.finished} for line in (a, b))
    names = [name for name in MACHINE if any(_differ(left[seed], right[seed], name) for seed in seeds)]
    return f"; the paired runs differ in {', '.join(names)}, so this compares machines too" if names else ""


def _differ(a: Mapping[str, Any], b: Mapping[str, Any], name: str) -> bool:
    return a.get(name) != b.get(name)


def _with_advice(judged: Judged, claim: Claim, found: Effect, over_seeds: Verdict, over_items: Verdict) -> Judged:
    """An open claim with what would decide it. ``over_items``: the verdict for new items and these very seeds."""
    if judged.verdict != OPEN:
        return judged
    if over_seeds != OPEN:
        more = "more test items, not more seeds" if over_items == OPEN else "a few more seeds or test items"
        return replace(judged, advice=more)
    distance = abs(claim.within - abs(found.mean)) if claim.kind == "close" else abs(found.mean)
    # A margin has two borders, of which the number takes the nearer one: where both count it takes somewhat more.
    judged = _with_seeds(judged, distance, found.spread, "at least about" if claim.kind == "close" else "about")
    straddles = not found.seeds_only and over_items == OPEN
    return replace(judged, advice=judged.advice + " and more test items" * straddles)


def _with_seeds(judged: Judged, distance: float, spread: float, about: str = "about") -> Judged:
    """How many seeds would do. ``distance``: of the effect as seen from the claim's border."""
    needed = stats.seeds_needed(distance, spread)
    needed = None if needed is None else max(needed, judged.n + 1)
    advice = f"{about} {needed:,} seeds" if needed else "no number of seeds, at a difference this close to the border"
    return replace(judged, needed=needed, advice=advice)


def _too_few(judged: Judged, n: int, left_out: Sequence[str] = ()) -> Judged:
    statistic = f"seeds in pairs: {n}, 2 needed{_away(left_out)}"
    return replace(judged, n=n, statistic=statistic, advice="at least 2 seeds in pairs")


def _decide(claim: Claim, bounds: tuple[float, float], higher_is_better: bool | None) -> Verdict:
    if claim.kind == "close":
        return _inside(*bounds, -claim.within, claim.within)
    return _better(*bounds, higher_is_better)


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


def _text(sweep: Sweep, table: Table, claim: Claim) -> str:
    a, b = sweep.row(claim.a).label, sweep.row(claim.b).label
    if claim.kind == "cost_ratio":
        return f"{a} needs at most {claim.at_most:g} times the {COSTS[claim.cost].split(' (')[0]} of {b}"
    column = table.heading(sweep.column(claim.column))
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
