"""What the report is about: the sweeps at the scales they ran at, the papers behind them, and every record.

All statistics come from ``lrx.results``; nothing is computed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lrx import registry
from lrx.errors import UserError
from lrx.results import claims
from lrx.results import table as tables
from lrx.results.claims import Judged
from lrx.results.collect import Table
from lrx.results.gather import JobsOf
from lrx.results.record import Problem, RunRecord, read_folder
from lrx.results.render import Block
from lrx.results.sweep import Sweep, load, sweep_names

Read = tuple[list[RunRecord], list[Problem]]


@dataclass(frozen=True)
class View:
    """A sweep at one scale: the blocks that ``python -m lrx table`` prints, and the claims as judged there."""

    scale: str
    table: Table
    blocks: list[Block]
    judged: list[Judged]


@dataclass(frozen=True)
class SweepPage:
    """A sweep with its views, the sweep's own scale first. ``trials``: records of its tuning."""

    sweep: Sweep
    views: list[View]
    trials: list[RunRecord] = field(default_factory=list)


@dataclass(frozen=True)
class Paper:
    """A paper with the methods that come from it and the sweeps that repeat its tables."""

    title: str
    methods: list[str]
    sweeps: list[SweepPage]
    runs: int


@dataclass(frozen=True)
class Stored:
    """A record and the folder (``paths.root``) that its files are relative to."""

    record: RunRecord
    root: Path
    trial_of: str = ""


@dataclass(frozen=True)
class Found:
    """The records below ``root``, tuning trials last, and the files among them that are none."""

    root: Path
    stored: list[Stored]
    problems: list[Problem]


@dataclass(frozen=True)
class Content:
    """All that the report shows. ``broken``: sweep name -> why it cannot be shown."""

    found: Found
    sweeps: list[SweepPage]
    broken: dict[str, str]
    papers: list[Paper]


def read(root: Path) -> Found:
    """All records below ``root`` and below ``root/tuning/SWEEP``; those that cannot be read are listed, never fatal.

    Raises ``UserError`` when ``root`` is a file or cannot be read.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"--root {root}: not a folder")
    records, problems = read_folder(root / "records")
    stored = [Stored(record, root) for record in records]
    for place in sorted((root / "tuning").glob("*/records")):
        trials, more = read_folder(place)
        problems = [*problems, *more]
        stored += [Stored(record, place.parent, place.parent.name) for record in trials]
    return Found(root, stored, problems)


def collect(found: Found, *, jobs_of: JobsOf | None = None, folder: Path | None = None) -> Content:
    """The sweeps in ``folder`` and their papers, joined with the records. A sweep that cannot be read is listed.

    ``jobs_of`` composes a grid (default: ``lrx.launch.sweep_jobs``).
    """
    records = [item.record for item in found.stored if not item.trial_of]
    pages, broken = [], {}
    for name in sweep_names(folder):
        try:
            views = _views(name, found.root, (records, found.problems), jobs_of, folder)
            trials = [item.record for item in found.stored if item.trial_of == name]
            pages.append(SweepPage(load(name, folder), views, trials))
        except UserError as error:
            broken[name] = str(error)
    return Content(found, pages, broken, _papers(pages, records))


def status_counts(records: Iterable[RunRecord]) -> dict[str, int]:
    """How many records have which status, finished first."""
    found: dict[str, int] = {"finished": 0}
    for record in records:
        found[record.status] = found.get(record.status, 0) + 1
    return found


def _views(name: str, root: Path, read: Read, jobs_of: JobsOf | None, folder: Path | None) -> list[View]:
    """The sweep's own scale with the published tables, and each other scale at which its jobs have left records."""
    data = tables.gather(name, root, jobs_of=jobs_of, folder=folder, read=read)
    table = data.table
    shown = {*table.facts("scale.name"), *(published.scale for published in data.sweep.published)}
    tasks = set(table.facts("task.name"))
    views = [View(tables.scale_of(table), table, tables.document(data).blocks, claims.judge(data.sweep, table))]
    for scale in sorted({record.scale for record in read[0] if record.task in tasks} - shown):
        there = [f"scale={scale}"]
        data = tables.gather(name, root, overrides=there, jobs_of=jobs_of, folder=folder, read=read, published=False)
        if data.table.records():
            blocks = [block for block in tables.document(data).blocks if block.key not in _of_papers(data.sweep)]
            views.append(View(scale, data.table, blocks, claims.judge(data.sweep, data.table)))
    return views


def _of_papers(sweep: Sweep) -> set[str]:
    """Keys of the blocks that show published numbers; they stand once, with the sweep's own scale."""
    return {key for published in sweep.published for key in (published.key, f"{published.key}-difference")}


def _papers(pages: list[SweepPage], records: list[RunRecord]) -> list[Paper]:
    """Papers of sweeps, then those of methods that no sweep covers. An arXiv number tells that two are the same."""
    titles = {_identity(page.sweep.paper): page.sweep.paper for page in pages}
    methods: dict[str, list[str]] = {}
    for name, entry in sorted(registry.entries("methods").items()):
        text = str(entry.attributes.get("paper", ""))
        if text:
            titles.setdefault(_identity(text), text)
            methods.setdefault(_identity(text), []).append(name)
    papers = []
    for identity, title in titles.items():
        of_paper = [page for page in pages if _identity(page.sweep.paper) == identity]
        names = methods.get(identity, [])
        papers.append(Paper(title, names, of_paper, sum(record.method in names for record in records)))
    return sorted(papers, key=lambda paper: (not paper.sweeps, not paper.runs, paper.title.lower()))


def _identity(paper: str) -> str:
    number = re.search(r"\d{4}\.\d{4,5}", paper)
    return number[0] if number else paper
