"""Plots of a table: every seed as a point, mean ± std beside it; and score against trainable parameters."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from lrx.results.collect import Line, Table
from lrx.results.sweep import Column, Sweep
from lrx.results.table import cell_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for colour-blind readers; the marker tells rows apart in print.
_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#8C8C00"]
_MARKERS = "osD^vPX*"
_WORDS: dict[str, Any] = {"color": "#555555", "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1.5}}
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "svg.hashsalt": "lrx",  # element ids must not change from one rendering to the next
    "savefig.dpi": 160,
}


def images(sweep: Sweep, table: Table) -> dict[str, bytes]:
    """File name -> content of all plots, PNG and SVG."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        figures = {"scores": scores(sweep, table), "parameters": parameters(sweep, table)}
        return {f"{name}.{kind}": _bytes(figure, kind) for name, figure in figures.items() for kind in ("png", "svg")}


def scores(sweep: Sweep, table: Table) -> Figure:
    """A panel per column, a line per method."""
    from matplotlib.figure import Figure

    columns = table.columns
    across = min(len(columns), 5)
    down = math.ceil(len(columns) / across)
    size = (1.6 + 2.1 * across, 0.7 + (0.6 + 0.34 * len(table.lines)) * down)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    for axis, column in zip(axes.flat, columns, strict=False):
        _panel(axis, table, column)
    for axis in list(axes.flat)[len(columns) :]:
        axis.set_visible(False)
    figure.suptitle(f"{sweep.title}: ours, scale {_scale(table)} (each seed; mean ± std)", fontsize=10)
    return figure


def parameters(sweep: Sweep, table: Table) -> Figure:
    """The headline score against trainable parameters. Methods of equal size are drawn side by side."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    column = sweep.column(sweep.headline) if sweep.headline else table.columns[-1]
    sizes = {line.row.key: line.cost("trainable_parameters").mean for line in table.lines}
    drawn = [line for line in table.lines if sizes[line.row.key] and table.cell(line, column).n]
    for index, line in enumerate(table.lines):
        if line in drawn:
            x, beside = _side_by_side(line, drawn, sizes)
            cell = table.cell(line, column)
            label = f"{line.row.label}: {sizes[line.row.key]:,.0f}"
            axis.scatter([beside] * cell.n, cell.finite, **_dots(index))
            axis.errorbar(x, cell.mean or 0.0, yerr=cell.std or 0.0, label=label, **_mark(index))
    axis.set_xscale("log")
    axis.set_xlabel("trainable parameters (methods of equal size side by side)")
    axis.set_ylabel(column.label)
    if drawn:
        axis.margins(x=0.12)
        axis.xaxis.set_minor_locator(LogLocator(subs="auto", numticks=12))
        figure.legend(loc="outside right upper", frameon=False, title="trainable parameters")
    else:
        axis.text(0.5, 0.5, "not run", ha="center", va="center", transform=axis.transAxes, **_WORDS)
        axis.set_xticks([])
        axis.set_yticks([])
    axis.set_title(f"{sweep.title}: ours, scale {_scale(table)}", fontsize=10)
    return figure


def _panel(axis: Axes, table: Table, column: Column) -> None:
    for index, line in enumerate(table.lines):
        cell = table.cell(line, column)
        if cell.mean is not None:
            axis.scatter(cell.finite, [index - 0.18] * cell.n, **_dots(index))
            axis.errorbar(cell.mean, index + 0.14, xerr=cell.std or 0.0, **_mark(index))
        else:
            place, text = axis.get_yaxis_transform(), str(cell_text(cell, line, column.digits))
            axis.text(0.03, index, text, ha="left", va="center", transform=place, fontsize=7, **_WORDS)
    axis.set_yticks(range(len(table.lines)), [line.row.label for line in table.lines])
    axis.set_ylim(len(table.lines) - 0.4, -0.6)  # the first row on top, as in the table
    axis.margins(x=0.12)
    axis.locator_params(axis="x", nbins=4)
    axis.set_title(column.label, fontsize=9)
    if not any(table.cell(line, column).n for line in table.lines):
        axis.set_xticks([])


def _mark(index: int) -> dict[str, Any]:
    shape = {"marker": _MARKERS[index % len(_MARKERS)], "markersize": 5, "markerfacecolor": "white"}
    return shape | {"color": _colour(index), "linestyle": "none", "elinewidth": 1.3, "capsize": 3}


def _dots(index: int) -> dict[str, Any]:
    return {"s": 14, "color": _colour(index), "alpha": 0.6, "linewidths": 0}


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _side_by_side(line: Line, drawn: list[Line], sizes: dict[str, float | None]) -> tuple[float, float]:
    """The line's size, moved a little (on the logarithmic axis) when others are within a few percent of it.

    The second number is the place of the single seeds, to the left of the mean.
    """
    own = sizes[line.row.key] or 1.0
    near = [other for other in drawn if abs(math.log((sizes[other.row.key] or 1.0) / own)) < 0.05]
    largest = max((sizes[other.row.key] or 1.0) for other in drawn)
    smallest = min((sizes[other.row.key] or 1.0) for other in drawn)
    step = max(0.02 * math.log(largest / smallest), 0.02)
    place = step * (near.index(line) - (len(near) - 1) / 2)
    return own * math.exp(place), own * math.exp(place - 0.4 * step)


def _scale(table: Table) -> str:
    return ", ".join(table.facts("scale.name")) or "unknown"


def _bytes(figure: Figure, kind: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)  # no display is needed, or asked for
    if figure.get_layout_engine():
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # one layout serves every format
    out = io.BytesIO()
    # Date and version would make equal plots differ.
    metadata: dict[str, Any] = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(out, format=kind, metadata=metadata)
    return out.getvalue()
