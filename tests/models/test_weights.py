"""Pretrained weights come from where they should: a folder as their authors saved it, the hub, the hub's cache."""

from __future__ import annotations

import json
import re
import string
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lrx import registry
from lrx.config import compose, settings_of
from lrx.errors import UserError
from tests.conftest import command
from tests.hub import Hub
from tests.models.building import (
    HUB,
    PAIRS,
    TEXTS,
    arguments,
    batches,
    build,
    check_roles,
    check_text_to_text,
    head_and_rest,
    same,
)

SAVED = ["roberta_base", "deberta_v3_base", "t5_base"]  # architectures saved by save_pretrained below
CHARACTERS = [*string.ascii_letters, *string.digits, *string.punctuation]


def save(name: str, folder: Path, layers: int = 2) -> None:
    """A tiny network of the architecture behind ``conf/model/<name>.yaml`` and a tokenizer of characters."""
    import transformers as t
    from tokenizers.pre_tokenizers import ByteLevel

    sizes = {
        "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 64, "initializer_range": 0.3,
    }  # fmt: skip
    pieces = [("▁", -2.0), *((character, -3.0) for character in CHARACTERS)]
    torch.manual_seed(0)
    if name == "roberta_base":
        words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
        tokenizer = t.RobertaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
        config = t.RobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, type_vocab_size=1, **sizes)
        net: Any = t.RobertaForMaskedLM(config)
    elif name == "deberta_v3_base":
        special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
        tokenizer = t.DebertaV2Tokenizer(vocab=[*((word, 0.0) for word in special), *pieces])
        config = t.DebertaV2Config(
            vocab_size=len(tokenizer), pad_token_id=0, type_vocab_size=0, relative_attention=True, position_buckets=16,
            pos_att_type=["p2c", "c2p"], share_att_key=True, norm_rel_ebd="layer_norm", position_biased_input=False,
            **sizes,
        )  # fmt: skip
        net = t.DebertaV2Model(config)
    else:
        special = ["<pad>", "</s>", "<unk>"]
        tokenizer = t.T5Tokenizer(vocab=[*((word, 0.0) for word in special), *pieces], extra_ids=0)
        config = t.T5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=16, num_heads=2, d_ff=64, num_layers=2,
            decoder_start_token_id=0,
        )  # fmt: skip
        net = t.T5ForConditionalGeneration(config)
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp("weights") / name for name in SAVED}
    for name, folder in folders.items():
        save(name, folder)
    return folders


@pytest.mark.parametrize("name", HUB)
def test_hub_models_are_complete(name: str) -> None:
    """Validated for a run at paper scale, from a fixed commit, with a class that takes the options."""
    settings = settings_of(compose([f"model={name}", "scale=paper", "task.subset=rte"]))
    assert settings.model["weights"] == "hub"
    assert re.fullmatch("[0-9a-f]{40}", settings.model["revision"])
    family, options = arguments(name)
    registry.load("models", family)(**options)


@pytest.mark.parametrize("name", SAVED)
def test_saved_weights_keep_the_contract(saved: dict[str, Path], name: str) -> None:
    from safetensors.torch import load_file

    backbone = build(name, weights="local", path=str(saved[name])).eval()
    check_roles(name, backbone)
    if backbone.reads == "text_to_text":
        check_text_to_text(backbone)
    for texts in (TEXTS, PAIRS):
        (together,) = batches(backbone, texts)
        alone = torch.cat([backbone(batch) for batch in batches(backbone, texts, size=1)])
        torch.testing.assert_close(backbone(together), alone, rtol=1e-4, atol=1e-4)
    head, rest = head_and_rest(backbone)
    again = head_and_rest(build(name, weights="local", path=str(saved[name])))
    other = head_and_rest(build(name, seed=1, weights="local", path=str(saved[name])))
    assert same(head, again[0])
    assert same(rest, again[1])
    assert same(rest, other[1])
    assert not head or not same(head, other[0])
    stored = {
        key.removeprefix("roberta.").removeprefix("deberta."): v
        for key, v in load_file(saved[name] / "model.safetensors").items()
    }
    found = {key.removeprefix("roberta.").removeprefix("deberta."): v for key, v in rest.items()}
    common = stored.keys() & found.keys()
    assert len(common) >= 30
    assert all(torch.equal(stored[key], found[key]) for key in common)


@pytest.mark.parametrize("name", SAVED)
def test_a_run_from_a_folder(cli, smoke: list[str], saved: dict[str, Path], tmp_path: Path, name: str) -> None:
    choice = [
        "method=lora", f"model={name}", "model.weights=local", f"model.path={saved[name]}", "trainer.max_steps=2",
        "task.train_limit=16", "task.eval_limit=16",
    ]  # fmt: skip
    result = cli(*smoke, *choice)
    assert result.code == 0, result
    assert not result.err.strip(), result
    (record,) = tmp_path.glob("records/*.json")
    assert json.loads(record.read_text())["model"] == name
    assert "every metric equals the record" in cli(*smoke, *choice, "mode=eval").out


