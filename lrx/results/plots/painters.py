"""Processes that draw. They load matplotlib, which takes as long as drawing, while records are still being read."""

from __future__ import annotations

import io
import multiprocessing
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("png", "svg")
MARK = "lrx-plot-"  # an SVG names the data it was drawn from
_ready: list[Connection] = []


@dataclass(frozen=True)
class Order:
    """A plot to draw: a function of ``figures``, its data, and the digest of them that the SVG shall name."""

    name: str
    data: dict[str, Any]
    digest: str


def get_ready() -> None:
    """Start the processes now, if the system can fork and has two processors. They end with this one."""
    if _ready or threading.active_count() > 1 or "fork" not in multiprocessing.get_all_start_methods():
        return  # a fork of several threads may hold a lock that nobody frees
    context = multiprocessing.get_context("fork")
    for _ in range(min(2, _processors()) if _processors() > 1 else 0):
        ours, theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs,), daemon=True).start()
        theirs.close()
        _ready.append(ours)


def paint(orders: Sequence[Order]) -> list[dict[str, bytes]]:
    """The images of each order, ``{"png": ..., "svg": ...}``, in order."""
    if not orders:
        return []
    get_ready()
    if not _ready:
        return [render(order) for order in orders]
    pipes = list(_ready)
    _ready.clear()
    # The curves take as long as the rest together, so the last order goes first, to a process of its own.
    shares = [list(range(len(orders) - 1, -1, -1))[:1], list(range(len(orders) - 2, -1, -1))]
    for pipe, share in zip(pipes, shares, strict=True):
        pipe.send([orders[index] for index in share])
    found: dict[int, dict[str, bytes]] = {}
    for pipe, share in zip(pipes, shares, strict=True):
        answer = pipe.recv()
        pipe.close()
        if isinstance(answer, BaseException):
            raise answer
        found.update(zip(share, answer, strict=True))
    return [found[index] for index in range(len(orders))]


def render(order: Order) -> dict[str, bytes]:
    """The images of one order: the same bytes for the same data."""
    import matplotlib as mpl

    from lrx.results.plots import figures, style

    with mpl.rc_context(style.RC):
        figure = getattr(figures, order.name)(order.data)
        return {kind: _bytes(figure, kind, order.digest) for kind in KINDS}


def _serve(pipe: Connection) -> None:
    """Load what drawing needs, draw one list of orders, and end."""
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg  # noqa: F401

    from lrx.results.plots import figures  # noqa: F401

    try:
        pipe.send([render(order) for order in pipe.recv()])
    except EOFError:  # nothing to draw
        pass
    except Exception as error:
        pipe.send(error)


def _bytes(figure: Figure, kind: str, digest: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)  # no display is needed, or asked for
    out = io.BytesIO()
    # Date and version would make equal plots differ.
    options: dict[str, dict[str, Any]] = {
        "png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 3}},
        "svg": {"metadata": {"Date": None, "Creator": None, "Description": MARK + digest}},
    }
    figure.savefig(out, format=kind, **options[kind])
    return out.getvalue()


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
