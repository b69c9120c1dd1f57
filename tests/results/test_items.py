"""The bootstrap over test items: official metrics, scipy's standard errors, and files that are not believed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lrx.results import collect, items
from lrx.results.items import METRICS, Items, draw
from lrx.results.protocol import Protocol, Reading
from lrx.results.record import Part, RunRecord
from lrx.results.sweep import Column, Row
from lrx.tasks import metrics as official
from tests.results.fakes import FakeJob, predict, record_of

N = 120
# Of blocks of tokens the prediction is the summed loss, the reference the number of tokens.
OFFICIAL = official.OFFICIAL | {"perplexity": lambda losses, tokens: float(np.exp(losses.sum() / tokens.sum()))}


def _data(metric: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    if metric in ("pearson", "spearman"):
        references = rng.integers(0, 6, N) / 2  # ratings have ties
        return np.round(references + rng.normal(size=N), 1), references
    if metric == "perplexity":
        references = rng.integers(5, 30, N)
        return references * rng.uniform(0.5, 1.5, N), references
    references = rng.integers(0, 3 if metric == "matthews_correlation" else 2, N)
    return np.where(rng.random(N) < 0.75, references, 0), references


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_each_resample_has_the_official_metric_of_its_items(metric: str) -> None:
    predictions, references = _data(metric)
    sample = items._Sample(references.astype(float), draw(N, "part test"))
    values = METRICS[metric](predictions.astype(float), sample)
    assert values[0] == pytest.approx(OFFICIAL[metric](predictions, references), abs=1e-5)
    for index in (1, 2, 500, 1000):
        chosen = np.repeat(np.arange(N), sample.weights[:, index].astype(int))
        assert len(chosen) == N
        expected = OFFICIAL[metric](predictions[chosen], references[chosen])
        assert values[index] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_the_standard_error_is_that_of_scipys_bootstrap(metric: str) -> None:
    predictions, references = _data(metric)
    function = OFFICIAL[metric]
    expected = scipy_stats.bootstrap(
        (predictions, references), function, paired=True, vectorized=False, n_resamples=1500, rng=0, method="basic"
    ).standard_error
    sample = items._Sample(references.astype(float), draw(N, "part test"))
    values = METRICS[metric](predictions.astype(float), sample)[1:]
    assert values.std(ddof=1) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_a_constant_prediction_has_no_correlation(metric: str) -> None:
    sample = items._Sample(np.arange(N, dtype=float), draw(N, "x"))
    with np.errstate(invalid="ignore", divide="ignore"):
        assert not np.isfinite(METRICS[metric](np.ones(N), sample)).any()


def test_large_splits_are_resampled_less_often() -> None:
    assert draw(40_000, "x").shape == (40_000, 101)
    assert draw(1000, "x").shape == (1000, 1001)
    assert np.array_equal(draw(50, "x"), draw(50, "x"))
    assert not np.array_equal(draw(50, "x"), draw(50, "y"))


def _reading(part: Part, metric: str) -> Reading:
    return Reading(part.metrics["test"][metric], part.best_step)


def _with_predictions(root: Path, metric: str = "accuracy", seed: int = 0) -> RunRecord:
    record = record_of(FakeJob("lora", seed))
    part = "sentiment" if metric == "accuracy" else "intensity"
    predict(root, record, part, *_data(metric, seed))
    return record


@pytest.mark.parametrize(("metric", "part"), [("accuracy", "sentiment"), ("spearman", "intensity")])
def test_predictions_of_a_record_are_used(metric: str, part: str, tmp_path: Path) -> None:
    record = _with_predictions(tmp_path, metric)
    found = Items(tmp_path, Protocol())
    values = found.values(record, part, "test", metric, _reading(record.parts[part], metric))
    assert values is not None
    assert values.shape == (1000,)
    assert found.reasons == {}


def test_an_accuracy_needs_no_predictions_for_its_own_error(tmp_path: Path) -> None:
    record = record_of(FakeJob("lora", 0))
    record.parts["sentiment"].sizes = {"test": 500}
    record.parts["sentiment"].metrics["test"]["accuracy"] = 0.8
    values = Items(None, Protocol()).binomial(record, "sentiment", "test", "accuracy", Reading(0.8, 300))
    assert values is not None
    assert values.std() == pytest.approx(math.sqrt(0.8 * 0.2 / 500), rel=0.1)


def _corrupt(path: Path, how: str) -> None:
    lines = path.read_text().splitlines()
    if how == "missing":
        path.unlink()
        return
    changes = {
        "empty": [],
        "header": lines[:1],
        "foreign": ["a,b", *lines[1:]],
        "cut": [*lines[:-1], lines[-1][:3]],
        "words": [*lines[:-1], "119,good,1"],
        "unlabelled": [line.rpartition(",")[0] + "," for line in lines],
    }
    path.write_text("\n".join(changes[how]) + "\n")


@pytest.mark.parametrize("how", ["missing", "empty", "header", "foreign", "cut", "words", "unlabelled"])
def test_a_file_that_cannot_be_read_is_said(how: str, tmp_path: Path) -> None:
    record = _with_predictions(tmp_path)
    path = record.parts["sentiment"].predictions["test"]
    _corrupt(tmp_path / path, how)
    found = Items(tmp_path, Protocol())
    assert (
        found.values(record, "sentiment", "test", "accuracy", _reading(record.parts["sentiment"], "accuracy")) is None
    )
    assert found.reasons == {"missing or unreadable prediction files": [path]}


@pytest.mark.parametrize("path", ["/dev/zero", "../outside.csv", "runs"])
def test_a_record_cannot_lead_out_of_its_folder(path: str, tmp_path: Path) -> None:
    record = _with_predictions(tmp_path / "root")
    part = record.parts["sentiment"]
    (tmp_path / "outside.csv").write_text((tmp_path / "root" / part.predictions["test"]).read_text())
    part.predictions["test"] = path
    found = Items(tmp_path / "root", Protocol())
    assert found.values(record, "sentiment", "test", "accuracy", _reading(part, "accuracy")) is None
    assert found.reasons == {"missing or unreadable prediction files": [path]}


def test_predictions_that_do_not_give_the_recorded_score_are_not_believed(tmp_path: Path) -> None:
    record = _with_predictions(tmp_path)
    record.parts["sentiment"].metrics["test"]["accuracy"] += 1 / N
    found = Items(tmp_path, Protocol())
    assert (
        found.values(record, "sentiment", "test", "accuracy", _reading(record.parts["sentiment"], "accuracy")) is None
    )
    assert "do not give the recorded score" in next(iter(found.reasons))


def test_runs_with_other_test_items_are_not_paired(tmp_path: Path) -> None:
    first, second = _with_predictions(tmp_path, seed=0), _with_predictions(tmp_path, seed=1)
    found = Items(tmp_path, Protocol())
    results = [
        found.values(r, "sentiment", "test", "accuracy", _reading(r.parts["sentiment"], "accuracy"))
        for r in (first, second)
    ]
    assert results[0] is not None
    assert results[1] is None
    assert "other test items" in next(iter(found.reasons))


def test_weights_without_stored_predictions(tmp_path: Path) -> None:
    record = _with_predictions(tmp_path)
    found = Items(tmp_path, Protocol())
    part = record.parts["sentiment"]
    assert found.values(record, "sentiment", "test", "accuracy", Reading(part.metrics["test"]["accuracy"], 20)) is None
    assert found.values(record, "sentiment", "test", "accuracy", Reading(0.5, None)) is None
    assert "no predictions are stored" in next(iter(found.reasons))


def test_a_metric_that_is_not_known_here(tmp_path: Path) -> None:
    record = _with_predictions(tmp_path)
    record.parts["sentiment"].metrics["test"]["bleu"] = 0.3
    found = Items(tmp_path, Protocol())
    assert found.values(record, "sentiment", "test", "bleu", Reading(0.3, 300)) is None
    assert "no bootstrap of the metric bleu" in found.reasons


def test_one_foreign_file_does_not_rule_the_others(tmp_path: Path) -> None:
    """The first file read is that of other test items; the majority decides."""
    records = []
    for seed, data in enumerate((1, 0, 0)):
        record = record_of(FakeJob("lora", seed))
        predict(tmp_path, record, "sentiment", *_data("accuracy", data))
        records.append(record)
    found = Items(tmp_path, Protocol(), records)
    usable = [
        found.values(r, "sentiment", "test", "accuracy", _reading(r.parts["sentiment"], "accuracy")) is not None
        for r in records
    ]
    assert usable == [False, True, True]
    (where,) = found.reasons.values()
    assert where == [records[0].parts["sentiment"].predictions["test"]]


def _mean_error(root: Path | None, records: list[RunRecord]) -> float | None:
    columns = [
        Column(key="a", label="a", part="sentiment", metric="accuracy"),
        Column(key="f", label="f", part="sentiment", metric="f1"),
        Column(key="both", label="both", mean_of=["a", "f"]),
        Column(key="d", label="d", part="domain", metric="accuracy"),
        Column(key="two", label="two", mean_of=["a", "d"]),
    ]
    row = Row(key="lora", label="LoRA", method="lora")
    jobs = [FakeJob("lora", record.seed) for record in records]
    joined = collect.join([row], columns, jobs, records, Protocol(std="items"), root)
    return joined.cell(joined.lines[0], columns[2 if root else 4]).std


def test_two_metrics_of_one_part_are_resampled_together(tmp_path: Path) -> None:
    """An accuracy drawn by itself would be independent of F1, and the mean of the two too steady."""
    predictions, references = _data("accuracy")
    record = record_of(FakeJob("lora", 0))
    record.parts["sentiment"].higher_is_better["f1"] = True
    predict(tmp_path, record, "sentiment", predictions, references)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(1500):
        at = rng.integers(N, size=N)
        one = [OFFICIAL[metric](predictions[at], references[at]) for metric in ("accuracy", "f1")]
        drawn.append(50 * sum(one))
    assert _mean_error(tmp_path, [record]) == pytest.approx(np.std(drawn), rel=0.1)


def test_a_mean_of_accuracies_of_two_parts_needs_no_predictions() -> None:
    record = record_of(FakeJob("lora", 0))
    for name in ("sentiment", "domain"):
        record.parts[name].sizes = {"test": 400}
        record.parts[name].metrics["test"]["accuracy"] = 0.8
    assert _mean_error(None, [record]) == pytest.approx(100 * math.sqrt(2 * 0.8 * 0.2 / 400) / 2, rel=0.1)


GROUPS = np.arange(N) // 4 % 20  # 20 documents of 4 or 8 items


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_with_groups_whole_documents_are_resampled(metric: str) -> None:
    predictions, references = _data(metric)
    sample = items._Sample(references.astype(float), draw(N, "part test", GROUPS.astype(float)))
    values = METRICS[metric](predictions.astype(float), sample)
    assert values[0] == pytest.approx(OFFICIAL[metric](predictions, references), abs=1e-5)
    for index in (1, 2, 500, 1000):
        counts = sample.weights[:, index].astype(int)
        assert all(len(set(counts[group == GROUPS])) == 1 for group in range(20))
        chosen = np.repeat(np.arange(N), counts)
        expected = OFFICIAL[metric](predictions[chosen], references[chosen])
        assert values[index] == pytest.approx(expected, abs=1e-5)


def _grouped(root: Path, record: RunRecord) -> None:
    path = root / record.parts["sentiment"].predictions["test"]
    head, *lines = path.read_text().splitlines()
    rows = [f"{line},{group}" for line, group in zip(lines, GROUPS, strict=True)]
    path.write_text("\n".join([f"{head},group", *rows]) + "\n")


def test_items_of_a_document_that_fall_together_have_a_larger_error(tmp_path: Path) -> None:
    """Documents that are right or wrong as a whole: the error is that of 20 documents, not of 120 items."""
    references = np.zeros(N, dtype=int)
    predictions = (GROUPS % 4 == 0).astype(int)
    errors = []
    for grouped in (False, True):
        records = []
        for seed in range(2):
            record = record_of(FakeJob("lora", seed))
            predict(tmp_path, record, "sentiment", predictions, references)
            records.append(record)
        if grouped:
            _grouped(tmp_path, records[1])  # the other file is of an earlier version, without the column
        found = Items(tmp_path, Protocol(), records)
        values = [found.values(r, "sentiment", "test", "accuracy", _reading(r.parts["sentiment"], "accuracy"))
                  for r in records]  # fmt: skip
        assert found.reasons == {}
        errors.append([float(each.std()) for each in values if each is not None])
    assert len(errors[0]) == len(errors[1]) == 2
    assert errors[1][0] == errors[1][1]
    assert errors[1][0] > 1.8 * errors[0][0]


def test_runs_write_the_documents_that_items_are_from(tmp_path: Path) -> None:
    from lrx.data.embedded import documents
    from lrx.training import write_predictions

    ids = ["film/1", "product/7_1", "editorial/7_1", "product/7_2", "tweet/2_1", "tweet/2_2"]
    groups = documents(ids)
    assert groups == [0, 1, 2, 1, 3, 4]
    assert documents(["film/1_1", "film/1_2"]) is None  # ids of reviews name no document
    write_predictions(tmp_path / "with.csv", np.arange(6), np.arange(6), groups)
    write_predictions(tmp_path / "without.csv", np.arange(6), np.arange(6))
    tables = [items._parse(tmp_path, f"{name}.csv") for name in ("with", "without")]
    assert all(table is not None and table.predictions.tolist() == list(range(6)) for table in tables)
    assert [None if table is None or table.groups is None else table.groups.tolist() for table in tables] == [
        groups,
        None,
    ]


def test_texts_are_resampled_by_the_values_of_their_items(tmp_path: Path) -> None:
    """Quotes, commas, line breaks of every kind and nothing at all in a text leave its row where it is."""
    from lrx.training import write_predictions

    texts = np.array(['He said "18, no 20"', "a\nb\r\nc\rd", "a\rb", "#### 18", ""], dtype=object)
    references = np.array(["18", "a\nb", "[]", "18", '["x", "y,z"]'], dtype=object)
    right = np.array([1.0, 0.0, 0.0, 1.0, 0.25])
    write_predictions(
        tmp_path / "a.csv", texts, references, [0, 0, 1, 2, 3], {"exact_match": right, "other": right * 2}
    )
    write_predictions(tmp_path / "b.csv", texts[::-1].copy(), references, None, {"exact_match": right})
    first, second = (items._parse(tmp_path, f"{name}.csv") for name in "ab")
    assert first is not None
    assert second is not None
    assert np.array_equal(first.references, second.references)
    assert first.references[0] == first.references[3] != first.references[1]
    assert first.items["exact_match"].tolist() == right.tolist() == (first.items["other"] / 2).tolist()
    assert first.groups is not None
    assert first.groups.tolist() == [0, 0, 1, 2, 3]
    write_predictions(tmp_path / "c.csv", texts, references)
    assert items._parse(tmp_path, "c.csv") is None  # nothing in it can be resampled
    numerals = np.array(["18"] * 5, dtype=object)  # a model that writes numbers alone has the same items
    write_predictions(tmp_path / "d.csv", numerals, references[[0] * 5], None, {"exact_match": right})
    third = items._parse(tmp_path, "d.csv")
    assert third is not None
    assert third.references[0] == first.references[0]
