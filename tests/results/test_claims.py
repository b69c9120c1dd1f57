"""Claims: the interval is Student's, and each verdict is the one a reader of the interval would give."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lrx.results import claims, collect
from lrx.results.record import RunRecord
from lrx.results.sweep import Claim, Sweep, load
from tests.results.fakes import FakeJob, all_records, jobs_of, predict, record_of, with_trouble

OPEN = "not enough evidence"


def _table(sweep: Sweep, records: list[RunRecord]) -> collect.Table:
    return collect.join(sweep.rows, sweep.columns, jobs_of(sweep.name), records)


def _judge(records: list[RunRecord], **claim: object) -> claims.Judged:
    sweep = load("altlora_glue").model_copy(update={"claims": [Claim(origin="test", **claim)]})  # type: ignore[arg-type]
    return claims.judge(sweep, _table(sweep, records))[0]


@pytest.mark.parametrize("sample", [[1.0, 2.0], [0.1, -0.4, 0.3], [5.0, 5.5, 4.0, 6.0, 5.2]])
def test_interval_is_that_of_scipy(sample: list[float]) -> None:
    expected = stats.ttest_1samp(sample, 0.0).confidence_interval(0.95)
    mean, low, high = claims.interval(sample)
    assert mean == pytest.approx(sum(sample) / len(sample))
    assert (low, high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_equal_differences_have_an_interval_without_width() -> None:
    assert claims.interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)


def _shifted(gaps: list[float]) -> list[RunRecord]:
    """``altlora`` exceeds ``lora`` by ``gaps`` (in percent) in sentiment accuracy, seed by seed."""
    records = []
    for seed, gap in enumerate(gaps):
        base, other = record_of(FakeJob("lora", seed)), record_of(FakeJob("altlora", seed))
        value = base.parts["sentiment"].metrics["test"]["accuracy"]
        other.parts["sentiment"].metrics["test"]["accuracy"] = value + gap / 100
        records += [base, other]
    return records


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ([2.0, 2.1, 1.9], "holds"),
        ([-2.0, -2.1, -1.9], "fails"),
        ([2.0, -1.0, 1.5], "not enough evidence"),
        ([2.0], "not enough evidence"),
        ([], "not enough evidence"),
        ([math.nan, 2.0, math.nan], "not enough evidence"),
        ([0.0, 0.0, 0.0], "fails"),
    ],
)
def test_better(gaps: list[float], verdict: str) -> None:
    judged = _judge(_shifted(gaps), kind="better", a="altlora", b="lora", column="sentiment_accuracy")
    assert judged.verdict == verdict
    assert judged.n == sum(math.isfinite(gap) for gap in gaps)


def test_better_turns_round_where_lower_is_better() -> None:
    records = _shifted([2.0, 2.1, 1.9])
    for record in records:
        record.parts["sentiment"].higher_is_better["accuracy"] = False
    assert _judge(records, kind="better", a="lora", b="altlora", column="sentiment_accuracy").verdict == "holds"


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ([0.1, -0.1, 0.05], "holds"),
        ([0.5, 0.5, 0.5], "holds"),
        ([3.0, 3.1, 2.9], "fails"),
        ([0.4, 0.9, 0.1], "not enough evidence"),
    ],
)
def test_close(gaps: list[float], verdict: str) -> None:
    judged = _judge(_shifted(gaps), kind="close", a="altlora", b="lora", column="sentiment_accuracy", within=0.5)
    assert judged.verdict == verdict


def test_cost_ratio_of_equal_counts_is_one() -> None:
    claim = {"kind": "cost_ratio", "a": "altlora", "b": "lora", "cost": "trainable_parameters"}
    judged = _judge(all_records(), **claim, at_most=1)
    assert (judged.verdict, judged.mean) == ("holds", pytest.approx(1.0))
    assert _judge(all_records(), **claim, at_most=0.9).verdict == "fails"
    full = {**claim, "a": "full"}
    assert _judge(all_records(), **full, at_most=10).verdict == "fails"


def test_an_open_claim_says_how_many_seeds_would_decide_it() -> None:
    gaps = [2.0, -1.0, 1.5]
    judged = _judge(_shifted(gaps), kind="better", a="altlora", b="lora", column="sentiment_accuracy")
    power = pytest.importorskip("statsmodels.stats.power").TTestPower()
    effect = statistics.fmean(gaps) / statistics.stdev(gaps)
    assert judged.needed == math.ceil(power.solve_power(effect, power=0.8, alpha=0.05))
    assert judged.advice == f"about {judged.needed} seeds"
    decided = _judge(_shifted([2.0, 2.1, 1.9]), kind="better", a="altlora", b="lora", column="sentiment_accuracy")
    assert (decided.needed, decided.advice) == (None, "")
    none = _judge(_shifted([1.0, -1.0]), kind="better", a="altlora", b="lora", column="sentiment_accuracy")
    assert none.needed is None
    assert "no number of seeds" in none.advice
    few = _judge(_shifted([2.0]), kind="better", a="altlora", b="lora", column="sentiment_accuracy")
    assert few.advice == "at least 2 seeds in pairs"


def test_an_open_margin_counts_from_its_border() -> None:
    gaps = [0.4, 0.9, 0.1]
    judged = _judge(_shifted(gaps), kind="close", a="altlora", b="lora", column="sentiment_accuracy", within=0.5)
    effect = (0.5 - statistics.fmean(gaps)) / statistics.stdev(gaps)
    power = pytest.importorskip("statsmodels.stats.power").TTestPower()
    assert judged.needed == math.ceil(power.solve_power(effect, power=0.8, alpha=0.05))


def test_the_published_gap_says_how_many_seeds_it_takes() -> None:
    claim = {"kind": "better", "a": "altlora_plus", "b": "lora", "column": "avg"}
    judged = _judge(all_records(), **claim, published={"table": "table4", "column": "avg"})
    sweep = load("altlora_glue")
    joined = _table(sweep, all_records())
    lines = joined.line("altlora_plus"), joined.line("lora")
    a, b = (joined.cell(line, sweep.column("avg")).values for line in lines if line)
    spread = statistics.stdev(a[seed] - b[seed] for seed in a)
    power = pytest.importorskip("statsmodels.stats.power").TTestPower()
    assert judged.gap_needed == math.ceil(power.solve_power(0.42 / spread, power=0.8, alpha=0.05))
    assert judged.gap_needed > 3
    assert f"to tell the published +0.42 from 0 takes {judged.gap_needed} seeds" in judged.statistic


@pytest.mark.parametrize(("wrong", "verdict"), [((100, 300), "holds"), ((300, 100), "fails"), ((198, 202), OPEN)])
def test_a_claim_needs_the_test_items_to_agree(wrong: tuple[int, int], verdict: str, tmp_path: Path) -> None:
    """Seeds that all agree decide nothing when other test items could turn the difference round."""
    references = np.zeros(1000, dtype=int)
    records = []
    for method, count in zip(("altlora", "lora"), wrong, strict=True):
        for seed in range(3):
            predictions = references.copy()
            start = 0 if method == "lora" else 500
            predictions[start : start + count + seed] = 1
            record = record_of(FakeJob(method, seed))
            predict(tmp_path, record, "sentiment", predictions, references)
            records.append(record)
    sweep = load("altlora_glue")
    claim = Claim(kind="better", a="altlora", b="lora", column="sentiment_accuracy", origin="test")
    joined = collect.join(sweep.rows, sweep.columns, jobs_of(sweep.name), records, root=tmp_path)
    (judged,) = claims.judge(sweep.model_copy(update={"claims": [claim]}), joined)
    assert judged.verdict == verdict
    assert judged.items_low is not None
    assert judged.items_high is not None
    assert judged.items_low < judged.mean < judged.items_high
    assert ("more test items" in judged.advice) == (verdict == OPEN)
    assert "over test items" in judged.statistic


def test_the_sweeps_claims_with_trouble() -> None:
    sweep = load("altlora_glue")
    judged = claims.judge(sweep, _table(sweep, with_trouble()))
    assert [item.verdict for item in judged] == [
        "not enough evidence",  # LoRA has a NaN, so there are two pairs, and they disagree too much
        "not enough evidence",  # full fine-tuning never finished
        "not enough evidence",  # one pair
        "holds",
        "holds",
        "holds",
    ]
    assert "88.3 − 87.88 = +0.42" in judged[0].published
    assert "scale paper" in judged[0].published
    assert judged[0].n == 2
    assert "0, 2 needed" in judged[1].statistic


def test_no_records_is_no_evidence() -> None:
    sweep = load("altlora_glue")
    assert {item.verdict for item in claims.judge(sweep, _table(sweep, []))} == {"not enough evidence"}


@pytest.mark.parametrize(("number", "text"), [(0.416, "+0.42"), (-0.3, "−0.30"), (0.001, "0.00"), (-0.001, "0.00")])
def test_signed(number: float, text: str) -> None:
    assert claims.signed(number, 2) == text
