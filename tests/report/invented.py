"""Invented results folders: many records with every outcome, text that tries to break out, tuning trials, the lens.

``python -m tests.report.invented FOLDER [COUNT]`` writes one, for a look at a large report and for timing it.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

from lrx.results.record import Part, RunRecord, Status
from tests.results.fakes import METHODS, FakeJob, record_of

HOSTILE = (
    "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>\"'>&lt;img&gt; {{ 7 * 7 }} ${7}"
)
OUTCOMES: list[tuple[Status, str]] = [
    ("failed", "RuntimeError: mat1 and mat2 shapes cannot be multiplied (32x768 and 384x8)"),
    ("diverged", "sentiment: loss is nan at step 12; a smaller method.lr may help"),
    ("out_of_memory", "needs 9.3 GiB of 8.0"),
    ("interrupted", "SIGTERM at step 32; the same command goes on from there"),
]
SCALES = ["mini", "smoke", "paper"]


def many(count: int) -> list[RunRecord]:
    """``count`` records over methods, seeds and scales; one in eight did not finish. The grid's own come first."""
    records = []
    for number in range(count):
        method, rest = METHODS[number % len(METHODS)], number // len(METHODS)
        job = FakeJob(method, rest, "mini" if number < count // 2 else SCALES[rest % 3])
        status, message = OUTCOMES[number // 8 % 4] if number % 8 == 7 else ("finished", "")
        record = record_of(job, status, message)
        record.config |= {"trainer": {"max_steps": 300, "clip": 1.0, "precision": "32-true"}, "seed": rest}
        record.config["method"] |= {"lr": 10.0 ** -(1 + rest % 4), "target_modules": ["query", "value"]}
        record.environment = {"python": "3.11", "torch": "2.9", "commit": f"{rest % 7:040x}", "threads": 1, "gpu": None}
        records.append(record)
    return records


def hostile() -> RunRecord:
    """A record whose every text tries to become code."""
    record = record_of(FakeJob("lora", 97), "failed", HOSTILE)
    record.config |= {"method": {"name": "lora", HOSTILE: HOSTILE}, HOSTILE: [HOSTILE]}
    record.environment = {HOSTILE: HOSTILE}
    record.model = record.source = HOSTILE
    record.method = f"lora{HOSTILE}"
    metrics = {"select": {HOSTILE: 0.5}, "test": {HOSTILE: 0.5, "accuracy": math.nan}}
    record.parts = {HOSTILE: Part(HOSTILE, {HOSTILE: True}, metrics=metrics, last=metrics, reported=["test"])}
    return record


def write(root: Path, records: list[RunRecord], *, logs: bool = True, points: int = 30) -> None:
    """Records below ``root``, with the training log of each part unless ``logs`` is False."""
    folder = root / "records"
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        (folder / f"{record.run_id}.json").write_text(record.to_json(), encoding="utf-8")
        for part in record.parts if logs else ():
            if "/" not in part:
                write_log(root / "runs" / record.run_id / part, record, points)


def write_log(folder: Path, record: RunRecord, points: int) -> None:
    """``metrics.jsonl`` with a falling loss and a rising score."""
    noise = random.Random(record.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for i in range(1, points + 1):
        step = 10 * i
        lines.append(
            {"step": step, "train/loss": 2 * math.exp(-i / 10) + noise.random() / 5, "lr": 1e-3 * (1 - i / points)}
        )
        if i % 5 == 0:
            lines.append({"step": step, "select/accuracy": 0.85 - 0.4 * math.exp(-i / 8) + noise.random() / 50})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_trials(root: Path, sweep: str) -> int:
    """Tuning trials of three methods at six learning rates, one of them diverged; returns how many."""
    records = []
    for place, method in enumerate(["lora", "altlora", "altlora_plus"]):
        for exponent in range(6):
            rate = 10.0 ** (exponent / 2 - 4)
            record = record_of(FakeJob(method, 100 + exponent))
            record.run_id = f"trial-{method}-{exponent}"
            record.config["method"]["lr"] = rate
            record.config["trial"] = True
            for part in record.parts.values():
                for metric in part.metrics["select"]:
                    score = 0.85 - 0.05 * (math.log10(rate) + 2.5 - place / 2) ** 2
                    part.metrics = part.last = {"select": {metric: score}}
            if exponent == 5 and method == "lora":
                record.status, record.parts, record.message = "diverged", {}, "loss is nan at step 3"
            records.append(record)
    write(root / "tuning" / sweep, records, logs=False)
    return len(records)


def write_lens(root: Path, record: RunRecord, matrices: int = 3, steps: int = 12, rank: int = 8) -> None:
    """``lens.jsonl`` of every part: the update's rank grows from nothing and its space turns away from the start."""
    for part in record.parts:
        folder = root / "runs" / record.run_id / part
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for step in range(0, 10 * steps, 10):
            for number in range(matrices):
                size = [(1 - math.exp(-step / 40)) * 2.0 ** -(i / (1 + number)) for i in range(rank)]
                angles = [min(1.5, step / 200 * (i + 1) / rank) for i in range(rank)]
                lines.append({
                    "step": step, "name": f"layer.{number}.attention.query", "shape": [384, 384],
                    "weight": [10.0 / (1 + i) + s for i, s in enumerate(size)], "update": size,
                    "effective_rank": 0.0 if step == 0 else 2.0 + number + step / 60, "stable_rank": step / 100,
                    "angles_start": angles if step else [], "angles_previous": [a / 5 for a in angles] if step else [],
                })  # fmt: skip
        (folder / "lens.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def rich(root: Path) -> None:
    """A folder with something of everything: outcomes, scales, trials, the lens, hostile text, files that are none."""
    records = many(150)
    smoke = [record_of(FakeJob(method, seed, "smoke"), shift=-0.3) for method in METHODS for seed in range(3)]
    write(root, [*records, *smoke, hostile()])
    for record in records[2:5]:
        write_lens(root, record)
    write_trials(root, "altlora_glue")
    (root / "records" / "cut-short.json").write_text(records[0].to_json()[:200])
    (root / "records" / "newer.json").write_text(json.dumps({"schema": 99, "run_id": "newer"}))


if __name__ == "__main__":
    write(Path(sys.argv[1]), many(int(sys.argv[2]) if len(sys.argv) > 2 else 2000))
