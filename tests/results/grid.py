"""A finished grid on disk: records, metric logs and predictions of invented runs, with trouble among them."""

from __future__ import annotations

import json
from pathlib import Path

from lrx.results import table as tables
from lrx.results.gather import Gathered, gather
from tests.results.fakes import jobs_of, with_trouble

SWEEP = "altlora_glue"


def write_grid(root: Path) -> None:
    """Write the grid of ``with_trouble`` as runs would have left it."""
    for number, record in enumerate(with_trouble()):
        for name, part in record.parts.items():
            folder = root / "runs" / record.run_id / name
            folder.mkdir(parents=True)
            part.best_step = part.steps
            part.curve = [
                {"step": 100, "splits": {"select": {"accuracy": 0.5}, "test": {"accuracy": 0.25}}},
                {"step": part.steps, "splits": part.last},
            ]
            lines = [
                {"step": step, "train/loss": 1 / (step + number), "lr": 1e-3} for step in (1, 100, 200, part.steps)
            ]
            lines.insert(2, {"step": 100, "select/accuracy": 0.5})
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / "metrics.jsonl").write_text(text + '{"step": 300, "trai')  # torn by a kill
            rows = [f"{i},{(i * 7 + number) % 5 != 0:d},{i % 2}" for i in range(40)]
            (folder / "predictions.test.csv").write_text("\n".join(["index,prediction,reference", *rows]) + "\n")
            if name != "intensity":
                right = sum(row.split(",")[1] == row.split(",")[2] for row in rows) / len(rows)
                part.metrics["test"]["accuracy"] = part.last["test"]["accuracy"] = right
            part.predictions = {"test": f"runs/{record.run_id}/{name}/predictions.test.csv"}
        record.save(root)


def table_of(root: Path, records_from: Path | None = None) -> Gathered:
    return gather(SWEEP, root, records_from=records_from, jobs_of=jobs_of)


def pages(data: Gathered, folder: Path) -> dict[str, bytes]:
    """The table's files, by name."""
    return {path.name: path.read_bytes() for path in tables.write(data, folder, plots=False)}
