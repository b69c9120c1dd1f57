"""What an engine hands to a cluster: a job in a process of its own, and a small one without torch that watches it.

The watcher speaks the cluster's language (submitit's signals, Ray's interrupts) and the job knows the one way in which
runs stop, so that it behaves as on one machine. Whatever becomes of the job, the watcher leaves a record of it: the
launcher may be gone by then.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from lrx.engine.work import Ended, output_path

STOP_SECONDS = 10.0  # between a job's time limit, at which it is asked to stop, and its end
INSIST_AFTER = 5.0  # a signal to stop that comes sooner after another is the same one by another way
LINGER_SECONDS = 60.0  # Slurm says SIGTERM before the signal that means preemption, or before SIGKILL
GRACE_ON_SLURM = 20  # seconds for the batch that a job is in when it is stopped; Slurm gives 30 or more
PATIENCE_SECONDS = 28.0  # for a job to save a checkpoint before it is requeued


def order_of(settings: dict[str, Any], run_id: str, threads: int | None) -> dict[str, Any]:
    """What a ``Guarded`` job needs to know, as JSON holds it. ``settings``: validated, of the launcher's folder."""
    package = str(Path(__file__).resolve().parent.parent.parent)
    return {"settings": settings, "run_id": run_id, "folder": os.getcwd(), "package": package, "threads": threads}


