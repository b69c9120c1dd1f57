"""The hub source of E2E against a server on the loopback."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrx.data import e2e
from tests.conftest import ROOT
from tests.hub import Hub

ROWS = {
    "train": [("name[Aromi]", "Aromi is a place."), ("name[Zizzi]", None)],
    "validation": [("name[Cocum]", "Cocum."), ("name[The Eagle]", "In the test too.")],
    "test": [("name[The Eagle]", "The Eagle."), ("name[The Eagle]", "Eagle.")],
}


def parquet(rows: list[tuple], names: tuple[str, str] = e2e.COLUMNS) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    buffer = io.BytesIO()
    table = pyarrow.table({name: [row[i] for row in rows] for i, name in enumerate(names)})
    pytest.importorskip("pyarrow.parquet").write_table(table, buffer)
    return buffer.getvalue()


@pytest.fixture
def served() -> Iterator[Hub]:
    running = Hub(f"datasets/{e2e.REPOSITORY}", e2e.REVISION.replace("/", "%2F"))
    for split, rows in ROWS.items():
        running.files[f"default/{split}/0000.parquet"] = parquet(rows)
    yield running
    running.close()


def load(tmp_path: Path, endpoint: str, *splits: str) -> tuple[dict | str, float]:
    """(what was read or the error's message, seconds) in a process of its own: the client reads its settings once."""
    code = (
        "import json, sys\nfrom lrx.data import e2e\nfrom lrx.errors import UserError\ntask = {'source': 'hub'}\n"
        "try:\n    e2e.check(task)\n    found = {name: e2e.completions(task, name) for name in sys.argv[1:]}\n"
        "    print(json.dumps({k: [s.prompts, s.references, s.notes] for k, s in found.items()}))\n"
        "except UserError as e:\n    print(json.dumps(str(e)))\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    env = clean | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    start = time.monotonic()
    command = [sys.executable, "-c", code, *splits]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), time.monotonic() - start


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_reading_and_then_finding_it_in_the_cache(tmp_path, served, monkeypatch):
    found, _ = load(tmp_path, served.url, *e2e.SPLITS)
    assert found["test"] == [["name : The Eagle"], [json.dumps(["The Eagle.", "Eagle."])], {}]
    assert found["select"] == [["name : Cocum"], [json.dumps(["Cocum."])], {"in_test": 1}]
    assert found["train"] == [["name : Aromi"], [json.dumps(["Aromi is a place."])], {"broken_line": 1}]
    before = len(served.requests)
    assert before > 0
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")  # no server there: nothing is asked
    e2e.check({"source": "hub"})
    assert len(served.requests) == before


def test_no_server_is_one_line_within_seconds(tmp_path):
    message, seconds = load(tmp_path, f"http://127.0.0.1:{free_port()}")
    assert seconds < 5
    assert "task.source=hub: cannot get default/train/0000.parquet of tuetschek/e2e_nlg" in message
    assert "task.source=local task.data_dir=" in message
    assert "\n" not in message
