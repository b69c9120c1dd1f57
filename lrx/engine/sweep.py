"""Carrying out the jobs of a sweep: skip what is finished, run the rest through an engine, leave a record of each."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Protocol

from lrx import slurm, stop
from lrx.engine import crash
from lrx.engine.jobs import Job, Mistake
from lrx.engine.state import is_running, state_of
from lrx.engine.work import BUSY, Ended, output_path
from lrx.errors import UserError
from lrx.results.record import RecordError, RunRecord, read, record_path

STOP_SECONDS = 8.0  # between a polite signal to a job and SIGKILL


@dataclass
class Outcome:
    """What became of the runs of one command."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    interrupted: list[str] = field(default_factory=list)
    not_started: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # queued or running on a cluster, which the command no longer awaits
    error: BaseException | None = None  # ends the command; kept here because Hydra prints what a job raises
    signum: int | None = None  # the signal that ended the command
    multirun: bool = False

    @property
    def total(self) -> int:
        lists: tuple[list[Any], ...] = (
            self.done,
            self.skipped,
            self.failed,
            self.interrupted,
            self.not_started,
            self.left,
        )
        return sum(map(len, lists))


class Engine(Protocol):
    """Where jobs run. ``start`` returns at once; ``wait`` reports jobs that have ended. ``began``: run id -> when its
    process began, in seconds of the monotonic clock.
    """

    at_once: int
    began: dict[str, float]

    def start(self, job: Job) -> None: ...
    def wait(self, timeout: float) -> list[Ended]: ...
    def kill(self, run_id: str, signum: int) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Options:
    """``time_limit``: seconds a job may take. ``fail_fast``: the first failure ends the sweep."""

    rerun: str = "none"
    fail_fast: bool = False
    time_limit: float | None = None


def run_sweep(made: Sequence[Job | Mistake], engine: Engine, options: Options) -> Outcome:
    """Run every job that is not finished yet, and say of each what became of it."""
    return _Sweep(engine, options).run(made)


