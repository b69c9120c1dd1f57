"""What a run ran on: versions, commit, processor."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "pytorch-lightning", "transformers", "peft", "datasets", "torchmetrics", "hydra-core", "numpy")


def describe() -> dict[str, Any]:
    """Versions of Python, lrx and what it stands on, the source commit, the processor and its threads."""
    found = dict(describe_software())
    found["cpu"] = _cpu()
    found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    found["threads"] = torch.get_num_threads()
    found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found["platform"] = platform.system()
    return found


@functools.cache
def describe_software() -> dict[str, Any]:
    """What the process has loaded, so found once: versions and the commit."""
    from lrx import __version__

    found: dict[str, Any] = {"python": platform.python_version(), "lrx": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found | commit()


def commit() -> dict[str, Any]:
    """The commit of the checkout lrx runs from and whether files differ from it; empty outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return {}
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": head.stdout.strip(), "dirty": bool(status.stdout.strip())}


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
