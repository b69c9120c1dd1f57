"""Claims: the interval is Student's, and each verdict is the one a reader of the interval would give."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pytest

from lrx.results import claims, collect
from lrx.results.protocol import Protocol
from lrx.results.record import RunRecord
from lrx.results.sweep import Claim, Sweep, load
from tests.results.fakes import FakeJob, all_records, jobs_of, predict, record_of, with_trouble

OPEN = "not enough evidence"


def _table(sweep: Sweep, records: list[RunRecord]) -> collect.Table:
    return collect.join(sweep.rows, sweep.columns, jobs_of(sweep.name), records)


def _judge(records: list[RunRecord], **claim: object) -> claims.Judged:
    sweep = load("altlora_glue").model_copy(update={"claims": [Claim(origin="test", **claim)]})  # type: ignore[arg-type]
    return claims.judge(sweep, _table(sweep, records))[0]


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
        ([0.0, 0.0, 0.0], "not enough evidence"),
        ([2.0, 2.0, 2.0], "not enough evidence"),
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
        ([0.5, 0.5, 0.5], "not enough evidence"),
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
            predictions[start : start + count + seed * (1 + (method == "lora"))] = 1
            record = record_of(FakeJob(method, seed))
            predict(tmp_path, record, "sentiment", predictions, references)
            records.append(record)
    sweep = load("altlora_glue")
    claim = Claim(kind="better", a="altlora", b="lora", column="sentiment_accuracy", origin="test")
    joined = collect.join(sweep.rows, sweep.columns, jobs_of(sweep.name), records, root=tmp_path)
    (judged,) = claims.judge(sweep.model_copy(update={"claims": [claim]}), joined)
    assert judged.verdict == verdict
    assert judged.mean is not None
    assert judged.both_low is not None
    assert judged.both_high is not None
    assert judged.both_low < judged.mean < judged.both_high
    assert ("more test items" in judged.advice) == (verdict == OPEN)
    assert "over seeds and test items" in judged.statistic
    assert judged.words == verdict


def test_the_sweeps_claims_with_trouble() -> None:
    sweep = load("altlora_glue")
    judged = claims.judge(sweep, _table(sweep, with_trouble()))
    assert [item.verdict for item in judged] == [
        "not enough evidence",  # LoRA has a NaN, so there are two pairs, and they disagree too much
        "not enough evidence",  # full fine-tuning never finished
        "not enough evidence",  # one pair
        "not enough evidence",  # AltLoRA is better where it did not diverge
        "holds",
        "holds",
    ]
    assert "88.3 − 87.88 = +0.42" in judged[0].published
    assert "scale paper" in judged[0].published
    assert judged[0].n == 2
    assert judged[4].statistic.endswith("n = 2; left out: AltLoRA diverged at seed 2")
    assert "0, 2 needed" in judged[1].statistic


def test_no_records_is_no_evidence() -> None:
    sweep = load("altlora_glue")
    assert {item.verdict for item in claims.judge(sweep, _table(sweep, []))} == {"not enough evidence"}


@pytest.mark.parametrize(("number", "text"), [(0.416, "+0.42"), (-0.3, "−0.30"), (0.001, "0.00"), (-0.001, "0.00")])
def test_signed(number: float, text: str) -> None:
    assert claims.signed(number, 2) == text


BETTER = {"kind": "better", "a": "altlora", "b": "lora", "column": "sentiment_accuracy"}


@pytest.mark.parametrize("gap", [0.0, 2.0, -2.0])
def test_a_difference_equal_in_every_seed_is_no_evidence(gap: float) -> None:
    """Accuracies are multiples of 1/n: equal differences happen by chance and show no spread."""
    judged = _judge(_shifted([gap, gap]), **BETTER)
    assert judged.words == "not enough evidence (equal in every seed)"
    assert (judged.low, judged.high, judged.needed) == (None, None, None)
    assert "95%" not in judged.statistic


def test_without_predictions_a_verdict_says_that_it_is_over_seeds_only() -> None:
    assert _judge(_shifted([2.0, 2.1, 1.9]), **BETTER).words == "holds (seeds only)"
    assert _judge(_shifted([-2.0, -2.1, -1.9]), **BETTER).words == "fails (seeds only)"
    assert _judge(all_records(), kind="cost_ratio", a="altlora", b="lora", cost="trainable_parameters",
                  at_most=1).words == "holds"  # fmt: skip


def _with_divergence(gaps: list[float], method: str, seed: int) -> list[RunRecord]:
    records = [r for r in _shifted(gaps) if (r.method, r.seed) != (method, seed)]
    return [*records, record_of(FakeJob(method, seed), "diverged", "loss is NaN")]


@pytest.mark.parametrize(
    ("claim", "gaps", "who", "verdict"),
    [
        (BETTER, [2.0, 2.1, 9.0], "altlora", OPEN),
        (BETTER, [2.0, 2.1, 9.0], "lora", "holds"),
        (BETTER, [-2.0, -2.1, 9.0], "altlora", "fails"),
        (BETTER, [-2.0, -2.1, 9.0], "lora", OPEN),
        ({**BETTER, "kind": "close", "within": 1.0}, [0.02, 0.01, 9.0], "altlora", OPEN),
        ({**BETTER, "kind": "close", "within": 1.0}, [0.02, 0.01, 9.0], "lora", OPEN),
        ({**BETTER, "kind": "close", "within": 0.1}, [2.0, 2.1, 9.0], "altlora", "fails"),
    ],
)
def test_a_seed_that_diverged_is_named_and_favours_nobody(
    claim: dict[str, object], gaps: list[float], who: str, verdict: str
) -> None:
    judged = _judge(_with_divergence(gaps, who, 2), **claim)
    assert (judged.verdict, judged.n) == (verdict, 2)
    label = {"altlora": "AltLoRA", "lora": "LoRA"}[who]
    assert judged.statistic.endswith(f"; left out: {label} diverged at seed 2")
    assert (f"{label} diverged or gave NaN" in judged.words) == (verdict == OPEN)


def test_missing_seeds_are_named() -> None:
    records = [record for record in _shifted([2.0, 2.1, 1.9]) if (record.method, record.seed) != ("lora", 1)]
    judged = _judge(records, **BETTER)
    assert judged.verdict == "holds"
    assert judged.statistic.endswith("; left out: LoRA missing at seed 1")
    assert (
        "left out: LoRA missing at seeds 0, 1, 2"
        in _judge([r for r in records if r.method != "lora"], **BETTER).statistic
    )


def test_a_margin_needs_at_least_about_so_many_seeds() -> None:
    judged = _judge(
        _shifted([0.4, 0.9, 0.1]), kind="close", a="altlora", b="lora", column="sentiment_accuracy", within=0.5
    )
    assert judged.advice == f"at least about {judged.needed:,} seeds"


def test_costs_of_other_machines_are_told_apart_from_counts() -> None:
    records = all_records()
    for record in records:
        record.environment["threads"] = 2 if record.method == "lora" else 1
    claim = {"kind": "cost_ratio", "a": "altlora", "b": "lora", "at_most": 2}
    assert "the paired runs differ in threads" in _judge(records, **claim, cost="peak_memory_bytes").statistic
    assert "differ in" not in _judge(records, **claim, cost="trainable_parameters").statistic
    assert "differ in" not in _judge(all_records(), **claim, cost="peak_memory_bytes").statistic


def test_a_measured_cost_that_is_equal_in_every_seed_is_no_evidence() -> None:
    records = all_records()
    for record in records:
        record.cost["peak_memory_bytes"] = 1e9
    judged = _judge(records, kind="cost_ratio", a="altlora", b="lora", cost="peak_memory_bytes", at_most=1.05)
    assert judged.words == "not enough evidence (equal in every seed)"


def test_claims_of_papers_and_checks_of_our_own_are_counted_apart() -> None:
    judged = claims.judge(load("altlora_glue"), _table(load("altlora_glue"), all_records()))
    assert claims.by_origin(judged).startswith("4 of papers: ")
    assert "; 2 checks of our own: 2 hold, 0 fail, 0 not enough evidence" in claims.by_origin(judged)


def test_no_published_gap_where_the_protocol_shows_another_metric() -> None:
    records = all_records()
    for record in records:
        for part in record.parts.values():
            for metrics in part.metrics.values():
                metrics.setdefault("f1", 0.5 + record.seed / 100)
            part.higher_is_better["f1"] = True
    claim = Claim.model_validate({"kind": "better", "a": "altlora_plus", "b": "lora", "column": "avg", "origin": "test",
                                  "published": {"table": "table4", "column": "avg"}})  # fmt: skip
    sweep = load("altlora_glue").model_copy(update={"claims": [claim]})
    for metric, told in (("column", True), ("f1", False)):
        joined = collect.join(sweep.rows, sweep.columns, jobs_of(sweep.name), records, Protocol(metric=metric))
        (judged,) = claims.judge(sweep, joined)
        assert (judged.gap_needed is not None) == told
        assert ("to tell the published" in judged.statistic) == told
    assert judged.text.endswith("in avg (f1)")
