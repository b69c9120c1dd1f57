"""Experiment trackers: mirrors of a run's metrics. One that fails is dropped; the local files are the truth.

Each tracker has a thread of its own. Training only puts values into its queue, so a server that does not answer, a
full disk or a killed service costs a run neither time nor values; the waits when a run starts and ends are bounded.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from lrx.results.record import RunRecord
from lrx.schema import Settings
from lrx.wandb_service import finish_run, forget_service, one_line, share_service, start_run

__all__ = ["Tracker", "is_rank_zero", "open_tracker", "share_service"]

OPEN_SECONDS = 2.0  # a run waits this long for its tracker, so that a broken one is known first; then it begins anyway
CLOSE_SECONDS = 5.0
ONLINE_CLOSE_SECONDS = 20.0  # a server has to take what is still on its way
QUEUE = 10_000  # values waiting for a tracker that is slow; one that falls further behind is given up

Job = Callable[[Logger], None]


def is_rank_zero() -> bool:
    """False in the helper processes that a distributed strategy starts."""
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("RANK", "0") == "0"


class Mirror:
    """One logger and the thread that opens it, feeds it and ends it."""

    def __init__(self, kind: str, start: Callable[[], Logger], close_seconds: float = CLOSE_SECONDS) -> None:
        self.kind, self.name, self.close_seconds = kind, "", close_seconds
        self.alive = True  # until it fails or is given up; then nothing is sent any more, and one warning was printed
        self._jobs: queue.Queue[Job | None] = queue.Queue(QUEUE)
        self._opened, self._lock = threading.Event(), threading.Lock()
        self._success = False
        self._thread = threading.Thread(target=self._work, args=(start,), name=f"lrx-{kind}", daemon=True)
        self._thread.start()
        self._opened.wait(OPEN_SECONDS)

    def send(self, job: Job) -> None:
        """Let the thread do ``job`` with the logger, after what it was given before. Returns at once."""
        if not self.alive:
            return
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._give_up(TimeoutError(f"{QUEUE} values behind"))

    def close(self, success: bool) -> None:
        """Let the thread finish the logger, and wait for it no longer than ``close_seconds``.

        After a failure, which leaves a run ten seconds in all to save itself, and for a logger that never opened, the
        wait is short.
        """
        self._success = success
        with contextlib.suppress(queue.Full):
            self._jobs.put_nowait(None)
        limit = self.close_seconds if success and self.name else min(self.close_seconds, CLOSE_SECONDS)
        self._thread.join(limit if self.alive else 0.5)
        if self._thread.is_alive():
            self._give_up(TimeoutError(f"no answer within {limit:.0f} s"))

    def _work(self, start: Callable[[], Logger]) -> None:
        try:
            logger = start()
            self.name = type(logger).__name__
        except BaseException as error:  # not installed, no space, no key, no service
            self._give_up(error)
            return
        finally:
            self._opened.set()
        try:
            while (job := self._jobs.get()) is not None:
                job(logger)
        except BaseException as error:
            self._give_up(error)
            with contextlib.suppress(BaseException):
                finish(logger, success=False)  # left open, wandb's run would take in the next run of a sweep
            return
        try:
            finish(logger, self._success)
        except BaseException as error:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        with self._lock:
            if not self.alive:
                return
            self.alive = False
        warn(self.name or self.kind, error)
        if self.kind == "wandb":
            forget_service()


class Tracker:
    """The open trackers of one run, shared by the trainings of its parts."""

    def __init__(self, mirrors: list[Mirror] | None = None) -> None:
        self.mirrors = mirrors or []

    @property
    def names(self) -> list[str]:
        """Class names of the loggers that have taken everything so far."""
        return [mirror.name or mirror.kind for mirror in self.mirrors if mirror.alive]

    def log(self, values: dict[str, Any], step: int) -> None:
        """Mirror ``values``, which the caller has written to a local file before. Returns at once."""
        for mirror in self.mirrors:
            mirror.send(lambda logger: logger.log_metrics(values, step=step))

    def picture(self, name: str, path: Path) -> None:
        """Mirror a picture, a file of the run's folder, to the trackers that show pictures. Returns at once."""

        def show(logger: Logger) -> None:
            if isinstance(logger, WandbLogger):
                logger.log_image(name, [str(path)])

        for mirror in self.mirrors:
            mirror.send(show)

    def close(self, success: bool, record: RunRecord) -> None:
        """Finish every logger in every outcome, with the final metrics in wandb's summary. Bounded in time.

        ``record.environment["loggers"]`` then names those that took everything.
        """
        final = {
            f"{name}/{split}/{key}": value
            for name, part in record.parts.items()
            for split, metrics in part.metrics.items()
            for key, value in metrics.items()
        }

        def summarise(logger: Logger) -> None:
            if isinstance(logger, WandbLogger):
                logger.experiment.summary.update(final)

        for mirror in self.mirrors:
            mirror.send(summarise)
        for mirror in self.mirrors:
            mirror.close(success)
        record.environment["loggers"] = self.names


def open_tracker(settings: Settings, run_id: str, folder: Path) -> Tracker:
    """The logger that ``logger=...`` asks for; with a warning none, when it cannot be opened."""
    kind = settings.logger.kind
    if not is_rank_zero() or kind == "none":
        return Tracker()
    starts: dict[str, Callable[[], Logger]] = {
        "wandb": lambda: _wandb(settings, run_id, folder),
        "csv": lambda: CSVLogger(str(folder), name="csv", version=""),
        "tensorboard": lambda: TensorBoardLogger(str(folder), name="tensorboard", version=""),
    }
    return Tracker([Mirror(kind, starts[kind], ONLINE_CLOSE_SECONDS if settings.logger.online else CLOSE_SECONDS)])


def _wandb(settings: Settings, run_id: str, folder: Path) -> Logger:
    choice = settings.logger
    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    run = start_run(  # here and not by the first metric, so that a failure is found before training
        online=choice.online,
        name=run_id,
        project=choice.project,
        entity=choice.entity,
        group=choice.group or (settings.sweep or {}).get("name") or settings.task["name"],
        dir=str(folder),
        config=settings.model_dump(mode="json", exclude={"sweep", "paths"}),
    )
    return WandbLogger(experiment=run)


def finish(logger: Logger, success: bool) -> None:
    """End a logger's run."""
    if isinstance(logger, WandbLogger):
        finish_run(logger.experiment, exit_code=0 if success else 1)
    else:
        logger.finalize("success" if success else "failed")


def warn(name: str, error: BaseException) -> None:
    """One line on standard error."""
    later = "; `python -m lrx sync` uploads them later" if "wandb" in name.lower() else ""
    print(
        f"warning: {name} is not available ({one_line(error)}); metrics.jsonl and the record are kept{later}",
        file=sys.stderr,
        flush=True,
    )
