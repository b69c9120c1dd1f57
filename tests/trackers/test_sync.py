"""Runs go to wandb out of their local files: whole, once, and back again without a difference."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb.sdk.lib import wbauth

from lrx import sync as syncing
from lrx import wandb_service
from lrx.__main__ import main
from lrx.results import table as tables
from lrx.results.history import metric_log, read_history
from lrx.results.record import RunRecord, read_all
from lrx.results.wandb_files import RECORD_KEY, read_run, wandb_files
from tests.results.grid import pages, table_of, write_grid
from tests.trackers.wandb_server import WandbServer

LORA = "glue-lora-minilm-mini-s0"
DIVERGED = "glue-altlora-minilm-mini-s2"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_grid(tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    server = WandbServer()
    for name in ("WANDB_MODE", "WANDB_SERVICE", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb_service.forget_service()
    wbauth.unauthenticate_session(update_settings=False)  # a process remembers the key of an earlier login
    yield server
    wandb_service.forget_service()
    server.close()


def keep_only(root: Path, *run_ids: str) -> None:
    for path in (root / "records").glob("*.json"):
        if path.stem not in run_ids:
            path.unlink()


def expected_rows(root: Path, run_id: str) -> list[dict[str, object]]:
    (record,) = [record for record in read_all(root)[0] if record.run_id == run_id]
    return list(syncing.history(root, record))


def test_an_upload_holds_every_logged_value_once_and_in_order(root: Path, server: WandbServer, capsys) -> None:
    keep_only(root, LORA, DIVERGED)
    assert main(["sync", LORA, "--root", str(root), "--project", "mine", "--entity", "us"]) == 0
    assert "1 uploaded" in capsys.readouterr().out
    (name,) = server.runs
    assert name == syncing.wandb_id(LORA)
    found = server.runs[name]
    rows = server.rows(name)
    assert rows == expected_rows(root, LORA)
    part = [row for row in rows if any(key.startswith("sentiment/") for key in row)]
    assert [row[syncing.STEP] for row in part] == [1, 100, 200, 300]
    logged = read_history(metric_log(root, LORA, "sentiment"))
    for line in logged:
        row = next(row for row in part if row[syncing.STEP] == line["step"])
        assert {f"sentiment/{key}": value for key, value in line.items() if key != "step"}.items() <= row.items()
    assert part[1]["sentiment/test/accuracy"] == 0.25
    assert (found["project"], found["entity"], found["groupName"]) == ("mine", "us", "glue")
    assert (found["displayName"], found["jobType"], found["exit"]) == (LORA, "lora", 0)
    record = read_all(root)[0][-1]
    assert record.run_id == LORA
    assert found["config"]["method"] == record.config["method"]
    assert RunRecord.from_json(found["config"][RECORD_KEY]) == record
    for key, value in syncing.summary(record).items():
        assert found["summary"][key] == value, key
    csv = f"runs/{LORA}/sentiment/predictions.test.csv"
    assert found["files"][csv] == (root / csv).read_bytes()


def test_what_is_unchanged_is_left_out_and_what_changed_is_replaced(root: Path, server: WandbServer, capsys) -> None:
    keep_only(root, LORA, DIVERGED)
    command = ["sync", "--all", "--root", str(root)]
    assert main(command) == 0
    assert sorted(server.starts) == sorted(map(syncing.wandb_id, (LORA, DIVERGED)))
    assert server.runs[syncing.wandb_id(DIVERGED)]["exit"] == 1
    assert main(command) == 0
    assert "0 uploaded, 2 unchanged" in capsys.readouterr().out
    assert len(server.starts) == 2
    with metric_log(root, LORA, "domain").open("a") as stream:
        stream.write('\n{"step": 301, "train/loss": 0.5}\n')
    assert main(command) == 0
    assert server.starts[2:] == [syncing.wandb_id(LORA)]
    assert server.rows(syncing.wandb_id(LORA)) == expected_rows(root, LORA)
    assert main([*command, "--project", "other"]) == 0  # another place has none of them yet
    assert len(server.starts) == 5


@pytest.mark.parametrize("trouble", ["key", "network", "mode", "refused"])
def test_what_cannot_be_uploaded_is_one_line_and_is_tried_again(
    root: Path, server: WandbServer, trouble: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    keep_only(root, LORA)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        if trouble == "key":
            patch.delenv("WANDB_API_KEY")
        if trouble == "network":
            patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        if trouble == "mode":
            patch.setenv("WANDB_MODE", "offline")
        server.broken = trouble == "refused"
        assert main(["sync", "--all", "--root", str(root)]) == 2
    err = capsys.readouterr().err.strip()
    words = {
        "key": "no API key",
        "network": "cannot be reached",
        "mode": "WANDB_MODE=offline",
        "refused": "0 of 1 runs",
    }
    assert err.startswith("error: wandb: "), err
    assert words[trouble] in err
    assert len(err.splitlines()) == 1, err
    assert {path: path.read_bytes() for path in before} == before
    server.broken = False
    wandb_service.forget_service()
    assert main(["sync", "--all", "--root", str(root)]) == 0
    assert server.rows(syncing.wandb_id(LORA)) == expected_rows(root, LORA)


def test_the_table_from_wandb_s_files_is_the_local_one(root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    wandb_service.forget_service()
    assert main(["sync", "--all", "--offline", "--root", str(root)]) == 0
    records, _ = read_all(root)
    assert f"{len(records)} written below" in capsys.readouterr().out
    export = shutil.move(root / "wandb-export", tmp_path / "elsewhere")
    local = pages(table_of(root), tmp_path / "local")
    again = pages(table_of(tmp_path / "nowhere", export), tmp_path / "again")
    assert again == local
    assert {"table.md", "table.tex", "table.csv"} == set(local)
    assert tables.document(table_of(tmp_path / "nowhere", export)) == tables.document(table_of(root))
    # A second export replaces the first, and its history has what the local files have.
    assert main(["sync", LORA, "--offline", "--root", str(root)]) == 0
    assert main(["sync", LORA, "--offline", "--root", str(root)]) == 0
    (path,) = wandb_files(root / "wandb-export")
    found = read_run(path)
    rows = [{key: value for key, value in row.items() if not key.startswith("_")} for row in found["history"]]
    assert rows == expected_rows(root, LORA)
    assert found["exit"] == 0
    assert (found["run"].run_id, found["run"].run_group) == (syncing.wandb_id(LORA), "glue")


def test_torn_and_foreign_wandb_files_are_named_and_skipped(root: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    wandb_service.forget_service()
    syncing.sync(root, [LORA], offline=True)
    (path,) = wandb_files(root / "wandb-export")
    data = path.read_bytes()
    folder = tmp_path / "torn"
    folder.mkdir()
    (folder / "run-a.wandb").write_bytes(data)
    (folder / "run-b.wandb").write_bytes(data[:40])
    (folder / "run-c.wandb").write_bytes(b"something else")
    (folder / "run-d.wandb").write_bytes(data[:7] + bytes(4) + b"\x05\x00\x01hello" + data[7:])
    found = table_of(tmp_path / "nowhere", folder)
    assert [record.run_id for record in found.table.records()] == [LORA]
    named = sorted(problem.path.name for problem in found.problems)
    assert named == ["run-b.wandb", "run-c.wandb", "run-d.wandb"]


def test_choosing_runs(root: Path, capsys) -> None:
    assert main(["sync", "--root", str(root)]) == 2
    assert "give the run ids to upload, or --all" in capsys.readouterr().err
    assert main(["sync", LORA[:-1] + "9", "--root", str(root)]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_an_unreadable_record_is_named_and_the_others_go(root: Path, server: WandbServer, capsys) -> None:
    keep_only(root, LORA)
    (root / "records" / "broken.json").write_text('{"schema": 1, ')
    assert main(["sync", "--all", "--root", str(root)]) == 0
    out, err = capsys.readouterr()
    assert "1 uploaded" in out
    assert "broken.json" in err
    assert main(["sync", "broken", "--root", str(root)]) == 2
    assert "truncated" in capsys.readouterr().err


def test_reading_a_metric_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_history(path) == []
    path.write_bytes(
        b'{"step": 1, "lr": NaN}\n7\n[]\n{"lr": 1}\n{"step": true}\n\xff\xfe\n{"step": 2, "lr": 3}\n{"step": 3'
    )
    found = read_history(path)
    assert [line["step"] for line in found] == [1, 2]
    assert json.dumps(found[0]["lr"]) == "NaN"
    assert os.fspath(metric_log(tmp_path, "run", "part")).endswith("runs/run/part/metrics.jsonl")
