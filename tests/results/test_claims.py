"""Claims: the interval is Student's, and each verdict is the one a reader of the interval would give."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from lrx.results import claims, collect
from lrx.results.record import RunRecord
from lrx.results.sweep import Claim, Sweep, load
from tests.results.fakes import FakeJob, all_records, jobs_of, record_of, with_trouble


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
        ([-2.0, -2.1, -1.9], "does not hold"),
        ([2.0, -1.0, 1.5], "not enough evidence"),
        ([2.0], "not enough evidence"),
        ([], "not enough evidence"),
        ([math.nan, 2.0, math.nan], "not enough evidence"),
        ([0.0, 0.0, 0.0], "does not hold"),
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
        ([3.0, 3.1, 2.9], "does not hold"),
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
    assert _judge(all_records(), **claim, at_most=0.9).verdict == "does not hold"
    full = {**claim, "a": "full"}
    assert _judge(all_records(), **full, at_most=10).verdict == "does not hold"


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
