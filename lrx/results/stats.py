"""The statistics behind tables and claims: functions of plain numbers.

Distributions come from ``scipy.special``; ``scipy.stats``, whose tests these are, takes a second to import, and the
tests hold both against each other. All tests are two-sided.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
ALPHA = 0.05
POWER = 0.80
MOST_SEEDS = 100_000


def interval(sample: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float] | None:
    """Mean and Student t interval of at least two numbers; None when all are equal.

    Scores are shares of a number of items, so equal ones happen by chance: they do not say that there is no spread.
    """
    mean, spread = statistics.fmean(sample), deviation(sample)
    if spread == 0:
        return None
    from scipy.special import stdtrit

    half = float(stdtrit(len(sample) - 1, 0.5 + confidence / 2)) * spread / math.sqrt(len(sample))
    return mean, mean - half, mean + half


def p_of_mean(sample: Sequence[float]) -> float:
    """p of the one-sample t test against 0, which on paired differences is the paired t test. At least two numbers.

    Differences that are all equal give 1, whatever they are: see ``interval``.
    """
    mean, spread = statistics.fmean(sample), deviation(sample)
    if spread == 0:
        return 1.0
    from scipy.special import stdtr

    return 2 * float(stdtr(len(sample) - 1, -abs(mean) * math.sqrt(len(sample)) / spread))


@dataclass(frozen=True)
class Combined:
    """A mean over seeds and items, both taken as samples: its standard error, degrees of freedom and test against 0."""

    error: float
    df: float
    interval: tuple[float, float]
    p: float


def combined(sample: Sequence[float], item_error: float, confidence: float = CONFIDENCE) -> Combined | None:
    """The mean of ``sample`` (one number per seed) when the items may be others too; None for equal numbers.

    ``item_error``: standard error over items of that mean. The two variances add up; the degrees of freedom are
    Satterthwaite's (1946), where the variance over seeds has n - 1 and that over items, of hundreds, none to lose.
    """
    mean, n = statistics.fmean(sample), len(sample)
    over_seeds = deviation(sample) ** 2 / n
    if over_seeds == 0:
        return None
    from scipy.special import stdtr, stdtrit

    error = math.sqrt(over_seeds + item_error**2)
    df = (n - 1) * (error**2 / over_seeds) ** 2
    half = float(stdtrit(df, 0.5 + confidence / 2)) * error
    return Combined(error, df, (mean - half, mean + half), 2 * float(stdtr(df, -abs(mean) / error)))


def deviation(sample: Sequence[float]) -> float:
    """Sample standard deviation (n - 1); rounding errors of equal numbers count as none."""
    mean = statistics.fmean(sample)
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in sample) / (len(sample) - 1))
    return 0.0 if spread < 1e-12 * max(1.0, *(abs(x) for x in sample)) else spread


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: reject where it is at most alpha, and the family's error is at most alpha."""
    adjusted = [0.0] * len(p)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted


def power(effect: float, spread: float, n: int, alpha: float = ALPHA) -> float:
    """Power of the two-sided t test on ``n`` paired differences with mean ``effect`` and deviation ``spread``."""
    from scipy.special import nctdtr, stdtrit

    critical = stdtrit(n - 1, 1 - alpha / 2)
    shift = abs(effect) / spread * math.sqrt(n)
    # The distribution's code gives NaN for some tails that are below 1e-10: the far one from a shift of 8 on, the near
    # one from 40 on.
    far = float(nctdtr(n - 1, shift, -critical)) if shift < 7 else 0.0
    near = float(nctdtr(n - 1, shift, critical))
    return 1.0 + far - (0.0 if math.isnan(near) else near)


def seeds_needed(effect: float, spread: float, alpha: float = ALPHA) -> int | None:
    """The least number of pairs with 80% power to tell ``effect`` from 0, or None: for no effect there is none.

    None too beyond 100,000, which nobody runs, and where no spread has been seen, from which nothing follows.
    """
    if effect == 0 or spread == 0 or not (math.isfinite(effect) and math.isfinite(spread)):
        return None
    ratio = abs(effect) / spread
    from scipy.special import ndtri

    quantiles = float(ndtri(1 - alpha / 2) + ndtri(POWER))
    if ratio * math.sqrt(MOST_SEEDS) < quantiles:
        return None
    n = max(2, round((quantiles / ratio) ** 2) + 2)  # near the answer, with two more for t instead of normal
    while power(effect, spread, n, alpha) < POWER:
        n += 1
    while n > 2 and power(effect, spread, n - 1, alpha) >= POWER:
        n -= 1
    return n


def letters(order: Sequence[str], different: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Compact letter display: two of ``order`` share a letter exactly when they are not in ``different``.

    Insert and absorb (Piepho 2004, doi 10.1198/1061860043515): begin with one group of all; a pair that differs splits
    every group that holds both; a group inside another one goes. Letters run along ``order``, best first.
    """
    groups: list[frozenset[str]] = [frozenset(order)]
    for a, b in different:
        split = [part for group in groups for part in ([group - {a}, group - {b}] if {a, b} <= group else [group])]
        unique = list(dict.fromkeys(split))
        groups = [group for group in unique if not any(group < other for other in unique)]
    place = {name: index for index, name in enumerate(order)}
    groups.sort(key=lambda group: sorted(place[name] for name in group))
    return {name: "".join(_letter(i) for i, group in enumerate(groups) if name in group) for name in order}


def _letter(index: int) -> str:
    """a to z, then a1, b1, ..."""
    turn, place = divmod(index, 26)
    return chr(ord("a") + place) + (str(turn) if turn else "")
