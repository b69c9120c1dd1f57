"""The causal models of ``conf/model``: counted without their weights, and loaded from the hub or not at all."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import transformers as t

from lrx import counts, registry
from lrx.config import compose, settings_of
from lrx.models.tokenizers import bytes_tokenizer
from tests.conftest import ROOT
from tests.hub import Hub
from tests.models.building import HUB_CAUSAL, arguments

# Parameters as the models' publishers count them, tied embeddings once.
PARAMETERS = {
    "gpt2_small": 124_439_808, "gpt2_medium": 354_823_168, "gpt2_large": 774_030_080, "llama3_8b": 8_030_261_248,
    "mistral_7b": 7_241_732_096, "qwen2_7b": 7_615_616_512, "gemma2_9b": 9_241_705_984, "smollm2_135m": 134_515_008,
}  # fmt: skip
WRITE = """
import torch
from lrx.errors import UserError
from lrx.models.base import Decoding, Inputs, Outputs
from lrx.models.causal_lm import CausalLM

try:
    backbone = CausalLM(weights="hub", path={path!r}, revision={revision!r}).build(Inputs("text"), Outputs("text"), 0)
except UserError as error:
    print(error)
    raise SystemExit(2)
tokenizer = backbone.tokenizer
tokenizer.padding_side = "left"
batch = tokenizer(["One", "Two and three"], return_tensors="pt", padding=True)
print(backbone.generate(dict(batch), Decoding(6)).tolist())
"""


def counted(*choice: str) -> counts.Counts:
    settings = settings_of(compose(["task=gsm8k", "scale=mini", *choice]))
    (found,) = counts.count(settings)
    return found


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameters_are_those_that_are_published(name: str) -> None:
    found = counted("method=full", f"model={name}")
    assert found.total == found.trainable == PARAMETERS[name]
    assert {"query", "key", "value", "output", "mlp_in", "mlp_out"} <= {role for role, _, _ in found.matrices}


def test_lora_of_gpt2_medium_trains_as_much_as_in_its_paper() -> None:
    """Rank 4 on query and value: 0.35M (Hu et al. 2021, Table 3, GPT-2 M), exactly 24 layers x 2 x 4 x 2048."""
    found = counted("method=lora", "model=gpt2_medium", "method.rank=4", "method.target_modules=[query,value]")
    assert found.trainable == found.adapter == 393_216
    assert found.matrices == {("query", 1024, 1024): 24, ("value", 1024, 1024): 24}


@pytest.mark.parametrize("name", HUB_CAUSAL)
def test_hub_models_are_complete(name: str) -> None:
    settings = settings_of(compose([f"model={name}", "scale=paper", "task=gsm8k"]))
    assert settings.model["weights"] == "hub"
    assert re.fullmatch("[0-9a-f]{40}", settings.model["revision"])
    family, options = arguments(name)
    registry.load("models", family)(**options)
    large = PARAMETERS[name] > 5e9
    assert (options["dtype"], options["gradient_checkpointing"]) == (
        ("bfloat16", True) if large else ("float32", False)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "gpt2"
    tokenizer = bytes_tokenizer()
    config = t.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    t.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_from_hub(endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's client reads its settings once."""
    _, options = arguments("gpt2_small")
    env = {
        "PATH": "/usr/bin:/bin", "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    program = WRITE.format(path=options["path"], revision=options["revision"])
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_weights_from_the_hub_and_then_from_its_cache(saved: Path, tmp_path: Path) -> None:
    _, options = arguments("gpt2_small")
    hub = Hub(options["path"], options["revision"], {path.name: path.read_bytes() for path in saved.iterdir()})
    try:
        first = build_from_hub(hub.url, tmp_path)
    finally:
        hub.close()
    assert first.returncode == 0, first.stderr
    assert any(path.endswith("model.safetensors") for path in hub.requests)
    second = build_from_hub(hub.url, tmp_path)  # nobody listens there any more
    assert second.returncode == 0, second.stderr
    assert first.stdout == second.stdout != ""


def test_no_hub_is_one_line_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lrx.errors import UserError
    from lrx.models.base import Inputs, Outputs

    for name in ("HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    family, options = arguments("llama3_8b")
    model = registry.load("models", family)(**{**options, "path": "nobody/nothing"})
    with socket.socket() as held:  # a port that nobody listens on
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{held.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(UserError, match="cannot be reached") as caught:
            model.build(Inputs("text"), Outputs("text"), 0)
        assert time.monotonic() - started < 5
    for words in ("nobody/nothing", "model.weights=local", "scale=mini"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
