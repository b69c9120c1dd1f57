"""Inside a Slurm job that starts runs itself: ``sbatch --signal=USR1@120 --wrap "srun python run.py ..."``.

Slurm announces the end of the job's time by SIGUSR1. In training Lightning's own support answers: a checkpoint, and
``scontrol requeue`` (``lrx.callbacks.stop``). At any other moment, and in the launcher of a multirun, ``requeue`` does
the latter. Either way the job starts again with the same command, which goes on where it stopped.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

SIGNAL = signal.SIGUSR1

_requeued = False


def requeues() -> bool:
    """Whether this process is in a Slurm job that is to be requeued at ``SIGNAL``: where Lightning sees one, too."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_NTASKS" in os.environ and "SLURM_JOB_ID" in os.environ and not interactive


def restarted() -> bool:
    """Whether Slurm has started this job before."""
    return requeues() and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def found() -> bool:
    """Whether Slurm's program is there to ask."""
    return shutil.which("scontrol") is not None


def has_requeued() -> None:
    """Note that the job is requeued already: by Lightning."""
    global _requeued
    _requeued = True


def requeue(signum: int) -> None:
    """If ``signum`` ended the command and means that, let Slurm start the job again. Says so if Slurm refuses."""
    if signum != SIGNAL or not requeues() or _requeued:
        return
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
    try:
        done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True, timeout=60, check=False)
        problem = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        print(f"warning: job {name} could not be requeued: {' '.join(problem.split())[:200]}", file=sys.stderr)
    else:
        print(f"job {name} is requeued", flush=True)
        has_requeued()
