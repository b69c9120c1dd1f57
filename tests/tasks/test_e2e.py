"""The E2E task: splits, notes, scores, whole runs with a tiny model."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from lrx.models.base import Inputs, Outputs
from lrx.models.causal_lm import CausalLM
from lrx.nlg import meteor, scores
from lrx.tasks.e2e import E2e

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SMALL = {"train_limit": 12, "select_limit": 6, "eval_limit": 5, "max_new_tokens": 5, "beams": 2, "eval_batch_size": 3}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LRX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(meteor, "missing", lambda: "left out here")


@pytest.fixture
def task():
    (part,) = E2e(**SMALL).parts()
    return part


@pytest.fixture
def backbone():
    model = CausalLM(weights="random", tokenizer="bytes", config=TINY)
    return model.build(Inputs("text", max_length=512), Outputs("text"), seed=0)


def test_a_text_is_learnt_between_two_end_tokens(task, backbone):
    task.bind(backbone, seed=0)
    batch = next(iter(task.train_dataloader()))
    tokenizer, end = backbone.tokenizer, backbone.tokenizer.eos_token_id
    for row in range(len(batch["index"])):
        place = int(batch["index"][row])
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
        prompt, answer = task.split("train").prompts[place], task.split("train").answers[place]
        wanted = [*tokenizer(prompt)["input_ids"], end, *tokenizer(answer, add_special_tokens=False)["input_ids"], end]
        assert ids == wanted
        learnt = batch["labels"][row][batch["labels"][row] >= 0].tolist()
        assert learnt == wanted[len(tokenizer(prompt)["input_ids"]) + 1 :]
        assert answer.startswith(" ")


def test_the_search_is_the_protocols():
    (part,) = E2e().parts()
    found = part.decoding
    assert (found.beams, found.length_penalty, found.no_repeat_ngram, found.max_new_tokens) == (10, 0.8, 4, 64)
    assert (part.options["label_smoothing"], part.options["end_of_prompt"]) == (0.1, "eos")


def test_perfect_texts_score_one_and_items_make_the_means(task):
    references = task.references("test")
    own = np.array([json.loads(text)[0] for text in references], dtype=object)
    found, items = task.score(own, references), task.item_scores(own, references)
    assert (found["bleu"], found["rouge_l"]) == (pytest.approx(1), pytest.approx(1))
    assert {metric: values.mean() for metric, values in items.items()} == {
        metric: pytest.approx(found[metric]) for metric in ("rouge_l", "cider")
    }
    assert set(found) == set(scores.METRICS)
    assert task.notes["test.meteor_not_computed"] == 5


def test_line_ends_in_a_text_are_blanks(task):
    references = task.references("test")
    texts = [json.loads(text)[0] for text in references]
    broken = np.array([text.replace(" ", "\n") + "\n" for text in texts], dtype=object)
    assert task.score(broken, references) == task.score(np.array(texts, dtype=object), references)


def test_a_run_and_its_record(cli, tmp_path, monkeypatch):
    arguments = ["task=e2e", "scale=smoke", "logger=none", f"paths.root={tmp_path}"]
    done = cli(*arguments, "method=lora")
    assert done.code == 0, done
    (path,) = (tmp_path / "records").glob("*.json")
    part = json.loads(path.read_text())["parts"]["e2e"]
    assert set(scores.METRICS) <= set(part["metrics"]["test"])
    assert part["metrics"]["select"].keys() == {"loss"}
    assert part["notes"]["test.meteor_not_computed"] == 6
    written = next(tmp_path.rglob("*test*.csv"))
    rows = list(csv.DictReader(written.open(encoding="utf-8", newline="")))
    assert len(rows) == 6
    assert {"item.rouge_l", "item.cider"} <= rows[0].keys()
    corpus = scores.corpus
    monkeypatch.setattr(scores, "corpus", lambda *texts: {**corpus(*texts), "meteor": 0.5})  # Java was installed since
    again = cli(*arguments, "method=lora", "mode=eval")
    assert again.code == 0, again
    assert "meteor is not in the record" in again.out


def test_the_base_row_needs_no_training(cli, tmp_path):
    done = cli("task=e2e", "scale=smoke", "logger=none", f"paths.root={tmp_path}", "method=none")
    assert done.code == 0, done
    assert "trained 0 parameters" in done.out


@pytest.mark.parametrize("method", ["lora", "none"])
def test_the_paper_scale_composes(cli, method):
    done = cli("task=e2e", "scale=paper", f"method={method}", "--cfg", "job")
    assert done.code == 0, done
    assert "name: gpt2_medium" in done.out
    assert "beams: 10" in done.out
