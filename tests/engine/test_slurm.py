"""Runs that a Slurm job starts itself, without submitit: requeued at SIGUSR1, and equal to a run that was not."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lrx import config as lrx_config
from lrx import slurm
from tests.conftest import ROOT
from tests.engine.fake_slurm import FakeSlurm
from tests.faults.forked import exists, logged, numbers, run, small, the_record
from tests.faults.test_signals import slow_down

STEP = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "wrap", "SLURM_NTASKS": "1", "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODELIST": "here"}  # fmt: skip
ARRAY = {"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.fixture
def fake(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path / "slurm")


def inside(fake: FakeSlurm, more: dict[str, str] | None = None, then: Callable[[], None] = lambda: None) -> Callable:
    """What a process has to do to be in a step of a Slurm job."""

    def prepare() -> None:
        os.environ.update({**STEP, **(more or {}), "PATH": fake.path})
        then()

    return prepare


@pytest.mark.parametrize(
    ("more", "options"),
    [
        pytest.param({}, ["trainer.accumulate=2"], id="job"),
        pytest.param(ARRAY, ["task.workers=2", "rerun=all"], id="task of an array", marks=pytest.mark.slow),
    ],
)
def test_a_requeued_run_goes_on_to_the_same_numbers(
    more: dict[str, str], options: list[str], fake: FakeSlurm, tmp_path: Path
) -> None:
    choice = small("altlora", "callbacks.checkpoint.every_n_steps=null", *options)
    assert run(choice, tmp_path / "whole").code == 0
    root = tmp_path / "broken"
    found = run(choice, root, inside(fake, more), when=logged(root, 4), signum=slurm.SIGNAL)
    assert found.code == 128 + slurm.SIGNAL, found
    assert fake.requeued() == ["4700_3" if more else "4711"]
    assert the_record(root).status == "interrupted"
    assert the_record(root).message.startswith("SIGUSR1 at step ")
    (checkpoint,) = root.glob("runs/*/sentiment/checkpoints/*")
    assert checkpoint.name == "hpc_ckpt_1.ckpt"
    assert "Traceback" not in found.err

    again = run(choice, root, inside(fake, {**more, "SLURM_RESTART_COUNT": "1"}))
    assert again.code == 0, again
    assert "sentiment: going on from hpc_ckpt_1.ckpt" in again.out
    assert numbers(root) == numbers(tmp_path / "whole")
    assert not list(root.glob("runs/*/sentiment/checkpoints/*"))
    assert len(fake.requeued()) == 1


@pytest.mark.parametrize("place", ["building the model", "scoring"])
def test_outside_training_the_job_is_requeued_as_well(place: str, fake: FakeSlurm, tmp_path: Path) -> None:
    root, marker = tmp_path / "root", tmp_path / "marker"
    prepare = inside(fake, ARRAY, lambda: slow_down(place, marker))
    found = run(small("head"), root, prepare, when=exists(marker), signum=slurm.SIGNAL)
    assert found.code == 128 + slurm.SIGNAL, found
    assert fake.requeued() == ["4700_3"]
    assert "job 4700_3 is requeued" in found.out
    assert the_record(root).status == "interrupted"


def test_a_broken_requeue_checkpoint_is_passed_over(fake: FakeSlurm, tmp_path: Path) -> None:
    """Lightning would take it by itself, and fail, when it is the only one."""
    choice = small("head", "callbacks.checkpoint.every_n_steps=null")
    root = tmp_path / "root"
    assert run(choice, root, inside(fake), when=logged(root, 4), signum=slurm.SIGNAL).code == 138
    (checkpoint,) = root.glob("runs/*/sentiment/checkpoints/*")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    again = run(choice, root, inside(fake))
    assert again.code == 0, again
    assert "hpc_ckpt_1.ckpt cannot be read" in again.out


def test_a_refused_requeue_is_told(fake: FakeSlurm, tmp_path: Path) -> None:
    (fake.folder / "scontrol").write_text("#!/bin/sh\necho 'Requested operation is presently disabled' >&2; exit 1\n")
    root, marker = tmp_path / "root", tmp_path / "marker"
    prepare = inside(fake, {}, lambda: slow_down("scoring", marker))
    found = run(small("head"), root, prepare, when=exists(marker), signum=slurm.SIGNAL)
    assert "warning: job 4711 could not be requeued: Requested operation is presently disabled" in found.err


def test_where_a_requeue_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*STEP, "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert not slurm.requeues()
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    assert slurm.requeues()
    repeat = ["scale=smoke", "rerun=all"]
    assert lrx_config.settings_of(lrx_config.compose(repeat)).rerun == "all"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert lrx_config.settings_of(lrx_config.compose(repeat)).rerun == "failed"
    for name in ("bash", "interactive"):  # salloc, srun --pty
        monkeypatch.setenv("SLURM_JOB_NAME", name)
        assert not slurm.requeues()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("more", [[], ["-m", "seed=0,1", "jobs=2"]], ids=["run", "multirun"])
def test_sbatch_wrap_srun_to_the_end(more: list[str], fake: FakeSlurm, tmp_path: Path) -> None:
    """From the shell: the command of docs/clusters.md, whose time is up once."""

    root = tmp_path / "results"
    choice = " ".join([*small("altlora"), "trainer.max_steps=120", f"paths.root={root}", *more])
    with fake:
        job = fake.sbatch(
            f"--output={tmp_path / 'slurm.out'}", f"--wrap=srun {sys.executable} run.py {choice}",
            env={**os.environ, "PATH": fake.path}, cwd=ROOT,
        )  # fmt: skip

        def time_is_up() -> None:
            end = time.monotonic() + 200
            while not list(root.glob("runs/*/sentiment/metrics.jsonl")) and time.monotonic() < end:
                time.sleep(0.02)
            fake.signal(job, signal.SIGUSR1)

        thread = threading.Thread(target=time_is_up)
        thread.start()
        end = time.monotonic() + 400
        while fake.state(job) in ("PENDING", "RUNNING") and time.monotonic() < end:
            time.sleep(0.1)
        thread.join()
    out = (tmp_path / "slurm.out").read_text()
    assert (fake.state(job), fake.requeued()) == ("COMPLETED", [job]), out
    runs = 2 if more else 1
    assert len(list(root.glob("records/*.json"))) == runs, out
    log = "".join(path.read_text() for path in root.glob("runs/*/output.log")) if more else out
    assert "sentiment: going on from " in log
