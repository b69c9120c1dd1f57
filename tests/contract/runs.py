"""What the tests of whole runs share: a small run, and what it left."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import FOR_POLICIES, ROOT, Result

# All but the one that takes no step, and those that refuse this model.
METHODS = sorted(
    path.stem for path in (ROOT / "conf" / "method").glob("*.yaml") if path.stem not in {"none", *FOR_POLICIES}
)

SMALL = [
    "scale=smoke", "task.subset=sentiment", "logger=none", "trainer.max_steps=2", "task.train_limit=16",
    "task.eval_limit=16", "callbacks.checkpoint.every_n_steps=null", "logger.every_n_steps=1",
]  # fmt: skip
Run = Callable[..., Result]


def the_record(root: Path) -> Any:
    from lrx.results.record import read

    (path,) = (root / "records").glob("*.json")
    return read(path)


def part_folder(root: Path, part: str = "sentiment") -> Path:
    (found,) = root.glob(f"runs/*/{part}")
    return found


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(part_folder(root) / "adapter.safetensors")


def log_lines(root: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (part_folder(root) / "metrics.jsonl").read_text().splitlines()]


def numbers(root: Path) -> dict[str, Any]:
    """All that a run computed: what two equal runs must have in common to the last bit."""
    parts = {name: dataclasses.asdict(part) for name, part in the_record(root).parts.items()}
    for part in parts.values():
        part.pop("predictions")  # paths that hold the run id
        part.pop("last_predictions")
        part.pop("notes")  # counted where a split is read, which a resumed run may do later
    folder = part_folder(root)
    return {
        "parts": parts,
        "losses": log_lines(root),
        "predictions": (folder / "predictions.test.csv").read_text(),
        "weights": {name: tensor.numpy().tobytes() for name, tensor in weights(root).items()},
    }


def one_line(result: Result, *words: str) -> None:
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result
    for word in words:
        assert word in lines[0], result


def falling_scores(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """The selection split scores ``scores`` in turn."""
    from lrx.callbacks import selection

    values = iter(scores)

    def scored(backbone: Any, task: Any, split: str, precision: str) -> dict[str, float]:
        return {"accuracy": next(values) if split == "select" else 0.5}

    monkeypatch.setattr(selection, "score_split", scored)


EIGHT = ["method=lora", "trainer.max_steps=8", "trainer.evaluations=8"]


def broken_after_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from lrx import training

    def score(*_: Any) -> None:
        raise RuntimeError("broken here")

    monkeypatch.setattr(training, "score", score)
