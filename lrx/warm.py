"""What the jobs of a sweep share: built once in the warm server, before it forks them.

A forked job sees the server's memory as its own copy, so what is kept here costs neither time nor memory again, and
nothing that a job does to it reaches another job. Outside the server nothing is kept: a run alone builds what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

kept: dict[Hashable, object] = {}
_keeping = False
_most_bytes = 0


def begin(most_bytes: int) -> None:
    """Keep from now on what ``keep`` is asked for, as long as the process stays below ``most_bytes``."""
    global _keeping, _most_bytes
    _keeping, _most_bytes = True, most_bytes


def end() -> None:
    """Keep nothing more: called in a forked job, which still sees what was kept before it."""
    global _keeping
    _keeping = False


def keeping() -> bool:
    """Whether this is the server, which builds for others."""
    return _keeping


def active() -> bool:
    """Whether anything is kept here: in the server, and in a job that it forked."""
    return _keeping or bool(kept)


def keep(key: Hashable, build: Callable[[], T]) -> T:
    """What was kept under ``key``, or ``build()``. The caller must not change it, or hand out a copy."""
    if key in kept:
        return kept[key]  # type: ignore[return-value]
    value = build()
    if _keeping:
        while kept and resident_bytes() > _most_bytes:
            del kept[next(iter(kept))]  # the oldest
        kept[key] = value
    return value


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    import resource

    return pages * resource.getpagesize()
