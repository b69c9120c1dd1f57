"""A tracker that fails, in whatever way, costs a run one warning: no values, no steps, no waiting."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lrx import trackers, wandb_service
from lrx.data.embedded import cache_dir
from lrx.results.record import read
from lrx.trackers import Mirror, Tracker, WandbLogger
from lrx.wandb_service import start_run


@pytest.fixture(autouse=True)
def own_service(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts without a service and leaves none."""
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    wandb_service.forget_service()
    yield
    wandb_service.forget_service()


def offline(folder: Path) -> Mirror:
    return Mirror("wandb", lambda: WandbLogger(experiment=start_run(online=False, project="p", dir=str(folder))))


def service() -> int:
    """Process id of this process's wandb service."""
    return wandb_service._started[os.getpid()].pid


def warnings(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.strip()]


def log(mirror: Mirror, steps: int) -> float:
    """Seconds that ``steps`` calls of ``Tracker.log`` take."""
    tracker, began = Tracker([mirror]), time.perf_counter()
    for step in range(steps):
        tracker.log({"loss": 1.0}, step)
    return time.perf_counter() - began


def run(cli: Any, root: Path, *more: str) -> Any:
    choice = ["method=lora", "scale=smoke", "task.subset=sentiment", "logger.every_n_steps=1", "trainer.max_steps=12"]
    result = cli(*choice, f"paths.root={root}", *more)
    assert result.code == 0, result
    return result


def test_a_service_killed_in_mid_run_costs_one_warning(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Tracker.log

    def killing(self: Tracker, values: dict[str, Any], step: int) -> None:
        if step == 5 and self.mirrors and wandb_service._started:
            os.kill(service(), signal.SIGKILL)
            time.sleep(0.2)
        real(self, values, step)

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "log", killing)
        broken = run(cli, tmp_path / "broken", "logger=wandb")
    run(cli, tmp_path / "whole", "logger=none")
    (warning,) = warnings(broken.err)
    assert warning.startswith("warning: WandbLogger is not available (")
    logs = [next((tmp_path / name).glob("runs/*/sentiment/metrics.jsonl")).read_text() for name in ("broken", "whole")]
    assert logs[0] == logs[1]
    records = [read(next((tmp_path / name).glob("records/*.json"))) for name in ("broken", "whole")]
    assert records[0].parts == records[1].parts
    assert records[0].environment["loggers"] == []
    assert "WandbLogger" not in run(cli, tmp_path / "next", "logger=wandb").err  # and the next run gets a new service
    assert list((tmp_path / "next").glob("runs/*/wandb/offline-run-*"))


def test_a_service_that_hangs_neither_slows_steps_nor_blocks_the_end(tmp_path: Path, capfd) -> None:
    mirror = offline(tmp_path)
    mirror.close_seconds = 1.0
    assert mirror.name == "WandbLogger"
    pid = service()
    os.kill(pid, signal.SIGSTOP)
    assert log(mirror, 5_000) < 1.0
    began = time.perf_counter()
    mirror.close(success=True)
    assert time.perf_counter() - began < 4
    assert warnings(capfd.readouterr().err) == [
        "warning: WandbLogger is not available (no answer within 1 s); metrics.jsonl and the record are kept; "
        "`python -m lrx sync` uploads them later"
    ]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # no stopped process is left behind


@pytest.mark.slow
def test_a_process_with_a_hanging_service_ends(tmp_path: Path) -> None:
    script = (
        "import os, signal; from pathlib import Path; from lrx import trackers, wandb_service\n"
        "run = wandb_service.start_run(online=False, project='p', dir=os.environ['FOLDER'])\n"
        "m = trackers.Mirror('wandb', lambda: trackers.WandbLogger(experiment=run))\n"
        "os.kill(wandb_service._started[os.getpid()].pid, signal.SIGSTOP)\n"
        "m.close_seconds = 0.5; m.close(True); print('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "FOLDER": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert len(warnings(done.stderr)) == 1


def test_a_logger_that_never_opens_costs_a_bounded_wait(capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "OPEN_SECONDS", 0.2)
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.3)
    never = threading.Event()
    began = time.perf_counter()
    mirror = Mirror("wandb", lambda: never.wait(60), close_seconds=20)  # type: ignore[arg-type, return-value]
    assert log(mirror, 100) < 0.1
    mirror.close(success=True)
    assert time.perf_counter() - began < 3
    assert len(warnings(capfd.readouterr().err)) == 1
    assert Tracker([mirror]).names == []
    never.set()


