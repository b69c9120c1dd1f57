"""Jobs through submitit: on a Slurm cluster, or on this machine in processes that submitit watches.

On Slurm the jobs outlive the launcher. A ticket beside the results, ``<root>/submitit/<run id>.json``, says which job
of the cluster a run was submitted as, so that the same command, given again, waits for it instead of submitting it
anew. A job that is preempted or reaches the cluster's time limit is requeued by submitit, and goes on in the run's
folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lrx.engine.guarded import Guarded, order_of
from lrx.engine.jobs import Job
from lrx.engine.work import Ended
from lrx.errors import UserError
from lrx.files import write_atomic
from lrx.schema import Engine as Options

MOST_QUEUED = 1000  # Slurm's default for the size of an array
LOOK_SECONDS = 1.0  # between two looks at the files of jobs on a cluster; submitit asks sacct in growing intervals
RESULT_SECONDS = 10.0  # what a shared file system may need to show the result of a job that has ended
LOCK_SECONDS = 60.0
# Slurm's word for the end of a job that left no result -> how it ended, as a signal or an exit code.
STATES = {
    "CANCELLED": (-signal.SIGTERM, "cancelled"),
    "TIMEOUT": (-signal.SIGTERM, "ended at its time limit (engine.timeout_min)"),
    "DEADLINE": (-signal.SIGTERM, "ended at its deadline"),
    "PREEMPTED": (-signal.SIGKILL, "preempted"),
    "NODE_FAIL": (-signal.SIGKILL, "lost with its node"),
    "BOOT_FAIL": (-signal.SIGKILL, "lost with its node"),
    "GONE": (-signal.SIGKILL, "gone from the queue"),
}


class SubmititEngine:
    """Submits jobs through ``submitit.AutoExecutor``; at most ``at_once`` are submitted at a time.

    Raises ``UserError`` when submitit or the cluster's programs are not there.
    """

    name = "submitit"

    def __init__(self, options: Options, root: Path, jobs: int) -> None:
        self.options, self.folder = options, Path(root).absolute() / "submitit"
        self.slurm = options.executor == "slurm"
        self.at_once = MOST_QUEUED if self.slurm else jobs
        self.threads = options.cpus_per_task or (None if self.slurm else max(1, len(os.sched_getaffinity(0)) // jobs))
        self.began: dict[str, float] = {}
        self._collected: list[Job] = []
        self._jobs: dict[str, Any] = {}  # run id -> submitit's job
        self._without_result: dict[str, float] = {}
        self._next_look = 0.0
        self._executor = self._make_executor()

    def start(self, job: Job) -> None:
        """Submit ``job`` with the next ``wait``, unless it is submitted already."""
        self._collected.append(job)

    def wait(self, timeout: float) -> list[Ended]:
        """The jobs that have ended, waiting at most ``timeout`` seconds for the first."""
        ended = self._submit_collected()
        until = time.monotonic() + timeout
        while not ended and time.monotonic() < until:
            if time.monotonic() >= self._next_look:
                ended = [end for run_id in list(self._jobs) if (end := self._look(run_id)) is not None]
                self._next_look = time.monotonic() + (LOOK_SECONDS if self.slurm else 0.1)
            else:
                time.sleep(0.05)
        for each in ended:
            self._jobs.pop(each.run_id, None)
            self._ticket(each.run_id).unlink(missing_ok=True)
        return ended

    def kill(self, run_id: str, signum: int) -> None:
        """Cancel a job: on this machine in good order, at the second time at once."""
        job = self._jobs.get(run_id)
        if job is None:
            return
        if self.slurm:
            job.cancel(check=False)
        elif job._process is not None:  # submitit's controller hands SIGTERM on; its own cancel() kills after a second
            job._process.send_signal(signal.SIGTERM)

    def leave(self) -> str | None:
        """What to say to whoever interrupts the launcher when the jobs go on without it; None if they do not."""
        if not self.slurm:
            return None
        ids = " ".join(job.job_id for job in self._jobs.values())
        return f"the jobs go on in the cluster, and the same command waits for them again; to cancel: scancel {ids}"

    def close(self) -> None:
        """Nothing to end: on this machine every job has been waited for, on a cluster they go on."""

    def _make_executor(self) -> Any:
        submitit = _submitit()
        options = self.options
        try:
            executor = submitit.AutoExecutor(
                folder=self.folder, cluster=options.executor, slurm_max_num_timeout=options.max_num_timeout,
                local_max_num_timeout=options.max_num_timeout,
            )  # fmt: skip
            executor.update_parameters(
                name="lrx", timeout_min=options.timeout_min, mem_gb=options.mem_gb, gpus_per_node=options.gpus_per_node,
                cpus_per_task=options.cpus_per_task,
                slurm_partition=options.partition, slurm_account=options.account, slurm_qos=options.qos,
                slurm_constraint=options.constraint, slurm_array_parallelism=options.array_parallelism,
                slurm_signal_delay_s=options.signal_delay_s, slurm_setup=options.setup,
                slurm_additional_parameters=options.additional_parameters,
            )  # fmt: skip
        except (RuntimeError, AssertionError, ValueError, NameError) as error:
            hint = "; engine.executor=local needs no cluster" if self.slurm else ""
            raise UserError(f"engine=submitit executor={options.executor}: {_one_line(error)}{hint}") from None
        except OSError as error:
            raise UserError(f"cannot write {self.folder}: {error.strerror}; choose another paths.root") from None
        return executor

    # Submitting

    def _submit_collected(self) -> list[Ended]:
        """Submit what ``start`` has collected, several jobs of a cluster as one array; those that cannot be."""
        jobs, self._collected = self._collected, []
        if not jobs:
            return []
        try:
            with self._alone():
                new = [job for job in jobs if not self._take_up(job)]
                self._submit(new)
        except UserError as error:
            return [Ended(job.run_id, 2, str(error), told=True) for job in jobs if job.run_id not in self._jobs]
        return []

    def _submit(self, jobs: list[Job]) -> None:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        if not jobs:
            return
        orders = [
            order_of(job.settings.model_dump(mode="json"), job.run_id, job.settings.trainer.threads or self.threads)
            for job in jobs
        ]
        try:
            with _surroundings(orders[0]["package"], deaf=not self.slurm):
                submitted = self._executor.submit_array([Guarded(order) for order in orders])
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"sbatch refused the job: {_one_line(error)}") from None
        except OSError as error:
            raise UserError(f"cannot submit: {error.strerror}: {error.filename or self.folder}") from None
        for job, its in zip(jobs, submitted, strict=True):
            self._jobs[job.run_id] = its
            if self.slurm:
                write_atomic(self._ticket(job.run_id), json.dumps({"job_id": its.job_id}))
            else:
                self.began[job.run_id] = time.monotonic()

    def _take_up(self, job: Job) -> bool:
        """Whether an earlier command has submitted the run and the cluster still has it; then it is waited for."""
        ticket = self._ticket(job.run_id)
        try:
            job_id = str(json.loads(ticket.read_text())["job_id"])
        except (OSError, ValueError, KeyError, TypeError):  # none, or none that says anything
            return False
        if not self.slurm or in_queue(job_id) is None:
            ticket.unlink(missing_ok=True)
            return False
        self._jobs[job.run_id] = _submitit().SlurmJob(folder=self.folder, job_id=job_id)
        print(f"{job.run_id}: submitted earlier, as job {job_id}", flush=True)
        return True

    def _ticket(self, run_id: str) -> Path:
        return self.folder / f"{run_id}.json"

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One launcher at a time looks at the tickets and submits."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock", timeout=LOCK_SECONDS):
                yield
        except Timeout:
            where = self.folder / ".lock"
            raise UserError(f"another process has been submitting jobs for a minute (lock {where})") from None

    # Watching

    def _look(self, run_id: str) -> Ended | None:
        """How the job ended, if it has."""
        job = self._jobs[run_id]
        if job.paths.result_pickle.exists():
            return self._result(run_id, job)
        state = "FINISHED" if not self.slurm and job.done() else self._end_on_slurm(job) if self.slurm else None
        if state is None:
            self._without_result.pop(run_id, None)
            return None
        first = self._without_result.setdefault(run_id, time.monotonic())
        if time.monotonic() - first < RESULT_SECONDS:
            return None
        if state == "OUT_OF_MEMORY":
            message = f"job {job.job_id}: the cluster ended it because memory ran out (engine.mem_gb)"
            return Ended(run_id, -signal.SIGKILL, message, status="out_of_memory")
        code, word = STATES.get(state, (1, f"ended without a result ({state.lower()}; log: {job.paths.stderr})"))
        return Ended(run_id, code, f"job {job.job_id} was {word}" if code < 0 else f"job {job.job_id} {word}")

    def _end_on_slurm(self, job: Any) -> str | None:
        """The state in which the job ended, None while it is queued or running."""
        if job.watcher.is_done(job.job_id):
            return str(job.watcher.get_state(job.job_id, mode="cache")).split()[0]
        if job.watcher.get_state(job.job_id, mode="cache") == "UNKNOWN":  # a cluster without accounting
            with contextlib.suppress(UserError):
                return "GONE" if in_queue(job.job_id) is None else None
        return None

    def _result(self, run_id: str, job: Any) -> Ended:
        from submitit.core.utils import UncompletedJobError

        try:
            result = dict(job.result())
        except UncompletedJobError as error:  # what the job raised before it was one of ours
            return Ended(run_id, 1, f"job {job.job_id}: {_last_line(error)}")
        except Exception as error:  # whatever unpickling a torn file raises
            return Ended(run_id, 1, f"job {job.job_id}: its result cannot be read ({type(error).__name__})")
        self.began[run_id] = time.monotonic() - (time.time() - result.pop("began"))
        return Ended(**result)


def in_queue(job_id: str) -> str | None:
    """The state of a Slurm job that is queued or running, None for one that is over or unknown.

    Raises ``UserError`` when Slurm does not answer.
    """
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={job_id}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"cannot ask Slurm about job {job_id}: {_one_line(error)}") from None
    if done.returncode and "invalid job id" not in done.stderr.lower():
        raise UserError(f"cannot ask Slurm about job {job_id}: {' '.join(done.stderr.split())[:200]}")
    return done.stdout.strip() or None


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError("engine=submitit needs the package submitit: pip install 'lrx[slurm]'") from None
    logging.getLogger("submitit").setLevel(logging.ERROR)
    return submitit


@contextlib.contextmanager
def _surroundings(package: str, deaf: bool) -> Iterator[None]:
    """What submitted processes inherit: where this package is, and with ``deaf`` no Ctrl-C, which is the launcher's
    to answer: submitit would kill the job a second later.
    """
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{package}{os.pathsep}{known}" if known else package
    previous = None
    try:
        if deaf:
            with contextlib.suppress(ValueError):  # not the main thread
                previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        yield
    finally:
        if previous is not None:
            signal.signal(signal.SIGINT, previous)
        if known is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = known


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _last_line(error: BaseException) -> str:
    """The exception at the end of the traceback that submitit hands on."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    errors = [line for line in lines if "Error:" in line]
    return (errors or lines or ["it failed"])[-1][:300]
