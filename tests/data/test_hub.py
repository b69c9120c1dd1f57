"""The hub source against a server on the loopback: success, cache, wrong answers, and no server at all."""

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

from lrx.data import hub
from tests.conftest import ROOT
from tests.hub import Hub

COLUMNS = {
    "rte": {"sentence1": ['A "', "C"], "sentence2": ["B", "D"], "label": [1, 0], "idx": [0, 1]},
    "stsb": {"sentence1": ["A"], "sentence2": ["B"], "label": [3.2], "idx": [7]},
}


def parquet(columns: dict) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    parquet_module = pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    parquet_module.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


@pytest.fixture
def served() -> Iterator[Hub]:
    running = Hub(f"datasets/{hub.REPOSITORY}", hub.REVISION)
    for name, columns in COLUMNS.items():
        for split in ("train", "validation"):
            running.files[f"{name}/{split}-00000-of-00001.parquet"] = parquet(columns)
    hidden = {**COLUMNS["rte"], "label": [-1, -1]}
    running.files["rte/test-00000-of-00001.parquet"] = parquet(hidden)
    yield running
    running.close()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def load(tmp_path: Path, endpoint: str, name: str = "rte", split: str = "train") -> tuple[dict | str, float]:
    """(what was read or the error's message, seconds) in a process of its own: the client reads its settings once."""
    code = (
        "import json, sys\nfrom lrx.data import glue\nfrom lrx.errors import UserError\n"
        "task = {'source': 'hub', 'subset': sys.argv[1]}\n"
        "try:\n    glue.check(task)\n    s = glue.load(task, *sys.argv[1:])\n"
        "    print(json.dumps({'texts': s.texts, 'labels': s.labels, 'ids': s.ids}))\n"
        "except UserError as e:\n    print(json.dumps(str(e)))\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    env = clean | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    start = time.monotonic()
    command = [sys.executable, "-c", code, name, split]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), time.monotonic() - start


def test_reading_and_then_reading_from_the_cache(tmp_path, served):
    found, _ = load(tmp_path, served.url)
    assert found == {"texts": [['A "', "B"], ["C", "D"]], "labels": [1, 0], "ids": ["0", "1"]}
    assert load(tmp_path, served.url, "rte", "validation")[0]["labels"] == [1, 0]
    before = len(served.requests)
    assert before > 0
    again, _ = load(tmp_path, f"http://127.0.0.1:{free_port()}")  # no server there: nothing is asked
    assert again == found
    assert len(served.requests) == before


def test_hidden_labels_and_values(tmp_path, served):
    assert load(tmp_path, served.url, "rte", "test")[0]["labels"] is None
    assert load(tmp_path, served.url, "stsb", "validation")[0] == {"texts": [["A", "B"]], "labels": [3.2], "ids": ["7"]}


def test_no_server_is_one_line_within_seconds(tmp_path):
    message, seconds = load(tmp_path, f"http://127.0.0.1:{free_port()}")
    assert seconds < 5
    assert "task.source=hub: cannot get rte/validation-00000-of-00001.parquet of nyu-mll/glue" in message
    assert "task.source=local task.data_dir=" in message
    assert "\n" not in message


def test_a_host_that_does_not_answer(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for name in ("http_proxy", "HTTP_PROXY", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        start = time.monotonic()
        assert hub.unreachable(0.5) is not None
        assert time.monotonic() - start < 2
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.unreachable() == "HF_HUB_OFFLINE is set"


def test_a_missing_file(tmp_path, served):
    served.files.clear()
    message, seconds = load(tmp_path, served.url)
    assert "cannot get rte/train-00000-of-00001.parquet" in message
    assert seconds < 20
    assert "\n" not in message


def test_a_download_that_breaks_off(tmp_path, served):
    served.truncate = True
    message, _ = load(tmp_path, served.url)
    assert "cannot get rte/train-00000-of-00001.parquet" in message
    served.truncate = False
    assert load(tmp_path, served.url)[0]["labels"] == [1, 0]  # and nothing broken stays behind


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no parquet at all", "is not readable as parquet"),
        ({"sentence1": ["A"], "label": [0], "idx": [0]}, "has no column sentence2"),
        ({**COLUMNS["rte"], "label": [0, 5]}, "row 1: label 5 is not one of: entailment, not_entailment"),
        ({**COLUMNS["rte"], "label": [0, -1]}, "has hidden labels"),
    ],
    ids=["bytes", "columns", "label", "hidden"],
)
def test_wrong_content(tmp_path, served, data, message):
    served.files["rte/train-00000-of-00001.parquet"] = data if isinstance(data, bytes) else parquet(data)
    found, _ = load(tmp_path, served.url)
    assert message in found
