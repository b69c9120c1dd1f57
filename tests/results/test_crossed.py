"""New seeds and new test items at once: how often equal methods are told apart when both are drawn anew."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lrx.results import stats

ITEMS, TRIALS = 200, 1500


def _errors(seeds: int, over_seeds: float, over_items: float, noise: float) -> tuple[float, float]:
    """Share of trials in which two equal methods differ at 5%: by the rule of the tables, and by each source alone.

    A crossed design: the difference at (seed, item) is an effect of the seed, one of the item, and noise of its own.
    """
    rng = np.random.default_rng(11)
    told = alone = 0
    for _ in range(TRIALS):
        values = rng.normal(0, over_seeds, (seeds, 1)) + rng.normal(0, over_items, ITEMS)
        values += rng.normal(0, noise, (seeds, ITEMS))
        differences = list(values.mean(axis=1))
        error = float(values.mean(axis=0).std(ddof=1)) / math.sqrt(ITEMS)  # as the bootstrap over items gives it
        p_seeds = stats.p_of_mean(differences)
        together = stats.combined(differences, error)
        assert together
        told += max(p_seeds, together.p) < stats.ALPHA
        alone += max(p_seeds, math.erfc(abs(np.mean(differences)) / error / math.sqrt(2))) < stats.ALPHA
    return told / TRIALS, alone / TRIALS


@pytest.mark.parametrize("seeds", [3, 10])
def test_the_rule_errs_at_most_about_5_times_in_100(seeds: int) -> None:
    """The two sources weigh the same, the worst case for a test that looks at each alone."""
    told, _ = _errors(seeds, 1.0, math.sqrt(ITEMS / seeds), 0.5)
    assert told <= 0.07


def test_a_test_of_each_source_alone_would_err_more_often() -> None:
    """Else the rule would be more than is needed."""
    _, alone = _errors(10, 1.0, math.sqrt(ITEMS / 10), 0.5)
    assert alone > 0.09


@pytest.mark.parametrize(("over_seeds", "over_items"), [(1.0, 0.1), (0.05, 3.0), (0.0, 1.0)])
def test_one_source_alone_is_tested_as_well(over_seeds: float, over_items: float) -> None:
    told, _ = _errors(10, over_seeds, over_items, 1.0)
    assert told <= 0.07
