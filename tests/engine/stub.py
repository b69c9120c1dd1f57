"""Runs without training, for tests of what starts and watches them: a step is a line in a file, and takes a moment."""

from __future__ import annotations

from pathlib import Path

from lrx.engine.compose import Composer
from lrx.engine.jobs import Job, make_all

# A fresh Python imports ``sitecustomize`` first; ``lrx.engine.work.do`` then finds this ``lrx.experiment``.
SOURCE = """
import sys, types

def execute(settings, run_id):
    import os, signal, time
    from datetime import UTC, datetime
    from lrx.errors import RunFailed, UserError
    from lrx.results.record import RunRecord

    if settings.seed == 22:
        raise UserError("seed=22: a mistake that only the run shows")
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    if settings.seed == 66:  # deaf
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    now = lambda: datetime.now(UTC).isoformat(timespec="seconds")
    started, log = now(), settings.paths.root / "runs" / run_id / "steps.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    if settings.rerun == "all":
        log.unlink(missing_ok=True)

    def record(status, message=""):
        left = RunRecord(run_id=run_id, fingerprint="", status=status, message=message, method=settings.method["name"],
                  model=settings.model["name"], task=settings.task["name"], scale=settings.scale.name, source="",
                  seed=settings.seed, versions={}, config=settings.model_dump(mode="json", exclude={"sweep"}),
                  environment={"threads": os.environ.get("OMP_NUM_THREADS"), "ntasks": os.environ.get("SLURM_NTASKS")},
                  started=started, finished=now())
        left.save(settings.paths.root, overwrite=True)
        return left

    done = len(log.read_text().split()) if log.exists() else 0
    with log.open("a") as stream:
        for step in range(done + 1, settings.trainer.max_steps + 1):
            time.sleep(0.05)
            print(step, file=stream, flush=True)
            if settings.seed == 77:
                os._exit(7)
            if settings.seed == 99:
                os.kill(os.getpid(), signal.SIGKILL)
            if stopped:
                message = f"SIGTERM at step {step}; the same command goes on from there"
                record("interrupted", message)
                failure = RunFailed(message, "interrupted")
                failure.signum = signal.SIGTERM
                raise failure
    return record("finished")

module = types.ModuleType("lrx.experiment")
module.execute = execute
sys.modules["lrx.experiment"] = module
"""


def install(folder: Path) -> str:
    """Write it below ``folder``; the value for ``PYTHONPATH`` with which jobs are such runs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(SOURCE)
    return str(folder)


def jobs(root: Path, *overrides: str, seeds: tuple[int, ...] = (0,), steps: int = 10) -> list[Job]:
    """One job for each seed."""
    common = ["method=head", "scale=smoke", "task.subset=sentiment", "logger=none", f"paths.root={root}", *overrides]
    made = make_all([[*common, f"trainer.max_steps={steps}", f"seed={seed}"] for seed in seeds], Composer())
    assert all(isinstance(job, Job) for job in made), made
    return [job for job in made if isinstance(job, Job)]


def steps_of(root: Path, job: Job) -> list[int]:
    """The steps that the run has taken, over all its attempts."""
    path = root / "runs" / job.run_id / "steps.txt"
    return [int(word) for word in path.read_text().split()] if path.exists() else []
