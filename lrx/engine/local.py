"""Jobs on this machine: each in a process of its own, forked from the warm server (``lrx.engine.server``)."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from lrx.engine.jobs import Job
from lrx.engine.work import Ended, output_path
from lrx.errors import UserError

# One thread each until a job has its process: thread pools do not survive a fork.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking for GPUs must not initialise CUDA in a process that forks
}


REPORT_SECONDS = 3.0  # from the death of a job to the server's word of it


class LocalEngine:
    """Runs at most ``at_once`` jobs at a time, the machine's threads divided among them.

    The server starts with the first job. If it dies, its jobs are reported as killed and the next job starts another.
    """

    name = "local"

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.threads = max(1, len(os.sched_getaffinity(0)) // at_once)
        self._server: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._unread = b""
        self.began: dict[str, float] = {}  # when a job's process began, in seconds of the monotonic clock
        self._running: dict[str, int] = {}  # run id -> process id, 0 before there is one
        self._killed: dict[str, float] = {}
        self._ready = False

    def start(self, job: Job) -> None:
        """Begin ``job``. Its output goes to ``output.log`` in the run's folder."""
        settings = job.settings.model_dump(mode="json")
        fixed = job.settings.trainer.threads
        self._running[job.run_id] = 0
        self.began.pop(job.run_id, None)
        self._order(
            {
                "run_id": job.run_id,
                "settings": settings,
                "output": str(output_path(job.settings.paths.root, job.run_id)),
                "threads": fixed or self.threads,
                "alone": job.settings.trainer.strategy != "auto",
            }
        )

    def wait(self, timeout: float) -> list[Ended]:
        """The jobs that have ended, waiting at most ``timeout`` seconds for the first."""
        if self._connection is None:
            return []
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            if not selector.select(timeout):
                return []
        try:
            chunk = self._connection.recv(1 << 20)
        except ConnectionError:  # it died with orders unread
            chunk = b""
        if not chunk:
            return self._server_died()
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        ended = []
        for line in lines:
            message = json.loads(line)
            if "started" in message:
                self.began[message["started"]] = time.monotonic()
                self._running[message["started"]] = message["pid"]
            elif "ready" in message:
                self._ready = True
            elif "ended" in message:
                ended.append(Ended(**message["ended"]))
                self._running.pop(ended[-1].run_id, None)
        return ended

    def kill(self, run_id: str, signum: int) -> None:
        """Send a signal to a running job. Where that cannot help, the server goes, and every job with it: while it
        imports, or builds what a job will read, it neither starts nor reports one.
        """
        if run_id not in self._running or self._server is None:
            return
        pid = self._running[run_id]
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        first = self._killed.setdefault(run_id, time.monotonic()) if signum == signal.SIGKILL else time.monotonic()
        alone = not any(self._running.values())
        if (not pid and (alone or signum == signal.SIGKILL)) or time.monotonic() - first > REPORT_SECONDS:
            self._server.kill()

    def close(self) -> None:
        """End the server; a job that is still running is stopped with it."""
        if self._connection is not None:
            self._connection.close()
        if self._server is not None:
            try:
                self._server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        self._server, self._connection, self._ready = None, None, False

    def _order(self, message: dict[str, object]) -> None:
        if self._connection is None:
            self._launch()
        assert self._connection is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died; wait() reports its jobs
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        package = str(Path(__file__).resolve().parent.parent.parent)
        known = os.environ.get("PYTHONPATH")
        environment = {
            **os.environ,
            **_ENVIRONMENT,
            "PYTHONPATH": f"{package}{os.pathsep}{known}" if known else package,
        }
        command = [sys.executable, "-m", "lrx.engine.server", str(theirs.fileno())]
        try:
            # A session of its own: Ctrl-C reaches the launcher alone, which stops the jobs in good order.
            self._server = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise UserError(f"cannot start a process for the jobs: {error.strerror}") from None
        finally:
            theirs.close()
        self._connection = ours

    def _server_died(self) -> list[Ended]:
        """Its jobs have died with it. Raises ``UserError`` if it never got as far as a job."""
        assert self._server is not None
        code = self._server.wait()
        ready = self._ready
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        told = f"the process that jobs are forked from ended ({cause})"
        ended = [Ended(run_id, code if code < 0 else 1, told) for run_id in self._running]
        self._running.clear()
        self._unread = b""
        self.close()
        if not ready and code >= 0:
            raise UserError(f"{told} before the first job; what it printed above says why")
        return ended
