"""Runs in forked processes, to be killed, stopped and starved; and what they leave."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lrx.results.record import RunRecord, read
from tests.conftest import FOR_POLICIES, ROOT

# All but the one that takes no step, and those that refuse this model.
METHODS = sorted(
    path.stem for path in (ROOT / "conf" / "method").glob("*.yaml") if path.stem not in {"none", *FOR_POLICIES}
)
ADALORA = ["method.tuner=adalora", "+method.options.init_r=6", "+method.options.target_r=2"]


@dataclasses.dataclass
class Process:
    """A forked process: ``code`` is its exit code, ``seconds`` how long it lived after the signal, if one was sent."""

    code: int
    out: str
    err: str
    seconds: float = 0.0


def fork(
    work: Callable[[], int | None],
    folder: Path,
    *,
    when: Callable[[], bool] | None = None,
    signum: int = signal.SIGKILL,
    timeout: float = 120,
) -> Process:
    """Do ``work`` in a forked process, which gets ``signum`` once ``when()`` holds. Its output goes to ``folder``."""
    import lrx.experiment  # noqa: F401 - imported before the fork, so that starting takes no time

    folder.mkdir(parents=True, exist_ok=True)
    streams = folder / "out.txt", folder / "err.txt"

    def child() -> None:
        for number, path in zip((1, 2), streams, strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
        code = 70  # for what no test expects
        with contextlib.suppress(BaseException):
            try:
                code = work() or 0
            except BaseException:
                import traceback

                traceback.print_exc()
        os._exit(code)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    deadline = time.monotonic() + timeout
    sent = None
    while process.is_alive() and time.monotonic() < deadline:
        if when is not None and sent is None and when():
            sent = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid or 0, signum)
        process.join(0.003)
    lived = time.monotonic() - sent if sent is not None else 0.0
    out, err = (path.read_text() if path.exists() else "" for path in streams)
    if process.is_alive():
        process.kill()
        process.join()
        pytest.fail(f"still running after {timeout} s\n{out}\n{err}")
    assert process.exitcode is not None
    return Process(process.exitcode, out, err, lived)


def run(
    overrides: Sequence[str],
    root: Path,
    prepare: Callable[[], Any] = lambda: None,
    output: Path | None = None,
    **options: Any,
) -> Process:
    """``python run.py OVERRIDES paths.root=ROOT`` in a fork, after ``prepare()`` there."""

    def work() -> int:
        prepare()
        from lrx.launch import main

        return main([*overrides, f"paths.root={root}"])

    return fork(work, output or root.parent / f"{root.name}-output", **options)


def small(method: str, *more: str) -> list[str]:
    """A run of 12 steps over 8 batches an epoch (peft: AdaLoRA, whose ranks fall), logged at every step."""
    return [
        f"method={method}", "scale=smoke", "logger=none", "task.subset=sentiment", "trainer.max_steps=12",
        "logger.every_n_steps=1", *(ADALORA if method == "peft" else []), *more,
    ]  # fmt: skip


def logged(root: Path, step: int, part: str = "sentiment") -> Callable[[], bool]:
    """Whether the metric log of ``part`` has reached ``step``."""
    words = [f'"step": {s},' for s in range(step, 100)]
    return lambda: any(any(w in log.read_text() for w in words) for log in root.glob(f"runs/*/{part}/metrics.jsonl"))


def exists(path: Path) -> Callable[[], bool]:
    return path.exists


def the_record(root: Path) -> RunRecord:
    (path,) = (root / "records").glob("*.json")
    return read(path)


def numbers(root: Path) -> dict[str, Any]:
    """All that a run computed: scores, losses, predictions and weights."""
    found: dict[str, Any] = {}
    for name, part in the_record(root).parts.items():
        (folder,) = root.glob(f"runs/*/{name}")
        found[name] = {
            "record": {
                k: v
                for k, v in dataclasses.asdict(part).items()
                if k not in ("predictions", "last_predictions", "notes")
            },
            "log": (folder / "metrics.jsonl").read_text(),
            "predictions": {path.name: path.read_text() for path in folder.glob("*predictions.*.csv")},
            "weights": {k: v.numpy().tobytes() for k, v in load_file(folder / "adapter.safetensors").items()},
        }
    return found


def leftovers(root: Path) -> list[str]:
    """Temporary files below ``root``."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.tmp"))
