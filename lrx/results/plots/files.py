"""The plots' files: PNG and SVG of each, written when there is data, and drawn only when something has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lrx.files import read_text, write_atomic
from lrx.results.collect import Table
from lrx.results.plots import series
from lrx.results.plots.painters import KINDS, MARK, Order, paint
from lrx.results.sweep import Sweep

_MAKERS: dict[str, Callable[[Sweep, Table], series.Figure]] = {
    "scores": series.scores,
    "pareto": series.pareto,
    "sensitivity": series.sensitivity,
    "curves": series.curves,
}


@dataclass(frozen=True)
class Drawn:
    """``files`` in order, also those that were up to date; ``absent``: a line for each plot that has no data."""

    files: list[Path] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def draw(sweep: Sweep, table: Table, folder: Path) -> Drawn:
    """Write the plots that have data into ``folder``; an old file of one that has none is removed."""
    drawn, orders = Drawn(), []
    for name, make in _MAKERS.items():
        paths = [folder / f"{name}.{kind}" for kind in KINDS]
        try:
            data = make(sweep, table)
        except series.NoData as reason:
            drawn.absent.append(f"{name}: {reason}")
            for path in paths:
                path.unlink(missing_ok=True)
            continue
        drawn.files.extend(paths)
        order = Order(name, data, _digest(name, data))
        if not _is_current(paths, order.digest):
            orders.append(order)
    for order, images in zip(orders, paint(orders), strict=True):
        for kind, content in images.items():
            write_atomic(folder / f"{order.name}.{kind}", content)
    return drawn


def _is_current(paths: Sequence[Path], digest: str) -> bool:
    """Whether all files are there and the SVG says that it shows these very data."""
    if not all(path.exists() for path in paths):
        return False
    return MARK + digest in read_text(next(path for path in paths if path.suffix == ".svg"))


def _digest(name: str, data: series.Figure) -> str:
    """Of what a plot shows and of the code that draws it."""
    return hashlib.sha256(json.dumps([name, data, _code()], sort_keys=True).encode()).hexdigest()[:32]


@cache
def _code() -> str:
    from importlib.metadata import version

    sources = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(b"".join([*sources, version("matplotlib").encode()])).hexdigest()
