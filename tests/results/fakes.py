"""Invented jobs and records of a grid, so that tables are tested without training anything."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lrx.results.record import Part, RunRecord, Status

METHODS = ["full", "head", "lora", "altlora", "altlora_plus"]
SEEDS = [0, 1, 2]
_LEVEL = {"full": 0.86, "head": 0.66, "lora": 0.845, "altlora": 0.835, "altlora_plus": 0.852}
_PARAMETERS = {"full": 22_713_602, "head": 1154, "lora": 148_610, "altlora": 148_610, "altlora_plus": 148_610}


@dataclass(frozen=True)
class FakeJob:
    """What ``lrx.launch.Job`` offers."""

    method: str
    seed: int
    scale: str = "mini"
    overrides: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        return f"fp-{self.method}-{self.scale}-{self.seed}"

    @property
    def run_id(self) -> str:
        return f"glue-{self.method}-minilm-{self.scale}-s{self.seed}"

    @property
    def config(self) -> dict[str, Any]:
        return {
            "scale": {"name": self.scale},
            "seed": self.seed,
            "method": {"name": self.method, "rank": 8},
            "model": {"name": "t5_base" if self.scale == "paper" else "minilm"},
            "task": {"name": "glue", "source": "hub" if self.scale == "paper" else "embedded"},
        }


def jobs_of(name: str, overrides: Any = ()) -> list[FakeJob]:
    """In place of ``lrx.launch.sweep_jobs``."""
    scale = "paper" if "scale=paper" in overrides else "mini"
    return [FakeJob(method, seed, scale) for method in METHODS for seed in SEEDS]


def record_of(job: FakeJob, status: Status = "finished", message: str = "", shift: float = 0.0) -> RunRecord:
    """A record as the job might have left it."""
    noise = random.Random(f"{job.method}{job.seed}")
    level = _LEVEL[job.method] + shift + 0.004 * job.seed
    parts = {}
    if status == "finished" and job.scale == "paper":
        for name in ("mnli", "sst2", "cola", "qnli", "mrpc"):
            split = "validation_matched" if name == "mnli" else "validation"
            splits = {split: {"accuracy": level + noise.gauss(0, 0.002)}}
            parts[name] = Part("accuracy", {"accuracy": True}, metrics=splits, last=splits, reported=list(splits))
    elif status == "finished":
        for name, metrics in {
            "sentiment": ["accuracy"],
            "intensity": ["pearson", "spearman"],
            "domain": ["accuracy"],
        }.items():
            found = {metric: level + noise.gauss(0, 0.003) for metric in metrics}
            splits = {"select": {m: v + 0.01 for m, v in found.items()}, "test": found}
            directions = dict.fromkeys(metrics, True)
            parts[name] = Part(
                metrics[0], directions, metrics=splits, last=splits, reported=["test"], steps=300, best_step=300
            )
    return RunRecord(
        run_id=job.run_id,
        fingerprint=job.fingerprint,
        status=status,
        message=message,
        method=job.method,
        model="minilm",
        task="glue",
        scale=job.scale,
        source="embedded",
        seed=job.seed,
        versions={"method": 1, "model": 1, "task": 1},
        config=job.config,
        parts=parts,
        cost={
            "trainable_parameters": _PARAMETERS[job.method],
            "optimizer_state_bytes": 8 * _PARAMETERS[job.method],
            "median_step_seconds": 0.05 * (1 + noise.random() / 10),
            "peak_memory_bytes": 900e6 + 12 * _PARAMETERS[job.method] + noise.random() * 1e6,  # measured, never equal
            "wall_seconds": 40.0,
        },
        environment={"python": "3.11"},
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:01:00+00:00",
    )


def all_records() -> list[RunRecord]:
    """A finished grid."""
    return [record_of(job) for job in jobs_of("altlora_glue")]


def with_trouble() -> list[RunRecord]:
    """A grid with everything that can go wrong: a diverged, a failed, a missing job and a NaN metric."""
    records = {record.run_id: record for record in all_records()}
    for job, status, message in (
        (FakeJob("altlora", 2), "diverged", "loss is NaN at step 12 | 50% & more_"),
        (FakeJob("full", 0), "out_of_memory", "needs 9 GB"),
        (FakeJob("full", 1), "failed", "ValueError: broken"),
        (FakeJob("full", 2), "out_of_memory", ""),
    ):
        records[job.run_id] = record_of(job, status, message)  # type: ignore[arg-type]
    records[FakeJob("lora", 1).run_id].parts["domain"].metrics["test"]["accuracy"] = math.nan
    del records[FakeJob("head", 2).run_id]
    return list(records.values())


def curve(record: RunRecord, part: str, points: list[tuple[float, float]], metric: str = "accuracy") -> None:
    """Give a part evaluations (select, test) at steps 10, 20, ..., as a run that selects by ``metric`` leaves them."""
    entries = [{"step": 10 * (i + 1), "splits": {"select": {metric: s}, "test": {metric: t}}}
               for i, (s, t) in enumerate(points)]  # fmt: skip
    best = max(range(len(points)), key=lambda i: -math.inf if math.isnan(points[i][0]) else points[i][0])
    chosen = record.parts[part]
    chosen.curve, chosen.primary, chosen.steps = entries, metric, 10 * len(points)
    chosen.metrics, chosen.last = dict(entries[best]["splits"]), dict(entries[-1]["splits"])
    chosen.best_step = entries[best]["step"]


def predict(root: Path, record: RunRecord, part: str, predictions: np.ndarray, references: np.ndarray) -> None:
    """Store predictions of a part's test split below ``root``; the part's score becomes what they give."""
    from lrx.tasks.metrics import compute  # brings torch with it, which most tests of results do without

    name = f"runs/{record.run_id}/{part}/predictions.test.csv"
    lines = [f"{i},{p},{y}" for i, (p, y) in enumerate(zip(predictions.tolist(), references.tolist(), strict=True))]
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(["index,prediction,reference", *lines]) + "\n")
    chosen = record.parts[part]
    scores = compute(list(chosen.higher_is_better), predictions, references)
    chosen.metrics["test"] = scores
    chosen.last["test"] = dict(scores)
    chosen.sizes["test"] = len(references)
    chosen.predictions = {"test": name}
    chosen.last_predictions = {"test": name}
