"""What the process of a job does, whichever engine started it: carry out the run, and say how it ended."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lrx.errors import Busy, RunFailed, UserError


@dataclass(frozen=True)
class Ended:
    """How a job ended. ``code``: its exit code (0 finished, 1 failed, 2 a user's mistake, 75 another process is at
    work on it, 128 + n stopped by signal n), or -n when signal n killed the process. ``told``: whether the job itself
    said so; one that was killed, or left by ``os._exit``, did not. ``status``: of the record, where an engine knows
    more than the code says. ``found``: the job found the run finished, by another process, and left it.
    """

    run_id: str
    code: int
    message: str = ""
    told: bool = False
    status: str = ""
    found: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


BUSY = 75  # EX_TEMPFAIL of sysexits.h


def do(settings: dict[str, Any], run_id: str) -> Ended:
    """Carry out the run of validated ``settings`` (as JSON holds them) in this process. Never raises."""
    from lrx.experiment import execute
    from lrx.schema import Settings

    try:
        checked = Settings.model_validate(settings)
        return Ended(run_id, 0, told=True, found=not execute(checked, run_id))
    except RunFailed as failure:
        code = 128 + getattr(failure, "signum", 2) if failure.outcome == "interrupted" else 1
        return Ended(run_id, code, str(failure), told=True)
    except Busy as busy:
        return Ended(run_id, BUSY, str(busy), told=True)
    except UserError as error:
        return Ended(run_id, 2, str(error), told=True)
    except KeyboardInterrupt as stop:
        return Ended(run_id, 128 + getattr(stop, "signum", 2), "interrupted", told=True)
    except SystemExit as left:  # a library or a method that calls sys.exit
        return Ended(run_id, 1, f"the run called sys.exit({left.code})", told=False)
    except BaseException as error:  # a defect: the traceback is in the job's output
        import traceback

        traceback.print_exc()
        return Ended(run_id, 1, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", told=False)


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Send what this process and its children print to ``path``, behind what an earlier attempt printed there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    saved = os.dup(1), os.dup(2)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def output_path(root: Path | str, run_id: str) -> Path:
    """Where a job's output goes: beside the run's other files."""
    return Path(root) / "runs" / run_id / "output.log"
