"""A Slurm of one machine: ``sbatch``, ``srun``, ``scontrol``, ``sacct``, ``squeue``, ``scancel`` in a folder for PATH.

Jobs run at once, unless the file ``hold`` is in the folder. As in Slurm, signals go to the processes that ``srun``
started, a requeued job starts again with the same script and id, and a cancelled one is killed after a while.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = r"""
import os, re, shlex, signal, subprocess, sys, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
JOBS = HERE / "jobs"
KILL_WAIT = 3.0


def read(job, name, default=""):
    try:
        return (JOBS / job / name).read_text()
    except OSError:
        return default


def write(job, name, text):
    temporary = JOBS / job / f".{name}.{os.getpid()}"
    temporary.write_text(str(text))
    temporary.rename(JOBS / job / name)


def named(pattern, job):
    array, _, task = job.partition("_")
    text = pattern.replace("%A_%a", job).replace("%A", array).replace("%a", task or "0").replace("%j", job)
    return text.replace("%t", "0")


def sbatch(arguments):
    if (HERE / "refuse").exists():
        sys.exit("sbatch: error: Batch job submission failed: Invalid partition name specified")
    wrap = next((a[len("--wrap="):] for a in arguments if a.startswith("--wrap=")), None)
    script = f"#!/bin/sh\n{wrap}\n" if wrap else Path(arguments[-1]).read_text()
    options = [a for a in arguments if a.startswith("--")]
    options += [shlex.split(line)[1] for line in script.splitlines() if line.startswith("#SBATCH ")]
    given = dict(option[2:].partition("=")[::2] for option in options)
    number = 100 + len(list(JOBS.glob("*")))
    tasks = [""]
    if "array" in given:
        first, last = re.match(r"(\d+)-(\d+)", given["array"]).groups()
        tasks = [f"_{k}" for k in range(int(first), int(last) + 1)]
    for task in tasks:
        job = f"{number}{task}"
        (JOBS / job).mkdir(parents=True)
        write(job, "script", script)
        write(job, "output", given.get("output", "slurm-%j.out"))
        write(job, "name", given.get("job-name", "wrap" if wrap else "script"))
        write(job, "state", "PENDING")
        subprocess.Popen([sys.executable, "-S", __file__, "run", job], stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    print(f"Submitted batch job {number}")


def run(job):
    array, _, task = job.partition("_")
    restarts = 0
    while True:
        while (HERE / "hold").exists() and not read(job, "cancel"):
            time.sleep(0.02)
        if read(job, "cancel"):
            return write(job, "state", "CANCELLED by 0")
        environment = {**os.environ, "SLURM_JOB_ID": array, "SLURM_JOB_NAME": read(job, "name"), "FAKE_JOB": job}
        if task:  # which has a number of its own as well
            environment["SLURM_JOB_ID"] = str(int(array) + 1000 + int(task))
            environment |= {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": task}
        if restarts:
            environment["SLURM_RESTART_COUNT"] = str(restarts)
        write(job, "state", "RUNNING")
        with open(named(read(job, "output"), job), "ab") as stream:
            script = str(JOBS / job / "script")
            process = subprocess.Popen(["sh", script], stdout=stream, stderr=stream, env=environment)
            while process.poll() is None:
                time.sleep(0.02)
                if read(job, "cancel") and time.time() - float(read(job, "cancel")) > KILL_WAIT:
                    deliver(job, signal.SIGKILL)
        if read(job, "cancel"):
            return write(job, "state", "CANCELLED by 0")
        if read(job, "requeue"):
            (JOBS / job / "requeue").unlink()
            restarts += 1
            write(job, "state", "PENDING")
            continue
        return write(job, "state", read(job, "end") or ("COMPLETED" if process.returncode == 0 else "FAILED"))


def srun(arguments):
    job, streams = os.environ["FAKE_JOB"], {}
    while arguments[0].startswith("--"):
        option = arguments.pop(0)
        if option in ("--output", "--error"):
            streams["stdout" if option == "--output" else "stderr"] = open(named(arguments.pop(0), job), "ab")
    environment = {**os.environ, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
                   "SLURM_JOB_NUM_NODES": "1"}
    process = subprocess.Popen(arguments, env=environment, start_new_session=True, **streams)
    write(job, "step", process.pid)
    code = process.wait()
    sys.exit(128 - code if code < 0 else code)


def deliver(job, signum):
    try:
        os.killpg(int(read(job, "step")), signum)
    except (ValueError, ProcessLookupError):
        pass


def scontrol(arguments):
    verb, job = arguments
    with open(HERE / "scontrol.log", "a") as log:
        log.write(f"{verb} {job}\n")
    if (JOBS / job).exists():
        write(job, "requeue", "yes")


def scancel(arguments):
    signum = None
    if "--signal" in arguments:
        at = arguments.index("--signal")
        name = arguments[at + 1]
        signum = signal.Signals["SIG" + name.removeprefix("SIG")]
        del arguments[at : at + 2]
    for job in arguments:
        if signum is None:
            write(job, "cancel", time.time())
            deliver(job, signal.SIGTERM)
        else:
            deliver(job, signum)


def sacct(arguments):
    if (HERE / "no_accounting").exists():
        sys.exit("Slurm accounting storage is disabled")
    wanted = {arguments[i + 1] for i, word in enumerate(arguments) if word == "-j"}
    print("JobID|State|NodeList")
    for path in sorted(JOBS.glob("*")):
        if path.name.partition("_")[0] in wanted:
            print(f"{path.name}|{read(path.name, 'state')}|here")
            print(f"{path.name}.batch|{read(path.name, 'state')}|here")


def squeue(arguments):
    job = next(a for a in arguments if a.startswith("--jobs=")).partition("=")[2]
    state = read(job, "state")
    if not state or state not in ("PENDING", "RUNNING"):
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    print(state)


what, *rest = sys.argv[1:]
{"sbatch": sbatch, "srun": srun, "scontrol": scontrol, "scancel": scancel, "sacct": sacct, "squeue": squeue,
 "run": lambda a: run(a[0])}[what](rest)
"""


class FakeSlurm:
    """The programs in ``folder``, and what a test asks of them. ``with`` ends every process that a job left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "jobs").mkdir(parents=True)
        (folder / "slurm.py").write_text(PROGRAM)
        for name in ("sbatch", "srun", "scontrol", "scancel", "sacct", "squeue"):
            path = folder / name
            path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {folder}/slurm.py {name} "$@"\n')
            path.chmod(0o755)

    def __enter__(self) -> FakeSlurm:
        return self

    def __exit__(self, *error: object) -> None:
        for job in self.jobs():
            if self.state(job) in ("PENDING", "RUNNING"):
                (self.folder / "jobs" / job / "cancel").write_text("0")
        until = time.monotonic() + 20
        while any(self.state(job) in ("PENDING", "RUNNING") for job in self.jobs()) and time.monotonic() < until:
            time.sleep(0.05)

    @property
    def path(self) -> str:
        """PATH with these programs first."""
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"

    def jobs(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "jobs").glob("*"))

    def state(self, job: str) -> str:
        try:
            return (self.folder / "jobs" / job / "state").read_text()
        except OSError:
            return ""

    def script(self, job: str) -> str:
        return (self.folder / "jobs" / job / "script").read_text()

    def signal(self, job: str, *signums: signal.Signals) -> None:
        """As Slurm does when time is up or the place is wanted: to all processes of the job's step."""
        for signum in signums:
            os.killpg(int((self.folder / "jobs" / job / "step").read_text()), signum)

    def end_as(self, job: str, state: str) -> None:
        """Kill the job; ``state`` is what Slurm says of it then."""
        (self.folder / "jobs" / job / "end").write_text(state)
        self.signal(job, signal.SIGKILL)

    def requeued(self) -> list[str]:
        """The jobs that ``scontrol requeue`` was called for."""
        log = self.folder / "scontrol.log"
        return [line.removeprefix("requeue ") for line in log.read_text().splitlines()] if log.exists() else []

    def set(self, switch: str, on: bool = True) -> None:
        """``hold`` jobs in the queue, ``refuse`` submissions, or have ``no_accounting``."""
        path = self.folder / switch
        path.touch() if on else path.unlink(missing_ok=True)

    def sbatch(self, *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
        """Submit; the job's number."""
        done = subprocess.run(
            [str(self.folder / "sbatch"), *arguments], capture_output=True, text=True, check=True, env=env, cwd=cwd
        )
        return done.stdout.split()[-1]
