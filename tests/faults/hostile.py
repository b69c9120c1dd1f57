"""What hostile cases share: a pickle that acts, and the check that nothing did."""

from __future__ import annotations

import os
from pathlib import Path


def refused(shown, marker: Path, *words: str) -> None:
    """One line with ``words``, exit code 2, and no marker."""
    assert not marker.exists(), shown
    assert shown.code == 2, shown
    assert len(shown.err.strip().splitlines()) == 1, shown
    assert "Traceback" not in shown.err + shown.out
    for word in words:
        assert word in shown.err, shown


class Evil:
    """Unpickling this makes the marker's folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)
