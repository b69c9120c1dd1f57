"""The official metrics against scikit-learn and SciPy, on random and on degenerate input."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from lrx.tasks import metrics

RANDOM = range(40)


def draw(seed: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    return rng.integers(0, classes, n), rng.integers(0, classes, n)


@pytest.mark.parametrize("seed", RANDOM)
@pytest.mark.parametrize("classes", [1, 2, 3, 5])
def test_class_metrics_equal_scikit_learns(seed, classes):
    sklearn = pytest.importorskip("sklearn.metrics")
    p, t = draw(seed, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert metrics.accuracy(p, t) == pytest.approx(sklearn.accuracy_score(t, p), abs=1e-15)
        assert metrics.matthews_correlation(p, t) == pytest.approx(sklearn.matthews_corrcoef(t, p), abs=1e-12)
        if classes == 2:
            assert metrics.f1(p, t) == pytest.approx(sklearn.f1_score(t, p, zero_division=0), abs=1e-15)


@pytest.mark.parametrize(
    ("p", "t"), [([1] * 9, [0, 1, 1] * 3), ([0] * 9, [0, 1, 1] * 3), ([1] * 4, [1] * 4), ([0] * 4, [1] * 4), ([0], [0])]
)
def test_a_collapsed_model_has_no_correlation(p, t):
    assert metrics.matthews_correlation(p, t) == 0.0


def test_f1_without_positives_is_zero_while_all_is_right():
    assert metrics.f1([0, 0], [0, 0]) == 0.0
    assert metrics.accuracy([0, 0], [0, 0]) == 1.0


def test_cola_majority_of_the_published_counts():
    labels = np.array([1] * 721 + [0] * 322)
    assert metrics.accuracy(np.ones(1043, int), labels) == pytest.approx(0.6913, abs=5e-5)


@pytest.mark.parametrize("broken", [math.nan, -1, math.inf, 0.5])
def test_a_prediction_that_is_no_class_counts_as_wrong(broken):
    references = [0, 1, 1, 0]
    assert metrics.accuracy([0, 1, 1, broken], references) == 0.75
    assert metrics.accuracy([broken, 1, 1, 0], references) == 0.75  # also where class 0 would be right
    assert metrics.f1([0, 1, broken, 0], references) == pytest.approx(2 / 3)
    perfect = metrics.matthews_correlation([0, 1, 1, 0], references)
    assert metrics.matthews_correlation([0, 1, 1, broken], references) < perfect == 1.0


@pytest.mark.parametrize("seed", RANDOM)
def test_correlations_equal_scipys(seed):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 60))
    x, y = rng.normal(size=n), rng.integers(0, 6, n) / 2.0
    if seed % 2:
        x = np.round(x)  # ties
    x = x * 10.0 ** rng.integers(-8, 8) + 10.0 ** rng.integers(0, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert metrics.pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-6, nan_ok=True)
        assert metrics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("function", [metrics.pearson, metrics.spearman])
@pytest.mark.parametrize("x", [[2.0, 2.0, 2.0], [0.1 + 0.2] * 3, [1.0, math.nan, 3.0]])
def test_correlation_of_constant_or_nan_is_nan(function, x):
    assert math.isnan(function(x, [1.0, 2.0, 3.0]))
    assert math.isnan(function([1.0, 2.0, 3.0], x))
    assert math.isnan(function([1.0], [1.0]))


def test_correlations_survive_offset_and_extreme_scale():
    y = np.arange(10.0)
    for x in (y + 1e9, y * 1e200, y * 1e-200, -y):
        assert abs(metrics.pearson(x, y)) == pytest.approx(1.0)


def test_lengths_must_agree():
    for function in metrics.OFFICIAL.values():
        with pytest.raises(ValueError, match="equally long"):
            function([1, 0], [1])


def test_collected_scores_the_whole_split_in_file_order():
    seen = []

    def function(p, t):
        seen.append((p.tolist(), t.tolist()))
        return metrics.compute(("accuracy", "f1"), p, t)

    collected = metrics.Collected(function)
    collected.update(torch.tensor([1, 0]), torch.tensor([1, 1]), torch.tensor([2, 0]))
    collected.update(torch.tensor([1, 1]), torch.tensor([0, 1]), torch.tensor([1, 2]))  # position 2 again
    assert collected.compute() == metrics.compute(("accuracy", "f1"), [0, 1, 1], [1, 0, 1])
    assert seen == [([0, 1, 1], [1, 0, 1])]
    collected.reset()
    collected.update(torch.tensor([1]), torch.tensor([1]), torch.tensor([0]))
    assert collected.compute()["accuracy"] == 1.0
