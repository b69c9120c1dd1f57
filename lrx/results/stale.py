"""Records that the code has left behind: made by an earlier version of a method, model or task.

A version is part of a run's identity, so such a record does not count; without a word it would seem never to have run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from lrx import registry
from lrx.errors import UserError
from lrx.results.record import Problem, RunRecord, record_path
from lrx.results.sweep import JobLike, lookup


def stale(root: Path | str, jobs: Iterable[JobLike], records: Iterable[RunRecord]) -> list[Problem]:
    """One problem for each record that would be a job's, were it not for its versions."""
    records = list(records)
    present = {record.fingerprint for record in records}
    lacking = {
        (job.method, *(lookup(job.config, key) for key in ("model.name", "task.name", "scale.name")), job.seed)
        for job in jobs
        if job.fingerprint not in present
    }
    found = []
    for record in records:
        if (record.method, record.model, record.task, record.scale, record.seed) in lacking:
            path = record_path(root, record.run_id)
            if differences := outdated(record):
                found.append(Problem(path, f"{path}: stale, not counted: {'; '.join(differences)}"))
    return found


def outdated(record: RunRecord) -> list[str]:
    """What has a higher version in the code than in the record: ``["made by version 1 of method lora, now 2"]``."""
    family = str(lookup(record.config, "model.family") or record.model)
    names = {"method": ("methods", record.method), "model": ("models", family), "task": ("tasks", record.task)}
    found = []
    for key, (kind, name) in names.items():
        now = _version(kind, name)
        then = record.versions.get(key)
        if then is not None and now is not None and then != now:
            found.append(f"made by version {then} of {key} {name}, now {now}")
    return found


@functools.cache
def _version(kind: str, name: str) -> int | None:
    try:
        return registry.find(kind, name).version
    except UserError:  # no longer there
        return None
