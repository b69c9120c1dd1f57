"""Jobs one after another in the launcher's own process: for a debugger. Nothing is isolated."""

from __future__ import annotations

import time

from lrx.engine.jobs import Job
from lrx.engine.work import Ended, do


class InlineEngine:
    """``start`` returns when the job has ended. What a job prints goes to the terminal; a Ctrl-C reaches it first."""

    at_once = 1

    def __init__(self) -> None:
        self.began: dict[str, float] = {}
        self._ended: list[Ended] = []

    def start(self, job: Job) -> None:
        """Carry out the job."""
        self.began[job.run_id] = time.monotonic()
        self._ended.append(do(job.settings.model_dump(mode="json"), job.run_id))

    def wait(self, timeout: float) -> list[Ended]:
        """The job that has ended."""
        ended, self._ended = self._ended, []
        return ended

    def kill(self, run_id: str, signum: int) -> None:
        """Nothing runs while somebody could ask for this."""

    def close(self) -> None:
        """Nothing to end."""
