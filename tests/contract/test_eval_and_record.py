"""Whole runs: the record is complete, and mode=eval holds the stored weights against it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from tests.contract.runs import (
    Run,
    log_lines,
    one_line,
    part_folder,
    the_record,
    weights,
)


def test_eval_holds_the_weights_against_the_record(run: Run, tmp_path: Path) -> None:
    choice = ["method=altlora", "model=tiny_llama"]
    one_line(run(*choice, "mode=eval", code=2), "mode=eval: no record", "train first")
    run(*choice)
    (path,) = tmp_path.glob("records/*.json")
    before = path.read_text()
    result = run(*choice, "mode=eval")
    assert "every metric equals the record" in result.out
    assert "DIFFERENT" not in result.out
    assert path.read_text() == before

    raw = json.loads(before)
    raw["parts"]["sentiment"]["metrics"]["test"]["accuracy"] += 1 / 16
    path.write_text(json.dumps(raw))
    one_line(result := run(*choice, "mode=eval", code=1), "failed: ", "1 metrics differ", "sentiment test accuracy")
    assert "DIFFERENT" in result.out
    path.write_text(before)

    stored = part_folder(tmp_path) / "adapter.safetensors"
    content = stored.read_bytes()
    stored.write_bytes(content[:100])
    one_line(run(*choice, "mode=eval", code=2), str(stored))
    stored.unlink()
    one_line(run(*choice, "mode=eval", code=2), f"{stored} is missing", "rerun=all")
    assert path.read_text() == before


def test_eval_uses_the_weights_that_are_stored(run: Run, tmp_path: Path) -> None:
    """With the adapter of an untrained model in its place the scores are others: eval does read it."""
    choice = ["method=full", "method.lr=0.05", "trainer.max_steps=8", "task.eval_limit=200"]
    run(*choice)
    assert "every metric equals" in run(*choice, "mode=eval").out
    run(*choice, "trainer.max_steps=0", root=tmp_path / "untrained")
    other = part_folder(tmp_path / "untrained") / "adapter.safetensors"
    shutil.copy(other, part_folder(tmp_path) / "adapter.safetensors")
    run(*choice, "mode=eval", code=1)


def test_the_record_is_complete(run: Run, tmp_path: Path) -> None:
    from lrx import config
    from lrx.results.record import RunRecord
    from lrx.schema import validate

    result = run("method=altlora", "seed=3", "logger.every_n_steps=1", "trainer.evaluations=2")
    record = the_record(tmp_path)
    empty = {"message"}
    for field in dataclasses.fields(RunRecord):
        value = getattr(record, field.name)
        assert (not value) == (field.name in empty), field.name
    assert record.finished >= record.started
    assert (record.method, record.model, record.task, record.scale, record.source, record.seed) == (
        "altlora", "tiny_bert", "glue", "smoke", "embedded", 3
    )  # fmt: skip
    settings = validate(record.config)
    assert config.fingerprint(settings) == record.fingerprint
    assert config.run_id(settings) == record.run_id
    part = record.parts["sentiment"]
    for field in dataclasses.fields(part):
        assert getattr(part, field.name) not in (None, {}, []) or field.name == "notes", field.name
    assert part.sizes == {"train": 16, "select": 16, "test": 16}
    assert (part.steps, set(part.metrics), set(part.last)) == (2, {"test", "select"}, {"test", "select"})
    for path in part.predictions.values():
        rows = (tmp_path / path).read_text().splitlines()
        assert (rows[0], len(rows)) == ("index,prediction,reference", 17)
    cost_keys = {
        "trainable_parameters", "adapter_parameters", "optimizer_state_bytes", "peak_memory_bytes",
        "median_step_seconds", "examples_per_second", "train_seconds", "wall_seconds",
    }  # fmt: skip
    assert cost_keys <= record.cost.keys()
    # A network this small may find its memory among what the process has already.
    assert all(record.cost[key] > 0 for key in cost_keys - {"peak_memory_bytes"})
    assert record.cost["peak_memory_bytes"] >= 0
    assert record.cost["trainable_parameters"] == sum(t.numel() for t in weights(tmp_path).values())
    assert {"python", "lrx", "torch", "transformers", "peft", "cpu", "threads"} <= record.environment.keys()
    lines = log_lines(tmp_path)
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2]
    assert [line["step"] for line in lines if "select/accuracy" in line] == [1, 2]
    accuracy = part.metrics["test"]["accuracy"]
    assert f"accuracy {accuracy:.4f}" in result.out  # the summary at the end
    assert str(next(tmp_path.glob("records/*.json"))) in result.out
    assert not list(tmp_path.glob("runs/*/*/part.json"))


def test_the_record_of_several_parts(run: Run, tmp_path: Path) -> None:
    run("method=lora", "task.subset=[sentiment,intensity,domain]")
    record = the_record(tmp_path)
    assert list(record.parts) == ["sentiment", "intensity", "domain"]
    assert set(record.parts["intensity"].metrics["test"]) == {"pearson", "spearman"}
    assert (part_folder(tmp_path, "intensity") / "metrics.jsonl").exists()
    alone = tmp_path / "alone"
    run("method=lora", "task.subset=domain", root=alone)
    assert the_record(alone).parts["domain"].metrics == record.parts["domain"].metrics  # parts do not touch each other
