"""A run that is killed, stopped or broken goes on to the numbers of the uninterrupted run."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

from lrx.results.record import RunRecord, read

METHODS = ["lora", "altlora", "altlora_plus", "lora_pro", "scaled_adamw", "full", "head", "peft"]


OUTPUT = Path(tempfile.gettempdir()) / f"lrx-test-output-{os.getpid()}"


def printed() -> str:
    """What the last forked run printed."""
    return OUTPUT.read_text()


def run_in_fork(arguments: list[str], kill_when=None, signum: int = signal.SIGKILL, timeout: float = 120) -> int:
    """Run ``run.py``'s entry in a forked process; send ``signum`` once ``kill_when()`` holds. Its exit code."""
    import lrx.experiment  # noqa: F401 - imported before the fork, so that starting takes no time

    def child() -> None:
        sys.stdout = OUTPUT.open("w", buffering=1)
        from lrx.launch import main

        os._exit(main(arguments))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    deadline = time.monotonic() + timeout
    sent = False
    while process.is_alive() and time.monotonic() < deadline:
        if kill_when is not None and not sent and kill_when():
            os.kill(process.pid or 0, signum)
            sent = True
        process.join(0.005)
    if process.is_alive():
        process.kill()
        pytest.fail(f"still running after {timeout} s: {arguments}")
    assert process.exitcode is not None
    return process.exitcode


def the_record(root: Path) -> RunRecord:
    (path,) = (root / "records").glob("*.json")
    return read(path)


def metrics(root: Path) -> dict[str, object]:
    return {name: (part.metrics, part.last, part.best_step) for name, part in the_record(root).parts.items()}


def arguments(method: str, root: Path, *more: str) -> list[str]:
    extra = ["method.tuner=adalora", "+method.options.init_r=6", "+method.options.target_r=2"]
    return [
        f"method={method}", "scale=smoke", "logger=none", "task.subset=[sentiment,intensity]", "trainer.max_steps=12",
        "callbacks.checkpoint.every_n_steps=5", f"paths.root={root}", *(extra if method == "peft" else []), *more,
    ]  # fmt: skip


def logged_step(root: Path, part: str, step: int):
    """Whether the metric log of ``part`` has reached ``step``."""

    def reached() -> bool:
        for log in root.glob(f"runs/*/{part}/metrics.jsonl"):
            return any(f'"step": {s},' in log.read_text() for s in range(step, 100))
        return False

    return reached


@pytest.mark.parametrize("method", METHODS)
def test_killed_in_mid_epoch_and_run_again_gives_the_same_metrics(method: str, tmp_path: Path) -> None:
    every = ["logger.every_n_steps=1"]
    assert run_in_fork(arguments(method, tmp_path / "whole", *every)) == 0
    broken = arguments(method, tmp_path / "broken", *every)
    assert run_in_fork(broken, kill_when=logged_step(tmp_path / "broken", "intensity", 7)) == -signal.SIGKILL
    assert not list((tmp_path / "broken").glob("records/*.json"))
    assert list((tmp_path / "broken").glob("runs/*/intensity/checkpoints/*.ckpt"))
    assert run_in_fork(broken) == 0
    assert "intensity: going on from step-" in printed()
    assert "sentiment: step" not in printed()  # the part that was done is not trained again
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")


@pytest.mark.parametrize(
    "more", [["task.workers=2"], ["trainer.accumulate=2"], ["trainer.max_steps=null", "trainer.max_epochs=2"]]
)
def test_resume_with_workers_accumulation_and_epochs(more: list[str], tmp_path: Path) -> None:
    common = ["logger.every_n_steps=1", *more]
    assert run_in_fork(arguments("altlora", tmp_path / "whole", *common)) == 0
    broken = arguments("altlora", tmp_path / "broken", *common)
    assert run_in_fork(broken, kill_when=logged_step(tmp_path / "broken", "sentiment", 8)) == -signal.SIGKILL
    assert run_in_fork(broken) == 0
    assert "sentiment: going on from step-" in printed()
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_signal_saves_records_and_resumes(signum: int, code: int, tmp_path: Path) -> None:
    common = ["logger.every_n_steps=1", "callbacks.checkpoint.every_n_steps=null"]
    assert run_in_fork(arguments("altlora", tmp_path / "whole", *common)) == 0
    broken = arguments("altlora", tmp_path / "broken", *common)
    assert run_in_fork(broken, logged_step(tmp_path / "broken", "sentiment", 4), signum) == code
    record = the_record(tmp_path / "broken")
    assert record.status == "interrupted"
    assert signal.Signals(signum).name in record.message
    assert run_in_fork(broken) == 0
    assert "sentiment: going on from stopped.ckpt" in printed()
    assert the_record(tmp_path / "broken").status == "finished"
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    common = ["logger.every_n_steps=1", "callbacks.checkpoint.every_n_steps=3"]
    assert run_in_fork(arguments("altlora", tmp_path / "whole", *common)) == 0
    broken = arguments("altlora", tmp_path / "broken", *common)
    assert run_in_fork(broken, kill_when=logged_step(tmp_path / "broken", "sentiment", 8)) == -signal.SIGKILL
    newest = max((tmp_path / "broken").glob("runs/*/sentiment/checkpoints/*.ckpt"), key=lambda p: p.stat().st_mtime)
    newest.write_bytes(newest.read_bytes()[:1000])
    assert run_in_fork(broken) == 0
    assert f"{newest} cannot be read" in printed()
    assert "sentiment: going on from step-" in printed()
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("name", ["adapter.safetensors", "part.json"])
def test_killed_while_a_part_is_scored(name: str, tmp_path: Path, monkeypatch) -> None:
    """The best weights, of an earlier step than the last, are still there for the run that goes on."""
    import lrx.training

    common = ["logger.every_n_steps=1", "trainer.evaluations=4"]
    assert run_in_fork(arguments("lora", tmp_path / "whole", *common)) == 0
    broken = arguments("lora", tmp_path / "broken", *common)
    write = lrx.training.write_atomic

    def deadly(path, content):
        if Path(path).name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(lrx.training, "write_atomic", deadly)
        assert run_in_fork(broken) == -signal.SIGKILL
    assert run_in_fork(broken) == 0
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "altlora_plus", "lora_pro"])
def test_killed_at_random_moments_until_done(method: str, tmp_path: Path) -> None:
    """``kill -9`` again and again: while training, checkpointing, scoring or writing the record."""
    assert run_in_fork(arguments(method, tmp_path / "whole")) == 0
    broken = arguments(method, tmp_path / "broken", "callbacks.checkpoint.every_n_steps=1")
    rng = random.Random(0)
    kills = 0
    for _ in range(40):
        moment = time.monotonic() + rng.uniform(0.3, 1.5)
        code = run_in_fork(broken, kill_when=lambda moment=moment: time.monotonic() > moment)
        kills += code != 0
        if code == 0:
            break
    else:
        assert run_in_fork(broken) == 0
    assert kills >= 3
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
