"""Language modelling as a task: perplexity against the definition, whole runs, and what a wrong start says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lrx.errors import UserError
from lrx.models.base import Inputs, Outputs
from lrx.models.causal_lm import CausalLM
from lrx.models.llama import Llama
from lrx.modules.evaluate import predict_split, score_split
from lrx.tasks.lm import LanguageModelling, LmTask

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = ["small", "cat", "ran", "over", "a", "wall", "and", "the", "big", "dog", "slept", "in", "sun"]
TEXT = "\n\n".join(
    f"{WORDS[n % 13]} {WORDS[n * n % 13]} {WORDS[(n + 5) % 13]} {WORDS[n * 3 % 11]}, number {n}." for n in range(240)
)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("LRX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "train.txt").write_text(TEXT)
    return {"source": "local", "data_dir": str(folder), "vocab_size": 280, "length": 24, "batch_size": 4}


def bound(corpus: dict[str, Any], seed: int = 0, **changed: Any) -> tuple[LmTask, Any]:
    (task,) = LanguageModelling(**(corpus | changed)).parts()
    assert isinstance(task, LmTask)
    backbone = Llama(**SIZES).build(task.inputs, task.outputs, 0)
    task.bind(backbone, seed)
    return task, backbone


def stream(task: LmTask, split: str) -> list[int]:
    (piece,) = task_pieces(task, split)
    tokenizer = task._tokenizer
    tokens = [tokenizer.eos_token_id]
    for text in piece.load().texts:
        tokens += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    return tokens


def task_pieces(task: LmTask, split: str) -> Any:
    from lrx.data import lm

    return lm.pieces(task.options, split)


def test_perplexity_is_that_of_the_definition(corpus):
    task, backbone = bound(corpus, eval_batch_size=3)
    tokens, length, losses = stream(task, "test"), corpus["length"], []
    for first in range(0, len(tokens) - 1, length):  # block by block, token by token
        block = torch.tensor([tokens[first : first + length + 1]])
        with torch.no_grad():
            logs = F.log_softmax(backbone.net(input_ids=block[:, :-1]).logits[0].double(), dim=-1)
        losses += [-logs[place, block[0, place + 1]].item() for place in range(block.shape[1] - 1)]
    assert len(losses) == len(tokens) - 1
    found = score_split(backbone, task, "test", "32-true")
    (piece,) = task_pieces(task, "test")
    size = sum(len(text.encode()) + 1 for text in piece.load().texts)
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(sum(losses) / math.log(2) / size, rel=1e-6)
    assert found["perplexity"] == pytest.approx(280, rel=0.2)  # untrained: hardly better than any token alike


def test_the_order_of_scoring_batches_changes_nothing(corpus):
    scores = []
    for size in (1, 5, 64):
        task, backbone = bound(corpus, eval_batch_size=size)
        predictions, references = predict_split(backbone, task, "test", "32-true")
        assert references.sum() == len(stream(task, "test")) - 1
        assert len(predictions) == task.size("test")
        scores.append(predictions)
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], rtol=1e-5)


def test_broken_losses_are_no_scores(corpus):
    task, _ = bound(corpus)
    references = task.references("test")
    nan = task.measure("test", np.full(len(references), np.nan), references)
    assert math.isnan(nan["perplexity"])
    assert math.isnan(nan["bits_per_byte"])
    assert task.measure("test", np.full(len(references), 1e9), references)["perplexity"] == math.inf


def test_the_training_batches_are_all_whole_blocks_in_an_order_of_the_seed(corpus):
    def batches(seed: int) -> list[torch.Tensor]:
        task, _ = bound(corpus, seed)
        return [batch["input_ids"] for batch in task.train_dataloader()]

    one, same, other = batches(0), batches(0), batches(1)
    assert all(map(torch.equal, one, same))
    assert not all(map(torch.equal, one, other))
    rows, others = ({tuple(row.tolist()) for batch in some for row in batch} for some in (one, other))
    task, _ = bound(corpus)
    tokens = stream(task, "train")
    whole = range(0, len(tokens) - 24, 24)
    assert rows == others == {tuple(tokens[first : first + 25]) for first in whole}


def test_notes_have_counts_and_the_unigram_model(corpus):
    task, _ = bound(corpus)
    for split in ("train", "select", "test"):
        assert task.size(split) > 0
    train, test = np.array(stream(task, "train")[1:]), np.array(stream(task, "test")[1:])
    share = (np.bincount(train, minlength=280) + 1) / (len(train) + 280)
    assert task.notes["test.unigram_perplexity"] == pytest.approx(math.exp(-np.log(share[test]).mean()), rel=1e-9)
    assert task.notes["train.tokens"] == len(train) // 24 * 24
    assert task.notes["train.documents"] + task.notes["select.documents"] + task.notes["test.documents"] == 240


def test_a_model_with_a_tokenizer_of_its_own_keeps_it(corpus):
    (task,) = LanguageModelling(**corpus).parts()
    config = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}
    backbone = CausalLM(weights="random", tokenizer="bytes", config=config).build(Inputs("text"), Outputs("text"), 0)
    with pytest.raises(UserError, match=r"task\.length=24: this model has 24 positions"):
        task.bind(backbone, 0)
    task.options["length"] = 23
    task.bind(backbone, 0)
    bits = score_split(backbone, task, "test", "32-true")
    assert bits["bits_per_byte"] == pytest.approx(math.log2(bits["perplexity"]))  # tokens are bytes


def test_the_bootstrap_knows_the_perplexity(tmp_path):
    from lrx.results.items import METRICS, _Sample

    losses, tokens = np.array([30.0, 42.0, 7.5]), np.array([10.0, 10.0, 3.0])
    weights = np.array([[1, 0], [1, 2], [1, 1]], dtype=np.float32)
    found = METRICS["perplexity"](losses, _Sample(tokens, weights))
    np.testing.assert_allclose(found, [math.exp(79.5 / 23), math.exp(91.5 / 23)], rtol=1e-5)


SMOKE = ["task=lm", "scale=smoke", "logger=none", "trainer.max_steps=4", "method.weight_decay=0"]


def record_of(root: Path) -> dict[str, Any]:
    (path,) = (root / "records").glob("*.json")
    return json.loads(path.read_text())


def overrides(corpus: dict[str, Any], root: Path) -> list[str]:
    return [*SMOKE, f"paths.root={root}", *(f"task.{key}={value}" for key, value in corpus.items())]


def test_a_run_learns_more_than_frequencies(cli, corpus, tmp_path):
    done = cli(*overrides(corpus, tmp_path / "r"), "method=full", "method.lr=0.02", "trainer.max_steps=60",
               "trainer.evaluations=1", "task.length=12")  # fmt: skip
    assert done.code == 0, done
    (part,) = record_of(tmp_path / "r")["parts"].values()
    perplexity, unigram = part["metrics"]["test"]["perplexity"], part["notes"]["test.unigram_perplexity"]
    assert perplexity < 0.75 * unigram
    assert part["higher_is_better"] == {"perplexity": False, "bits_per_byte": False}
    lines = (tmp_path / "r" / part["predictions"]["test"]).read_text().splitlines()[1:]
    losses, tokens = zip(*((float(line.split(",")[1]), float(line.split(",")[2])) for line in lines), strict=True)
    assert math.exp(sum(losses) / sum(tokens)) == pytest.approx(perplexity, rel=1e-9)
    again = cli(*overrides(corpus, tmp_path / "r"), "method=full", "method.lr=0.02", "trainer.max_steps=60",
                "trainer.evaluations=1", "task.length=12", "mode=eval")  # fmt: skip
    assert again.code == 0
    assert "every metric equals the record" in again.out


@pytest.mark.parametrize("method", ["lora", "altlora", "peft", "head"])
def test_methods_run(cli, corpus, tmp_path, method):
    done = cli(*overrides(corpus, tmp_path / "r"), f"method={method}")
    assert done.code == 0, done
    assert record_of(tmp_path / "r")["status"] == "finished"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("task.vocab_size=9000", "task.vocab_size=9000: the training text supports"),
        ("task.length=100000 model.max_positions=200000", "fills no block"),
        ("task.length=1", "task.length=1: must be at least 2"),
        ("model=tiny_bert", "task"),
    ],
)
def test_a_wrong_start_is_one_line(cli, corpus, tmp_path, changed, words):
    done = cli(*overrides(corpus, tmp_path / "r"), "method=full", *changed.split())
    assert done.code != 0
    (line,) = done.err.strip().splitlines()
    assert words in line
    assert not list((tmp_path / "r").glob("records/*.json"))
