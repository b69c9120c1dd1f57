"""Jobs through submitit, on this machine and on a Slurm that is made of fake programs on PATH."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lrx.engine.guarded import Guarded, order_of
from lrx.engine.jobs import Job
from lrx.engine.sweep import Options, Outcome, run_sweep
from lrx.errors import UserError
from lrx.launch import engine_of, report
from lrx.results.record import RunRecord, read, record_path
from tests.conftest import command
from tests.engine import stub
from tests.engine.fake_slurm import FakeSlurm
from tests.engine.test_sweep_kills import children
from tests.faults.forked import numbers, run, small

submitit = pytest.importorskip("submitit")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    monkeypatch.setenv("PYTHONPATH", stub.install(tmp_path / "stub"))
    with FakeSlurm(tmp_path / "slurm") as fake:
        monkeypatch.setenv("PATH", fake.path)
        monkeypatch.setattr("lrx.engine.submitit_engine.LOOK_SECONDS", 0.1)
        monkeypatch.setattr("lrx.engine.submitit_engine.RESULT_SECONDS", 0.5)
        submitit.SlurmJob.watcher.clear()  # each test counts its jobs from 100
        yield fake


def sweep(jobs: list[Job], meanwhile: Callable[[], None] | None = None, **options: object) -> Outcome:
    """Run them as the command line would; ``meanwhile`` runs beside it."""
    thread = threading.Thread(target=meanwhile or (lambda: None))
    thread.start()
    try:
        return run_sweep(jobs, engine_of(jobs[0].settings), Options(**options))  # type: ignore[arg-type]
    finally:
        thread.join()


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def record_of(root: Path, job: Job) -> RunRecord:
    return read(record_path(root, job.run_id))


def test_an_array_is_submitted_once_and_goes_on_after_time_out_and_preemption(slurm: FakeSlurm, tmp_path: Path) -> None:
    root = tmp_path / "results"
    jobs = stub.jobs(
        root, "engine=slurm", "engine.partition=gpu", "engine.account=me", "engine.array_parallelism=2", "rerun=all",
        "engine.additional_parameters={nice: 100}", "engine.cpus_per_task=3", seeds=(0, 1, 2), steps=30,
    )  # fmt: skip

    def meanwhile() -> None:
        until(lambda: len(stub.steps_of(root, jobs[0])) > 3 and len(stub.steps_of(root, jobs[1])) > 3)
        slurm.signal("100_0", signal.SIGUSR2)  # its time is nearly up
        slurm.signal("100_1", signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)  # its place is wanted

    outcome = sweep(jobs, meanwhile)
    assert (sorted(outcome.done), outcome.failed, outcome.interrupted) == (sorted(job.run_id for job in jobs), [], [])
    assert slurm.jobs() == ["100_0", "100_1", "100_2"]
    assert sorted(slurm.requeued()) == ["100_0", "100_1"]
    for job in jobs:  # each step once, in one folder, though rerun=all began by forgetting
        assert stub.steps_of(root, job) == list(range(1, 31))
        assert record_of(root, job).status == "finished"
        assert record_of(root, job).environment == {"threads": "3", "ntasks": None}  # Lightning must see no Slurm
    script = slurm.script("100_0")
    wanted = ("--array=0-2%2", "--partition=gpu", "--account=me", "--cpus-per-task=3", "--mem=16GB", "--nice=100",
              "--signal=USR2@120", "--time=240")  # fmt: skip
    for flag in wanted:
        assert f"#SBATCH {flag}\n" in script
    assert not list(root.glob("submitit/glue*.json"))


def test_an_interrupted_launcher_leaves_the_jobs_and_the_same_command_waits_for_them(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "results"
    slurm.set("hold")
    jobs = stub.jobs(root, "engine=slurm", seeds=(0, 1))

    def interrupt() -> None:
        until(lambda: len(list(root.glob("submitit/glue*.json"))) == 2)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    outcome = sweep(jobs, interrupt)
    assert (outcome.signum, sorted(outcome.left)) == (signal.SIGINT, sorted(job.run_id for job in jobs))
    assert report(outcome) == 130
    assert "scancel 100_0 100_1" in capsys.readouterr().out
    assert [slurm.state(job) for job in slurm.jobs()] == ["PENDING", "PENDING"]

    def let_them_run() -> None:
        until(lambda: len(slurm.jobs()) == 3)
        slurm.set("hold", False)

    more = stub.jobs(root, "engine=slurm", seeds=(0, 1, 2))  # one more, beside those still in the queue
    outcome = sweep(more, let_them_run)
    assert sorted(outcome.done) == sorted(job.run_id for job in more)
    assert len(slurm.jobs()) == 3
    assert f"{jobs[0].run_id}: submitted earlier, as job 100_0" in capsys.readouterr().out


def test_two_launchers_at_once_submit_each_job_once(slurm: FakeSlurm, tmp_path: Path) -> None:
    root = tmp_path / "results"
    slurm.set("hold")
    jobs = stub.jobs(root, "engine=slurm", seeds=(0, 1), steps=3)
    outcomes: list[Outcome] = []
    launchers = [threading.Thread(target=lambda: outcomes.append(sweep(jobs))) for _ in range(2)]
    for launcher in launchers:
        launcher.start()
    until(lambda: len(list(root.glob("submitit/glue*.json"))) == 2)
    time.sleep(0.5)
    slurm.set("hold", False)
    for launcher in launchers:
        launcher.join()
    assert len(slurm.jobs()) == 2
    assert [sorted(outcome.done + outcome.skipped) for outcome in outcomes] == [sorted(job.run_id for job in jobs)] * 2


def test_a_stale_ticket_is_no_job(slurm: FakeSlurm, tmp_path: Path) -> None:
    (job,) = stub.jobs(tmp_path / "results", "engine=slurm", steps=1)
    ticket = tmp_path / "results" / "submitit" / f"{job.run_id}.json"
    ticket.parent.mkdir(parents=True)
    for text in ('{"job_id": "77"}', "half a ti"):  # long over; written by nobody of ours
        ticket.write_text(text)
        assert sweep([job]).done == [job.run_id]
        record_path(tmp_path / "results", job.run_id).unlink()
    assert slurm.jobs() == ["100", "101"]
    (slurm.folder / "squeue").write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    ticket.write_text('{"job_id": "77"}')
    ((_, message),) = sweep([job]).failed  # nobody knows: not submitted
    assert message == "cannot ask Slurm about job 77: Unable to contact slurm controller"
    assert len(slurm.jobs()) == 2


def test_jobs_that_end_badly_leave_a_record(slurm: FakeSlurm, tmp_path: Path) -> None:
    root = tmp_path / "results"
    jobs = stub.jobs(root, "engine=slurm", "engine.timeout_min=5", "engine.max_num_timeout=0",
                     seeds=(0, 1, 2, 3, 22, 77, 99), steps=400)  # fmt: skip

    def meanwhile() -> None:
        until(lambda: all(stub.steps_of(root, job) for job in jobs[:4]))
        slurm.end_as("100_0", "OUT_OF_MEMORY")
        slurm.end_as("100_1", "NODE_FAIL")
        slurm.signal("100_2", signal.SIGUSR2)
        os.system(f"{slurm.folder}/scancel 100_3")

    outcome = sweep(jobs, meanwhile)
    found = {job.seed: (record_of(root, job).status, record_of(root, job).message) for job in jobs}
    assert {seed: status for seed, (status, _) in found.items()} == {
        0: "out_of_memory", 1: "interrupted", 2: "interrupted", 3: "interrupted", 22: "failed", 77: "failed",
        99: "interrupted",
    }  # fmt: skip
    parts = {0: "job 100_0: the cluster ended it because memory ran out (engine.mem_gb)", 1: "lost with its node",
             2: "timed-out too many times", 3: "job 100_3 was cancelled", 22: "a mistake that only the run shows",
             77: "exit code 7", 99: "SIGKILL"}  # fmt: skip
    for seed, part in parts.items():
        assert part in found[seed][1]
    assert (len(outcome.done), len(outcome.failed), len(outcome.interrupted)) == (0, 3, 4)
    assert not slurm.requeued()


def test_a_cluster_without_accounting_still_says_when_a_job_is_gone(slurm: FakeSlurm, tmp_path: Path) -> None:
    (job,) = stub.jobs(tmp_path / "results", "engine=slurm", steps=400)
    slurm.set("no_accounting")

    def kill() -> None:
        until(lambda: stub.steps_of(tmp_path / "results", job))
        slurm.end_as("100", "FAILED")

    outcome = sweep([job], kill)
    assert outcome.interrupted == [job.run_id]
    assert "gone from the queue" in record_of(tmp_path / "results", job).message


def test_mistakes_are_one_line(slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = stub.jobs(tmp_path / "results", "engine=slurm")
    slurm.set("refuse")
    ((_, message),) = sweep([job]).failed
    reason = "sbatch: error: Batch job submission failed: Invalid partition name specified"
    assert message == f"sbatch refused the job: {reason}"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match='engine=submitit executor=slurm: Could not detect "srun"'):
        engine_of(job.settings)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'lrx\[slurm\]'"):
        engine_of(job.settings)
    wrong = {
        "slurm engine.timeout_min=null": "engine.timeout_min must be set",
        "local +engine.partition=gpu": "engine.partition is no option of engine=local",
    }
    for engine, message in wrong.items():
        with pytest.raises(AssertionError, match=message):
            stub.jobs(tmp_path, *f"engine={engine}".split())


def test_on_this_machine_a_signal_stops_jobs_in_good_order_and_a_requeued_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", stub.install(tmp_path / "stub"))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    root = tmp_path / "results"
    before = set(children(os.getpid()))  # what other tests have left running
    (job,) = stub.jobs(root, "engine=submitit", steps=200)  # long enough for a busy machine

    def preempt_then_interrupt() -> None:
        until(lambda: len(stub.steps_of(root, job)) > 3)
        (controller,) = set(children(os.getpid())) - before
        (watcher,) = children(controller)
        os.kill(watcher, signal.SIGUSR2)
        until(lambda: record_path(root, job.run_id).exists())
        taken = len(stub.steps_of(root, job))
        until(lambda: len(stub.steps_of(root, job)) > taken + 2)  # in a new process
        os.kill(os.getpid(), signal.SIGINT)

    outcome = sweep([job], preempt_then_interrupt)
    assert (outcome.signum, outcome.interrupted) == (signal.SIGINT, [job.run_id])
    assert "SIGTERM at step" in record_of(root, job).message
    assert sweep([job]).done == [job.run_id]
    assert stub.steps_of(root, job) == list(range(1, 201))
    assert set(children(os.getpid())) <= before


def test_the_time_limit_holds_without_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrx.engine.guarded.STOP_SECONDS", 0.5)
    monkeypatch.setenv("PYTHONPATH", stub.install(tmp_path / "stub"))
    for seed in (0, 66):  # one stops when it is asked to, one does not
        (job,) = stub.jobs(tmp_path / "results", "time_limit=1", seeds=(seed,), steps=400)
        ended = Guarded(order_of(job.settings.model_dump(mode="json"), job.run_id, 1))()
        assert (ended["code"], ended["told"]) == (1, True)
        record = record_of(tmp_path / "results", job)
        assert (record.status, record.message.split(";")[0]) == ("failed", "stopped at its time limit of 1 s")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_results_equal_those_of_the_local_engine(tmp_path: Path) -> None:
    found = {}
    for engine in ("local", "submitit"):
        done = command("run.py", "-m", *COMPARED, f"engine={engine}", f"paths.root={tmp_path / engine}", timeout=400)
        assert done.code == 0, done
        found[engine] = everything(tmp_path / engine)
    assert len(found["local"]) >= 6
    assert found["submitit"] == found["local"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_run_that_is_preempted_ends_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = small("altlora", "callbacks.checkpoint.every_n_steps=null", "trainer.max_steps=120", "trainer.threads=1")
    assert run(choice, tmp_path / "whole").code == 0
    root = tmp_path / "results"
    with FakeSlurm(tmp_path / "slurm") as slurm:
        monkeypatch.setenv("PATH", slurm.path)

        def preempt() -> None:
            until(lambda: list(root.glob("runs/*/sentiment/metrics.jsonl")), 200)
            slurm.signal("100", signal.SIGTERM, signal.SIGUSR2)

        thread = threading.Thread(target=preempt)
        thread.start()
        done = command("run.py", *choice, "engine=slurm", f"paths.root={root}", timeout=400)
        thread.join()
        assert (done.code, slurm.requeued()) == (0, ["100"]), done
    (log,) = root.glob("runs/*/output.log")
    assert "sentiment: going on from stopped.ckpt" in log.read_text()
    assert numbers(root) == numbers(tmp_path / "whole")


COMPARED = ["method=head,altlora", "scale=smoke", "task.subset=sentiment", "logger=none", "trainer.max_steps=12",
            "trainer.threads=1", "jobs=2"]  # fmt: skip


def everything(root: Path) -> dict[str, object]:
    """Every metric and curve of every record, and every file of predictions and weights, byte for byte."""
    found: dict[str, object] = {}
    for path in sorted(root.glob("records/*.json")):
        record = json.loads(path.read_text())
        assert record["status"] == "finished"
        found[path.stem] = {name: without_notes(part) for name, part in record["parts"].items()}
    for path in sorted([*root.glob("runs/*/*/*predictions*.csv"), *root.glob("runs/*/*/adapter.safetensors")]):
        found[str(path.relative_to(root))] = path.read_bytes()
    return found


def without_notes(part: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in part.items() if key != "notes"}
