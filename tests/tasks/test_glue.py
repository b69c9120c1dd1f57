"""The task: batches, roles of the splits, loss, predictions, and both ways a model reads text."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lrx.errors import UserError
from lrx.tasks.glue import Glue
from lrx.tasks.text import encode


class Words:
    """A tokenizer by words with segment ids, in the manner of BERT's: [1] a [2] or [1] a [2] b [2]; 0 pads."""

    model_input_names = ("input_ids", "token_type_ids", "attention_mask")
    pad_token_id, eos_token_id, pad_token_type_id = 0, 2, 0

    def __init__(self, padding_side: str = "right") -> None:
        self.padding_side = padding_side
        self.known: dict[str, int] = {}

    def _ids(self, text: str) -> list[int]:
        return [self.known.setdefault(word, 3 + len(self.known)) for word in text.split()]

    def __call__(self, first, second=None, truncation=False, max_length=None, **_):
        rows, types = [], []
        for i, text in enumerate(first):
            a, b = self._ids(text), self._ids(second[i]) if second else None
            while truncation and len(a) + (len(b) + 1 if b is not None else 0) + 2 > max_length:
                (a if b is None or len(a) > len(b) else b).pop()
            rows.append([1, *a, 2] + ([*b, 2] if b is not None else []))
            types.append([0] * (len(a) + 2) + ([1] * (len(b) + 1) if b is not None else []))
        return {"input_ids": rows, "token_type_ids": types}


def write(folder: Path, train: int = 40, dev: int = 7, test: int = 5) -> Path:
    rte = folder / "RTE"
    rte.mkdir(parents=True)
    words = ("not_entailment", "entailment")
    for name, count in (("train", train), ("dev", dev)):
        rows = [f"{i}\t{name} {i} {'long ' * (i % 5)}\tb {i}\t{words[i % 2]}" for i in range(count)]
        (rte / f"{name}.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *rows]) + "\n")
    rows = [f"{i}\ttest {i}\tb" for i in range(test)]
    (rte / "test.tsv").write_text("\n".join(["index\tsentence1\tsentence2", *rows]) + "\n")
    return folder


def task(folder: Path, **options):
    options = {
        "source": "local",
        "data_dir": str(folder),
        "subset": "rte",
        "batch_size": 8,
        "eval_batch_size": 3,
    } | options
    return Glue(**options).parts()[0]


def backbone(reads="pair", tokenizer=None, loss=None, outputs=None):
    def call(batch):
        return outputs

    fake = SimpleNamespace(tokenizer=tokenizer or Words(), reads=reads, loss=lambda batch: loss)
    return type("Fake", (), {**vars(fake), "__call__": lambda self, batch: call(batch), "loss": lambda self, b: loss})()


def test_roles_of_the_splits(tmp_path):
    t = task(write(tmp_path))
    assert (t.size("train"), t.size("select"), t.size("validation"), t.size("test")) == (36, 4, 7, 5)
    assert t.reported == ("validation",)
    assert not t.selects_on_reported
    assert not set(t.split("train").texts) & set(t.split("select").texts)
    assert t.primary == "accuracy"


def test_without_holdout_selection_is_on_the_reported_split_and_said_so(tmp_path):
    t = task(write(tmp_path), holdout=0.0)
    assert (t.size("train"), t.selects_on_reported) == (40, True)
    assert t.split("select") is t.split("validation")


def test_limits_are_fixed_and_nested(tmp_path):
    folder = write(tmp_path)
    small, large = task(folder, train_limit=5, eval_limit=2), task(folder, train_limit=20)
    assert (small.size("train"), small.size("select"), small.size("validation"), small.size("test")) == (5, 2, 2, 5)
    assert set(small.split("train").ids) < set(large.split("train").ids)


def test_a_training_batch(tmp_path):
    t = task(write(tmp_path))
    t.bind(backbone(), 0)
    loader = t.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == 5
    batch = batches[0]
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels", "index"}
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["token_type_ids"].shape
    assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]  # padded to the longest, not further
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()
    seen = torch.cat([b["index"] for b in batches])
    assert sorted(seen.tolist()) == list(range(36))
    for b in batches:
        assert b["labels"].tolist() == [t.split("train").labels[i] for i in b["index"]]


def test_batch_order_depends_on_seed_only(tmp_path):
    def order(seed):
        t = task(tmp_path / "glue")
        t.bind(backbone(), seed)
        return torch.cat([b["index"] for b in t.train_dataloader()]).tolist()

    write(tmp_path / "glue")
    first = order(0)
    torch.manual_seed(99)
    assert order(0) == first != order(1)


def test_evaluation_covers_everything_once_and_the_index_restores_the_order(tmp_path):
    t = task(write(tmp_path))
    t.bind(backbone(), 0)
    batches = list(t.eval_dataloader("validation"))
    index = torch.cat([b["index"] for b in batches])
    labels = torch.cat([b["labels"] for b in batches])
    assert sorted(index.tolist()) == list(range(7))
    assert labels[index.argsort()].tolist() == t.split("validation").labels
    assert all("labels" not in b for b in t.eval_dataloader("test"))


def test_padding_on_the_left_for_decoders():
    from lrx.data.splits import Split

    split = Split([("a b c",), ("a",)], [0, 1], ["0", "1"])
    encoded, _ = encode(split, Words("left"), 16)
    assert encoded.collate([0, 1])["attention_mask"].tolist() == [[1] * 5, [0, 0, 1, 1, 1]]