class _Sweep:
    def __init__(self, engine: Engine, options: Options) -> None:
        self.engine, self.options = engine, options
        self.outcome = Outcome()
        self.waiting: deque[Job] = deque()
        self.running: dict[str, Job] = {}
        self.elsewhere: list[Job] = []
        self.started: dict[str, str] = {}
        self.killed: dict[str, float] = {}  # when a job was asked to stop
        self.over_time: set[str] = set()
        self.stopping = False
        self.number: dict[str, int] = {}
        self.memory_kills = crash.out_of_memory_kills()

    def run(self, made: Sequence[Job | Mistake]) -> Outcome:
        self._sort_out(made)
        if not self.waiting:
            return self.outcome
        self.total = len(self.waiting)
        self.common = set.intersection(*(set(job.overrides) for job in self.waiting))
        known = len(self.outcome.skipped)
        jobs = "1 job" if self.total == 1 else f"{self.total} jobs"
        say(f"{jobs} to run, {known} already finished; {min(self.engine.at_once, self.total)} at a time")
        with _signals() as received:
            try:
                while self.waiting or self.running or self.elsewhere:
                    if received:
                        self._stop(received)
                        break
                    self._start_some()
                    for ended in self.engine.wait(0.2):
                        self._settle(ended)
                    self._watch_time()
                    self._look_elsewhere()
                    if self.options.fail_fast and self.outcome.failed:
                        self._stop([])
                        break
            finally:
                self.engine.close()
        if received and self.outcome.signum is None:  # the last job had ended by itself, or by the same signal
            self.outcome.signum = received[0]
        left = [*self.waiting, *self.elsewhere]
        self.outcome.not_started += [job.run_id for job in left]
        return self.outcome

    def _sort_out(self, made: Sequence[Job | Mistake]) -> None:
        """What is to be done, and what is done already. Two jobs that compose the same run are one."""
        seen: set[str] = set()
        for job in made:
            if isinstance(job, Mistake):
                self.outcome.failed.append((" ".join(job.overrides), job.message))
                continue
            if job.run_id in seen:
                continue
            seen.add(job.run_id)
            if job.settings.mode == "eval":
                self.waiting.append(job)
                continue
            try:
                state = state_of(job.settings.paths.root, job.run_id, self.options.rerun)
            except UserError as error:
                self.outcome.failed.append((job.run_id, str(error)))
                continue
            if state.kind == "finished":
                self.outcome.skipped.append(job.run_id)
            elif state.kind == "failed" and state.record is not None:
                message = f"{state.record.message} (an earlier attempt; rerun=failed tries again)"
                self.outcome.failed.append((job.run_id, message))
            else:
                self.waiting.append(job)
        if self.options.fail_fast and self.outcome.failed:
            self.outcome.not_started += [job.run_id for job in self.waiting]
            self.waiting.clear()

    def _start_some(self) -> None:
        while self.waiting and len(self.running) < self.engine.at_once:
            job = self.waiting.popleft()
            if is_running(job.settings.paths.root, job.run_id):
                self.elsewhere.append(job)
                continue
            self.number.setdefault(job.run_id, len(self.number) + 1)
            self.started[job.run_id] = _now()
            self.running[job.run_id] = job
            say(f"{self._label(job)}: started")
            try:
                self.engine.start(job)
            except UserError as error:
                self._settle(Ended(job.run_id, 2, str(error), told=True))

    def _settle(self, ended: Ended) -> None:
        """Book a job that has ended, and write its record if it could not."""
        job = self.running.pop(ended.run_id, None)
        if job is None:
            return
        self.killed.pop(job.run_id, None)
        if self.stopping and not ended.told and job.run_id not in self.engine.began:
            self.outcome.not_started.append(job.run_id)
            return
        if ended.code == BUSY and ended.told:
            self.elsewhere.append(job)
            return
        if job.settings.mode == "eval":
            self._settle_scoring(job, ended)
            return
        record = self._record_of(job)
        if record is not None and record.status == "finished":
            if ended.found or record.finished < self.started[job.run_id]:
                self._settle_beside(job, ended)
                return
        elif record is None or record.finished < self.started[job.run_id] or not ended.told or ended.code == 2:
            record = self._record_crash(job, ended)
        elif job.run_id in self.over_time:
            record = crash.write(job, "failed", self._time_message(), self.started[job.run_id])
        if record is None:
            return
        seconds = time.monotonic() - self.engine.began.get(job.run_id, time.monotonic())
        if record.status == "finished":
            self.outcome.done.append(job.run_id)
            say(f"{self._label(job)}: finished in {duration(seconds)}{scores(record)}")
        elif record.status == "interrupted":
            self.outcome.interrupted.append(job.run_id)
            say(f"{self._label(job)}: interrupted: {record.message}")
        else:
            self.outcome.failed.append((job.run_id, record.message))
            say(f"{self._label(job)}: {record.status.replace('_', ' ')}: {record.message}")

    def _settle_beside(self, job: Job, ended: Ended) -> None:
        """There is a finished record, and not of this attempt: it stays."""
        if ended.code == 0:  # another process was faster
            self.outcome.skipped.append(job.run_id)
            return
        output = output_path(job.settings.paths.root, job.run_id)
        status, message = crash.outcome(ended, output, out_of_memory=False)
        message += "; the earlier record stays"
        say(f"{self._label(job)}: {status.replace('_', ' ')}: {message}")
        if status == "interrupted":
            self.outcome.interrupted.append(job.run_id)
        else:
            self.outcome.failed.append((job.run_id, message))

    def _settle_scoring(self, job: Job, ended: Ended) -> None:
        """A run that was scored again keeps its record, whatever came out."""
        output = output_path(job.settings.paths.root, job.run_id)
        if ended.code == 0 and ended.told:
            self.outcome.done.append(job.run_id)
            say(f"{self._label(job)}: scored again: {output}")
        else:
            _, message = crash.outcome(ended, output, out_of_memory=False)
            self.outcome.failed.append((job.run_id, message))
            say(f"{self._label(job)}: failed: {message}")

    def _record_of(self, job: Job) -> RunRecord | None:
        path = record_path(job.settings.paths.root, job.run_id)
        try:
            return read(path) if path.exists() else None
        except RecordError:
            return None

    def _record_crash(self, job: Job, ended: Ended) -> RunRecord | None:
        kills = crash.out_of_memory_kills()
        out_of_memory, self.memory_kills = kills > self.memory_kills, kills
        output = output_path(job.settings.paths.root, job.run_id)
        status, message = crash.outcome(ended, output, out_of_memory)
        if job.run_id in self.over_time:
            status, message = "failed", self._time_message()
        try:
            return crash.write(job, status, message, self.started[job.run_id])
        except UserError as error:  # the disk is full, or not writable any more
            self.outcome.failed.append((job.run_id, f"{message}; and {error}"))
            say(f"{self._label(job)}: {message}; and {error}")
            return None

    def _watch_time(self) -> None:
        """Ask jobs over their limit to stop; end those that do not."""
        now = time.monotonic()
        for run_id in self.running:
            limit = self.options.time_limit
            if limit is not None and run_id not in self.over_time and now - self.engine.began.get(run_id, now) > limit:
                self.over_time.add(run_id)
                self._ask_to_stop(run_id, signal.SIGTERM)
            if run_id in self.killed and now - self.killed[run_id] > STOP_SECONDS:
                self.engine.kill(run_id, signal.SIGKILL)

    def _look_elsewhere(self) -> None:
        """Take up jobs that another process was at work on, once it has let go of them."""
        if self.elsewhere and not self.waiting and not self.running:
            names = "one job" if len(self.elsewhere) == 1 else f"{len(self.elsewhere)} jobs"
            if not getattr(self, "_told_of_waiting", False):
                say(f"waiting for {names} that another process is running")
                self._told_of_waiting = True
            time.sleep(0.3)
        for job in list(self.elsewhere):
            if is_running(job.settings.paths.root, job.run_id):
                continue
            self.elsewhere.remove(job)
            self._sort_out_again(job)

    def _sort_out_again(self, job: Job) -> None:
        rerun = "none" if self.options.rerun == "all" else self.options.rerun  # the other process has just repeated it
        try:
            state = state_of(job.settings.paths.root, job.run_id, rerun)
        except UserError as error:  # its record is broken
            self.outcome.failed.append((job.run_id, str(error)))
            return
        if state.kind == "finished":
            self.outcome.skipped.append(job.run_id)
        elif state.kind == "failed" and state.record is not None:
            self.outcome.failed.append((job.run_id, state.record.message))
        else:
            self.waiting.append(job)

    def _ask_to_stop(self, run_id: str, signum: int) -> None:
        self.killed.setdefault(run_id, time.monotonic())
        self.engine.kill(run_id, signum)

    def _stop(self, received: list[int]) -> None:
        """Stop the running jobs: each saves a checkpoint and leaves a record. A second signal ends them at once."""
        self.stopping = True
        self.outcome.signum = received[0] if received else None
        signum: int = received[0] if received else signal.SIGTERM
        leave = getattr(self.engine, "leave", None)  # of engines whose jobs can outlive the launcher
        if received and leave is not None and (farewell := leave()) is not None:
            self.outcome.left += list(self.running)
            say(f"{signal.Signals(signum).name}: {farewell}")
            return
        if self.running:
            names = "one job" if len(self.running) == 1 else f"{len(self.running)} jobs"
            say(f"{signal.Signals(signum).name}: stopping {names}" if received else f"fail_fast: stopping {names}")
        for run_id in list(self.running):
            self._ask_to_stop(run_id, signal.SIGTERM if signum == slurm.SIGNAL else signum)
        while self.running:
            if len(received) > 1:
                for run_id in self.running:
                    self.engine.kill(run_id, signal.SIGKILL)
                del received[1:]
            for ended in self.engine.wait(0.1):
                self._settle(ended)
            self._watch_time()

    def _time_message(self) -> str:
        return crash.over_time(self.options.time_limit or 0)

    def _label(self, job: Job) -> str:
        own = [text for text in job.overrides if text not in self.common]
        return f"[{self.number[job.run_id]}/{self.total}] {' '.join(own) or job.run_id}"


def scores(record: RunRecord) -> str:
    """The primary metric of each part on its first reported split: ``: sentiment accuracy 0.8190, ...``."""
    shown = []
    for name, part in record.parts.items():
        split = next(iter(part.reported), "select")
        value = part.metrics.get(split, part.metrics.get("select", {})).get(part.primary)
        if value is not None:
            shown.append(f"{name} {part.primary} {value:.4f}")
    return f": {', '.join(shown)}" if shown else ""


def duration(seconds: float) -> str:
    """``0.8 s``, ``41 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def say(text: str) -> None:
    """A line for whoever watches; when nobody does any more (``| head``, a lost terminal), the jobs go on."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The SIGINT, SIGTERM and SIGHUP that arrive meanwhile, in order."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def receive(signum: int, frame: FrameType | None) -> None:
        received.append(signum)

    try:
        for wanted in (*stop.SIGNALS, *([slurm.SIGNAL] if slurm.requeues() else [])):
            if signal.getsignal(wanted) != signal.SIG_IGN:  # nohup, or a job that a shell put in the background
                previous[wanted] = signal.signal(wanted, receive)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        pass
    try:
        yield received
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


__all__ = ["Engine", "Options", "Outcome", "duration", "run_sweep", "say"]
