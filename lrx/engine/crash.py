"""The record of a job that could not write one: its process was killed, crashed or left without a word."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from pathlib import Path

from lrx import __version__
from lrx import config as lrx_config
from lrx.engine.jobs import Job
from lrx.engine.work import Ended
from lrx.results.record import RunRecord, Status

# Signals by which somebody stops a process, in contrast to those by which a process stops itself.
_STOPPED_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def outcome(ended: Ended, output: Path, out_of_memory: bool) -> tuple[Status, str]:
    """Status and message for a job that ended without a record of this attempt."""
    if ended.status:
        return ended.status, ended.message  # type: ignore[return-value]
    if ended.code == 2 and ended.told:
        return "failed", ended.message
    if ended.told and ended.code > 128:  # stopped before it had begun to keep a record
        return "interrupted", ended.message
    if ended.message and ended.code >= 0:
        return "failed", f"{ended.message} (output: {output})"
    if ended.code >= 0:
        return "failed", f"the process ended with exit code {ended.code} and said nothing (output: {output})"
    name = signal.Signals(-ended.code).name
    if out_of_memory:
        return "out_of_memory", f"{name}: the system ended the process because memory ran out"
    if -ended.code in _STOPPED_FROM_OUTSIDE:
        cause = ended.message or f"{name} ended the process"
        return "interrupted", f"{cause}; the same command goes on from the last checkpoint"
    return "failed", f"the process crashed with {name} (output: {output})"


def write(job: Job, status: Status, message: str, started: str) -> RunRecord:
    """Save a record for ``job`` that holds its identity and its outcome. Raises ``UserError`` if it cannot be saved."""
    settings = job.settings
    record = lrx_config.record_of(settings, job.run_id, status, started)
    record.message = message
    record.environment = {"lrx": __version__}
    record.finished = datetime.now(UTC).isoformat(timespec="seconds")
    record.save(settings.paths.root, overwrite=True)
    return record


def out_of_memory_kills() -> int:
    """How many processes of this control group the system has ended for lack of memory; 0 where it does not say."""
    for path in (*_own_group(), "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            for line in Path(path).read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        except (OSError, ValueError):
            continue
    return 0


def _own_group() -> list[str]:
    """Where version 2 of control groups counts for this process's own group: a cluster's jobs have one each."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    return [f"/sys/fs/cgroup{line[3:].rstrip('/')}/memory.events" for line in lines if line.startswith("0::/")]


def over_time(limit: float) -> str:
    """The message for a job that was stopped at its ``time_limit`` (seconds)."""
    return (
        f"stopped at its time limit of {limit:g} s; with rerun=failed and a larger time_limit "
        "it goes on from its last checkpoint"
    )