def test_a_head_of_another_size_is_replaced(tmp_path: Path) -> None:
    import transformers as t

    config = t.BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, num_labels=5
    )
    t.BertForSequenceClassification(config).save_pretrained(tmp_path)
    options = {"weights": "local", "path": str(tmp_path), "tokenizer": arguments("tiny_bert")[1]["tokenizer"]}
    heads = [build("bert_base", seed, **options).net.classifier.weight for seed in (0, 0, 1)]
    assert heads[0].shape == (3, 32)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_weights_that_do_not_fit_are_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    """Never a network that is random in part, and never another architecture than was asked for."""
    import shutil

    def refused(name: str, folder: Path, *words: str) -> None:
        with pytest.raises(UserError) as caught:
            build(name, weights="local", path=str(folder))
        assert "\n" not in str(caught.value)
        for word in (*words, str(folder)):
            assert word in str(caught.value)

    refused("t5_base", saved["roberta_base"], "'roberta' is not known here", "t5")
    refused("roberta_base", saved["t5_base"], "'t5' is not known here", "roberta")

    more = tmp_path / "more"
    shutil.copytree(saved["roberta_base"], more)
    config = json.loads((more / "config.json").read_text())
    (more / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    refused("roberta_base", more, "16 tensors", "roberta.encoder.layer.2.")
    (more / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    refused("roberta_base", more, "another shape")
    (more / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    refused("roberta_base", more, "unheard_of")
    (more / "config.json").write_text(json.dumps(config)[:50])
    refused("roberta_base", more)
    (more / "config.json").write_text(json.dumps(config))
    weights = more / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused("roberta_base", more)
    weights.unlink()
    refused("roberta_base", more, "model.safetensors")


@pytest.fixture
def hub(saved: dict[str, Path]) -> Iterator[Hub]:
    _, options = arguments("roberta_base")
    files = {path.name: path.read_bytes() for path in saved["roberta_base"].iterdir()}
    running = Hub(options["path"], options["revision"], files)
    yield running
    running.close()


def test_a_run_from_the_hub_and_then_from_its_cache(
    hub: Hub, smoke: list[str], saved: dict[str, Path], tmp_path: Path
) -> None:
    """In processes of their own: the hub's client reads its settings once. The second finds no server."""
    small = [
        *smoke,
        "method=lora",
        "model=roberta_base",
        "trainer.max_steps=2",
        "task.train_limit=16",
        "task.eval_limit=16",
    ]
    env = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    first = command("run.py", *small, env=env)
    assert first.code == 0, first
    assert not first.err.strip(), first
    asked = [path for path in hub.requests if path.endswith("model.safetensors")]
    assert asked
    hub.close()
    second = command("run.py", *small, "rerun=all", env=env)
    assert second.code == 0, second

    def scores(out: str) -> list[str]:
        return [line for line in out.splitlines() if "select/accuracy" in line or " test " in line]

    assert [line.split("  ")[1:3] for line in scores(first.out)] == [
        line.split("  ")[1:3] for line in scores(second.out)
    ]
    assert scores(first.out)


def test_cached_weights_are_read_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their name on the hub, the libraries would try the unreachable hub again and again before they give up."""
    from huggingface_hub import constants

    from lrx.models.weights import resolve

    commit = "0" * 40
    folder = tmp_path / "models--some--model" / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("hub", "some/model", commit) == (str(folder), True)
    with pytest.raises(UserError, match="cannot be reached"):
        resolve("hub", "some/model", "1" * 40)


def test_no_hub_is_one_line_within_seconds(
    cli, smoke: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as held:  # a port that nobody listens on
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{held.getsockname()[1]}")
        started = time.monotonic()
        result = cli(*smoke, "method=lora", "model=roberta_base", "model.path=nobody/nothing")
        assert time.monotonic() - started < 5
    assert result.code == 2, result
    (line,) = result.err.strip().splitlines()
    for words in ("nobody/nothing", "cannot be reached", "refused", "model.weights=local", "scale=mini"):
        assert words in line, result
    assert not list(tmp_path.glob("records/*"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in cli(*smoke, "model=t5_base", "model.path=nobody/nothing").err


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (["model=t5_base", "model.path=nobody/nothing"], ("HF_HUB_OFFLINE is set", "model.weights=local")),
        (["task=gsm8k", "model=smollm2_135m"], ("python -m lrx fetch smollm2",)),
        (["task=imagenet", "model=efficientnet_lite0"], ("python -m lrx fetch vision",)),
        (["task=imagenet", "model=mini_vit"], ("python -m lrx pretrain mini_vit",)),
    ],
)
def test_lacking_weights_are_told_before_torch_is_imported(
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: list[str], words: tuple[str, ...]
) -> None:
    def heavy(name: str) -> None:
        raise AssertionError(f"{name} was imported")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LRX_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("lrx.config.check_data", lambda settings: None)
    monkeypatch.setattr("lrx.config._data_digest", lambda task: None)
    monkeypatch.setattr("lrx.launch.import_module", heavy)
    result = cli("scale=smoke", "logger=none", f"paths.root={tmp_path}", *choice)
    assert result.code == 2, result
    (line,) = result.err.strip().splitlines()
    for word in words:
        assert word in line, result
