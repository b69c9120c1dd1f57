"""``metrics.jsonl`` is whole: a kill loses no line, a resumed run repeats and leaves out no step."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lrx.results.history import read_history
from tests.faults.test_resume import arguments, logged_step, run_in_fork

PARTS = ("sentiment", "intensity")


def logs(root: Path) -> dict[str, str]:
    return {part: next(root.glob(f"runs/*/{part}/metrics.jsonl")).read_text() for part in PARTS}


@pytest.mark.slow
def test_a_killed_and_resumed_run_logs_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """Killed at step 8 of 12 with its last checkpoint at step 5, so that steps 6 to 8 are logged twice in time."""
    every = ["logger.every_n_steps=1"]
    assert run_in_fork(arguments("lora", tmp_path / "whole", *every)) == 0
    broken = arguments("lora", tmp_path / "broken", *every)
    assert run_in_fork(broken, kill_when=logged_step(tmp_path / "broken", "sentiment", 8)) == -signal.SIGKILL
    (path,) = (tmp_path / "broken").glob("runs/*/sentiment/metrics.jsonl")
    steps = [line["step"] for line in read_history(path) if "train/loss" in line]
    assert steps == list(range(1, len(steps) + 1))  # the kill took no line that was logged
    assert len(steps) >= 8
    path.write_text(path.read_text() + '{"step": 9, "train/lo')  # as a kill within a line leaves it
    assert run_in_fork(broken) == 0
    assert logs(tmp_path / "broken") == logs(tmp_path / "whole")
    assert [line["step"] for line in read_history(path) if "train/loss" in line] == list(range(1, 13))
