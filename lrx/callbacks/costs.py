"""Cost meters: step time, memory, state, throughput."""

from __future__ import annotations

import contextlib
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from lrx.nn.optim import state_bytes


class Costs(pl.Callback):
    """Measures every training batch from its start to its end, optimizer step included, waiting for data excluded.

    ``seconds``: one figure per batch, kept in checkpoints so that a resumed run reports over all its batches.
    ``peak_memory``: bytes; the device's peak allocation on a GPU, else by how much the resident set of the process
    grew from ``before`` (``resident_now()`` of the moment before the model was built: libraries, and what a job shares
    with others, do not count) to its peak in training. Only Linux tells the peak of a part of a process's life.
    """

    def __init__(self, before: tuple[int, int] = (0, 0)) -> None:
        self.resident_before, self.files_before = before
        self.seconds: list[float] = []
        self.examples = 0
        self.state_bytes = 0
        self.peak_memory = 0
        self.earlier_seconds = 0.0  # of training in processes before this one, up to their last checkpoint
        self._begun = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds of training so far, evaluation included, over all the processes that did it."""
        return self.earlier_seconds + time.perf_counter() - self._begun

    def leave_out(self, seconds: float) -> None:
        """Do not count ``seconds`` that were just spent on looking at the training."""
        self._begun += seconds

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._begun = time.perf_counter()
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_peak_resident()

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._start)
        self.examples += len(batch["index"])

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Also called where a resumed run has no step left to take; ``on_train_end`` is not."""
        self.state_bytes = state_bytes(trainer.optimizers[0])
        if trainer.strategy.root_device.type == "cuda":  # the module has left it by now
            self.peak_memory = torch.cuda.max_memory_allocated()
        else:
            _, files = resident_now()
            read = max(0, files - self.files_before)  # of libraries, when first used: nothing this training needs
            self.peak_memory = max(0, peak_resident() - self.resident_before - read)

    def summary(self) -> dict[str, float]:
        """Median step seconds, examples per second of training, optimizer-state bytes, peak memory bytes."""
        total = sum(self.seconds)
        return {
            "median_step_seconds": statistics.median(self.seconds) if self.seconds else 0.0,
            "examples_per_second": self.examples / total if total else 0.0,
            "optimizer_state_bytes": self.state_bytes,
            "peak_memory_bytes": self.peak_memory,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "examples": self.examples, "elapsed": self.elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.examples = list(state_dict["seconds"]), state_dict["examples"]
        self.earlier_seconds = state_dict["elapsed"]


def resident_now() -> tuple[int, int]:
    """Resident bytes of this process: all, and those that are pages of files such as libraries. Zeros off Linux."""
    found = {"VmRSS": 0, "RssFile": 0}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            key, _, rest = line.partition(":")
            if key in found:
                found[key] = int(rest.split()[0]) * 1024
    return found["VmRSS"], found["RssFile"]


def reset_peak_resident() -> None:
    """Start measuring the peak anew where the system can (Linux: writing 5 to ``clear_refs`` resets VmHWM)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> int:
    """Largest resident set in bytes since ``reset_peak_resident``, or since the process began."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, the others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
