"""How all plots look: colours, markers, margins and axes. Sizes are in inches: a constrained layout costs seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for colour-blind readers; markers and line styles tell rows apart in grey.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#8C8C00"]
MARKERS = "osD^vPX*"
DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 3))]
GREY = "#555555"
RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
    "svg.hashsalt": "lrx",  # element ids must not change from one rendering to the next
    "svg.fonttype": "none",  # text stays text: smaller, quicker, searchable
    "savefig.dpi": 150,
}
LETTER, LINE = 0.075, 0.19  # average width of a letter and height of a line at 9 points


def colour(row: int) -> str:
    return COLOURS[row % len(COLOURS)]


def marker(row: int) -> str:
    """Rows that share a colour differ in their marker."""
    return MARKERS[(row + row // len(COLOURS)) % len(MARKERS)]


def draw_mean(axis: Axes, row: int, x: float, y: float, spread: float | None, *, along: str) -> None:
    """A mean, large and open so that the seeds are seen through it, with its spread along ``x`` or ``y``."""
    if spread:
        ends = ([x - spread, x + spread], [y, y]) if along == "x" else ([x, x], [y - spread, y + spread])
        cap = "|" if along == "x" else "_"  # a line with end markers: matplotlib's error bars take five times as long
        axis.plot(*ends, color=colour(row), linewidth=1.3, marker=cap, markersize=7, markeredgewidth=1.3, zorder=3)
    shape: dict[str, Any] = {"marker": marker(row), "markersize": 6.5, "markerfacecolor": "none"}
    axis.plot([x], [y], linestyle="none", color=colour(row), markeredgewidth=1.4, zorder=3, **shape)


def draw_seeds(axis: Axes, row: int, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Single seeds: small and full, in the shape of the mean."""
    look: dict[str, Any] = {"marker": marker(row), "markersize": 3.6, "markeredgewidth": 0, "linestyle": "none"}
    axis.plot(xs, ys, color=colour(row), alpha=0.6, zorder=2, **look)


def width_of(texts: Sequence[str]) -> float:
    """Room for the longest of the texts, in inches."""
    return LETTER * max((len(line) for text in texts for line in text.split("\n")), default=0)


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float, **options: Any) -> Axes:
    """Axes at a place in inches from the figure's lower left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / down, width / across, height / down), **options)


def title(figure: Figure, text: str) -> None:
    """The figure's title, in as many lines as its width needs."""
    import textwrap

    across, down = figure.get_size_inches()
    lines = textwrap.wrap(text, max(20, int((across - 0.3) / (LETTER * 1.08))))
    figure.text(0.15 / across, 1 - 0.1 / down, "\n".join(lines), fontsize=10, va="top")


def title_height(text: str, width: float) -> float:
    """Room for the title above the panels, in inches."""
    import textwrap

    return 0.22 + 0.18 * len(textwrap.wrap(text, max(20, int((width - 0.3) / (LETTER * 1.08)))))


def log_axis(axis: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis around ``values`` with few, round, labelled ticks."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    low, high = min(values), max(values)
    room = max((high / low) ** 0.08, 1.25)
    low, high = low / room, high * room
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    digits = (1, 2, 5) if math.log10(high / low) < 1.6 else (1,)
    ticks = [d * 10.0**k for k in range(first, last + 1) for d in digits if low <= d * 10.0**k <= high]
    ticks = ticks or [math.sqrt(low * high)]  # equal values between two round ones
    width = axis.bbox.width / axis.figure.dpi
    ticks = ticks[:: math.ceil(len(ticks) / max(2, width / 0.55))]
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xticklabels([short(tick) for tick in ticks])


def short(number: float) -> str:
    """``22.7M``, ``149k``, ``0.003``, ``1e-05``."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
