"""Reading ``metrics.jsonl``, the log of a training part: one JSON object per line, in step order."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from lrx.errors import UserError
from lrx.files import cannot


def read_history(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a metric log, ``{"step": 40, "train/loss": 0.3, "lr": 0.01}``; an absent file has none.

    A line that a kill cut short is passed over, as is one without a step. Raises ``UserError`` when the system refuses.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise cannot("read", path, error) from error
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and type(entry.get("step")) is int:
                found.append(entry)
    return found


def metric_log(root: Path | str, run_id: str, part: str) -> Path:
    """Where the log of a run's part is. Raises ``UserError`` for a name that would lead out of its folder."""
    for name in (run_id, part):
        if not name or name != Path(name).name or name.startswith("."):
            raise UserError(f"{name!r} is no name of a run or part")
    return Path(root) / "runs" / run_id / part / "metrics.jsonl"
