"""The task GSM8K: what it asks of a model, its metrics, and whole runs on a tiny random model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from lrx.data import gsm8k_symbolic
from lrx.errors import UserError
from lrx.results.record import read
from lrx.tasks.gsm8k import Gsm8k, Gsm8kTask


def task(**options) -> Gsm8kTask:
    (part,) = Gsm8k(**options).parts()
    assert isinstance(part, Gsm8kTask)
    return part


def test_the_primary_metric_is_the_rule_that_was_asked_for():
    assert task().primary == "exact_match"
    assert task(extract="flexible").primary == "flexible"
    assert set(task(extract="lorasb").higher_is_better) == {
        "lorasb", "lorasb_equal", "exact_match", "strict", "flexible", "loss"
    }  # fmt: skip
    assert task().selector == "loss"
    assert not task().higher_is_better["loss"]


def test_decoding_is_greedy_and_stops_where_the_scored_format_says():
    assert task().decoding.stop == ("Question:", "</s>", "<|im_end|>")
    assert task(eval_prompt="alpaca").decoding.stop[0] == "Instruction:"
    assert task(prompt="loraga", max_new_tokens=7).decoding.max_new_tokens == 7
    assert task().decoding.beams == 1


def test_what_is_selected_on_is_said():
    assert task(source="hub", holdout=0.0).selects_on_reported
    assert not task(source="hub").selects_on_reported
    assert not task(holdout=0.0).selects_on_reported  # the generated problems have a selection split of their own


def test_scores_are_means_of_the_items():
    part = task(extract="lorasb")
    texts = np.array(["a\n#### 18", "so 18", "The answer is: 1800", "none", "#### 1,8"], dtype=object)
    gold = np.array(["18"] * 5, dtype=object)
    items = part.item_scores(texts, gold)
    assert items["exact_match"].tolist() == [1, 0, 0, 0, 1]
    assert items["flexible"].tolist() == [1, 1, 0, 0, 1]
    assert items["lorasb"].tolist() == [0, 0, 1, 0, 0]
    assert items["lorasb_equal"].tolist() == [0] * 5
    assert part.score(texts, gold) == pytest.approx({k: v.mean() for k, v in items.items()})
    assert all(values.dtype == np.float64 for values in items.values())


@pytest.fixture
def templates() -> None:
    try:
        gsm8k_symbolic.check()
    except UserError as error:
        pytest.skip(f"no templates: {error}")


SMOKE = ["task=gsm8k", "scale=smoke", "logger=none"]


def finished(root: Path):
    (path,) = (root / "records").glob("*.json")
    record = read(path)
    assert record.status == "finished"
    return record


def test_a_run_on_generated_problems(templates, cli, tmp_path):
    assert cli(*SMOKE, "method=altlora", f"paths.root={tmp_path}").code == 0
    record = finished(tmp_path)
    part = record.parts["gsm8k"]
    assert part.primary == "exact_match"
    assert part.sizes == {"train": 32, "select": 8, "test": 8}
    assert set(part.metrics["test"]) == {"exact_match", "strict", "flexible"}
    assert part.metrics["select"]["loss"] > 0
    with (tmp_path / part.predictions["test"]).open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["reference"] for row in rows] == task(templates=2, eval_limit=8).split("test").references
    assert all(row["item.exact_match"] in {"0.0", "1.0"} for row in rows)
    assert all(len(row["prediction"].encode()) <= 16 * 3 for row in rows)  # 16 tokens, each a byte


def test_the_base_row_from_local_files_with_worked_examples(cli, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "test"):
        rows = [{"question": f"{name} {n}?", "answer": f"so\n#### {n}"} for n in range(12)]
        (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n")
    local = ["task.source=local", f"task.data_dir={data}", "task.few_shot=2", "task.shots=train", "method=none"]
    assert cli(*SMOKE, *local, "task.extract=flexible", f"paths.root={tmp_path}").code == 0
    part = finished(tmp_path).parts["gsm8k"]
    assert part.steps == 0
    assert part.primary == "flexible"
    assert part.notes["test.broken_line"] == 1
    assert part.sizes["test"] == 8


def test_long_problems_are_left_out_and_counted(cli, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "test"):
        texts = [f"{name} {n}? " + "long " * (60 * (n % 3 == 0)) for n in range(12)]
        rows = [{"question": text, "answer": f"so\n#### {n}"} for n, text in enumerate(texts)]
        (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["task.source=local", f"task.data_dir={data}", "task.max_length=128", "task.holdout=0.2", "method=lora"]
    assert cli(*SMOKE, *options, f"paths.root={tmp_path}").code == 0
    part = finished(tmp_path).parts["gsm8k"]
    assert part.notes["train.too_long"] + part.notes.get("select.too_long", 0) == 4
    assert part.notes["test.cut_prompt"] > 0


def test_mistakes_are_one_line(templates, cli, tmp_path):
    for words, message in (
        (["task.extract=lorasbb"], "did you mean 'lorasb'"),
        (["task.source=local"], "task.source=local needs task.data_dir"),
        (["task.ending=hash"], "task.ending"),
        (["model=tiny_bert"], "causal language model"),
        (["task.few_shot=8"], "8 of 8 prompts have more than task.max_length=512 tokens"),
    ):
        found = cli(*SMOKE, "method=lora", *words, f"paths.root={tmp_path}")
        assert found.code != 0
        assert message in found.err
        assert "Traceback" not in found.err


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
@pytest.mark.parametrize("method", ["full", "lora", "altlora", "altlora_plus", "none"])
def test_every_scale_composes(scale, method):
    from lrx import config as lrx_config

    settings = lrx_config.settings_of(lrx_config.compose(["task=gsm8k", f"scale={scale}", f"method={method}"]))
    assert settings.task["name"] == "gsm8k"
    if scale == "paper":
        assert settings.model["name"] == "llama3_8b"
        assert settings.task["train_data"] == "metamath"
