"""The composed jobs of a sweep, remembered between commands: ``table`` and ``status`` need not compose them again.

What is remembered is a pure function of the files it was composed from, so the key is made of those: every file of the
configuration and of the package, by path, size and time of change, and the overrides, with the environment if they
read it. Identities are not remembered: they also depend on data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrx import paths
from lrx.data.embedded import cache_dir
from lrx.errors import UserError
from lrx.files import write_atomic

MOST = 64  # remembered grids; the oldest goes

Composed = list[tuple[list[str], dict[str, Any]]]  # overrides and configuration of each job


def key(sweep: str, overrides: Sequence[str]) -> str:
    """64 hex digits for a grid as composed from the files as they are."""
    environment = sorted(os.environ.items()) if "oc.env" in repr(overrides) else []
    total = hashlib.sha256(repr((sweep, list(overrides), environment)).encode())
    package = Path(__file__).resolve().parent.parent
    for folder, suffix in ((paths.conf_dir(), ".yaml"), (paths.sweeps_dir(), ".yaml"), (package, ".py")):
        for where, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                if name.endswith(suffix):
                    found = os.stat(os.path.join(where, name))
                    total.update(f"{where}/{name}:{found.st_size}:{found.st_mtime_ns};".encode())
    return total.hexdigest()


def recall(name: str) -> Composed | None:
    """The grid under ``key``, or None."""
    try:
        return [(list(overrides), dict(config)) for overrides, config in json.loads(_path(name).read_text())]
    except (OSError, ValueError, TypeError):
        return None


def remember(name: str, composed: Composed) -> None:
    """Keep a grid. A cache that cannot be written is no reason to stop."""
    with contextlib.suppress(UserError, OSError):
        path = write_atomic(_path(name), json.dumps(composed))
        kept = sorted(path.parent.glob("*.json"), key=lambda each: each.stat().st_mtime)
        for old in kept[:-MOST]:
            old.unlink(missing_ok=True)


def _path(name: str) -> Path:
    return cache_dir() / "composed" / f"{name}.json"