class Guarded:
    """``Guarded(order)()`` carries out a job and returns its ``Ended`` as a dictionary with ``began`` (Unix seconds).

    It holds plain data and is pickled by reference. ``checkpoint`` is what submitit calls when the job's time is up or
    its place is wanted: the run is stopped with a checkpoint, and the returned submission goes on from there.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self._pid: int | None = None
        self._asked: float | None = None

    def __call__(self) -> dict[str, Any]:
        from lrx.errors import UserError

        began = time.time()
        try:
            with self._told_to_stop():
                ended = self._carry_out(began)
        except UserError as error:
            ended = Ended(self.order["run_id"], 2, str(error), told=True)
        except OSError as error:
            message = f"{error.strerror or error}: {error.filename or self.order['folder']}"
            ended = Ended(self.order["run_id"], 2, message, told=True)
        return {**ended.as_dict(), "began": began}

    def checkpoint(self) -> Any:
        """Stop the run; the submission that goes on with it."""
        from submitit.helpers import DelayedSubmission

        self._stop()
        patience = time.monotonic() + PATIENCE_SECONDS
        while not self._gone():
            if time.monotonic() > patience:
                self._stop(insist=True)
            time.sleep(0.05)
        return DelayedSubmission(Guarded(self.going_on()))

    def going_on(self) -> dict[str, Any]:
        """The order for a job that has begun already: what it has done is not to be thrown away again."""
        settings = self.order["settings"]
        return {**self.order, "settings": {**settings, "rerun": "failed"}} if settings["rerun"] == "all" else self.order

    def _carry_out(self, began: float) -> Ended:
        from lrx.engine import crash

        run_id, root = self.order["run_id"], Path(self.order["folder"], self.order["settings"]["paths"]["root"])
        memory_kills = crash.out_of_memory_kills()
        output = output_path(root, run_id)
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="lrx-") as place, output.open("ab") as stream:
            job = Path(place, "job.json")
            job.write_text(json.dumps({"settings": self.order["settings"], "run_id": run_id}))
            told = os.open(Path(place, "ended.json"), os.O_RDWR | os.O_CREAT)
            process = subprocess.Popen(
                [sys.executable, "-m", "lrx.engine.alone", str(job), str(told)],
                cwd=self.order["folder"], env=self._environment(), stdin=subprocess.DEVNULL, stdout=stream,
                stderr=subprocess.STDOUT, pass_fds=[told], preexec_fn=_begin_as_a_job,
            )  # fmt: skip
            os.close(told)
            self._pid = process.pid
            not_again, over_time = self._watch(began)
            self._pid = None
            code = process.wait()
            text = Path(place, "ended.json").read_text()
        ended = Ended(**json.loads(text)) if text else Ended(run_id, code)
        if ended.told and ended.code == 0:
            return ended
        if over_time:
            status, message = "failed", crash.over_time(self.order["settings"]["time_limit"])
        elif not_again:
            status, message = "interrupted", f"{not_again} The same command goes on from the last checkpoint"
        elif ended.told and ended.code != 2:
            return ended
        else:
            status, message = crash.outcome(ended, output, crash.out_of_memory_kills() > memory_kills)
        self._record(status, message, began)
        return Ended(run_id, 128 + signal.SIGTERM if status == "interrupted" else 1, message, told=True)

    def _watch(self, began: float) -> tuple[str, bool]:
        """Wait for the job to end. Why it is not requeued, if somebody said so, and whether it is over its limit."""
        limit, over_time, not_again = self.order["settings"]["time_limit"], False, ""
        while True:
            try:
                while not self._gone():
                    if limit is not None and time.time() - began > limit:
                        over_time = True
                        self._stop(insist=time.time() - began > limit + STOP_SECONDS)
                    time.sleep(0.05)
                if _on_slurm() and self._stopped() and not over_time and not not_again:
                    time.sleep(LINGER_SECONDS)  # preempted: submitit's signal comes, and requeues the job
                return not_again, over_time
            except KeyboardInterrupt:  # Ray, asked to cancel the job
                self._stop()
            except RuntimeError as error:  # submitit, which has stopped the job: "Job not requeued because: ..."
                not_again = str(error)

    def _record(self, status: Any, message: str, began: float) -> None:
        from lrx import config as lrx_config
        from lrx.engine import crash
        from lrx.engine.jobs import Job
        from lrx.schema import Settings

        here = os.getcwd()
        os.chdir(self.order["folder"])
        try:
            settings = Settings.model_validate(self.order["settings"])
            job = Job([], settings, lrx_config.fingerprint(settings), self.order["run_id"])
            crash.write(job, status, message, datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds"))
        finally:
            os.chdir(here)

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        # The job is one process; the cluster's description of its tasks would make Lightning wait for others, and
        # requeue the job itself.
        environment.pop("SLURM_NTASKS", None)
        known = environment.get("PYTHONPATH", "").split(os.pathsep)
        if self.order["package"] not in known:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [self.order["package"], *known]))
        if self.order["threads"]:
            environment["OMP_NUM_THREADS"] = str(self.order["threads"])
        if _on_slurm():
            environment.setdefault("LRX_GRACE_SECONDS", str(GRACE_ON_SLURM))
        return environment

    @contextlib.contextmanager
    def _told_to_stop(self) -> Iterator[None]:
        """SIGTERM stops the job in good order, a later one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def receive(signum: int, frame: FrameType | None) -> None:
            self._stop(insist=self._asked is not None and time.monotonic() - self._asked > INSIST_AFTER)

        previous = signal.signal(signal.SIGTERM, receive)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _stop(self, insist: bool = False) -> None:
        if self._pid is None or self._gone() or (self._asked is not None and not insist):
            return
        self._asked = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL if insist else signal.SIGTERM)

    def _gone(self) -> bool:
        """Whether the job has ended. Does not reap it: a signal handler may ask in the middle of anything."""
        return self._pid is None or self._end() is not None

    def _stopped(self) -> bool:
        """Whether the job, which has ended, was stopped by SIGTERM in good order."""
        end = self._end()
        return end is not None and (end.si_code, end.si_status) == (os.CLD_EXITED, 128 + signal.SIGTERM)

    def _end(self) -> Any:
        assert self._pid is not None
        return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def _on_slurm() -> bool:
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def _begin_as_a_job() -> None:
    """In the new process: leave to the watcher the signals that are for it, and die with it."""
    from lrx.engine.server import _die_with_parent

    for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    _die_with_parent()
