"""Every record as the run list and the run pages need it: numbers already in print, repeated values stored once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lrx.report import series
from lrx.report.content import Stored
from lrx.results.cells import cost_number
from lrx.results.record import RunRecord
from lrx.results.sweep import COSTS

# Columns of the run list whose values repeat from run to run.
_NAMES = ("status", "method", "task", "model", "scale", "source")
_LISTED = ("trainable_parameters", "median_step_seconds", "peak_memory_bytes", "wall_seconds")


class Pool:
    """Values stored once and named by their place: ``add`` returns the place."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[str, int] = {}

    def add(self, value: Any) -> int:
        key = f"={value}" if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        if key not in self._places:
            self._places[key] = len(self.values)
            self.values.append(plain(value))
        return self._places[key]


def run_list(stored: Sequence[Stored]) -> list[dict[str, Any]]:
    """One row per record: names, seed, outcome, the primary score of each part on its reported splits, and costs."""
    rows = []
    for item in stored:
        record = item.record
        row: dict[str, Any] = {name: getattr(record, name) for name in _NAMES}
        row |= {"id": record.run_id, "seed": record.seed, "trial": item.trial_of}
        row["ended"] = record.finished[:16].replace("T", " ")
        row["message"] = _short(record.message)
        row["scores"] = _scores(record)
        row["costs"] = {
            name: cost_number(name, value)
            for name in COSTS
            if (value := record.cost.get(name)) is not None and name in _LISTED
        }
        rows.append(row)
    return rows


def details(stored: Sequence[Stored], base: Path) -> dict[str, Any]:
    """Configuration, environment, costs, scores, curves and files of every record, in the order of ``stored``.

    Sections of configurations and environments that occur in several records are in ``pool`` once. Links to files are
    relative to ``base``, the folder of the report.
    """
    pool = Pool()
    runs = []
    for item in stored:
        record, files = item.record, series.listing(item.root, item.record)
        run: dict[str, Any] = {
            "fingerprint": record.fingerprint,
            "started": record.started,
            "finished": record.finished,
            "message": record.message,
            "versions": pool.add(record.versions),
            "config": {key: pool.add(value) for key, value in record.config.items()},
            "environment": {key: pool.add(value) for key, value in record.environment.items()},
            "cost": [[COSTS.get(key, key), cost_number(key, value)] for key, value in record.cost.items()
                     if value is not None],
            "parts": {name: _part(record, name) for name in record.parts},
            "files": _links(item, files, base),
        }  # fmt: skip
        if curves := series.curves(item.root, record, files):
            run["curves"] = {
                part: {
                    key: {"x": pool.add(",".join(map(str, curve["x"]))), "y": series.text(curve["y"])}
                    for key, curve in found.items()
                }
                for part, found in curves.items()
            }
        if spectra := series.lens(item.root, record, files):
            run["lens"] = spectra
        runs.append(run)
    return {"pool": pool.values, "runs": runs}


def plain(value: Any) -> Any:
    """``value`` with NaN and infinities, which JSON has not, as words."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return "NaN" if value != value else "infinite" if value > 0 else "−infinite"
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def score_text(value: float) -> str:
    """A metric as a run's summary prints it: four digits, with a minus sign instead of a hyphen."""
    return "NaN" if value != value else f"{value:.4f}".replace("-", "−")


def _scores(record: RunRecord) -> dict[str, str]:
    found = {}
    for name, part in record.parts.items():
        for split in part.reported:
            value = part.metrics.get(split, {}).get(part.primary)
            if value is not None:
                label = f"{name} {part.primary}" if len(part.reported) == 1 else f"{name} {part.primary} ({split})"
                found[label] = score_text(value)
    return found


def _part(record: RunRecord, name: str) -> dict[str, Any]:
    part = record.parts[name]
    scores = []
    for split in dict.fromkeys([*part.reported, *part.metrics, *part.last]):
        chosen, last = part.metrics.get(split, {}), part.last.get(split, {})
        for metric in dict.fromkeys([*chosen, *last]):
            values = [score_text(at[metric]) if metric in at else "none" for at in (chosen, last)]
            role = "reported" if split in part.reported else "selection" if split == "select" else ""
            scores.append([split, role, metric, *values, part.sizes.get(split)])
    return {
        "primary": part.primary,
        "scores": scores,
        "best_step": part.best_step,
        "steps": part.steps,
        "optimistic": part.selects_on_reported,
        "notes": plain(part.notes),
    }


def _links(item: Stored, files: Mapping[str, int], base: Path) -> list[list[Any]]:
    """(path below the root, link, bytes) of the record and of the files in the run's folder."""
    here = quote(os.path.relpath(item.root, base))
    run_id = item.record.run_id
    names = {f"runs/{run_id}/{name}": size for name, size in files.items()}
    record = os.path.join(item.root, "records", f"{run_id}.json")
    if os.path.isfile(record):
        names = {f"records/{run_id}.json": os.path.getsize(record), **names}
    return [[name, f"./{here}/{quote(name)}", size] for name, size in names.items()]


def _short(message: str) -> str:
    text = " ".join(message.split())
    return text if len(text) <= 140 else text[:139] + "…"
