"""Whose child is who."""

from __future__ import annotations

from pathlib import Path


def children(pid: int) -> list[int]:
    """Process ids of the children of ``pid``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found
