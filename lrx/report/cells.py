"""Blocks of ``lrx.results.table`` as the page's tables: the same words, with a number beside each to sort by."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lrx.results import claims
from lrx.results.claims import MINUS, Judged
from lrx.results.collect import OUTCOMES, Table
from lrx.results.render import Block, Text

_GLANCE = 280  # letters of a caption that are shown at once
_TONES = {"holds": "good", "finished": "good", "failed": "bad", "fails": "bad"}
_TONES |= {"diverged": "bad", "out_of_memory": "bad", "interrupted": "open", "missing": "quiet"}


@dataclass(frozen=True)
class Shown:
    """A cell: its words, what it sorts by (None: by its words), its colour and what it links to."""

    main: str
    detail: str = ""
    bold: bool = False
    order: str | None = None
    tone: str = ""
    run: str = ""


@dataclass(frozen=True)
class Grid:
    """A table of the page. ``numeric``: which columns are numbers, set to the right."""

    key: str
    title: str
    caption: str
    header: list[str]
    numeric: list[bool]
    rows: list[list[Shown]]
    notes: list[str]

    @property
    def lead(self) -> str:
        """The caption's first sentences, as many as a reader takes in at a glance."""
        return self.caption[: self._cut()].rstrip()

    @property
    def rest(self) -> str:
        """The caption's other sentences."""
        return self.caption[self._cut() :].lstrip()

    def _cut(self) -> int:
        if len(self.caption) <= _GLANCE:
            return len(self.caption)
        ends = [match.end() for match in re.finditer(r"\. (?=[A-Z])", self.caption)]
        return max((end for end in ends if end <= _GLANCE), default=min(ends, default=len(self.caption)))


def grid_of(block: Block) -> Grid:
    """A block's table. Columns of running text go left, columns of numbers right."""
    running = [bool(block.widths and block.widths[i]) for i in range(len(block.header))]
    numeric = [i > 0 and not running[i] for i in range(len(block.header))]
    last = len(block.header) - 1
    rows = [
        [
            Shown(
                str(cell) if block.key == "pairs" else cell.main,  # its details are no lesser part of a cell
                "" if block.key == "pairs" else cell.detail,
                cell.bold,
                order=_order(cell) if numeric[i] else None,
                tone=tone(cell.main) if block.key == "claims" and i == last else "",
            )
            for i, cell in enumerate(row)
        ]
        for row in block.rows
    ]
    return Grid(block.key, block.title, block.caption, block.header, numeric, rows, block.notes)


def runs_grid(table: Table) -> Grid:
    """Which runs stand behind a table: a row per method, a column per seed, each cell its outcome."""
    rows = []
    by_place = [{line.place(slot.job): slot for slot in line.slots} for line in table.lines]
    places = sorted({place for slots in by_place for place in slots})
    for line, slots in zip(table.lines, by_place, strict=True):
        row = [Shown(line.row.label)]
        for place in places:
            slot = slots.get(place)
            if slot is None:
                row.append(Shown("not asked for", tone="quiet"))
            else:
                words = OUTCOMES.get(slot.status, slot.status)
                run = slot.record.run_id if slot.record else ""
                row.append(Shown(words, tone=tone(slot.status), run=run))
        rows.append(row)
    header = ["method", *(f"{part}{', ' * bool(part)}seed {seed}" for part, seed in places)]
    caption = "What each job of the grid came to. Every outcome but a missing one leads to its run."
    return Grid("runs", "Runs behind this table", caption, header, [False] * len(header), rows, [])


def tone(word: str) -> str:
    """The colour of a verdict or status: ``good``, ``bad``, ``open`` or ``quiet``."""
    return _TONES.get(word, "open")


def verdicts(judged: list[Judged]) -> list[tuple[str, str]]:
    """(colour, words) of each verdict that occurs: ``("good", "4 hold")``."""
    counts = {verdict: sum(item.verdict == verdict for item in judged) for verdict in ("holds", "fails", claims.OPEN)}
    plural = {"holds": "hold", "fails": "fail"}
    return [
        (tone(verdict), f"{count} {verdict if count == 1 else plural.get(verdict, verdict)}")
        for verdict, count in counts.items()
        if count
    ]


def slug(text: str) -> str:
    """``text`` as an element's id."""
    return re.sub(r"[^\w-]+", "-", text) or "none"


def _order(cell: Text) -> str:
    """The number in front of a cell, for sorting; empty where there is none, which sorts first."""
    match = re.match(r"[-+]?\d[\d,]*(?:\.\d+)?", cell.main.replace(MINUS, "-"))
    return match[0].replace(",", "") if match else ""
