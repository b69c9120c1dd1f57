"""Whole runs through the command line's entry: every method repeats to the bit; seeds pair methods."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import USUAL
from tests.contract.runs import (
    METHODS,
    Run,
    numbers,
    one_line,
    part_folder,
    the_record,
)

MODELS = ["tiny_bert", "tiny_llama", "tiny_t5"]


@pytest.mark.parametrize(
    ("method", "model"),
    [
        pytest.param(
            method,
            model,
            marks=[] if model == "tiny_bert" or method in USUAL else pytest.mark.slow,
            id=f"{method}-{model}",
        )
        for method in METHODS
        for model in MODELS
    ],
)
def test_every_method_runs_and_repeats_to_the_bit(run: Run, tmp_path: Path, method: str, model: str) -> None:
    choice = [f"method={method}", f"model={model}"]
    if (method, model) == ("head", "tiny_t5"):
        one_line(run(*choice, code=2), "method=head", "has none")
        assert not list(tmp_path.glob("records/*"))
        return
    run(*choice)
    first = numbers(tmp_path)
    assert first["parts"]["sentiment"]["steps"] == 2
    assert [line["step"] for line in first["losses"] if "train/loss" in line] == [1, 2]
    (part_folder(tmp_path) / "adapter.safetensors").write_bytes(b"")  # nothing of the first run may be taken over
    run(*choice, "rerun=all")
    assert numbers(tmp_path) == first


def test_the_threads_of_one_run_are_not_those_of_the_next(run: Run, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    for name, threads in (("first", "null"), ("own", str(before + 1)), ("next", "null")):
        run("method=head", f"trainer.threads={threads}", root=tmp_path / name)
    found = [the_record(tmp_path / name).environment["threads"] for name in ("first", "own", "next")]
    assert found == [before, before + 1, before]


@dataclasses.dataclass
class Seen:
    """What the training of one run was given."""

    order: list[list[int]] = dataclasses.field(default_factory=list)
    head: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    embedding: torch.Tensor | None = None


def watch(monkeypatch: pytest.MonkeyPatch) -> Seen:
    from lrx.modules.supervised import Supervised

    seen = Seen()
    step = Supervised.training_step

    def watched(self: Supervised, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        net = self.backbone.net
        if not seen.order:
            seen.head = {n: p.detach().clone() for n, p in net.named_parameters() if self.backbone.in_head(n)}
            seen.embedding = net.get_input_embeddings().weight.detach().clone()
        seen.order.append(batch["index"].tolist())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Supervised, "training_step", watched)
    return seen


def test_methods_are_paired_and_seeds_are_not(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal seeds: the same batches, head and backbone for every method. Another seed: others."""

    def observe(*overrides: str) -> Seen:
        with monkeypatch.context() as patch:
            seen = watch(patch)
            run(*overrides)
        assert len(seen.order) == 2
        assert seen.head
        return seen

    def same_head(a: Seen, b: Seen) -> bool:
        return a.head.keys() == b.head.keys() and all(torch.equal(a.head[key], b.head[key]) for key in a.head)

    reference = observe("method=lora")
    for method in METHODS:
        seen = observe(f"method={method}", "rerun=all")
        assert seen.order == reference.order, method
        assert same_head(seen, reference), method
        assert torch.equal(seen.embedding, reference.embedding), method
    other = observe("method=lora", "seed=1")
    assert other.order != reference.order
    assert not same_head(other, reference)
    longer = observe("method=lora", "method.rank=2", "method.dropout=0.3")  # draws other random numbers
    assert longer.order == reference.order
    assert same_head(longer, reference)


def test_seeds_give_different_numbers(run: Run, tmp_path: Path) -> None:
    for seed in (0, 1):
        run("method=lora", f"seed={seed}", root=tmp_path / str(seed))
    first, second = numbers(tmp_path / "0"), numbers(tmp_path / "1")
    assert first["losses"] != second["losses"]
    assert first["weights"] != second["weights"]
    assert the_record(tmp_path / "0").fingerprint != the_record(tmp_path / "1").fingerprint
