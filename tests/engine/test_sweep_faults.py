"""A sweep with jobs that fail in every way a process can: each leaves a record, and none takes another one with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Result, command
from tests.engine.faulty import install
from tests.engine.processes import children

SMALL = ["scale=smoke", "task.subset=sentiment", "logger=none", "trainer.max_steps=3", "task.train_limit=16",
         "task.eval_limit=16", "callbacks.checkpoint.every_n_steps=1"]  # fmt: skip


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    return install(tmp_path_factory.mktemp("plugin") / "site")


@pytest.fixture(scope="module")
def sweep(plugin: str) -> Callable[..., Result]:
    """``sweep(root, *overrides)``: a multirun with the faulty method."""

    def call(root: Path, *overrides: str, timeout: float = 120) -> Result:
        return command(*arguments(root, *overrides), env={"PYTHONPATH": plugin}, timeout=timeout)

    return call


def arguments(root: Path, *overrides: str) -> list[str]:
    return ["run.py", "-m", "method=head", "method.name=faulty", *SMALL, f"paths.root={root}", *overrides]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def records(root: Path) -> dict[str, dict]:
    """fault -> record."""
    found = [json.loads(path.read_text()) for path in root.glob("records/*.json")]
    return {record["config"]["method"].get("fault", "none"): record for record in found}


def test_a_job_that_fails_takes_no_other_with_it(sweep: Callable[..., Result], tmp_path: Path) -> None:
    faults = "none,raise,exit,os_exit,kill,segfault,diverge,memory,leak,user"
    result = sweep(tmp_path, f"+method.fault={faults}", "+method.step=1", "jobs=2")
    assert result.code == 1, result
    assert "Traceback" not in result.err
    found = records(tmp_path)
    assert {fault: record["status"] for fault, record in found.items()} == {
        "none": "finished", "leak": "finished", "raise": "failed", "exit": "failed", "os_exit": "failed",
        "segfault": "failed", "user": "failed", "diverge": "diverged", "memory": "out_of_memory", "kill": "interrupted",
    }  # fmt: skip
    messages = {fault: record["message"] for fault, record in found.items()}
    assert "the method divides by zero" in messages["raise"]
    assert "sys.exit(3)" in messages["exit"]
    assert "exit code 7" in messages["os_exit"]
    assert "SIGSEGV" in messages["segfault"]
    assert "SIGKILL" in messages["kill"]
    assert "only the loaded model shows" in messages["user"]
    (trace,) = tmp_path.glob(f"runs/{found['raise']['run_id']}/traceback.txt")
    assert "ZeroDivisionError" in trace.read_text()
    for record in found.values():  # each has its output in its own folder
        assert (tmp_path / "runs" / record["run_id"] / "output.log").exists()

    again = sweep(tmp_path, "+method.fault=none,raise,kill", "+method.step=1")
    assert "0 run, 1 already finished, 1 failed, 1 interrupted" in again.out  # kill was taken up, raise was not
    assert "rerun=failed tries again" in again.err


def test_time_limit_and_a_job_that_will_not_stop(sweep: Callable[..., Result], tmp_path: Path) -> None:
    result = sweep(tmp_path, "+method.fault=hang,none", "time_limit=5", "jobs=2")
    assert result.code == 1, result
    found = records(tmp_path)
    assert found["none"]["status"] == "finished"
    assert found["hang"]["status"] == "failed"
    assert "time limit of 5 s" in found["hang"]["message"]


def test_fail_fast_starts_no_further_job(sweep: Callable[..., Result], tmp_path: Path) -> None:
    result = sweep(tmp_path, "+method.fault=raise,none,leak", "fail_fast=true")
    assert result.code == 1, result
    assert "2 not started" in result.out
    assert set(records(tmp_path)) == {"raise"}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_jobs_in_good_order(plugin: str, tmp_path: Path, signum: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, *arguments(tmp_path, "seed=0,1,2", "trainer.max_steps=5000", "trainer.evaluations=1",
                                    "callbacks.checkpoint.every_n_steps=null")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": plugin}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while not list(tmp_path.glob("runs/*/sentiment/metrics.jsonl")) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signum)
        began = time.monotonic()
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signum, (out, err)
    assert time.monotonic() - began < 10
    assert "2 not started" in out
    assert "the same command goes on where it stopped" in err
    (record,) = records(tmp_path).values()
    assert record["status"] == "interrupted"
    assert list(tmp_path.glob("runs/*/sentiment/checkpoints/*.ckpt"))


def test_a_group_of_processes_stopped_together_saves_itself(plugin: str, tmp_path: Path) -> None:
    """As a batch system does it: launcher, server and job get the signal at once."""
    process = subprocess.Popen(
        [sys.executable, *arguments(tmp_path, "trainer.max_steps=5000", "trainer.evaluations=1",
                                    "callbacks.checkpoint.every_n_steps=null")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": plugin}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: list(tmp_path.glob("runs/*/sentiment/metrics.jsonl")))
        time.sleep(0.5)
        (server,) = children(process.pid)
        for pid in (*children(server), server, process.pid):
            os.kill(pid, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, (out, err)
    (record,) = records(tmp_path).values()
    assert record["status"] == "interrupted"
    assert [path.name for path in tmp_path.glob("runs/*/sentiment/checkpoints/*.ckpt")] == ["stopped.ckpt"]


def test_what_a_job_leaves_running_ends_with_it(sweep: Callable[..., Result], tmp_path: Path) -> None:
    began = time.monotonic()
    result = sweep(tmp_path, "seed=0,1", "+method.fault=grandchild")
    assert result.code == 0, result
    assert "2 run, 0 already finished, 0 failed" in result.out
    assert time.monotonic() - began < 100  # the grandchildren would sleep for 300 s


def test_a_repeated_job_that_is_killed_is_no_success(plugin: str, tmp_path: Path) -> None:
    grid = arguments(tmp_path, "+method.fault=asked", "+method.step=0")
    assert command(*grid, env={"PYTHONPATH": plugin}).code == 0
    again = command(*grid, "rerun=all", env={"PYTHONPATH": plugin, "LRX_TEST_FAULT": "kill"})
    assert again.code == 1, again
    assert "0 run, 0 already finished, 0 failed, 1 interrupted" in again.out
    once_more = command(*grid, env={"PYTHONPATH": plugin})
    assert "1 run, 0 already finished" in once_more.out


def test_settings_of_the_multirun_cannot_differ(sweep: Callable[..., Result], tmp_path: Path) -> None:
    result = sweep(tmp_path, "jobs=1,2")
    assert result.code == 2
    assert "jobs differs among the jobs (1, 2)" in result.err


def test_nobody_listening_stops_nothing(plugin: str, tmp_path: Path) -> None:
    line = " ".join(["nohup", sys.executable, *arguments(tmp_path, "seed=0,1")]) + " | head -1"
    subprocess.run(
        ["bash", "-c", line], cwd=ROOT, env={**os.environ, "PYTHONPATH": plugin}, timeout=120, check=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: len(list(tmp_path.glob("records/*.json"))) == 2)


def test_jobs_die_with_a_killed_launcher(plugin: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, *arguments(tmp_path, "seed=0,1", "jobs=2", "+method.fault=hang")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": plugin}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    from lrx.engine.state import is_running

    until = time.monotonic() + 60
    while len(list(tmp_path.glob("runs/*/sentiment/metrics.jsonl"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    names = [path.name for path in tmp_path.glob("runs/*")]
    assert len(names) == 2
    assert all(is_running(tmp_path, name) for name in names)
    process.kill()
    process.wait()
    until = time.monotonic() + 40
    while any(is_running(tmp_path, name) for name in names) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(is_running(tmp_path, name) for name in names)


def test_a_signal_before_the_first_job_has_a_process(plugin: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, *arguments(tmp_path, "seed=0,1")], cwd=ROOT, env={**os.environ, "PYTHONPATH": plugin},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "started" in line:
                break
        process.send_signal(signal.SIGTERM)  # the server is still importing
        began = time.monotonic()
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, (out, err)
    assert time.monotonic() - began < 5
    assert "2 not started" in out
    assert records(tmp_path) == {}
