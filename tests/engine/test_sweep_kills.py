"""``kill -9`` at random moments of a sweep, and two processes at one sweep."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, command
from tests.engine.processes import children

SWEEP = ["-m", "method=head,lora", "seed=0,1,2,3", "scale=smoke", "task.subset=sentiment", "logger=none",
         "trainer.max_steps=12", "callbacks.checkpoint.every_n_steps=1", "trainer.threads=1", "jobs=2"]  # fmt: skip


def results(root: Path) -> dict[str, Any]:
    """Run id -> everything a run computed."""
    found = {}
    for path in sorted(root.glob("records/*.json")):
        record = json.loads(path.read_text())
        assert record["run_id"] == path.stem
        parts = record["parts"]
        for part in parts.values():
            part.pop("notes", None)  # counted where a split is read, which a resumed run may do later
        found[path.stem] = (record["status"], parts)
    return found


def start(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "run.py", *SWEEP, f"paths.root={root}"], cwd=ROOT, text=True, env=os.environ.copy(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_killed_at_50_random_moments_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    done = command("run.py", *SWEEP, f"paths.root={tmp_path / 'whole'}", timeout=600)
    assert done.code == 0, done
    whole = results(tmp_path / "whole")
    assert {status for status, _ in whole.values()} == {"finished"}
    assert len(whole) == 8

    draw = random.Random(7)
    root, kills, launches, finished = tmp_path / "killed", 0, 0, set()
    while kills < 50:
        launches += 1
        assert launches < 60
        process = start(root)
        try:
            blows = draw.randint(2, 8)  # on jobs, before the launcher or the server is hit
            while process.poll() is None and blows > 0:
                servers = children(process.pid)
                jobs = [pid for server in servers for pid in children(server)]
                if not jobs:
                    time.sleep(0.02)
                    continue
                time.sleep(draw.random() * 1.0)
                target = draw.choice(jobs)
                try:
                    os.kill(target, signal.SIGKILL)
                    kills += 1
                except ProcessLookupError:
                    pass  # it was faster
                blows -= 1
            if process.poll() is None:
                victims = [process.pid, *children(process.pid)]
                os.kill(draw.choice(victims), signal.SIGKILL)
                kills += 1
                time.sleep(0.1)
        finally:
            process.kill()
            process.communicate(timeout=60)
        for run_id, (status, parts) in results(root).items():  # nothing is half written, and nothing is lost again
            if status == "finished":
                assert parts == whole[run_id][1]
                finished.add(run_id)
            else:
                assert run_id not in finished
        if len(finished) == len(whole):  # start over: the remaining kills need something to hit
            for path in root.glob("records/*.json"):
                path.unlink()
            finished.clear()
    last = command("run.py", *SWEEP, f"paths.root={root}", timeout=600)
    assert last.code == 0, last
    assert results(root) == whole
    assert not list(root.glob("records/.*.tmp"))
    print(f"{kills} kills in {launches} launches")


def test_two_processes_at_one_sweep_run_each_job_once(tmp_path: Path) -> None:
    first, second = start(tmp_path), start(tmp_path)
    try:
        out = [process.communicate(timeout=200)[0] for process in (first, second)]
    finally:
        first.kill()
        second.kill()
    assert [first.returncode, second.returncode] == [0, 0], out
    counts = [int(text.rstrip().splitlines()[-1].split(" run, ")[0]) for text in out]
    assert sum(counts) == 8, out
    found = results(tmp_path)
    assert len(found) == 8
    assert {status for status, _ in found.values()} == {"finished"}


def test_a_job_says_that_it_found_its_run_finished(tmp_path: Path) -> None:
    # Also when the other process began it in the same second: two processes that both counted it would say of one sweep
    # that it ran nine jobs of eight.
    script = (
        "import json, sys; from datetime import UTC, datetime; from lrx.engine.compose import Composer\n"
        "from lrx.engine.jobs import make_all; from lrx.engine.work import do\n"
        "from lrx.results.record import record_path\n"
        "(job,) = make_all([sys.argv[1:]], Composer())\n"
        "first = do(job.settings.model_dump(mode='json'), job.run_id)\n"
        "path = record_path(job.settings.paths.root, job.run_id); record = json.loads(path.read_text())\n"
        "path.write_text(json.dumps({**record, 'started': datetime.now(UTC).isoformat(timespec='seconds')}))\n"
        "second = do(job.settings.model_dump(mode='json'), job.run_id)\n"
        "print('found', [(end.code, end.found) for end in (first, second)])\n"
    )
    overrides = ["method=head", "scale=smoke", "task.subset=sentiment", "logger=none", "trainer.max_steps=1"]
    done = subprocess.run(
        [sys.executable, "-c", script, *overrides, f"paths.root={tmp_path}"],
        cwd=ROOT, text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["found [(0, False), (0, True)]"], done.stdout + done.stderr
