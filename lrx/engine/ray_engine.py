"""Jobs as tasks of a Ray cluster, or of a Ray of its own on this machine.

Ray places a job where its CPUs and GPUs are free. The nodes need this package and the folder of the results: a shared
file system. When the launcher ends, Ray ends its tasks.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import Any

from lrx.engine.guarded import Guarded, order_of
from lrx.engine.jobs import Job
from lrx.engine.work import Ended
from lrx.errors import UserError
from lrx.schema import Engine as Options

MOST_QUEUED = 1000
REACH_SECONDS = 10.0


class RayEngine:
    """One Ray task for each job, never repeated by Ray, each in a worker process of its own.

    Raises ``UserError`` when Ray is not installed or the cluster cannot be reached.
    """

    name = "ray"

    def __init__(self, options: Options, jobs: int) -> None:
        ray = self._ray = _ray()
        self.options = options
        self.at_once = jobs if options.address is None else MOST_QUEUED
        self.began: dict[str, float] = {}
        self._tasks: dict[Any, str] = {}  # Ray's reference -> run id
        self._asked: set[str] = set()
        choice: dict[str, Any] = {"address": options.address}
        cpus = options.cpus_per_job or 1
        if options.address is None:
            choice = {"address": "local", "num_cpus": max(1, round(jobs * cpus)), "include_dashboard": False}
        self._was_there = ray.is_initialized()
        try:
            check_reachable(options.address)
            if not self._was_there:
                ray.init(**choice, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # Ray raises whatever its parts raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"engine=ray: no Ray at engine.address={options.address}: {reason}") from None
        self.threads = max(1, int(cpus)) if options.address is not None else None
        if options.address is None:
            self.threads = max(1, len(os.sched_getaffinity(0)) // jobs)
        self._remote = ray.remote(
            num_cpus=cpus, num_gpus=options.gpus_per_job or 0, max_retries=0, max_calls=1,
            runtime_env={"env_vars": surroundings()},
        )(carry_out)  # fmt: skip

    def start(self, job: Job) -> None:
        """Hand the job to Ray."""
        settings = job.settings.model_dump(mode="json")
        order = order_of(settings, job.run_id, job.settings.trainer.threads or self.threads)
        self._tasks[self._remote.remote(order)] = job.run_id

    def wait(self, timeout: float) -> list[Ended]:
        """The jobs that have ended, waiting at most ``timeout`` seconds for the first."""
        if not self._tasks:
            time.sleep(timeout)
            return []
        ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=timeout)
        return [self._result(reference, self._tasks.pop(reference)) for reference in ready]

    def kill(self, run_id: str, signum: int) -> None:
        """Let Ray cancel a job: in good order, at the second time at once."""
        for reference, name in self._tasks.items():
            if name == run_id:
                self._ray.cancel(reference, force=run_id in self._asked)
                self._asked.add(run_id)

    def close(self) -> None:
        """Leave the cluster; a Ray of our own ends."""
        if not self._was_there:
            self._ray.shutdown()

    def _result(self, reference: Any, run_id: str) -> Ended:
        errors = self._ray.exceptions
        try:
            result = dict(self._ray.get(reference))
        except errors.OutOfMemoryError:
            message = "Ray ended it because its node ran out of memory"
            return Ended(run_id, -signal.SIGKILL, message, status="out_of_memory")
        except errors.TaskCancelledError:
            return Ended(run_id, -signal.SIGTERM, "Ray cancelled it")
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.RaySystemError) as error:
            return Ended(run_id, -signal.SIGKILL, f"Ray lost it ({type(error).__name__})")
        except errors.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return Ended(run_id, 1, f"Ray: {(lines or [type(error).__name__])[-1][:300]}")
        self.began[run_id] = time.monotonic() - (time.time() - result.pop("began"))
        return Ended(**result)


def check_reachable(address: str | None) -> None:
    """Raise ``OSError`` when nothing listens at ``HOST:PORT``: Ray itself ends the whole process then."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()


def surroundings() -> dict[str, str]:
    """The variables of this environment that jobs need on other nodes, without secrets, which Ray would show."""
    package = order_of({}, "", None)["package"]
    known = os.environ.get("PYTHONPATH")
    wanted = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("LRX_", "HF_", "WANDB_")) and not any(word in name for word in ("KEY", "TOKEN"))
    }
    return {**wanted, "PYTHONPATH": f"{package}{os.pathsep}{known}" if known else package}


def carry_out(order: dict[str, Any]) -> dict[str, Any]:
    """What a Ray task does."""
    return Guarded(order)()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about what a later Ray does
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise UserError("engine=ray needs the package ray: pip install 'lrx[ray]'") from None
    return ray
