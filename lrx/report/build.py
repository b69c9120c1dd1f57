"""Putting the report together: one HTML file with its scripts, styles and data inside.

The page may load nothing: its content security policy forbids every connection, image and frame, and allows exactly
the scripts and the style sheet that are in it, by their hashes. Text from records reaches the page in two ways only:
through Jinja2's escaping, or as compressed JSON that scripts put into text nodes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lrx import __version__
from lrx.errors import UserError
from lrx.files import write_atomic
from lrx.report import figures, runs
from lrx.report.cells import grid_of, runs_grid, slug, tone, verdicts
from lrx.report.content import Content, Found, Stored, SweepPage, View, collect, read, status_counts
from lrx.results.gather import JobsOf

_MANY = 300  # records from which on a second process is worth its start
_HERE = Path(__file__).resolve().parent
# In the order in which the page runs them.
_VENDOR = ("dataTables.min.js", "chart.umd.min.js")
_SCRIPTS = ("base.js", "tables.js", "charts.js", "runs.js", "run.js", "main.js")


def write(root: Path, out: Path | None = None, *, jobs_of: JobsOf | None = None, folder: Path | None = None) -> Path:
    """Write the report on everything below ``root`` to ``out`` (default ``root/report.html``), and return its path.

    ``jobs_of`` and ``folder`` as for ``lrx.report.content.collect``. Raises ``UserError`` for a ``root`` that is no
    folder and for an ``out`` that cannot be written.
    """
    path = out or root / "report.html"
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder; name the file, e.g. {path / 'report.html'}")
    return write_atomic(path, page(read(root), path.parent, jobs_of=jobs_of, folder=folder))


def page(found: Found, base: Path, *, jobs_of: JobsOf | None = None, folder: Path | None = None) -> str:
    """The HTML text. Links to files are relative to ``base``."""
    if len(found.stored) < _MANY:
        return _page(collect(found, jobs_of=jobs_of, folder=folder), _details(found.stored, base))
    # Reading thousands of logs and composing the grids each take about a second: side by side.
    with ProcessPoolExecutor(1) as pool:
        details = pool.submit(_details, found.stored, base)
        content = collect(found, jobs_of=jobs_of, folder=folder)
        return _page(content, details.result())


def _page(content: Content, details: str) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(grid_of=grid_of, runs_grid=runs_grid, slug=slug, tone=tone, verdicts=verdicts)
    style = _inline(_HERE / "assets" / "report.css")
    scripts = [_inline(_HERE / "vendor" / name) for name in _VENDOR]
    scripts.append("".join(_inline(_HERE / "assets" / name) for name in _SCRIPTS))
    stored = content.found.stored
    records = [item.record for item in stored if not item.trial_of]
    return environment.get_template("page.html.j2").render(
        content=content,
        root=content.found.root,
        problems=content.found.problems,
        counts=status_counts(records),
        trials=len(stored) - len(records),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        style=style,
        scripts=scripts,
        policy=_policy(style, scripts),
        index=_packed({"runs": runs.run_list(stored), "figures": _figures(content)}),
        details=details,
    )


def _details(stored: list[Stored], base: Path) -> str:
    return _packed(runs.details(stored, base))


def _figures(content: Content) -> dict[str, list[dict[str, Any]]]:
    """Place on the page -> figures. A sweep's trials stand with its own scale's view."""
    found = {}
    for sweep_page in content.sweeps:
        for number, view in enumerate(sweep_page.views):
            found[place_of(sweep_page, view)] = _of_view(sweep_page, view, content.found.root, with_trials=number == 0)
    return found


def _of_view(sweep_page: SweepPage, view: View, root: Path, *, with_trials: bool) -> list[dict[str, Any]]:
    drawn = figures.of_view(sweep_page.sweep, view, root)
    trials = figures.of_trials(sweep_page) if with_trials else None
    return [*drawn, trials] if trials else drawn


def place_of(sweep_page: SweepPage, view: View) -> str:
    """The id of the element that holds a view's figures."""
    return f"figures-{slug(sweep_page.sweep.name)}-{slug(view.scale)}"


def _packed(value: Any) -> str:
    """JSON, gzip, base64: a tenth of the size, and nothing in it can end the element that holds it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


def _inline(path: Path) -> str:
    """A script or style sheet as it can stand in the page."""
    text = "\n".join(line for line in path.read_text("utf-8").splitlines() if not line.startswith("//# sourceMapping"))
    if "</script" in text.lower() or "</style" in text.lower() or "<!--" in text:
        raise ValueError(f"{path} cannot stand inside a page: it holds the end of its own element")
    return text + "\n"


def _policy(style: str, scripts: Sequence[str]) -> str:
    def hashes(texts: Sequence[str]) -> str:
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    rules = ["default-src 'none'", f"script-src {hashes(scripts)}", f"style-src {hashes([style])}"]
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])
