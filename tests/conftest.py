"""Shared fixtures. Tests use one computing thread: two run at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

# Started by nohup or by a shell in the background, this process ignores signals, and so would those it starts.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).resolve().parent.parent
# One of each kind: with these a check of every method is in the fast tier, with the others in the slow one.
USUAL = {"altlora", "full", "galore", "head", "lora", "lora_sb", "noble", "none", "peft", "pissa", "switchlora"}

# Methods that refuse any model but a policy: tests/oracles/test_psec.py, tests/contract/test_everywhere.py.
FOR_POLICIES = {"iql", "psec"}


def each(names: Iterable[str]) -> list[Any]:
    """Parameters for a check of ``names`` that takes long."""
    return [pytest.param(name, marks=[] if name in USUAL else pytest.mark.slow) for name in names]


class Result:
    """What a command printed and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- out\n{self.out}\n--- err\n{self.err}"


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run ``run.py``'s entry in this process: ``cli("method=lora", ...) -> Result``."""

    def call(*arguments: str) -> Result:
        from lrx.launch import main

        monkeypatch.chdir(ROOT)
        capfd.readouterr()
        code = main(list(arguments))
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call


def command(*arguments: str, cwd: Path = ROOT, timeout: float = 120, env: dict[str, str] | None = None) -> Result:
    """Run ``python ARGUMENTS`` as a process of its own."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout,
        env={**os.environ, **(env or {})}, check=False,
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def smoke(tmp_path: Path) -> list[str]:
    """Overrides of a run that takes seconds and writes below ``tmp_path``."""
    return ["scale=smoke", "task.subset=sentiment", "logger=none", f"paths.root={tmp_path}"]
