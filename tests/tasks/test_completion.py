"""What all tasks share in which a model writes: batches, the loss on answers alone, counts of what was irregular."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrx.data.completions import Completions
from lrx.errors import UserError
from lrx.models.base import Backbone, Decoding, Inputs, Outputs
from lrx.models.causal_lm import CausalLM
from lrx.modules.evaluate import predict_split
from lrx.tasks.completion import IGNORED, CompletionTask, cut, encode

OPTIONS: dict[str, Any] = {
    "batch_size": 2, "eval_batch_size": 3, "max_length": 24, "train_limit": None, "select_limit": 4, "eval_limit": None,
    "group_by_length": True, "label_smoothing": 0.0, "end_of_prompt": "", "workers": 0,
}  # fmt: skip
TINY = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


class Sums(CompletionTask):
    reported = ("test",)
    primary = "exact_match"

    def load(self, split: str) -> Completions:
        numbers = {"train": range(5), "select": range(5, 12), "test": range(12, 17)}[split]
        return Completions(
            [f"{i}+1=" for i in numbers],
            [f" {i + 1}" for i in numbers],
            [str(i + 1) for i in numbers],
            [str(i) for i in numbers],
        )

    def score(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"exact_match": float(np.mean(predictions == references))}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRX_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    model = CausalLM(weights="random", tokenizer="bytes", config=TINY)
    return model.build(Inputs("text"), Outputs("text"), 0)


def bound(backbone: Backbone, **options: Any) -> Sums:
    task = Sums("sums", OPTIONS | options, Decoding(max_new_tokens=4))
    task.bind(backbone, 0)
    return task


def test_what_does_not_fit_into_a_models_positions_is_told_before_training() -> None:
    shape = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}
    model = CausalLM(weights="random", tokenizer="bytes", config=shape)
    backbone = model.build(Inputs("text"), Outputs("text"), 0)
    with pytest.raises(UserError, match=r"task\.max_length=25: this model has 24 positions"):
        bound(backbone, max_length=25)
    longest = max(len(prompt) for prompt in Sums("sums", OPTIONS, Decoding(4)).load("test").prompts)
    for new in (25 - longest, 26 - longest):  # the last token is written, and not read
        task = Sums("sums", OPTIONS, Decoding(new))
        if new + longest == 25:
            task.bind(backbone, 0)
            predict_split(backbone, task, "test", "32-true")
            continue
        with pytest.raises(UserError, match=f"task.max_new_tokens={new} do not fit into the 24 positions"):
            task.bind(backbone, 0)
        task.reported = ()  # a trial
        task.bind(backbone, 0)


def test_labels_are_the_answers_and_their_end(backbone: Backbone) -> None:
    tokenizer = backbone.tokenizer
    for separator in (False, True):
        split = Completions(["ab", "c"], [" d", " efg"], ["", ""], ["0", "1"])
        batch = encode(split, tokenizer, 24, answered=True, separator=separator).collate([1, 0])
        end = [tokenizer.eos_token_id]
        rows = [(tokenizer.encode("c"), tokenizer.encode(" efg")), (tokenizer.encode("ab"), tokenizer.encode(" d"))]
        for row, (prompt, answer) in enumerate(rows):
            before = prompt + end if separator else prompt
            whole = before + answer + end
            padding = batch["input_ids"].shape[1] - len(whole)
            assert batch["input_ids"][row].tolist() == whole + [tokenizer.pad_token_id] * padding
            assert batch["attention_mask"][row].tolist() == [1] * len(whole) + [0] * padding
            assert batch["labels"][row].tolist() == [IGNORED] * len(before) + answer + end + [IGNORED] * padding
        assert batch["index"].tolist() == [1, 0]


def test_prompts_alone_are_padded_on_the_left(backbone: Backbone) -> None:
    batch = encode(
        Completions(["abc", "d", "x" * 30], [""] * 3, [""] * 3, list("012")), backbone.tokenizer, 5, False
    ).collate([0, 1])
    assert "labels" not in batch
    pad = backbone.tokenizer.pad_token_id
    assert batch["input_ids"].tolist() == [
        backbone.tokenizer.encode("abc"),
        [pad, pad, *backbone.tokenizer.encode("d")],
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_what_cannot_be_used_is_counted(backbone: Backbone) -> None:
    split = Completions(["a", "b" * 30, "", "d"], [" x", " y", " z", "  "], list("xyz "), list("0123"))
    found = encode(split, backbone.tokenizer, 10, answered=True)
    assert found.notes == {"too_long": 1, "empty_answer": 1, "cut_prompt": 0, "empty_prompt": 1}
    assert found.kept.tolist() == [0, 2]
    assert found.collate([1])["labels"][0, 0] == IGNORED  # an answer's first token follows something
    prompts = encode(split, backbone.tokenizer, 10, answered=False)
    assert prompts.notes == {"too_long": 0, "empty_answer": 0, "cut_prompt": 1, "empty_prompt": 1}
    assert prompts.lengths == [1, 10, 1, 1]


def test_nothing_that_fits_is_one_line(backbone: Backbone) -> None:
    with pytest.raises(
        UserError, match=r"task sums: no example of train has an answer that fits into task\.max_length=3"
    ):
        bound(backbone, max_length=3).train_dataloader()


def test_the_selection_split_gives_the_mean_loss_of_the_answers(backbone: Backbone) -> None:
    """Over all tokens of the split, against each example by itself."""
    task = bound(backbone)
    assert task.size("select") == 4
    predictions, references = predict_split(backbone, task, "select", "32-true")
    assert (predictions.shape, references.shape) == ((4, 2), (0,))
    total, count = 0.0, 0
    split = task.split("select")
    backbone.eval()
    for prompt, answer in zip(split.prompts, split.answers, strict=True):
        before, after = backbone.tokenizer.encode(prompt), backbone.tokenizer.encode(answer)
        ids = torch.tensor([[*before, *after, backbone.tokenizer.eos_token_id]])
        with torch.no_grad():
            scores = backbone({"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0].double()
        for place in range(len(before), ids.shape[1]):
            total -= float(scores[place - 1].log_softmax(0)[ids[0, place]])
            count += 1
    backbone.train()
    assert task.measure("select", predictions, references) == {"loss": pytest.approx(total / count, rel=1e-5)}


def test_what_is_written_is_held_against_its_own_reference(backbone: Backbone) -> None:
    task = bound(backbone, eval_batch_size=2)
    predictions, references = predict_split(backbone, task, "test", "32-true")
    assert references.tolist() == ["13", "14", "15", "16", "17"]
    assert all(isinstance(text, str) for text in predictions)
    alone = bound(backbone, eval_batch_size=1)
    assert predict_split(backbone, alone, "test", "32-true")[0].tolist() == predictions.tolist()


def test_tokens_come_from_the_cache_the_second_time(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bound(backbone)._tokens("train")
    monkeypatch.setattr("lrx.tasks.completion._encode", None)
    second = bound(backbone)._tokens("train")
    assert isinstance(second.ids, np.memmap)
    assert second.ids.tolist() == first.ids.tolist()
    assert second.notes == first.notes
    with pytest.raises(TypeError):
        bound(backbone, max_length=23)._tokens("train")  # other options are other tokens


def test_a_tokenizer_with_another_end_token_has_tokens_of_its_own() -> None:
    """Base models and their instruction-tuned kin have one vocabulary, and end texts differently."""
    first, second = (CausalLM(weights="random", tokenizer="bytes", config=TINY).build(
        Inputs("text"), Outputs("text"), 0).tokenizer for _ in range(2))  # fmt: skip
    second.eos_token = "!"
    split = Completions(["a"], [" b"], ["b"], ["0"])
    found = [encode(split, tokenizer, 24, answered=True).ids[-1] for tokenizer in (first, second)]
    assert found == [first.eos_token_id, second.eos_token_id]
    assert found[0] != found[1]


def test_texts_end_at_the_first_stop_string() -> None:
    assert cut("a\n\nb Question: c", ("Question:", "\n\n")) == "a"
    assert cut("abc", ("x",)) == cut("abc", ()) == "abc"
    assert cut("stop", ("stop",)) == ""


def test_a_classifier_is_no_model_for_it(backbone: Backbone) -> None:
    other = Backbone(torch.nn.Linear(1, 1), head=(), roles={}, reads="image")
    with pytest.raises(UserError, match="task sums needs a causal language model"):
        Sums("sums", OPTIONS, Decoding(4)).bind(other, 0)


def test_a_split_is_divided_by_its_prompts_alone() -> None:
    rows = [f"p{i % 20}" for i in range(40)]
    split = Completions(rows, [" a"] * 40, ["a"] * 40, [str(i) for i in range(40)])
    kept, held = split.hold_out(6)
    assert len(kept) + len(held) == 40
    assert 6 <= len(held) <= 7
    assert not set(kept.prompts) & set(held.prompts)
    backwards = split.take(list(range(39, -1, -1)))
    assert set(backwards.hold_out(6)[1].prompts) == set(held.prompts)
    assert split.limit(5).ids == [i for i in split.limit(9).ids if i in set(split.limit(5).ids)]
    with pytest.raises(ValueError, match="not equally many"):
        Completions(["a"], [], [], [])
