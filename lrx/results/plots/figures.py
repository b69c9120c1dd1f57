"""Drawing: from the data of ``series`` to matplotlib figures. Each row has its colour and marker in all of them."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lrx.results.plots import style
from lrx.results.plots.style import (
    DASHES,
    GREY,
    axes_at,
    colour,
    draw_mean,
    draw_seeds,
    log_axis,
    marker,
    title_height,
    width_of,
)  # fmt: skip

_NOTHING = ": no data"
_BOX: dict[str, Any] = {"color": GREY, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1.5}}


def scores(data: dict[str, Any]) -> Figure:
    """A panel per column, a line per method; the first row on top, as in the table."""
    columns, rows = data["columns"], data["rows"]
    across = min(len(columns), 5)
    down = math.ceil(len(columns) / across)
    left, width, height = 0.25 + width_of(rows), 1.75, 0.36 * len(rows) + 0.1
    total = left + across * (width + 0.2) + 0.1
    top = title_height(data["title"], total)
    figure = Figure(figsize=(total, top + down * (height + 0.62)))
    style.title(figure, data["title"])
    for index, column in enumerate(columns):
        x = left + (index % across) * (width + 0.2)
        y = (down - 1 - index // across) * (height + 0.62) + 0.36
        axis = axes_at(figure, x, y, width, height)
        _score_panel(axis, column, rows if index % across == 0 else [])
    return figure


def _score_panel(axis: Axes, column: dict[str, Any], rows: list[str]) -> None:
    for row, cell in enumerate(column["cells"]):
        if cell["mean"] is None:
            place = axis.get_yaxis_transform()
            axis.text(0.03, row, cell["text"], ha="left", va="center", transform=place, fontsize=7, **_BOX)
            continue
        draw_seeds(axis, row, cell["seeds"], [row - 0.18] * len(cell["seeds"]))
        draw_mean(axis, row, cell["mean"], row + 0.16, cell["std"], along="x")
    axis.set_yticks(range(len(column["cells"])), rows or [""] * len(column["cells"]))
    axis.set_ylim(len(column["cells"]) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.margins(x=0.12)
    axis.locator_params(axis="x", nbins=4)
    axis.set_title(column["label"])
    if all(cell["mean"] is None for cell in column["cells"]):
        axis.set_xticks([])


def pareto(data: dict[str, Any]) -> Figure:
    """Score against cost, a panel for each cost; the line joins the methods that no other beats in both."""
    panels = [panel for panel in data["panels"] if panel["items"]]
    width, height, left = 3.0, 2.9, 0.75
    legend = 0.75 + width_of([*_entries(data["rows"]), "Pareto front of the means"])
    total = left + len(panels) * (width + 0.25) + legend
    top = title_height(data["title"], total)
    figure = Figure(figsize=(total, height + top + 0.7))
    style.title(figure, data["title"])
    for index, panel in enumerate(panels):
        axis = axes_at(figure, left + index * (width + 0.25), 0.7, width, height)
        _pareto_panel(axis, panel)
        if index:
            axis.tick_params(axis="y", labelleft=False)
        else:
            axis.set_ylabel(data["ylabel"])
    bounds = [axis.get_ylim() for axis in figure.axes]
    for axis in figure.axes:
        axis.set_ylim(min(low for low, _ in bounds), max(high for _, high in bounds))
    drawn = sorted({item["row"] for panel in panels for item in (*panel["items"], *panel["free"])})
    handles = _handles(data["rows"], drawn, joined=False)
    handles.append(Line2D([], [], color=GREY, linestyle="--", linewidth=1.1, label="Pareto front of the means"))
    _legend(figure, handles, total - legend + 0.1, top)
    return figure


def _pareto_panel(axis: Axes, panel: dict[str, Any]) -> None:
    items = panel["items"]
    xs = [x for item in items for x in (item["x"], *item["xs"])]
    log = min(xs) > 0 and (panel["cost"] == "trainable_parameters" or max(xs) / min(xs) > 5)
    places = _side_by_side(items) if panel["cost"] == "trainable_parameters" else [(i["x"], i["xs"]) for i in items]
    for item, (x, seeds) in zip(items, places, strict=True):
        draw_seeds(axis, item["row"], seeds, item["ys"])
        draw_mean(axis, item["row"], x, item["y"], item["std"], along="y")
    for item in panel["free"]:
        axis.axhline(item["y"], color=colour(item["row"]), linestyle=":", linewidth=1.3, zorder=1)
    if len(panel["front"]) > 1:
        axis.plot(
            *zip(*panel["front"], strict=True),
            drawstyle="steps-post",
            color=GREY,
            linestyle="--",
            linewidth=1.1,
            zorder=1,
        )
    axis.margins(x=0.1, y=0.08)
    if log:
        log_axis(axis, xs)
    else:
        axis.locator_params(axis="x", nbins=5)
    note = "\n(dotted: without training)" if panel["free"] else ""
    note += "\n(methods of equal size side by side)" if places != [(i["x"], i["xs"]) for i in items] else ""
    axis.set_xlabel(panel["label"] + note)


def _side_by_side(items: list[dict[str, Any]]) -> list[tuple[float, list[float]]]:
    """Places of mean and seeds: methods within a few percent of each other are moved apart, seeds to the left."""
    smallest, largest = min(item["x"] for item in items), max(item["x"] for item in items)
    step = max(0.04 * math.log(largest / smallest), 0.03)
    places = []
    for item in items:
        near = [other["row"] for other in items if abs(math.log(other["x"] / item["x"])) < 0.05]
        x = item["x"] * math.exp(step * (near.index(item["row"]) - (len(near) - 1) / 2))
        places.append((x, [x * math.exp(-0.35 * step)] * len(item["xs"]) if len(near) > 1 else item["xs"]))
    return places


def sensitivity(data: dict[str, Any]) -> Figure:
    """The selection score against each tuned value. Ringed: the best. Crosses below: trials that failed or diverged."""
    panels = data["panels"]
    width, height, left = (5.0 if len(panels) == 1 else 3.4), 3.1, 0.9
    failed = any(line["failed"] for panel in panels for line in panel["lines"])
    words = ["best trial", *(["failed, diverged or no number"] if failed else [])]
    legend = 0.75 + width_of([*_entries(data["rows"]), *words])
    total = left + len(panels) * (width + 0.3) + legend
    top = title_height(data["title"], total)
    figure = Figure(figsize=(total, height + top + 0.55))
    style.title(figure, data["title"])
    for index, panel in enumerate(panels):
        axis = axes_at(figure, left + index * (width + 0.3), 0.55, width, height)
        _sensitivity_panel(axis, panel)
        if not index:
            axis.set_ylabel(data["ylabel"])
    drawn = sorted({line["row"] for panel in panels for line in panel["lines"]})
    handles = _handles(data["rows"], drawn)
    ring: dict[str, Any] = {"marker": "o", "linestyle": "none", "markerfacecolor": "none", "color": "black"}
    handles.append(Line2D([], [], markersize=11, label=words[0], **ring))
    if failed:
        handles.append(Line2D([], [], marker="x", linestyle="none", color="black", label=words[1]))
    _legend(figure, handles, total - legend + 0.1, top)
    return figure


def _sensitivity_panel(axis: Axes, panel: dict[str, Any]) -> None:
    lines = panel["lines"]
    for line in lines:
        row = line["row"]
        if line["points"]:
            xs, ys = zip(*line["points"], strict=True)
            dashes = DASHES[row % len(DASHES)] if line["joined"] else "none"
            axis.plot(xs, ys, color=colour(row), marker=marker(row), markersize=5, linestyle=dashes, linewidth=1.3)
            axis.plot(*line["best"], "o", markersize=11, markerfacecolor="none", color=colour(row))
    low, high = axis.get_ylim() if any(line["points"] for line in lines) else (0.0, 1.0)
    crossed = [line for line in lines if line["failed"]]
    for place, line in enumerate(crossed, 1):  # a height for each method: equal values do not hide each other
        y = low - 0.05 * (high - low) * place
        axis.plot(line["failed"], [y] * len(line["failed"]), "x", color=colour(line["row"]), markersize=6)
    if crossed:
        axis.axhline(low - 0.01 * (high - low), color=GREY, linewidth=0.6)
        axis.set_yticks([tick for tick in axis.get_yticks() if low <= tick <= high])
        axis.set_ylim(low - 0.05 * (high - low) * (len(crossed) + 1), high)
    places = [x for line in lines for x in [*(point[0] for point in line["points"]), *line["failed"]]]
    if panel["log"] and min(places) > 0:
        log_axis(axis, places)
    axis.set_xlabel(panel["label"])


def curves(data: dict[str, Any]) -> Figure:
    """Two panels for each part, one above the other: selection metric and training loss against the step."""
    parts, rows = data["parts"], data["rows"]
    across = min(len(parts), 4)
    down = math.ceil(len(parts) / across)
    kinds = [kind for kind in ("select", "loss") if any(part[kind]["lines"] for part in parts)]
    width, height, gap, left = 2.5, 1.7, 0.62, 0.7
    legend = 0.8 + width_of(_entries(rows))
    total = max(left + across * (width + gap) + legend - 0.4, 5.0)
    top = title_height(data["title"], total) + 0.2
    block = len(kinds) * (height + 0.25) + 0.55
    figure = Figure(figsize=(total, top + down * block))
    style.title(figure, data["title"])
    for index, part in enumerate(parts):
        last = max(line["x"][-1] for kind in kinds for line in part[kind]["lines"])
        for k, kind in enumerate(kinds):
            x = left + (index % across) * (width + gap)
            y = (down - 1 - index // across) * block + 0.5 + (len(kinds) - 1 - k) * (height + 0.25)
            axis = axes_at(figure, x, y, width, height)
            _curve_panel(axis, part[kind], last)
            if k == 0:
                axis.set_title(part["name"])
            if k == len(kinds) - 1:
                axis.set_xlabel("step")
    drawn = sorted({line["row"] for part in parts for kind in kinds for line in part[kind]["lines"]})
    handles = _handles(rows, drawn)
    _legend(figure, handles, total - legend + 0.1, top)
    return figure


def _curve_panel(axis: Axes, panel: dict[str, Any], last: int) -> None:
    """``last``: the last step of the part, where both its panels end."""
    for line in panel["lines"]:
        row, xs = line["row"], line["x"]
        every = max(1, len(xs) // 6)
        look: dict[str, Any] = {"linestyle": DASHES[row % len(DASHES)], "linewidth": 1.3, "color": colour(row)}
        axis.plot(xs, line["mean"], marker=marker(row), markersize=4, markevery=every, **look)
        if line["n"] > 1:
            axis.fill_between(xs, line["low"], line["high"], color=colour(row), alpha=0.13, linewidth=0)
    axis.set_ylabel(panel["label"])
    axis.locator_params(nbins=5)
    axis.set_xlim(0, last * 1.03)
    if not panel["lines"]:
        axis.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axis.transAxes, **_BOX)
        axis.set_xticks([])
        axis.set_yticks([])


def _handles(rows: list[str], drawn: list[int], *, joined: bool = True) -> list[Line2D]:
    """A legend entry for every row; one that is not drawn says so."""
    handles = []
    for row, label in enumerate(rows):
        if row not in drawn:
            handles.append(Line2D([], [], linestyle="none", label=label + _NOTHING))
            continue
        look: dict[str, Any] = {"linestyle": DASHES[row % len(DASHES)], "markerfacecolor": colour(row)}
        look |= {} if joined else {"linestyle": "none", "markerfacecolor": "none"}
        handles.append(Line2D([], [], color=colour(row), marker=marker(row), markersize=6, label=label, **look))
    return handles


def _entries(rows: list[str]) -> list[str]:
    """The legend's words at their longest."""
    return [row + _NOTHING for row in rows]


def _legend(figure: Figure, handles: list[Line2D], left: float, top: float) -> None:
    """To the right of the panels, where it covers nothing."""
    across, down = figure.get_size_inches()
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(left / across, 1 - (top - style.LINE / 2) / down),
                  borderaxespad=0, handlelength=2.8)  # fmt: skip
