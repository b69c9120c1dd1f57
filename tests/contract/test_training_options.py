"""Whole runs: precision, accumulation, early stopping, checkpoints, the choice of weights, no steps at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.contract.runs import (
    EIGHT,
    Run,
    broken_after_training,
    falling_scores,
    log_lines,
    numbers,
    one_line,
    part_folder,
    the_record,
    weights,
)


def test_bf16_keeps_the_factors_in_float32(run: Run, tmp_path: Path) -> None:
    for precision in ("32-true", "bf16-mixed"):
        run("method=altlora", f"trainer.precision={precision}", root=tmp_path / precision)
    half, whole = tmp_path / "bf16-mixed", tmp_path / "32-true"
    assert log_lines(half)[0]["train/loss"] != log_lines(whole)[0]["train/loss"]  # it did run in bfloat16
    assert log_lines(half)[0]["train/loss"] == pytest.approx(log_lines(whole)[0]["train/loss"], abs=0.02)
    assert {tensor.dtype for tensor in weights(half).values()} == {torch.float32}
    factors = [t for name, t in weights(half).items() if name.endswith(".A")]
    assert factors
    assert all((t != t.bfloat16().float()).any() for t in factors)  # and were never rounded to it
    assert (
        "every metric equals the record"
        in run("method=altlora", "trainer.precision=bf16-mixed", "mode=eval", root=half).out
    )


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_t5"])
def test_accumulation_equals_the_larger_batch(run: Run, tmp_path: Path, model: str) -> None:
    """Two batches of 4 and one of 8: the same step. Llama has no dropout; T5's is switched off."""
    quiet = ["+model.config.dropout_rate=0.0"] if model == "tiny_t5" else []
    common = [f"model={model}", "method=lora", "trainer.clip=0.01", *quiet, "task.max_length=64", "trainer.max_steps=4"]
    run(*common, "task.batch_size=4", "trainer.accumulate=2", root=tmp_path / "parts")
    run(*common, "task.batch_size=8", root=tmp_path / "whole")
    run(*common, "task.batch_size=4", root=tmp_path / "half")
    parts, whole, half = (weights(tmp_path / name) for name in ("parts", "whole", "half"))
    assert [line["lr"] for line in log_lines(tmp_path / "parts") if "lr" in line] == [
        line["lr"] for line in log_lines(tmp_path / "whole") if "lr" in line
    ]
    assert the_record(tmp_path / "parts").parts["sentiment"].steps == 4
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=2e-5)
    assert any((half[name] - tensor).abs().max() > 1e-4 for name, tensor in whole.items())


