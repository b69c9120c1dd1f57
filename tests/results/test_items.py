"""The bootstrap over test items: official metrics, scipy's standard errors, and files that are not believed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lrx.results import items
from lrx.results.items import METRICS, Items, draw
from lrx.results.protocol import Protocol, Reading
from lrx.results.record import Part, RunRecord
from lrx.tasks import metrics as official
from tests.results.fakes import FakeJob, predict, record_of

N = 120


def _data(metric: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    if metric in ("pearson", "spearman"):
        references = rng.integers(0, 6, N) / 2  # ratings have ties
        return np.round(references + rng.normal(size=N), 1), references
    references = rng.integers(0, 3 if metric == "matthews_correlation" else 2, N)
    return np.where(rng.random(N) < 0.75, references, 0), references


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_each_resample_has_the_official_metric_of_its_items(metric: str) -> None:
    predictions, references = _data(metric)
    sample = items._Sample(references.astype(float), draw(N, "part test"))
    values = METRICS[metric](predictions.astype(float), sample)
    assert values[0] == pytest.approx(official.OFFICIAL[metric](predictions, references), abs=1e-5)
    for index in (1, 2, 500, 1000):
        chosen = np.repeat(np.arange(N), sample.weights[:, index].astype(int))
        assert len(chosen) == N
        expected = official.OFFICIAL[metric](predictions[chosen], references[chosen])
        assert values[index] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_the_standard_error_is_that_of_scipys_bootstrap(metric: str) -> None:
    predictions, references = _data(metric)
    function = official.OFFICIAL[metric]
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
    values = Items(None, Protocol()).error(record, "sentiment", "test", "accuracy", Reading(0.8, 300))
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
