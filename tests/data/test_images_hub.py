"""Image sets from a server on the loopback: shards, the cache, wrong content, and no server at all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrx.data.images_spec import SETS
from tests.conftest import ROOT
from tests.data import images as make
from tests.hub import Hub

CODE = """
import json, sys
from lrx.data import imagenet
from lrx.errors import UserError
try:
    task = json.loads(sys.argv[1])
    imagenet.check(task)
    found = {}
    for split in imagenet.splits(task):
        images = imagenet.load(task, split)
        found[split] = [images.labels.tolist(), [int(images.pixels(i).sum()) for i in range(len(images))]]
    print(json.dumps(found))
except UserError as e:
    print(json.dumps(str(e)))
"""


def load(tmp_path: Path, endpoint: str, **task) -> tuple[dict | str, float]:
    """(what was read or the error's message, seconds) in a process of its own: the client reads its settings once."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    env = {**clean, **own, "LRX_CACHE": str(tmp_path / "cache")}
    start = time.monotonic()
    command = [sys.executable, "-c", CODE, json.dumps({"source": "hub", **task})]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), time.monotonic() - start


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[Hub]:
    chosen = SETS[request.param]
    running = Hub(f"datasets/{chosen.repository}", chosen.revision)
    yield running
    running.close()


def no_server() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}"


@pytest.mark.parametrize("served", ["cifar100"], indirect=True)
def test_reading_and_then_reading_from_the_cache(tmp_path: Path, served: Hub) -> None:
    for seed, split in enumerate(("train", "test")):
        columns = make.rows(5, seed)
        columns["fine_label"] = [99, *columns.pop("label")[1:]]
        columns["coarse_label"] = [0] * 5
        served.files[f"cifar100/{split}-00000-of-00001.parquet"] = make.parquet(columns)
    found, _ = load(tmp_path, served.url, dataset="cifar100")
    assert found["train"][0] == found["test"][0] == [99, 1, 2, 3, 4]
    assert found["test"][1] == [int(make.noise(1000 + i, 6, 8, 3).sum()) for i in range(5)]
    before = len(served.requests)
    again, _ = load(tmp_path, no_server(), dataset="cifar100")
    assert again == found
    assert len(served.requests) == before


@pytest.mark.parametrize("served", ["imagenet1k"], indirect=True)
def test_imagenet_in_its_shards(tmp_path: Path, served: Hub) -> None:
    chosen = SETS["imagenet1k"]
    assert [len(chosen.files(split)) for split in ("train", "validation")] == [294, 14]
    for split in ("train", "validation"):
        for number, file in enumerate(chosen.files(split)[:14]):
            columns = make.rows(2, number)
            columns = {"image": columns["img"], "label": [number, 999]}
            served.files[file] = make.parquet(columns)
    message, _ = load(tmp_path, served.url, dataset="imagenet1k")
    assert "cannot get data/train-00014-of-00294.parquet of ILSVRC/imagenet-1k" in message
    assert "its terms have to be accepted on the hub" in message
    assert "\n" not in message
    served.files[chosen.files("validation")[3]] = make.parquet({"image": [b"x"], "label": [1000]})
    code = CODE.replace("imagenet.splits(task)", "['validation']")
    env = {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "hf"), "LRX_CACHE": str(tmp_path / "cache")}
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    command = [sys.executable, "-c", code, '{"source": "hub", "dataset": "imagenet1k"}']
    done = subprocess.run(
        command, cwd=ROOT, env={**clean, **env}, capture_output=True, text=True, timeout=100, check=True
    )
    assert "row 0: label 1000 is no class id from 0 to 999" in json.loads(done.stdout)


@pytest.mark.parametrize("served", ["fashion_mnist"], indirect=True)
def test_what_is_no_parquet_file(tmp_path: Path, served: Hub) -> None:
    for split in ("train", "test"):
        served.files[f"fashion_mnist/{split}-00000-of-00001.parquet"] = b"<html>sorry</html>"
    message, _ = load(tmp_path, served.url, dataset="fashion_mnist")
    assert "is not readable as parquet" in message


def test_no_server_is_one_line_within_seconds(tmp_path: Path) -> None:
    message, seconds = load(tmp_path, no_server(), dataset="cifar10")
    assert seconds < 5
    assert "task.source=hub: cannot get plain_text/train-00000-of-00001.parquet of uoft-cs/cifar10" in message
    assert "task.source=local task.data_dir=" in message
    assert "\n" not in message
