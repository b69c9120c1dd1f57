"""What stands in a cell: a number with its spread, n and letters, or the reason why there is none."""

from __future__ import annotations

from lrx.results.claims import MINUS
from lrx.results.collect import MISSING, OUTCOMES, Cell, Line, Table
from lrx.results.render import Text

MARK = "SELECTED ON THE REPORTED SPLIT"
_COST_SCALE = {
    "optimizer_state_bytes": (2.0**-20, 2),
    "peak_memory_bytes": (2.0**-20, 0),
    "median_step_seconds": (1e3, 1),
    "wall_seconds": (1.0, 0),
    "examples_per_second": (1.0, 0),
}


def cell_text(cell: Cell, line: Line, digits: int, letters: str = "") -> Text:
    """``85.31 ± 0.42 (3) ab``; NaN counted; without a value the reason why there is none."""
    if cell.mean is None:
        if cell.not_finite:
            return Text("NaN", f"({cell.not_finite} of {len(line.slots)})")
        if line.finished:
            return Text("no value", f"({cell.reason or f'{len(line.finished)} finished'})")
        return Text("not run") if set(line.outcomes()) <= {MISSING} else Text("none", f"({outcomes_text(line)})")
    spread = f"± {cell.std:.{digits}f} " if cell.std is not None else ""
    excluded = f"; {cell.not_finite} NaN" if cell.not_finite else ""
    return Text(fixed(cell.mean, digits), f"{spread}({cell.n}{excluded}) {letters}".strip())


def cost_text(line: Line, name: str) -> Text:
    """A cost in the unit of its heading."""
    cell = line.cost(name)
    if cell.mean is None:
        return cell_text(cell, line, 0)
    return Text(cost_number(name, cell.mean), f"({cell.n})")


def cost_number(name: str, value: float) -> str:
    """A number of ``COSTS`` in the unit of its heading: ``cost_number("median_step_seconds", 0.05) == "50.0"``."""
    factor, digits = _COST_SCALE.get(name, (1.0, 0))
    return f"{value * factor:,.{digits}f}"


def runs_text(line: Line) -> Text:
    """``3 of 3``, or ``1 of 3 (1 failed, 1 missing)``."""
    return Text(f"{len(line.finished)} of {len(line.slots)}", f"({outcomes_text(line)})" if line.outcomes() else "")


def published_text(value: str | None) -> Text:
    """A paper's number as printed."""
    if value is None:
        return Text("not reported")
    mean, _, std = value.partition(" ± ")
    return Text(mean, f"± {std}" if std else "")


def outcomes_text(line: Line) -> str:
    """``1 failed, 2 missing``."""
    return ", ".join(f"{count} {OUTCOMES[status]}" for status, count in line.outcomes().items())


def scale_of(table: Table) -> str:
    """The scale of a grid's jobs, as every heading says it."""
    return listed(table.facts("scale.name"))


def listed(values: list[str]) -> str:
    """``a, b``, or ``unknown``."""
    return ", ".join(values) or "unknown"


def fixed(number: float, digits: int) -> str:
    """Fixed digits, with a minus sign instead of a hyphen."""
    return f"{number:.{digits}f}".replace("-", MINUS)
