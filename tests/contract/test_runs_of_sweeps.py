"""Whole runs of a multirun: each job once, what is repeated when, how a failure is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.contract.runs import (
    Run,
    broken_after_training,
    one_line,
    the_record,
)

SWEEP = ["-m", "method=head,lora", "seed=0,1"]


def test_a_sweep_runs_each_job_once(run: Run, tmp_path: Path) -> None:
    first = run(*SWEEP)
    assert "4 run, 0 already finished, 0 failed" in first.out
    records = sorted(tmp_path.glob("records/*.json"))
    assert len(records) == 4
    before = {path: path.read_text() for path in records}
    again = run(*SWEEP)
    assert "0 run, 4 already finished, 0 failed" in again.out
    assert "rerun=all repeats what is finished" in again.out
    assert {path: path.read_text() for path in records} == before

    lost = records[2]
    stored = tmp_path / "runs" / lost.stem / "sentiment" / "adapter.safetensors"
    content = stored.read_bytes()
    lost.unlink()
    stored.unlink()
    third = run(*SWEEP)
    assert "1 run, 3 already finished, 0 failed" in third.out
    assert sorted(tmp_path.glob("records/*.json")) == records
    assert stored.read_bytes() == content  # it was trained again, not pieced together
    assert {path: path.read_text() for path in records if path != lost} == {
        p: t for p, t in before.items() if p != lost
    }
    old = json.loads(before[lost])
    new = json.loads(lost.read_text())
    assert new["parts"] == old["parts"]
    assert new["started"] >= old["finished"]


def test_rerun_all_repeats_and_failed_repeats_what_failed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrx import experiment

    failing = {"lora"}
    started: list[str] = []
    train_part = experiment.train_part

    def watched(task: Any, settings: Any, folder: Path, tracker: Any) -> Any:
        started.append(settings.method["name"])
        if settings.method["name"] in failing:
            raise RuntimeError("broken here")
        return train_part(task, settings, folder, tracker)

    monkeypatch.setattr(experiment, "train_part", watched)
    jobs = ["-m", "method=head,lora", "engine=inline"]  # in this process, where the patch is
    assert "1 run, 0 already finished, 1 failed" in run(*jobs, code=1).out
    assert started == ["head", "lora"]
    failing.clear()
    started.clear()
    again = run(*jobs, code=1)  # what failed would most likely fail again: it is left until asked for
    assert "0 run, 1 already finished, 1 failed" in again.out
    assert "broken here" in again.err
    assert "rerun=failed" in again.err
    assert started == []
    assert "1 run, 1 already finished, 0 failed" in run(*jobs, "rerun=failed").out
    assert started == ["lora"]
    started.clear()
    assert "0 run, 2 already finished, 0 failed" in run(*jobs, "rerun=failed").out
    assert "0 run, 2 already finished, 0 failed" in run(*jobs).out
    assert started == []
    assert "2 run, 0 already finished, 0 failed" in run(*jobs, "rerun=all").out
    assert started == ["head", "lora"]


def test_a_failed_run_is_recorded(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        broken_after_training(patch)
        result = run("method=lora", code=1)
    one_line(result, "RuntimeError: broken here")
    record = the_record(tmp_path)
    assert (record.status, record.parts) == ("failed", {})
    assert "broken here" in record.message
    (trace,) = tmp_path.glob("runs/*/traceback.txt")
    assert "RuntimeError: broken here" in trace.read_text()


def test_finished_runs_are_scored_again(run: Run, tmp_path: Path) -> None:
    run("-m", "method=head,lora")
    before = {path: path.read_text() for path in tmp_path.glob("records/*.json")}
    again = run("-m", "method=head,lora", "mode=eval", "jobs=2")
    assert again.out.count("scored again") == 2
    assert "2 run, 0 already finished, 0 failed" in again.out
    outputs = [path.read_text() for path in tmp_path.glob("runs/*/output.log")]
    assert all("every metric equals the record" in text for text in outputs)
    missing = run("-m", "method=head,altlora", "mode=eval", code=1)
    assert "1 run, 0 already finished, 1 failed" in missing.out
    assert {path: path.read_text() for path in tmp_path.glob("records/*.json")} == before
