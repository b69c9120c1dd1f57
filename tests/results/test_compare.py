"""Comparisons: what is bold or lettered is so by the tests of scipy, over seeds and over items, and errs seldom."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lrx.results import blocks, collect, stats, table
from lrx.results.collect import Line, Slot, Table
from lrx.results.compare import compare, effect
from lrx.results.record import Part, RunRecord
from lrx.results.sweep import Column, Row, load
from tests.results.fakes import FakeJob, jobs_of, predict, record_of, with_trouble

NAME = "altlora_glue"
COLUMN = Column(key="x", label="x", part="sentiment", metric="accuracy")


def _table(values: np.ndarray, column: Column = COLUMN, lower: bool = False) -> Table:
    """A table of ``values`` (methods, seeds), in percent, without predictions."""
    lines = []
    for method, row in enumerate(values):
        slots = []
        for seed, value in enumerate(row):
            job = FakeJob(f"m{method}", seed)
            part = Part(
                "accuracy", {"accuracy": not lower}, {"test": {"accuracy": float(value) / 100}}, reported=["test"]
            )
            record = RunRecord(
                job.run_id,
                job.fingerprint,
                "finished",
                job.method,
                "m",
                "t",
                "mini",
                "s",
                seed,
                parts={"sentiment": part},
            )
            slots.append(Slot(job, record))
        lines.append(Line(Row(key=f"m{method}", label=f"m{method}", method=f"m{method}"), slots))
    return Table(lines, [column])


def test_pairs_are_paired_t_tests_adjusted_over_the_column() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    values = np.random.default_rng(0).normal([[80], [82], [79], [85]], 1, (4, 5))
    found = compare(_table(values), COLUMN)
    expected = {}
    for i in range(4):
        for j in range(4):
            expected[f"m{i}", f"m{j}"] = scipy_stats.ttest_rel(values[i], values[j]).pvalue if i != j else 1
    assert len(found.pairs) == 6
    for pair in found.pairs:
        assert pair.effect.p == pytest.approx(expected[pair.a, pair.b])
        assert pair.effect.mean >= 0  # the better one stands first
    adjusted = multitest.multipletests([pair.effect.p for pair in found.pairs], method="holm")[1]
    assert [pair.adjusted for pair in found.pairs] == pytest.approx(list(adjusted))
    for pair in found.pairs:
        shared = set(found.letters[pair.a]) & set(found.letters[pair.b])
        assert bool(shared) != pair.differ


@pytest.mark.parametrize("lower", [False, True])
def test_the_best_is_bold_only_if_it_beats_every_other(lower: bool) -> None:
    sign = -1 if lower else 1
    clear = np.array([[90, 90.1, 90.2], [80, 80.2, 80.1], [70.1, 70, 70.2]])
    assert compare(_table(sign * clear, lower=lower), COLUMN).best == "m0"
    tied = np.array([[90, 90.1, 90.2], [80, 97, 93], [70.1, 70, 70.2]])
    found = compare(_table(sign * tied, lower=lower), COLUMN)
    assert found.best is None
    assert set(found.letters["m0"]) & set(found.letters["m1"])


def test_a_method_with_one_seed_can_neither_be_bold_nor_be_beaten() -> None:
    values = np.array([[90, 90.1, 90.2], [80, 80.2, 80.1], [70, math.nan, math.nan]])
    found = compare(_table(values), COLUMN)
    assert found.best is None
    assert "m2" not in found.letters
    assert found.letters["m0"] != found.letters["m1"]


def test_nothing_to_compare() -> None:
    for values in (np.full((2, 3), math.nan), np.array([[90.0], [80.0]]), np.empty((0, 0))):
        found = compare(_table(values), COLUMN)
        assert (found.pairs, found.letters, found.best) == ([], {}, None)


@pytest.mark.parametrize(
    ("methods", "seeds"),
    [(2, 3), (5, 3), (5, 5), (8, 2)],
)
def test_equal_methods_are_seldom_told_apart(methods: int, seeds: int) -> None:
    """The family-wise error of letters, and that of bold, on data with effects of seeds that all methods share."""
    rng = np.random.default_rng(3)
    told, bold, trials = 0, 0, 400
    for _ in range(trials):
        values = 80 + rng.normal(0, 1, seeds) + rng.normal(0, 0.7, (methods, seeds))
        found = compare(_table(values), COLUMN)
        told += any(pair.differ for pair in found.pairs)
        bold += found.best is not None
    assert told / trials <= 0.08
    assert bold / trials <= 0.08


def _item_records(
    root: Path, accuracies: dict[str, float], seeds: int, n: int, rng: np.random.Generator
) -> list[RunRecord]:
    """Runs on ``n`` shared items: an item is easier or harder for all, seeds differ a little."""
    references = rng.integers(0, 2, n)
    difficulty = rng.normal(0, 1.5, n)
    records = []
    for method, accuracy in accuracies.items():
        for seed in range(seeds):
            level = scipy_stats.norm.ppf(accuracy) * math.sqrt(1 + 1.5**2) + rng.normal(0, 0.05)
            right = difficulty + rng.normal(0, 1, n) < level
            record = record_of(FakeJob(method, seed))
            predict(root, record, "sentiment", np.where(right, references, 1 - references), references)
            records.append(record)
    return records


def _joined(root: Path, records: list[RunRecord]) -> Table:
    sweep = load(NAME)
    return collect.join(sweep.rows, [COLUMN], jobs_of(NAME), records, root=root)


def test_equal_methods_with_predictions_are_seldom_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    told, trials = 0, 60
    for _ in range(trials):
        records = _item_records(tmp_path, {"lora": 0.8, "altlora": 0.8, "head": 0.8}, 3, 150, rng)
        found = compare(_joined(tmp_path, records), COLUMN)
        assert found.over_items == 3
        told += any(pair.differ for pair in found.pairs)
    assert told <= 0.08 * trials


def test_the_item_interval_is_that_of_the_paired_bootstrap_of_scipy(tmp_path: Path) -> None:
    records = _item_records(tmp_path, {"lora": 0.85, "altlora": 0.8}, 3, 400, np.random.default_rng(2))
    joined = _joined(tmp_path, records)
    a, b = joined.line("lora"), joined.line("altlora")
    assert a
    assert b
    found = effect(joined, a, b, COLUMN)
    assert found
    assert found.over_items
    assert found.item_error
    right = {}
    for method in ("lora", "altlora"):
        tables = [
            np.loadtxt(tmp_path / r.parts["sentiment"].predictions["test"], delimiter=",", skiprows=1)
            for r in records
            if r.method == method
        ]
        right[method] = np.mean([t[:, 1] == t[:, 2] for t in tables], axis=0)
    difference = 100 * (right["lora"] - right["altlora"])
    expected = scipy_stats.bootstrap((difference,), np.mean, rng=0, n_resamples=4000, method="percentile")
    assert found.mean == pytest.approx(difference.mean())
    low, high = expected.confidence_interval
    assert found.over_items == (pytest.approx(low, abs=0.35), pytest.approx(high, abs=0.35))
    assert found.item_error == pytest.approx(difference.std(ddof=1) / math.sqrt(len(difference)), rel=0.1)
    together = stats.combined(found.differences, found.item_error)
    assert together
    assert (found.both, found.p_both) == (together.interval, together.p)
    assert found.p == max(found.p_seeds, together.p)


def test_the_item_interval_covers_the_truth(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    inside, trials = 0, 60
    for _ in range(trials):
        records = _item_records(tmp_path, {"lora": 0.8, "altlora": 0.8}, 2, 200, rng)
        joined = _joined(tmp_path, records)
        a, b = joined.line("lora"), joined.line("altlora")
        assert a
        assert b
        found = effect(joined, a, b, COLUMN)
        assert found
        # Differences that are equal at both seeds have no interval, and exclude nothing.
        inside += found.both is None or found.both[0] <= 0 <= found.both[1]
    assert inside / trials >= 0.88


def test_too_few_items_leave_methods_tied_that_seeds_tell_apart(tmp_path: Path) -> None:
    """On 40 items a difference of two items is the same for every seed, and yet says nothing about other items."""
    references = np.zeros(40, dtype=int)
    records = []
    for method, wrong in (("lora", 8), ("altlora", 10)):
        for seed in range(3):
            predictions = references.copy()
            predictions[:wrong] = 1
            predictions[39] = seed % 2 if method == "lora" else 0
            record = record_of(FakeJob(method, seed))
            predict(tmp_path, record, "sentiment", predictions, references)
            records.append(record)
    with_items = compare(_joined(tmp_path, records), COLUMN)
    assert with_items.best is None
    assert with_items.pairs[0].effect.p_seeds < 0.05 < with_items.pairs[0].effect.p
    for record in records:
        record.parts["sentiment"].predictions.clear()
        record.parts["sentiment"].last_predictions.clear()
    assert compare(_joined(tmp_path, records), COLUMN).best == "lora"


def test_missing_predictions_are_said_and_seeds_are_left(tmp_path: Path) -> None:
    records = _item_records(tmp_path, {"lora": 0.85, "altlora": 0.6, "head": 0.5}, 3, 60, np.random.default_rng(2))
    missing = tmp_path / records[0].parts["sentiment"].predictions["test"]
    missing.unlink()
    for record in records:
        record.save(tmp_path)
    data = table.gather(NAME, tmp_path, jobs_of=jobs_of)
    found = compare(data.table, data.sweep.column("sentiment_accuracy"))
    assert (len(found.pairs), found.over_items) == (3, 1)
    block = blocks.scores_block(data.sweep, data.table)
    assert any("missing or unreadable prediction files" in note and missing.name in note for note in block.notes)
    assert "comparisons that have predictions" in block.caption


def test_the_pairs_of_the_headline_stand_in_a_block(tmp_path: Path) -> None:
    for job in jobs_of(NAME):
        record_of(job).save(tmp_path)
    data = table.gather(NAME, tmp_path, jobs_of=jobs_of)
    block = blocks.comparison_block(data.sweep, data.table)
    assert block
    assert len(block.rows) == 10
    cells = {str(row[0]): dict(zip(block.header, map(str, row), strict=True)) for row in block.rows}
    close = cells["Full fine-tuning − AltLoRA+"]
    assert close["verdict"] == "not resolved"
    assert int(close["seeds needed"]) > 3
    assert cells["LoRA − Head only"]["verdict"] == "differ (seeds only)"
    assert cells["LoRA − Head only"]["seeds needed"] == "enough"
    assert {row["n"] for row in cells.values()} == {"3"}
    assert {row["95% over seeds and test items"] for row in cells.values()} == {"no predictions"}
    assert "Without predictions methods are told apart more easily" in block.caption


def _without(joined: Table, method: int, seed: int, status: str | None) -> Table:
    """The job has not run, or has come to ``status``."""
    slot = joined.lines[method].slots[seed]
    record = slot.record and dataclasses.replace(slot.record, status=status, parts={}) if status else None
    joined.lines[method].slots[seed] = Slot(slot.job, record)
    return joined


@pytest.mark.parametrize("sign", [1, -1])
def test_bold_never_goes_to_the_one_that_is_significantly_worse(sign: int) -> None:
    """A has the better mean by a seed that B lacks; at the common seeds B is better."""
    values = sign * np.array([[80.0, 80.1, 79.9, 90.0], [81.0, 81.1, 80.95, math.nan]])
    found = compare(_without(_table(values, lower=sign < 0), 1, 3, None), COLUMN)
    (pair,) = found.pairs
    assert (pair.a, pair.differ) == ("m0", True)
    assert sign * pair.effect.mean < 0
    assert found.best == "m1"
    assert found.unequal
    assert pair.effect.left_out == ("m1 missing at seed 3",)


def test_who_diverged_is_not_bold() -> None:
    values = np.array([[90, 90.1, 90.2, 90.1], [80, 80.2, 80.1, 80.1]])
    assert compare(_table(values), COLUMN).best == "m0"
    assert compare(_without(_table(values), 1, 3, "diverged"), COLUMN).best == "m0"
    found = compare(_without(_table(values), 0, 3, "diverged"), COLUMN)
    assert (found.best, found.pairs[0].differ) == (None, True)
    assert found.pairs[0].effect.left_out == ("m0 diverged at seed 3",)
    values[0, 3] = math.nan
    assert compare(_table(values), COLUMN).best is None


def test_equal_seed_sets_are_not_remarked_upon() -> None:
    assert not compare(_table(np.array([[80.0, 80.1], [81.0, 81.3]])), COLUMN).unequal


@pytest.mark.parametrize(("methods", "seeds", "items"), [(2, 2, 100), (3, 3, 200)])
def test_ties_of_discrete_scores_tell_nobody_apart(methods: int, seeds: int, items: int) -> None:
    """Accuracies are multiples of 1/n: with two seeds differences are often equal, which is no evidence."""
    rng = np.random.default_rng(4)
    told, trials = 0, 400
    for _ in range(trials):
        values = 100 * rng.binomial(items, 0.98, (methods, seeds)) / items
        told += any(pair.differ for pair in compare(_table(values), COLUMN).pairs)
    assert told / trials <= 0.07


def test_unequal_seeds_and_what_is_left_out_are_said(tmp_path: Path) -> None:
    for record in with_trouble():
        record.save(tmp_path)
    data = table.gather(NAME, tmp_path, jobs_of=jobs_of)
    scores = blocks.scores_block(data.sweep, data.table)
    assert any(note.startswith("Unequal seeds in sentiment accuracy") for note in scores.notes)
    assert "A row with fewer than two seeds in common with others has no letter" in scores.caption
    assert "every other method that has a value" in scores.caption
    pairs = blocks.comparison_block(data.sweep, data.table)
    assert pairs
    shown = {str(row[0]): str(row[4]) for row in pairs.rows}
    assert shown["AltLoRA+ − AltLoRA"] == "2 (left out: AltLoRA diverged at seed 2)"


def test_more_test_items_where_they_alone_leave_a_pair_open(tmp_path: Path) -> None:
    """Seeds differ much, and the item error alone straddles 0: both are too few."""
    rng = np.random.default_rng(0)
    references = np.zeros(50, dtype=int)
    records = []
    for method, wrong in (("lora", (8, 14, 9)), ("altlora", (10, 9, 13))):
        for seed, count in enumerate(wrong):
            predictions = references.copy()
            predictions[rng.choice(50, count, replace=False)] = 1
            record = record_of(FakeJob(method, seed))
            predict(tmp_path, record, "sentiment", predictions, references)
            record.save(tmp_path)
            records.append(record)
    joined = _joined(tmp_path, records)
    block = blocks.comparison_block(load(NAME).model_copy(update={"columns": [COLUMN], "headline": "x"}), joined)
    assert block
    (row,) = block.rows
    assert str(row[-1]).endswith("and more test items")
