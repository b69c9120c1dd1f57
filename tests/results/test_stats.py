"""The statistics against the libraries that have them, and what cannot be looked up against its definition."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lrx.results import stats, tidy
from tests.conftest import ROOT

SAMPLES = [[1.0, 2.0], [0.1, -0.4, 0.3], [5.0, 5.5, 4.0, 6.0, 5.2], [-3e-3, -1e-3, -2e-3, 4e-4]]


@pytest.mark.parametrize("sample", SAMPLES)
def test_interval_and_p_are_those_of_scipy(sample: list[float]) -> None:
    expected = scipy_stats.ttest_1samp(sample, 0.0)
    bounds = expected.confidence_interval(0.95)
    found = stats.interval(sample)
    assert found
    mean, low, high = found
    assert mean == pytest.approx(np.mean(sample))
    assert (low, high) == (pytest.approx(bounds.low), pytest.approx(bounds.high))
    assert stats.p_of_mean(sample) == pytest.approx(expected.pvalue)


def test_paired_p_is_that_of_ttest_rel() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 7))
    assert stats.p_of_mean(list(a - b)) == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue)


@pytest.mark.parametrize("sample", [[0.0, 0.0, 0.0], [0.3, 0.3, 0.3], [0.1 + 0.2, 0.3], [-2.0, -2.0]])
def test_equal_differences_are_no_evidence(sample: list[float]) -> None:
    assert stats.p_of_mean(sample) == 1
    assert stats.interval(sample) is None
    assert stats.combined(sample, 0.1) is None


@pytest.mark.parametrize("sample", SAMPLES)
def test_seeds_and_items_together(sample: list[float]) -> None:
    """Without an error over items it is the t test, with a large one the normal test of that error."""
    alone = stats.combined(sample, 0.0)
    assert alone
    assert (alone.p, alone.df) == (pytest.approx(stats.p_of_mean(sample)), pytest.approx(len(sample) - 1))
    assert alone.interval == pytest.approx(stats.interval(sample)[1:])  # type: ignore[index]
    error = 30 * np.std(sample, ddof=1)
    large = stats.combined(sample, error)
    assert large
    assert large.p == pytest.approx(2 * scipy_stats.norm.sf(abs(np.mean(sample)) / error), abs=0.01)
    some = stats.combined(sample, np.std(sample, ddof=1))
    assert some
    variance = np.var(sample, ddof=1) / len(sample)
    df = (len(sample) - 1) * ((variance + np.var(sample, ddof=1)) / variance) ** 2
    low, high = scipy_stats.t.interval(0.95, df, np.mean(sample), some.error)
    assert (some.df, some.interval) == (pytest.approx(df), (pytest.approx(low), pytest.approx(high)))
    assert some.p == pytest.approx(2 * scipy_stats.t.sf(abs(np.mean(sample)) / some.error, df))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 3, 10, 55])
def test_holm_is_that_of_statsmodels(seed: int, count: int) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = list(np.random.default_rng(seed).beta(0.3, 2, count))
    p[0] = p[-1]  # ties
    expected = multitest.multipletests(p, method="holm")[1]
    assert stats.holm(p) == pytest.approx(list(expected))


def test_power_rises_with_the_number_of_seeds_and_with_the_effect() -> None:
    for effect in (0.01, 0.4, 2.0, 8.0, 80.0):
        powers = [stats.power(effect, 1.0, n) for n in (2, 3, 4, 5, 8, 13, 40, 100, 1000, 20_000)]
        assert all(0.05 - 1e-9 <= power <= 1 + 1e-9 for power in powers)
        assert powers == sorted(powers)
    assert stats.power(0.5, 1.0, 300) == pytest.approx(1.0)


def test_holm_of_nothing() -> None:
    assert stats.holm([]) == []


@pytest.mark.parametrize("effect", [0.05, 0.2, 0.5, 1.0, 3.0])
def test_power_is_that_of_statsmodels(effect: float) -> None:
    solve = pytest.importorskip("statsmodels.stats.power").TTestPower()
    for n in (2, 3, 5, 20, 300):
        expected = solve.power(effect, n, 0.05, alternative="two-sided")
        if math.isnan(expected):  # statsmodels has the same distribution, and no way round its gaps
            expected = 1.0
        assert stats.power(-2 * effect, 2.0, n) == pytest.approx(expected, abs=1e-6)
    needed = stats.seeds_needed(2 * effect, 2.0)
    assert needed is not None
    assert solve.power(effect, needed, 0.05) >= 0.8
    assert needed == 2 or solve.power(effect, needed - 1, 0.05) < 0.8


@pytest.mark.parametrize(
    ("effect", "spread", "needed"),
    [(0.0, 1.0, None), (1.0, 0.0, None), (1e-9, 1.0, None), (math.nan, 1.0, None), (1e6, 1.0, 2), (0.0, 0.0, None)],
)
def test_seeds_needed_at_the_ends(effect: float, spread: float, needed: int | None) -> None:
    assert stats.seeds_needed(effect, spread) == needed


def _is_display_of(letters: dict[str, str], names: list[str], different: set[tuple[str, str]]) -> bool:
    for a, b in itertools.combinations(names, 2):
        apart = (a, b) in different or (b, a) in different
        if bool(set(letters[a]) & set(letters[b])) == apart:
            return False
    return all(letters.values())


def test_letters_say_exactly_who_differs_for_every_relation_of_five() -> None:
    names = list("vwxyz")
    pairs = list(itertools.combinations(names, 2))
    for bits in range(2 ** len(pairs)):
        different = {pair for index, pair in enumerate(pairs) if bits >> index & 1}
        assert _is_display_of(stats.letters(names, different), names, different), different


def test_letters_run_from_the_best() -> None:
    assert stats.letters(["x", "y", "z"], [("x", "z")]) == {"x": "a", "y": "ab", "z": "b"}
    assert stats.letters(["x", "y"], []) == {"x": "a", "y": "a"}
    assert stats.letters(["x"], []) == {"x": "a"}


def test_letters_beyond_z() -> None:
    names = [f"m{i}" for i in range(30)]
    letters = stats.letters(names, list(itertools.combinations(names, 2)))
    assert len(set(letters.values())) == 30
    assert letters["m26"] == "a1"


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_interval_covers_the_truth_95_times_of_100(n: int) -> None:
    rng = np.random.default_rng(1)
    found = (stats.interval(list(x)) for x in rng.normal(0.4, 2, (4000, n)))
    inside = sum(each[1] <= 0.4 <= each[2] for each in found if each)
    assert inside / 4000 == pytest.approx(0.95, abs=0.012)


def test_the_worked_example_of_the_documentation() -> None:
    page = (ROOT / "docs" / "statistics.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    exec(compile(code, "docs/statistics.md", "exec"), {})


def test_every_field_of_the_csv_is_documented() -> None:
    page = (ROOT / "docs" / "statistics.md").read_text()
    documented = set(re.findall(r"`(\w+)`", page.split("## The CSV")[1].split("## What is not covered")[0]))
    assert set(tidy.FIELDS) - {"kind"} <= documented
