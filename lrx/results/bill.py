"""What the rest of a sweep will cost, estimated from records of like runs."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrx.results.record import RunRecord
from lrx.results.sweep import JobLike, lookup


@dataclass(frozen=True)
class Estimate:
    """``seconds`` and ``bytes`` of one job, None where no record says; ``basis``: what they were taken from."""

    seconds: float | None
    bytes: float | None
    basis: str


# From the most alike to the least: what must be equal for one run's time to say something of another's.
_ALIKE: list[tuple[str, list[str]]] = [
    ("same method", ["method.name", "model.name", "task.name", "task.subset", "scale.name", "trainer.max_steps",
                     "trainer.max_epochs", "task.batch_size"]),
    ("other methods", ["model.name", "task.name", "task.subset", "scale.name", "trainer.max_steps",
                       "trainer.max_epochs", "task.batch_size"]),
    ("other settings", ["model.name", "task.name", "scale.name"]),
]  # fmt: skip


def estimator(records: Iterable[RunRecord], root: Path | str) -> Callable[[JobLike], Estimate]:
    """``estimate(job)``: medians over the finished records most alike to it."""
    finished = [record for record in records if record.status == "finished"]
    groups: list[dict[tuple[Any, ...], list[RunRecord]]] = []
    for _, keys in _ALIKE:
        group: dict[tuple[Any, ...], list[RunRecord]] = {}
        for record in finished:
            group.setdefault(_values(record.config, keys), []).append(record)
        groups.append(group)
    sizes: dict[str, int] = {}

    def size(record: RunRecord) -> int:
        if record.run_id not in sizes:
            sizes[record.run_id] = folder_bytes(Path(root) / "runs" / record.run_id)
        return sizes[record.run_id]

    def estimate(job: JobLike) -> Estimate:
        for (basis, keys), group in zip(_ALIKE, groups, strict=True):
            alike = group.get(_values(job.config, keys), [])
            seconds = [r.cost["wall_seconds"] for r in alike if r.cost.get("wall_seconds")]
            if seconds:
                kept = [count for record in alike[-20:] if (count := size(record))]
                return Estimate(statistics.median(seconds), statistics.median(kept) if kept else None, basis)
        return Estimate(None, None, "no run like it")

    return estimate


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below ``folder``; 0 if there is none."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:
                continue  # removed meanwhile
    return total


def _values(config: dict[str, Any], keys: list[str]) -> tuple[Any, ...]:
    found = [lookup(config, key) for key in keys]
    return tuple(tuple(value) if isinstance(value, list) else value for value in found)
