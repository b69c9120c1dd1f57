"""Whole runs: what each logger holds, and that one which fails costs nothing but itself."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.runs import (
    Run,
    broken_after_training,
    log_lines,
    numbers,
    one_line,
    part_folder,
    the_record,
)


def tracks(root: Path) -> list[str]:
    """The folders of trackers that a run left."""
    names = ("csv", "tensorboard", "wandb")
    return sorted(path.name for path in root.glob("runs/*/*") if path.name in names)


def wandb_runs(root: Path) -> list[Path]:
    return sorted(root.glob("runs/*/wandb/offline-run-*"))


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of an offline run's file: LevelDB's log format behind a header of 7 bytes, in blocks of 32 KiB."""
    data, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        size, kind = struct.unpack_from("<HB", data, position + 4)  # behind the checksum
        whole += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a full record, or the last piece of one
            yield whole
            whole = b""


def wandb_content(folder: Path) -> dict[str, Any]:
    """The keys of the history and the summary, and the exit code, in an offline run's file."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("run-*.wandb")
    keys: set[str] = set()
    summary: set[str] = set()
    exit_code: int | None = None
    for data in wandb_records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            keys |= {item.key or "/".join(item.nested_key) for item in record.history.item}
        elif kind == "summary":
            summary |= {item.key or "/".join(item.nested_key) for item in record.summary.update}
        elif kind == "exit":
            exit_code = record.exit.exit_code
    return {"history": keys, "summary": summary, "exit": exit_code}


def test_without_a_logger_nothing_is_left_beside_the_record(run: Run, tmp_path: Path) -> None:
    run("method=lora")
    assert tracks(tmp_path) == []
    assert the_record(tmp_path).environment["loggers"] == []
    left = {p.name for p in part_folder(tmp_path).iterdir() if p.is_file()}
    left -= {"last_predictions.test.csv"}  # there when the last step was not the best one
    assert left == {"adapter.safetensors", "metrics.jsonl", "predictions.test.csv"}


def test_csv_and_tensorboard_hold_every_logged_value(run: Run, tmp_path: Path) -> None:
    import csv

    run("method=lora", "logger=csv", "logger.every_n_steps=1", root=tmp_path / "csv")
    assert tracks(tmp_path / "csv") == ["csv"]
    (path,) = (tmp_path / "csv").glob("runs/*/csv/metrics.csv")
    rows = list(csv.DictReader(path.open()))
    mirrored = [(int(r["step"]), float(r["sentiment/train/loss"])) for r in rows if r["sentiment/train/loss"]]
    assert mirrored == [(line["step"], line["train/loss"]) for line in log_lines(tmp_path / "csv") if "lr" in line]

    run("method=lora", "logger=tensorboard", "logger.every_n_steps=1", root=tmp_path / "tb")
    assert tracks(tmp_path / "tb") == ["tensorboard"]
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (folder,) = (tmp_path / "tb").glob("runs/*/tensorboard")
    events = accumulator.EventAccumulator(str(folder)).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("sentiment/train/loss")]
    assert shown == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in mirrored]


def test_wandb_offline_has_one_finished_run_per_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    run("-m", "method=head,lora", "logger=wandb", "logger.every_n_steps=1")
    folders = wandb_runs(tmp_path)
    assert len({path.parent.parent for path in folders}) == len(folders) == 2
    assert wandb.run is None
    for folder in folders:
        content = wandb_content(folder)
        assert content["exit"] == 0
        assert {"sentiment/train/loss", "sentiment/select/accuracy"} <= content["history"]
        assert "sentiment/test/accuracy" in content["summary"]
    broken_after_training(monkeypatch)
    run("method=lora", "seed=1", "logger=wandb", code=1)
    (failed,) = set(wandb_runs(tmp_path)) - set(folders)
    assert wandb.run is None
    assert wandb_content(failed)["exit"] == 1


def test_an_offline_logger_does_not_keep_later_runs_offline(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    run("method=head", "logger=wandb")
    assert "WANDB_MODE" not in os.environ


@pytest.mark.parametrize("kind", ["csv", "tensorboard", "wandb"])
def test_a_logger_that_breaks_in_the_middle_costs_nothing_but_itself(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import wandb

    from lrx import trackers

    cls = {"csv": "CSVLogger", "tensorboard": "TensorBoardLogger", "wandb": "WandbLogger"}[kind]
    calls = []

    def log_metrics(self: Any, metrics: dict[str, float], step: int | None = None) -> None:
        calls.append(step)
        if len(calls) == 2:
            raise OSError("no space left\non device")

    with monkeypatch.context() as patch:
        patch.setattr(getattr(trackers, cls), "log_metrics", log_metrics)
        result = run("method=lora", f"logger={kind}", "logger.every_n_steps=1", root=tmp_path / kind)
    assert len(calls) == 2  # asked no more
    one_line(result, f"warning: {cls} is not available (no space left on device)")
    run("method=lora", root=tmp_path / "none")
    assert numbers(tmp_path / kind) == numbers(tmp_path / "none")
    assert wandb.run is None  # else the next run of a sweep would write into this one
    if kind == "wandb":
        run("-m", "method=head", "logger=wandb", root=tmp_path / "next")
        assert len(wandb_runs(tmp_path / "next")) == 1


@pytest.mark.parametrize("kind", ["csv", "tensorboard", "wandb"])
def test_a_logger_that_cannot_start_or_end_costs_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from lrx import trackers

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no service")

    cls = {"csv": "CSVLogger", "tensorboard": "TensorBoardLogger", "wandb": "WandbLogger"}[kind]
    with monkeypatch.context() as patch:
        patch.setattr(trackers, cls, type("Broken", (getattr(trackers, cls),), {"__init__": broken}))
        one_line(run("method=head", f"logger={kind}", root=tmp_path / "start"), f"warning: {kind} is not available")
    with monkeypatch.context() as patch:
        patch.setattr(getattr(trackers, cls), "finalize", broken)
        if kind == "wandb":
            import wandb

            finish = wandb.Run.finish
            patch.setattr(wandb.Run, "finish", lambda self, *a, **k: (finish(self, *a, **k), broken()))
        one_line(run("method=head", f"logger={kind}", root=tmp_path / "end"), "is not available (no service)")
    for place in ("start", "end"):
        assert the_record(tmp_path / place).status == "finished"
