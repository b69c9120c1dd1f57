"""SIGINT, SIGTERM and SIGHUP end a run cleanly, whatever it is doing: training, reading data, scoring, writing.

``listening`` covers a whole run. A signal then raises ``Stopped`` in the main thread, at once unless the run is inside

* ``deferred``: training, which looks at ``requested`` after each batch and saves a checkpoint first. What takes longer
  than ``GRACE_SECONDS``, or a second signal, ends it at once; the last checkpoint then counts.
* ``held``: writing what must not be left out (the record). ``Stopped`` is raised when that is done.

In a Slurm job SIGUSR1 is one more such signal (``lrx.slurm``); a batch may then take longer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from lrx import slurm
from lrx.errors import RunFailed

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A stopped run has ten seconds in all, of which a tracker may take five. An engine that has more time says so.
GRACE_SECONDS = float(os.environ.get("LRX_GRACE_SECONDS", "4"))
SLURM_GRACE_SECONDS = 60.0  # of the 120 that docs/clusters.md lets Slurm give
SECOND_AFTER = 1.0  # a signal that comes sooner is the same one by another way: a terminal's group, a launcher


class Stopped(BaseException):
    """A signal ends the run. No ``KeyboardInterrupt``, at which Lightning leaves by ``sys.exit(1)``, and no
    ``Exception``, which libraries may swallow.
    """

    def __init__(self, signum: int, step: int | None = None) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.step = step  # of which a checkpoint was saved

    def as_failure(self) -> RunFailed:
        """The error that the command line and the engines know."""
        where, begin = ("", "the last checkpoint") if self.step is None else (f" at step {self.step}", "there")
        failure = RunFailed(f"{self}{where}; the same command goes on from {begin}", "interrupted")
        failure.signum = self.signum  # type: ignore[attr-defined]
        return failure


class _Listener:
    """The handler of one run's signals, in the process that runs it."""

    def __init__(self, signals: list[signal.Signals]) -> None:
        self.pid = os.getpid()
        self.signals = signals
        self.signum: int | None = None
        self.deferred = self.held = 0
        self._first = 0.0
        self._timer: threading.Timer | None = None

    def receive(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:  # a worker forked by the data loader: the run ends it in its own time
            if signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        first = self.signum is None
        if first:
            self.signum, self._first = signum, time.monotonic()
        elif time.monotonic() - self._first < SECOND_AFTER:
            return
        if self.held:
            return
        if first and self.deferred:
            grace = SLURM_GRACE_SECONDS if signum == slurm.SIGNAL else GRACE_SECONDS
            self._timer = threading.Timer(grace, os.kill, (self.pid, signum))
            self._timer.daemon = True
            self._timer.start()
            return
        self.stop()

    def stop(self, step: int | None = None) -> None:
        """Raise ``Stopped`` if a signal has come."""
        if self.signum is not None:
            self.forget_timer()
            raise Stopped(self.signum, step)

    def stop_unless_inside(self) -> None:
        if not self.held and not self.deferred:
            self.stop()

    def forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


_listener: _Listener | None = None


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Handle signals as this module says. Signals that the process ignores (``nohup``) stay ignored.

    Outside the main thread, where Python lets nobody handle signals, nothing changes.
    """
    global _listener
    if threading.current_thread() is not threading.main_thread() or _listener is not None:
        yield
        return
    previous = {
        signum: handler
        for signum in (*SIGNALS, *([slurm.SIGNAL] if slurm.requeues() else []))
        if (handler := signal.getsignal(signum)) not in (signal.SIG_IGN, None)  # None: not set by Python
    }
    _listener = _Listener(list(previous))
    try:
        take_over()
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        _listener.forget_timer()
        _listener = None


def take_over() -> None:
    """Handle the signals again if somebody else has set a handler: Lightning, which leaves by ``SystemExit``."""
    if (listener := _listener) is not None:
        for signum in listener.signals:
            signal.signal(signum, listener.receive)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Inside, a first signal is only noted: see ``requested``."""
    listener = _listener
    if listener is None:
        yield
        return
    listener.deferred += 1
    try:
        yield
    finally:
        listener.deferred -= 1
    listener.stop_unless_inside()


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Inside, signals are only noted; ``Stopped`` comes at the end if there was one."""
    listener = _listener
    if listener is None:
        yield
        return
    listener.held += 1
    try:
        yield
    finally:
        listener.held -= 1
    listener.stop_unless_inside()


def requested() -> int | None:
    """The signal that wants this run to end, if one has come."""
    return _listener.signum if _listener is not None else None


def end_at(step: int) -> None:
    """End a run that a signal has come for, also inside ``deferred``: a checkpoint of ``step`` has been saved."""
    if _listener is not None:
        _listener.stop(step)