def test_early_stopping(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    falling_scores(monkeypatch, [0.5, 0.6, 0.6, 0.4, 0.9])
    run(*EIGHT, "trainer.patience=2")
    part = the_record(tmp_path).parts["sentiment"]
    assert (part.steps, part.best_step) == (4, 2)
    assert part.metrics["select"] == {"accuracy": 0.6}
    assert part.last["select"] == {"accuracy": 0.4}
    assert max(line["step"] for line in log_lines(tmp_path)) == 4
    assert "every metric equals the record" in run(*EIGHT, "trainer.patience=2", "mode=eval").out


def test_a_run_that_stopped_early_and_broke_does_not_train_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = [*EIGHT, "trainer.patience=2", "callbacks.checkpoint.every_n_steps=1"]
    falling_scores(monkeypatch, [0.5, 0.6, 0.6, 0.4, 0.9])
    run(*choice, root=tmp_path / "whole")
    falling_scores(monkeypatch, [0.5, 0.6, 0.6, 0.4, 0.9, 0.9, 0.9, 0.9])
    with monkeypatch.context() as patch:
        broken_after_training(patch)
        one_line(run(*choice, root=tmp_path / "broken", code=1), "RuntimeError: broken here", "traceback.txt")
    assert the_record(tmp_path / "broken").status == "failed"
    run(*choice, "rerun=failed", root=tmp_path / "broken")
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")


def test_a_run_that_broke_after_its_last_step_reports_the_same_costs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = [*EIGHT, "callbacks.checkpoint.every_n_steps=1"]
    run(*choice, root=tmp_path / "whole")
    with monkeypatch.context() as patch:
        broken_after_training(patch)
        run(*choice, root=tmp_path / "broken", code=1)
        kept = sorted(path.name for path in (part_folder(tmp_path / "broken") / "checkpoints").iterdir())
        assert kept == ["step-7.ckpt", "step-8.ckpt"]
    run(*choice, "rerun=failed", root=tmp_path / "broken")
    assert not list((part_folder(tmp_path / "broken") / "checkpoints").iterdir())
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")
    broken, whole = the_record(tmp_path / "broken").cost, the_record(tmp_path / "whole").cost
    assert broken["optimizer_state_bytes"] == whole["optimizer_state_bytes"] > 0
    assert broken["peak_memory_bytes"] >= 0  # so small a network may find its memory among what is there already
    assert broken["median_step_seconds"] > 0


def test_checkpoints_by_time(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_after_training(monkeypatch)
    run(*EIGHT, "callbacks.checkpoint.every_seconds=0.000001", code=1)
    kept = sorted(path.name for path in (part_folder(tmp_path) / "checkpoints").iterdir())
    assert kept == ["time-7.ckpt", "time-8.ckpt"]


def test_no_checkpoints(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_after_training(monkeypatch)
    run(*EIGHT, code=1)
    assert not (part_folder(tmp_path) / "checkpoints").exists()


def test_best_and_last_weights(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for select in ("best", "last"):
        falling_scores(monkeypatch, [0.5, 0.9, 0.4, 0.3, 0.3, 0.3, 0.3, 0.6])
        run(*EIGHT, f"trainer.select={select}", root=tmp_path / select)
    run(*EIGHT, "trainer.evaluations=0", root=tmp_path / "none")
    best, last = (the_record(tmp_path / name).parts["sentiment"] for name in ("best", "last"))
    assert (best.best_step, best.metrics["select"], best.last["select"]) == (2, {"accuracy": 0.9}, {"accuracy": 0.6})
    assert (last.best_step, last.metrics) == (8, last.last)
    assert last.last == best.last
    assert weights(tmp_path / "last").keys() == weights(tmp_path / "best").keys()
    assert any(not torch.equal(t, weights(tmp_path / "best")[name]) for name, t in weights(tmp_path / "last").items())
    none = the_record(tmp_path / "none").parts["sentiment"]  # never selected: the last weights
    assert none.metrics == {"test": last.metrics["test"]}
    assert all(torch.equal(t, weights(tmp_path / "last")[name]) for name, t in weights(tmp_path / "none").items())


def test_no_steps_scores_the_untrained_model(run: Run, tmp_path: Path) -> None:
    from lrx.experiment import build_suite
    from lrx.modules.evaluate import score_split
    from lrx.schema import validate
    from lrx.seeds import derive
    from lrx.training import assemble

    run("method=lora", "trainer.max_steps=0", "task.eval_limit=null")
    record = the_record(tmp_path)
    part = record.parts["sentiment"]
    assert (record.status, part.steps, part.best_step) == ("finished", 0, 0)
    assert record.cost["trainable_parameters"] > 0
    assert record.cost["optimizer_state_bytes"] == 0
    settings = validate(record.config)
    (task,) = build_suite(settings).parts()
    backbone, _ = assemble(task, settings)
    task.bind(backbone, derive(settings.seed, "data"))
    assert part.metrics == {split: score_split(backbone, task, split, "32-true") for split in ("test", "select")}
    assert all((t == 0).all() for name, t in weights(tmp_path).items() if name.endswith(".B"))
    assert "every metric equals" in run("method=lora", "trainer.max_steps=0", "task.eval_limit=null", "mode=eval").out