def test_long_and_empty_texts_are_counted():
    from lrx.data.splits import Split

    split = Split([("a b c d e f", "g h"), ("", "x"), ("a", "b")], [0, 1, 0], ["0", "1", "2"])
    encoded, notes = encode(split, Words(), 8)
    assert notes == {"truncated": 1, "empty": 1}
    assert encoded.lengths == [8, 4, 5]


def test_text_to_text_form(tmp_path):
    tokenizer = Words()
    t = task(write(tmp_path))
    t.bind(backbone("text_to_text", tokenizer), 0)
    next(iter(t.eval_dataloader("validation")))
    assert {"classify", "similarity", "text:", "result:"} <= set(tokenizer.known)
    assert t.outputs.words == ("entailment", "not_entailment")
    assert t.outputs.instruction == "classify the semantic similarity of the text: "


def test_text_to_text_refuses_a_regression():
    stsb = Glue(source="hub", subset="stsb").parts()[0]
    with pytest.raises(UserError, match="stsb is a regression"):
        stsb.bind(backbone("text_to_text"), 0)
    with pytest.raises(UserError, match="this model reads none"):
        stsb.bind(SimpleNamespace(tokenizer=None, reads="image"), 0)


def test_losses():
    rte, stsb = Glue(source="hub", subset=["rte", "stsb"]).parts()
    logits = torch.randn(3, 2, dtype=torch.bfloat16)
    labels = torch.tensor([0, 1, 1])
    expected = F.cross_entropy(logits.float(), labels)
    assert torch.equal(rte.loss(backbone(outputs=logits), {"labels": labels}), expected)
    assert rte.loss(backbone(loss=torch.tensor(7.0)), {"labels": labels}) == 7
    values = torch.tensor([[1.0], [2.0]])
    assert stsb.loss(backbone(outputs=values), {"labels": torch.tensor([0.0, 4.0])}) == pytest.approx(2.5)


def test_predictions():
    rte, stsb = Glue(source="hub", subset=["rte", "stsb"]).parts()
    found = rte.predict(torch.tensor([[0.1, 0.2], [float("nan"), 0.0], [3.0, 1.0]]))
    assert found.dtype == torch.int64
    assert found.tolist() == [1, -1, 0]
    assert rte.score(found.numpy(), np.array([1, 0, 0]))["accuracy"] == pytest.approx(2 / 3)
    values = stsb.predict(torch.tensor([[6.5], [-1.0]]))
    assert values.dtype == torch.float64
    assert values.tolist() == [6.5, -1.0]  # not clipped: only a submission is


@pytest.mark.parametrize(
    ("subset", "names", "primary"),
    [
        ("cola", {"matthews_correlation", "accuracy"}, "matthews_correlation"),
        ("mrpc", {"accuracy", "f1"}, "accuracy"),
        ("qqp", {"accuracy", "f1"}, "accuracy"),
        ("stsb", {"pearson", "spearman"}, "pearson"),
        ("mnli", {"accuracy"}, "accuracy"),
        ("sst2", {"accuracy"}, "accuracy"),
    ],
)
def test_official_metrics(subset, names, primary):
    t = Glue(source="hub", subset=subset).parts()[0]
    assert set(t.score(np.array([0, 1, 1]), np.array([0, 1, 0]))) == names == set(t.higher_is_better)
    assert t.primary == primary
    assert t.outputs.size == {"mnli": 3, "stsb": 1}.get(subset, 2)


def test_cola_may_be_selected_by_accuracy():
    assert Glue(source="hub", subset="cola", cola_metric="accuracy").parts()[0].primary == "accuracy"


def test_mnli_reports_matched_and_mismatched():
    assert Glue(source="hub", subset="mnli").parts()[0].reported == ("validation_matched", "validation_mismatched")


def test_labels_of_a_regression_are_float32(tmp_path):
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    folder = tmp_path / "STS-B"
    folder.mkdir()
    for name in ("train", "dev"):
        rows = [f"{i}\tg\tf\ty\to\ts\ts\ta {i}\tb\t{i % 6}.5".replace("5.5", "5.0") for i in range(20)]
        (folder / f"{name}.tsv").write_text("\n".join([header, *rows]))
    t = task(tmp_path, subset="stsb")
    t.bind(backbone(), 0)
    assert next(iter(t.train_dataloader()))["labels"].dtype == torch.float32


def test_evaluating_needs_no_training_file(tmp_path):
    write(tmp_path)
    (tmp_path / "RTE" / "train.tsv").unlink()
    t = task(tmp_path)
    t.bind(backbone(), 0)
    assert len(list(t.eval_dataloader("validation"))) == 3
    with pytest.raises(UserError, match=r"can only be evaluated \(mode=eval\)"):
        t.train_dataloader()


def test_a_holdout_that_leaves_nothing_is_an_error(tmp_path):
    with pytest.raises(UserError, match="leaves no training example"):
        task(write(tmp_path, train=2), holdout=0.9).size("train")


def test_the_configuration_lists_exactly_the_arguments():
    yaml = pytest.importorskip("yaml")
    path = Path(inspect.getfile(Glue)).parents[2] / "conf" / "task" / "glue.yaml"
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert given.pop("name") == Glue.name
    parameters = inspect.signature(Glue.__init__).parameters
    assert given == {key: p.default for key, p in parameters.items() if key != "self"}
    assert ast.literal_eval(repr(given)) == given
