"""The warm server: imports the stack once, keeps backbone and tokenised data, and forks a process for each job.

``python -m lrx.engine.server FD`` is started by ``lrx.engine.local`` and talks JSON lines over the socket FD.
It receives ``{"run_id", "settings", "output", "threads", "alone"}`` for each job and sends ``{"ready": true}`` once,
and ``{"started": run_id, "pid"}`` and ``{"ended": {...}}`` (``lrx.engine.work.Ended``) for each job. When the
socket closes, the launcher is gone: the jobs are asked to stop and the server ends with them.

Thread pools do not survive a fork, so nothing here computes in parallel before it: one thread for PyTorch, BLAS and
tokenizers until a job has its process, and no CUDA call at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GRACE_SECONDS = 15.0  # for jobs to save a checkpoint when the launcher has gone
PART_OF_MEMORY = 0.25  # of the machine's, up to which shared data is kept


@dataclass
class _Child:
    run_id: str
    pid: int
    pipe: int  # the job says here how it ended


class Server:
    """One server; ``serve`` returns when the launcher has closed the socket and every job has ended."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.children: dict[int, _Child] = {}
        self._shared_wandb = False
        self._unread = b""
        self._wake, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # wakes the selector
        # Whoever stops a whole group of processes means the jobs: they save themselves, and the launcher closes the
        # connection afterwards.
        self.hangup = signal.getsignal(signal.SIGHUP)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # and Slurm's signal, for its jobs as well

    def serve(self) -> None:
        from lrx import warm

        warm.begin(int(PART_OF_MEMORY * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
        self._send({"ready": True})
        selector = selectors.DefaultSelector()
        selector.register(self.connection, selectors.EVENT_READ)
        selector.register(self._wake, selectors.EVENT_READ)
        connected = True
        while connected:
            for key, _ in selector.select():
                if key.fd == self._wake:
                    os.read(self._wake, 4096)
                elif not self._receive():
                    connected = False
            self._reap()
        self._end_all()

    def _receive(self) -> bool:
        """Carry out what has arrived; False when the launcher has closed the connection."""
        try:
            chunk = self.connection.recv(1 << 20)
        except ConnectionError:
            return False
        if not chunk:
            return False
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        for line in lines:
            self._start(json.loads(line))
        return True

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the launcher has gone; the selector will say so
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def _start(self, order: dict[str, Any]) -> None:
        prepare(order["settings"])
        if order["settings"]["logger"]["kind"] == "wandb" and not self._shared_wandb:
            from lrx.trackers import share_service

            share_service()
            self._shared_wandb = True
        read, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            self.connection.close()
            signal.signal(signal.SIGHUP, self.hangup)
            _be_a_job(order, write)  # does not return
        os.close(write)
        self.children[pid] = _Child(order["run_id"], pid, read)
        self._send({"started": order["run_id"], "pid": pid})

    def _reap(self) -> None:
        while self.children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self.children.pop(pid, None)
            if child is None:
                continue  # a helper process of a library
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # what the job has left running
            os.set_blocking(child.pipe, False)  # a process of the job's may hold its end all the same
            with os.fdopen(child.pipe, "rb") as pipe:
                told = pipe.read()
            code = os.waitstatus_to_exitcode(status)
            ended = json.loads(told) if told else {"run_id": child.run_id, "code": code, "message": "", "told": False}
            self._send({"ended": ended})

    def _end_all(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for child in self.children.values():
                os.kill(child.pid, signum)
            patience = time.monotonic() + GRACE_SECONDS
            while self.children and time.monotonic() < patience:
                self._reap()
                time.sleep(0.02)


def prepare(settings: dict[str, Any]) -> None:
    """Build what jobs of these settings share: the backbone, and the splits' tokens. What fails here fails in the job,
    where it is reported.
    """
    try:
        from lrx.environment import describe_software
        from lrx.experiment import build_suite, quiet_libraries
        from lrx.schema import Settings
        from lrx.training import prepare_part

        quiet_libraries()
        describe_software()
        checked = Settings.model_validate(settings)
        for part in build_suite(checked).parts():
            prepare_part(part, checked)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        print(f"warm server: nothing is shared with this job ({type(error).__name__})", flush=True)


def _be_a_job(order: dict[str, Any], pipe: int) -> None:
    """In the forked process: carry out the run, say how it ended, leave."""
    server = os.getppid()
    signal.set_wakeup_fd(-1)
    for signum in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setpgid(0, 0)
    _die_with_parent()
    if os.getppid() != server:  # it died before that was asked for
        os._exit(1)
    from lrx import warm
    from lrx.engine.work import Ended, do, output_to

    warm.end()
    ended = Ended(order["run_id"], 1, "the job could not open its output file", told=False)
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        with output_to(Path(order["output"])):
            if order["alone"]:
                _replace_by_fresh_process(order, pipe)
            import torch

            import lrx.experiment

            lrx.experiment.DEFAULT_THREADS = order["threads"]
            torch.set_num_threads(order["threads"])
            os.environ["TOKENIZERS_PARALLELISM"] = "true" if order["threads"] > 1 else "false"
            ended = do(order["settings"], order["run_id"])
    except OSError as error:
        ended = Ended(order["run_id"], 2, f"cannot write {order['output']}: {error.strerror}", told=True)
    finally:
        # A killed job says nothing; neither does one that os._exit left.
        os.write(pipe, json.dumps({**ended.as_dict(), "message": ended.message[:4000]}).encode())
        os._exit(ended.code % 256)


def _replace_by_fresh_process(order: dict[str, Any], pipe: int) -> None:
    """Distributed strategies start their program again for each further rank: it must be one that does this job."""
    path = Path(order["output"]).with_name("job.json")
    path.write_text(json.dumps({"settings": order["settings"], "run_id": order["run_id"]}))
    os.environ["OMP_NUM_THREADS"] = str(order["threads"])
    os.set_inheritable(pipe, True)
    os.execv(sys.executable, [sys.executable, "-m", "lrx.engine.alone", str(path), str(pipe)])


def _die_with_parent() -> None:
    """Ask Linux for SIGKILL when the server dies: a job must not go on that nobody knows of."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    import torch

    torch.set_num_threads(1)
    import transformers.optimization  # noqa: F401 - where schedules come from; it imports peft, which takes its time

    import lrx.experiment  # noqa: F401 - the stack, seconds of imports

    Server(connection).serve()
    os._exit(0)  # unloading the stack takes seconds


if __name__ == "__main__":
    main()
