"""Ctrl-C, SIGTERM, a closed terminal, whatever a run is doing: a record that says so, 128 + n, within ten seconds."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lrx import stop
from tests.faults.forked import exists, fork, leftovers, logged, numbers, run, small, the_record

LIMIT = 10.0  # seconds from the signal to the end


def sleeping(marker: Path, seconds: float, then: Callable | None = None) -> Callable:
    """A function that says it has begun, sleeps, and goes on with ``then``."""

    def slow(*arguments, **options):
        marker.touch()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(0.1, seconds))
        return then(*arguments, **options) if then else None

    return slow


# (what the run is doing, where that function is)
PLACES = {
    "reading data": ("lrx.tasks.glue", "GlueTask.bind"),
    "building the model": ("lrx.training", "assemble"),
    "looking for checkpoints": ("lrx.training", "newest_readable"),
    "a batch": ("lrx.modules.supervised", "Supervised.training_step"),
    "scoring while training": ("lrx.callbacks.selection", "score_split"),
    "scoring": ("lrx.training", "predict_split"),
    "storing predictions": ("lrx.training", "store_predictions"),
    "closing the tracker": ("lrx.trackers", "Tracker.close"),
}


def slow_down(place: str, marker: Path, seconds: float = 60) -> None:
    import importlib

    module, name = PLACES[place]
    owner, _, attribute = name.rpartition(".")
    target = importlib.import_module(module)
    target = getattr(target, owner) if owner else target
    setattr(target, attribute, sleeping(marker, seconds, getattr(target, attribute)))


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_at_any_time_leaves_a_record_and_the_exit_code(place: str, tmp_path: Path) -> None:
    root, marker = tmp_path / "root", tmp_path / "marker"
    signum = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP][len(place) % 3]

    def prepare() -> None:
        slow_down(place, marker)

    found = run(small("head"), root, prepare, when=exists(marker), signum=signum)
    assert found.code == 128 + signum, found
    assert found.seconds < LIMIT, found
    assert "Traceback" not in found.err
    record = the_record(root)
    if place == "closing the tracker":  # everything was done
        assert record.status == "finished"
    else:
        assert (record.status, record.parts) == ("interrupted", {})
        assert signal.Signals(signum).name in record.message
        assert "the same command goes on" in record.message
    assert leftovers(root) == []


def test_a_signal_while_the_record_is_written_waits_for_it(tmp_path: Path) -> None:
    root, marker = tmp_path / "root", tmp_path / "marker"

    def prepare() -> None:
        from lrx.results.record import RunRecord

        RunRecord.save = sleeping(marker, 0.5, RunRecord.save)

    found = run(small("head"), root, prepare, when=exists(marker), signum=signal.SIGTERM)
    assert found.code == 143, found
    assert the_record(root).status == "finished"
    again = run(small("head"), root)
    assert (again.code, "already finished" in again.out) == (0, True)


@pytest.mark.parametrize(
    "more", [["trainer.accumulate=4"], ["task.workers=2"], []], ids=["accumulate", "workers", "plain"]
)
def test_what_a_signal_stops_in_training_goes_on_to_the_same_numbers(more: list[str], tmp_path: Path) -> None:
    """From the checkpoint of that very step: no other is taken here."""
    choice = small("altlora", "callbacks.checkpoint.every_n_steps=null", *more)
    assert run(choice, tmp_path / "whole").code == 0
    root = tmp_path / "broken"
    found = run(choice, root, when=logged(root, 4), signum=signal.SIGTERM)
    assert found.code == 143, found
    assert found.seconds < LIMIT
    record = the_record(root)
    assert record.status == "interrupted"
    assert record.message.startswith("SIGTERM at step ")
    again = run(choice, root)
    assert again.code == 0, again
    assert "sentiment: going on from stopped.ckpt" in again.out
    assert numbers(root) == numbers(tmp_path / "whole")


def test_a_second_signal_ends_at_once_and_the_same_one_twice_does_not(tmp_path: Path) -> None:
    """A terminal and a launcher may both hand on one Ctrl-C; somebody who repeats it a second later means it."""

    def work() -> int:
        begun, steps = time.monotonic(), []
        try:
            with stop.listening(), stop.deferred():
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGTERM)
                steps.append("noted")
                time.sleep(1.1)
                signal.raise_signal(signal.SIGINT)
                steps.append("never")
        except stop.Stopped as stopped:
            print(stopped.signum, steps, time.monotonic() - begun < 2)
        signal.raise_signal(signal.SIGINT)
        return 0

    found = fork(work, tmp_path)
    assert found.out == f"{int(signal.SIGINT)} ['noted'] True\n"
    assert "KeyboardInterrupt" in found.err  # afterwards it is Python's own handler again


def test_signals_that_the_caller_ignores_stay_ignored(tmp_path: Path) -> None:
    """``nohup python run.py ...`` and background jobs of a shell."""

    def work() -> int:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with stop.listening():
            signal.raise_signal(signal.SIGHUP)
            print("went on", stop.requested())
        return 0

    assert fork(work, tmp_path).out == "went on None\n"
