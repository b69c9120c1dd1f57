"""Experiment trackers: mirrors of a run's metrics. One that fails is dropped; the local files are the truth."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("WANDB_SILENT", "true")  # read when wandb is first imported, which the next line does
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from lrx.results.record import RunRecord
from lrx.schema import Settings


def is_rank_zero() -> bool:
    """False in the helper processes that a distributed strategy starts."""
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("RANK", "0") == "0"


@dataclass
class Tracker:
    """The open loggers of one run, shared by the trainings of its parts."""

    loggers: list[Logger] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [type(logger).__name__ for logger in self.loggers]

    def close(self, success: bool, record: RunRecord) -> None:
        """Finish every logger in every outcome, with the final metrics in wandb's summary."""
        for logger in self.loggers:
            try:
                if isinstance(logger, WandbLogger):
                    for name, part in record.parts.items():
                        for split, metrics in part.metrics.items():
                            values = {f"{name}/{split}/{key}": value for key, value in metrics.items()}
                            logger.experiment.summary.update(values)
                finish(logger, success)
            except Exception as error:  # a tracker must never cost a run its record
                warn(type(logger).__name__, error)


def open_tracker(settings: Settings, run_id: str, folder: Path) -> Tracker:
    """The logger that ``logger=...`` asks for; with a warning none, when it cannot be opened."""
    choice = settings.logger
    if not is_rank_zero():
        return Tracker()
    try:
        if choice.kind == "wandb":
            return Tracker([_wandb(settings, run_id, folder)])
        if choice.kind == "csv":
            return Tracker([CSVLogger(str(folder), name="csv", version="")])
        if choice.kind == "tensorboard":
            return Tracker([TensorBoardLogger(str(folder), name="tensorboard", version="")])
    except Exception as error:  # not installed, no space, no service: the run goes on without it
        warn(choice.kind, error)
    return Tracker()


def _wandb(settings: Settings, run_id: str, folder: Path) -> Logger:
    import wandb

    choice = settings.logger
    if choice.online and not wandb.api.api_key:
        raise RuntimeError("no API key: run `wandb login`")  # wandb itself would ask on the terminal and wait
    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    run = wandb.init(  # here and not by the first metric, so that a failure is found before training
        name=run_id,
        project=choice.project,
        entity=choice.entity,
        group=choice.group or (settings.sweep or {}).get("name") or settings.task["name"],
        dir=str(folder),
        mode="online" if choice.online else "offline",
        config=settings.model_dump(mode="json", exclude={"sweep", "paths"}),
        settings=wandb.Settings(silent=True, init_timeout=30, x_disable_stats=True, disable_git=True),
        reinit="finish_previous",
    )
    return WandbLogger(experiment=run)


def finish(logger: Logger, success: bool) -> None:
    """End a logger's run."""
    if isinstance(logger, WandbLogger):
        logger.experiment.finish(exit_code=0 if success else 1)
    else:
        logger.finalize("success" if success else "failed")


def warn(name: str, error: BaseException) -> None:
    """One line on standard error."""
    reason = " ".join(str(error).split())[:200]
    print(f"warning: {name} is not available ({reason}); metrics.jsonl and the record are kept", file=sys.stderr)


def mirror(loggers: list[Logger], values: dict[str, Any], step: int) -> list[Logger]:
    """Send ``values`` to each logger; returns the loggers that took them."""
    working = []
    for logger in loggers:
        try:
            logger.log_metrics(values, step=step)
            working.append(logger)
        except Exception as error:
            warn(type(logger).__name__, error)
            with contextlib.suppress(Exception):
                finish(logger, success=False)  # left open, wandb's run would take in the next run of a sweep
    return working
