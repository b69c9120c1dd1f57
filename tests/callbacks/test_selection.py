"""The curve in the record: every split at every evaluation, no evaluation twice, and no effect on training."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lrx.results.record import Part
from tests.conftest import Result
from tests.contract.runs import SMALL, falling_scores, the_record, weights

EIGHT = [*SMALL, "method=lora", "trainer.max_steps=8"]


@pytest.fixture
def run(cli: Any, tmp_path: Path) -> Any:
    def call(*overrides: str, root: Path = tmp_path) -> Part:
        result: Result = cli(*EIGHT, f"paths.root={root}", *overrides)
        assert result.code == 0, result
        return the_record(root).parts["sentiment"]

    return call


def test_the_curve_has_every_split_at_every_evaluation(run: Any) -> None:
    part = run("trainer.evaluations=4")
    assert [entry["step"] for entry in part.curve] == [2, 4, 6, 8]
    assert all(set(entry["splits"]) == {"select", "test"} for entry in part.curve)
    assert part.curve[-1]["splits"] == part.last
    assert next(e["splits"] for e in part.curve if e["step"] == part.best_step) == part.metrics


def test_no_split_is_scored_twice(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lrx import training
    from lrx.callbacks import selection

    counts: Counter[str] = Counter()
    for module, name in ((selection, "score_split"), (training, "predict_split")):
        real = getattr(module, name)

        def counted(backbone: Any, task: Any, split: str, precision: str, real: Any = real) -> Any:
            counts[split] += 1
            return real(backbone, task, split, precision)

        monkeypatch.setattr(module, name, counted)
    run("trainer.evaluations=4", "trainer.select=last")
    assert counts == {"select": 4, "test": 4}


def test_evaluations_leave_training_as_it_is(run: Any, tmp_path: Path) -> None:
    parts = [run(f"trainer.evaluations={n}", "trainer.select=last", root=tmp_path / str(n)) for n in (0, 8)]
    assert len(parts[0].curve) == 1
    assert parts[0].curve[-1]["splits"]["test"] == parts[1].curve[-1]["splits"]["test"]
    first, second = (weights(tmp_path / str(n)) for n in (0, 8))
    assert all(first[name].equal(second[name]) for name in first)


def test_the_curve_ends_where_training_stopped_early(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    falling_scores(monkeypatch, [0.5, 0.6, 0.6, 0.4, 0.9])
    part = run("trainer.evaluations=8", "trainer.patience=2")
    assert [entry["step"] for entry in part.curve] == [1, 2, 3, 4]
    assert part.curve[-1]["splits"]["test"] == part.last["test"]


def test_predictions_of_the_last_and_of_the_best_weights(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling_scores(monkeypatch, [0.9, 0.1])
    part = run("trainer.evaluations=2")
    assert part.best_step == 4
    assert part.predictions["test"].endswith("/sentiment/predictions.test.csv")
    assert part.last_predictions["test"].endswith("/sentiment/last_predictions.test.csv")
    for path in (part.predictions["test"], part.last_predictions["test"]):
        assert len((tmp_path / path).read_text().splitlines()) == 1 + part.sizes["test"]


def test_without_a_selection_split_the_reported_ones_make_the_curve(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lrx.tasks.glue import GlueTask

    size = GlueTask.size
    monkeypatch.setattr(GlueTask, "size", lambda self, split: 0 if split == "select" else size(self, split))
    part = run("trainer.evaluations=4")
    assert [set(entry["splits"]) for entry in part.curve] == [{"test"}] * 4


def test_a_trial_has_a_curve_of_the_selection_split_alone(run: Any) -> None:
    part = run("trainer.evaluations=2", "trial=true")
    assert part.reported == []
    assert [set(entry["splits"]) for entry in part.curve] == [{"select"}] * 2
    assert part.predictions == part.last_predictions == {}
