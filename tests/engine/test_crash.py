"""What becomes of a job that left no record of its attempt."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrx.engine import crash
from lrx.engine.work import Ended

OUTPUT = Path("output.log")


@pytest.mark.parametrize(
    ("ended", "status", "said"),
    [
        (Ended("r", 143, "SIGTERM; the same command goes on", told=True), "interrupted", "SIGTERM; the same command"),
        (Ended("r", 130, "interrupted", told=True), "interrupted", "interrupted"),
        (Ended("r", -15), "interrupted", "SIGTERM ended the process; the same command goes on"),
        (Ended("r", -9), "interrupted", "SIGKILL ended the process"),
        (Ended("r", -11), "failed", "crashed with SIGSEGV (output: output.log)"),
        (Ended("r", 2, "a mistake", told=True), "failed", "a mistake"),
        (Ended("r", 1, "ValueError: no", told=False), "failed", "ValueError: no (output: output.log)"),
        (Ended("r", 200), "failed", "exit code 200 and said nothing"),
    ],
)
def test_outcome(ended: Ended, status: str, said: str) -> None:
    found, message = crash.outcome(ended, OUTPUT, out_of_memory=False)
    assert found == status
    assert said in message


def test_a_kill_while_memory_ran_out() -> None:
    assert crash.outcome(Ended("r", -9), OUTPUT, out_of_memory=True)[0] == "out_of_memory"