def test_a_logger_that_falls_behind_is_given_up(capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "QUEUE", 50)
    hold = threading.Event()

    class Slow:
        def log_metrics(self, values: Any, step: int) -> None:
            hold.wait(60)

        def finalize(self, status: str) -> None: ...

    mirror = Mirror("slow", Slow)  # type: ignore[arg-type]
    log(mirror, 200)
    assert not mirror.alive
    (warning,) = warnings(capfd.readouterr().err)
    assert "50 values behind" in warning
    hold.set()
    mirror.close(success=True)


def test_wandb_not_installed(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    (warning,) = warnings(run(cli, tmp_path, "logger=wandb").err)
    assert warning.startswith("warning: wandb is not available (")
    assert read(next(tmp_path.glob("records/*.json"))).environment["loggers"] == []


@pytest.mark.parametrize("key", ["", "0" * 40])
def test_online_without_key_or_network(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """No key: told at once. A key and nobody listening: given up in the background and at the end of the run."""
    monkeypatch.setenv("LRX_CACHE", str(cache_dir()))  # the corpus stays where it is when the home moves
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(trackers, "OPEN_SECONDS", 0.3)
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.5)
    began = time.perf_counter()
    (warning,) = warnings(run(cli, tmp_path, "logger=online").err)
    assert time.perf_counter() - began < 30
    assert warning.startswith("warning: wandb is not available (")
    assert ("no API key" in warning) == (not key)
    (path,) = tmp_path.glob("runs/*/sentiment/metrics.jsonl")
    assert {json.loads(line)["step"] for line in path.read_text().splitlines()} == set(range(1, 13))


def test_a_folder_that_cannot_be_written_is_told_at_once(cli, tmp_path: Path) -> None:
    run(cli, tmp_path, "logger=none", "trainer.max_steps=1")
    (folder,) = tmp_path.glob("runs/*")
    (folder / "wandb").write_text("a file where wandb's folder should be")
    next(tmp_path.glob("records/*.json")).unlink()
    (warning,) = warnings(run(cli, tmp_path, "logger=wandb", "trainer.max_steps=1").err)
    assert "File exists" in warning


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root to mount a small disk")
def test_a_full_disk_under_wandb_costs_no_time(tmp_path: Path) -> None:
    script = (
        "import sys, time; from lrx import trackers, wandb_service\n"
        "m = trackers.Mirror('wandb', lambda: trackers.WandbLogger(\n"
        "    experiment=wandb_service.start_run(online=False, project='p', dir=sys.argv[1])))\n"
        "began = time.perf_counter(); t = trackers.Tracker([m])\n"
        "for step in range(1000): t.log({'x' * 100 + str(step): 1.0}, step)\n"
        "assert time.perf_counter() - began < 0.5; m.close(True)\n"
        "assert time.perf_counter() - began < 6; print('done')\n"
    )
    mount = f'mount -t tmpfs -o size=48k tmpfs {tmp_path} || exit 77; exec {sys.executable} -c "$SCRIPT" {tmp_path}'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "SCRIPT": script},
    )  # fmt: skip
    if done.returncode in (1, 77) and "done" not in done.stdout and "ermitted" in done.stderr:
        pytest.skip("this container does not allow mounts")
    assert done.stdout == "done\n", done.stderr


def test_forked_jobs_share_one_service(tmp_path: Path) -> None:
    threads = threading.active_count()
    trackers.share_service()
    assert threading.active_count() == threads  # else a fork could copy a lock that a thread holds
    pid = service()
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            mirror = offline(tmp_path / str(number))
            log(mirror, 20)
            mirror.close(success=True)
            os._exit(0 if mirror.alive and not wandb_service._started.get(os.getpid()) else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert len(list(tmp_path.glob("*/wandb/offline-run-*/*.wandb"))) == 3
    os.kill(pid, 0)  # the children left it alone


def test_a_job_whose_shared_service_died_starts_its_own(tmp_path: Path) -> None:
    trackers.share_service()
    os.kill(service(), signal.SIGKILL)
    wandb_service._started[os.getpid()].wait(5)
    child = os.fork()
    if child == 0:
        mirror = offline(tmp_path)
        mirror.close(success=True)
        own = mirror.alive and os.getpid() in wandb_service._started
        wandb_service.forget_service()
        os._exit(0 if own else 1)
    assert os.waitpid(child, 0)[1] == 0
