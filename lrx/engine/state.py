"""What is known of a job before it is started: finished, failed earlier, at work in another process, or to be done."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lrx.errors import UserError
from lrx.results.record import RecordError, RunRecord, read, record_path

Kind = Literal["to do", "finished", "failed"]


@dataclass(frozen=True)
class State:
    """``failed``: an earlier attempt did, and is not repeated unless asked for. ``record``: the one found, if any."""

    kind: Kind
    record: RunRecord | None = None


def state_of(root: Path | str, run_id: str, rerun: str) -> State:
    """Whether a run is to be carried out.

    A finished run is repeated with ``rerun=all`` only, one that failed (diverged, ran out of memory) with
    ``rerun=failed`` or ``all``; an interrupted one always goes on. Raises ``UserError`` for an unreadable record.
    """
    path = record_path(root, run_id)
    if rerun == "all" or not path.exists():
        return State("to do")
    try:
        found = read(path)
    except RecordError as error:
        raise UserError(f"{error}; delete the file or give rerun=all") from None
    if found.status == "finished":
        return State("finished", found)
    if found.status == "interrupted" or rerun == "failed":
        return State("to do", found)
    return State("failed", found)


def is_running(root: Path | str, run_id: str) -> bool:
    """Whether a process on this machine holds the run's lock. Does not take it."""
    try:
        handle = os.open(Path(root) / "runs" / run_id / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):  # no such locks on this system: the run itself finds out when it starts
        return False
    finally:
        os.close(handle)
    return False
