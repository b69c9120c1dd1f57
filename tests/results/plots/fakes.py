"""What runs and trials leave for the plots beside their records."""

from __future__ import annotations

import json
import math
from pathlib import Path

from lrx.results.record import RunRecord
from tests.results.fakes import curve

RATES = {"full": 1e-4, "head": 1e-2, "lora": 3e-3, "altlora": 5.0, "altlora_plus": 1e-3}


def histories(root: Path, records: list[RunRecord], steps: int = 80) -> None:
    """Evaluations in the records, and their training logs below ``root``."""
    for record in records:
        for name, part in record.parts.items():
            goal = part.metrics["test"][part.primary]
            shown = [goal - 0.3 * math.exp(-(i + 1)) for i in range(steps // 10)]
            metrics = part.metrics
            curve(record, name, [(value, value - 0.01) for value in shown], part.primary)
            part.metrics = part.last = metrics
            log = root / "runs" / record.run_id / name / "metrics.jsonl"
            log.parent.mkdir(parents=True, exist_ok=True)
            lines = [{"step": s, "train/loss": 0.3 + (1 - goal) + math.exp(-s / 30) + 0.02 * math.sin(s + record.seed)}
                     for s in range(1, steps + 1, 5)]  # fmt: skip
            log.write_text("".join(json.dumps(line) + "\n" for line in lines))


def trials(root: Path, scale: str = "mini", model: str = "minilm") -> Path:
    """``trials.json`` of a tuning with five trials for each method, the largest rate of two methods diverged."""
    studies = []
    for row, center in RATES.items():
        rates = [center * 10**shift for shift in (-1, -0.5, 0, 0.5, 1)]
        found = []
        for number, rate in enumerate(rates):
            lost = row in ("full", "altlora") and number == 4
            score = 0.8 - 0.08 * math.log10(rate / center) ** 2 - 0.01 * len(row) / 4
            found.append({
                "number": number, "point": {"method.lr": rate}, "runs": [f"{row}-{number}"],
                "outcome": "diverged" if lost else "finished", "score": None if lost else score,
                "parts": {} if lost else {"sentiment accuracy": score, "intensity pearson": score},
            })  # fmt: skip
        facts = {"key": "k" * 64, "sweep": "altlora_glue", "row": row, "label": row, "method": row, "task": "glue",
                 "source": "embedded", "scale": scale, "model": model, "seeds": [100]}  # fmt: skip
        space = {"method.lr": {"low": center / 30, "high": center * 30, "log": True}}
        studies.append({**facts, "space": space, "trials": found})
    path = root / "tuning" / "altlora_glue" / "trials.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"studies": studies}))
    return path
