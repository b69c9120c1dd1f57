"""``metrics.jsonl`` is whole: a kill loses no line, a resumed run repeats and leaves out no step."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lrx.results.history import read_history
from tests.faults.forked import logged, run, small


@pytest.mark.slow
def test_a_killed_and_resumed_run_logs_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """Killed at step 8 of 12 with its last checkpoint at step 5, and within a line: steps 6 to 8 are taken again."""
    choice = small("lora", "callbacks.checkpoint.every_n_steps=5")
    assert run(choice, tmp_path / "whole").code == 0
    root = tmp_path / "broken"
    assert run(choice, root, when=logged(root, 8)).code == -signal.SIGKILL
    (path,) = root.glob("runs/*/sentiment/metrics.jsonl")
    steps = [line["step"] for line in read_history(path) if "train/loss" in line]
    assert steps == list(range(1, len(steps) + 1))  # the kill took no line that was logged
    assert len(steps) >= 8
    path.write_text(path.read_text() + '{"step": 9, "train/lo')
    assert run(choice, root).code == 0
    (whole,) = (tmp_path / "whole").glob("runs/*/sentiment/metrics.jsonl")
    assert path.read_text() == whole.read_text()
    assert [line["step"] for line in read_history(path) if "train/loss" in line] == list(range(1, 13))
