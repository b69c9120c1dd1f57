"""One run: task, model and method assembled into a Lightning module, trained, scored and recorded."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from lrx import config as lrx_config
from lrx import registry, stop
from lrx.environment import describe
from lrx.errors import Busy, RunFailed, UserError
from lrx.files import sweep_temporary
from lrx.results.record import RunRecord, read, record_path
from lrx.results.summary import render
from lrx.schema import Settings
from lrx.tasks.base import Suite, Task
from lrx.trackers import Tracker, is_rank_zero, open_tracker
from lrx.training import assemble, train_part, withhold_reported
from lrx.tuning.provenance import mismatch

DEFAULT_THREADS = torch.get_num_threads()


def execute(settings: Settings, run_id: str) -> bool:
    """Carry out a validated run: train and record it, or with ``mode=eval`` score its stored weights again.

    Returns whether there was anything to do: False when another process has finished the run meanwhile. Whatever
    happens, a record says so. Raises ``UserError`` for what only the loaded model or data can show to be
    wrong (no record is left), ``RunFailed`` when a run began and did not finish.
    """
    quiet_libraries()
    torch.set_num_threads(settings.trainer.threads or DEFAULT_THREADS)  # an earlier run of a sweep may have set it
    folder = settings.paths.root / "runs" / run_id
    try:
        with stop.listening(), only_one(folder):
            return _execute(settings, run_id, folder)
    except stop.Stopped as stopped:  # before or after the run itself, which deals with signals of its own
        raise stopped.as_failure() from None


def _execute(settings: Settings, run_id: str, folder: Path) -> bool:
    for place in (folder, settings.paths.root / "records"):
        sweep_temporary(place)  # what a killed process was writing
    path = record_path(settings.paths.root, run_id)
    if settings.mode == "train" and settings.rerun != "all" and path.exists():
        found = read(path)  # another process may have finished it while this one was starting
        if found.status == "finished":
            print(render(found))
            return False
    if settings.mode == "eval":
        from lrx.rescore import rescore

        rescore(settings, run_id, folder)
    else:
        _train(settings, run_id, folder)
    return True


def _train(settings: Settings, run_id: str, folder: Path) -> None:
    record = lrx_config.record_of(settings, run_id, "failed", _now())
    if (remark := mismatch(record.config)) and is_rank_zero():
        print(f"note: {remark}", flush=True)
    started = time.monotonic()
    tracker: Tracker | None = None
    try:
        record.environment = describe()
        parts = build_suite(settings).parts()
        if settings.trial:
            for task in parts:
                withhold_reported(task)
        if settings.rerun == "all":
            start_over(parts, settings, run_id, folder)
        tracker = open_tracker(settings, run_id, folder)
        record.environment["loggers"] = tracker.names
        costs = []
        for task in parts:
            part, cost = train_part(task, settings, folder / task.name, tracker)
            record.parts[task.name] = part
            costs.append(cost)
        earlier = sum(cost["earlier_seconds"] for cost in costs)  # training that interrupted processes did
        record.cost = combine_costs(costs) | {"wall_seconds": earlier + time.monotonic() - started}
        record.status = "finished"
    except UserError:
        raise
    except RunFailed as failure:
        record.status, record.message = failure.outcome, str(failure)  # type: ignore[assignment]
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        record.status = "out_of_memory"
        record.message = f"out of memory: {_one_line(error)}; a smaller task.batch_size may help"
        raise RunFailed(record.message, record.status) from error
    except stop.Stopped as stopped:
        broken_off = stopped.as_failure()
        record.status, record.message = "interrupted", str(broken_off)
        raise broken_off from None
    except KeyboardInterrupt:  # not from a signal of ours: outside the main thread, or a library's own
        record.status, record.message = "interrupted", "interrupted; the same command goes on from the last checkpoint"
        raise
    except SystemExit as left:
        if (signum := stop.requested()) is not None:  # Lightning's own way to end at SIGTERM, before training starts
            early = stop.Stopped(signum).as_failure()
            record.status, record.message = "interrupted", str(early)
            raise early from None
        record.message = f"something called sys.exit({left.code}) in the middle of the run"
        raise RunFailed(record.message) from left
    except OSError as error:
        if not settings_path_problem(error, settings.paths.root):
            record.message = _one_line(error)
            raise RunFailed(record.message) from error
        where = error.filename or settings.paths.root
        verb = "find" if isinstance(error, FileNotFoundError) else "write"  # somebody removed it during the run
        raise UserError(f"cannot {verb} {where}: {error.strerror}; check paths.root and the disk") from error
    except Exception as error:
        import traceback

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "traceback.txt").write_text(traceback.format_exc())
        record.message = f"{type(error).__name__}: {_one_line(error)} (traceback: {folder / 'traceback.txt'})"
        raise RunFailed(record.message) from error
    finally:
        failing = sys.exc_info()[1]
        try:
            if tracker is not None:
                tracker.close(success=record.status == "finished", record=record)
        finally:
            if is_rank_zero() and not isinstance(failing, UserError):
                with stop.held():
                    file_record(record, settings.paths.root)
    for done in folder.glob("*/part.json"):
        # The record has it all; without one, the run is to be repeated, not pieced together.
        done.unlink(missing_ok=True)
    if is_rank_zero():
        print(render(record))
        print(f"record: {record_path(settings.paths.root, run_id)}")


def file_record(record: RunRecord, root: Path) -> None:
    """Write the record. One that did not finish never takes the place of one that did (``rerun=all``, broken off before
    it removed the earlier run).
    """
    record.finished = _now()
    path = record_path(root, record.run_id)
    if record.status != "finished" and path.exists():
        with contextlib.suppress(UserError):  # an unreadable one may go
            if read(path).status == "finished":
                return
    record.save(root, overwrite=True)


def build_suite(settings: Settings) -> Suite:
    """The benchmark with the parts that the configuration chose."""
    options = {key: value for key, value in settings.task.items() if key != "name"}
    suite = registry.load("tasks", settings.task["name"])(**options)
    assert isinstance(suite, Suite)
    return suite


def combine_costs(costs: list[dict[str, float]]) -> dict[str, float]:
    """Costs of a run from those of its parts: sizes and peaks by their maximum, medians weighted by steps."""
    combined: dict[str, float] = {}
    for key in ("trainable_parameters", "adapter_parameters", "optimizer_state_bytes", "peak_memory_bytes"):
        combined[key] = max(cost[key] for cost in costs)
    steps = sum(cost["steps"] for cost in costs)
    for key in ("median_step_seconds", "examples_per_second"):
        combined[key] = sum(cost[key] * cost["steps"] for cost in costs) / steps if steps else 0.0
    combined["train_seconds"] = sum(cost["train_seconds"] for cost in costs)
    return combined


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the run folder's lock, which the system frees when the process ends however it ends.

    Raises ``UserError`` when another process is running this very run or the folder cannot be written.
    """
    if not is_rank_zero():  # the other processes of one distributed run
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0.5)  # whoever looks whether a run is at work holds its lock for an instant
    except Timeout:
        raise Busy(
            f"this very run is already being run by another process (lock {folder / '.lock'}); wait for it, "
            "or change something that matters, such as the seed"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; choose another paths.root") from None
    try:
        yield
    finally:
        lock.release()


def start_over(parts: list[Task], settings: Settings, run_id: str, folder: Path) -> None:
    """Remove an earlier run's weights and record, once it is sure that data and model for a new one can be had."""
    for task in parts:
        for split in ("train", *task.reported, *(task.unlabelled if settings.callbacks.submission else ())):
            task.size(split)
    assemble(parts[0], settings)
    forget(folder)
    record_path(settings.paths.root, run_id).unlink(missing_ok=True)  # its weights are gone, it no longer stands


def forget(folder: Path) -> None:
    """Remove what an earlier run left in ``folder``, so that ``rerun=all`` starts from nothing."""
    import shutil

    for child in folder.iterdir():
        if child.is_dir():
            shutil.rmtree(child)
        elif child.name not in {".lock", "output.log", "job.json"}:  # held, written and read by this very process
            child.unlink()


def settings_path_problem(error: OSError, root: Path) -> bool:
    """Whether ``error`` is about a file below ``root`` or a full disk: the user's to mend, not a defect."""
    import errno

    inside = error.filename is not None and str(root) in str(error.filename)
    return inside or error.errno in {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG}


def quiet_libraries() -> None:
    """Keep the terminal for the run: no banners, load reports or advice from the libraries underneath."""
    import logging

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("pytorch_lightning", "lightning.pytorch", "torch.distributed", "timm"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Lightning advises to use more workers and a GPU; both are the configuration's to choose.
    warnings.filterwarnings("ignore", module=r"pytorch_lightning\..*|lightning_fabric\..*")
    warnings.filterwarnings("ignore", message=r".*(LeafSpec|treespec).*")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
