"""From a sweep and its records to its table: what stands where, and the files that hold it.

Ours and the published numbers stand in separate blocks, each under the scale it was measured at; nothing is blank:
what did not run, failed or cannot be had says so.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from lrx.files import write_atomic
from lrx.results import claims, render
from lrx.results.collect import MISSING, OUTCOMES, Cell, Line, Table
from lrx.results.gather import Gathered, gather, save_bundle
from lrx.results.render import Block, Document, Text
from lrx.results.sweep import COSTS, Column, Published, Sweep

__all__ = ["document", "gather", "tidy_csv", "write"]

_COST_SCALE = {
    "optimizer_state_bytes": (2.0**-20, 2),
    "peak_memory_bytes": (2.0**-20, 0),
    "median_step_seconds": (1e3, 1),
    "wall_seconds": (1.0, 0),
    "examples_per_second": (1.0, 0),
}


def document(data: Gathered) -> Document:
    """The whole page: our scores, what they cost, the published table, the claims."""
    sweep, table = data.sweep, data.table
    intro = [f"Paper: {sweep.paper}."]
    blocks = [scores_block(sweep, table), costs_block(sweep, table)]
    for published in sweep.published:
        ours = data.at_published_scale.get(published.key)
        blocks.append(published_block(published, ours))
        if ours and ours.records():
            title = f"Ours at scale {published.scale}, columns of {published.title}"
            blocks.append(scores_block(sweep, ours, key=f"{published.key}-ours", title=title, setting=""))
    if sweep.claims:
        blocks.append(claims_block(sweep, table))
    return Document(sweep.name, f"{sweep.title} (scale {scale_of(table)})", intro, blocks)


def scores_block(sweep: Sweep, table: Table, key: str = "scores", title: str = "", setting: str | None = None) -> Block:
    """One line per method: mean ± std (n) in each column, the best in bold, and what did not finish."""
    best = {column.key: _best(table, column) for column in table.columns}
    rows = []
    for line in table.lines:
        cells = []
        for column in table.columns:
            cell = table.cell(line, column)
            shown = cell_text(cell, line, column.digits)
            is_best = cell.mean is not None and shown.main == best[column.key]
            cells.append(Text(shown.main, shown.detail, bold=is_best))
        rows.append([Text(line.row.label), *cells, runs_text(line)])
    seeds = ", ".join(map(str, table.seeds())) or "none"
    facts = f"model {_listed(table.facts('model.name'))}, data {_listed(table.facts('task.source'))}"
    sentences = [
        f"Scale {scale_of(table)}: {facts}.",
        sweep.setting if setting is None else setting,
        f"Mean ± standard deviation over seeds {seeds}; in brackets n, how many of them enter. Best mean in bold.",
        *(f"{column.label}: {column.note.rstrip('.')}." for column in table.columns if column.note),
        sweep.tuning,
    ]
    notes = [*sweep.notes, *_outcome_notes(table)]
    if any(part.selects_on_reported for record in table.records() for part in record.parts.values()):
        notes.append("Some checkpoints were selected on the reported split: those scores are optimistic.")
    title = title or f"Ours, scale {scale_of(table)}"
    header = ["method", *(column.label for column in table.columns), "runs"]
    return Block(key, title, " ".join(filter(None, map(str.strip, sentences))), header, rows, notes)


def costs_block(sweep: Sweep, table: Table) -> Block:
    """What the same runs cost: means over the finished seeds."""
    rows = []
    for line in table.lines:
        cells = [cost_text(line, name) for name in sweep.costs]
        rows.append([Text(line.row.label), *cells])
    caption = (
        f"Scale {scale_of(table)}: the runs of the table of scores. Mean over finished seeds, in brackets n. "
        "Times and memory depend on the machine; the records name it."
    )
    return Block("cost", f"Cost, scale {scale_of(table)}", caption, ["method", *(COSTS[c] for c in sweep.costs)], rows)


def published_block(published: Published, ours: Table | None) -> Block:
    """A paper's numbers as printed, with ours at the same scale beside them, or the word that they were not run."""
    headline = next((c for c in published.columns if c.key == published.headline), None)
    header = ["method", *(column.label for column in published.columns)]
    if headline:
        header.append(f"ours, {headline.label} (scale {published.scale})")
    rows = []
    for row in published.rows:
        cells = [_published_text(value) for value in row.values]
        if headline:
            cells.append(_counterpart(published, ours, row.key, headline.key))
        rows.append([Text(row.label), *cells])
    source = f"{published.source.paper}, Table {published.source.table}"
    caption = f"Published numbers, not ours. Source: {source}. Scale {published.scale}: {published.setting}"
    notes = [*(f"{row.label}: {row.note}" for row in published.rows if row.note), *published.notes]
    if headline and published.needs:
        notes.append(f"Not run: {published.needs}")
    return Block(published.key, f"Published: {published.title}", caption, header, rows, notes)


def claims_block(sweep: Sweep, table: Table) -> Block:
    """Each claim with its origin, the published difference and the verdict of our runs."""
    rows = [
        [Text(j.text), Text(j.claim.origin), Text(j.published), Text(j.statistic), Text(j.verdict, bold=True)]
        for j in claims.judge(sweep, table)
    ]
    caption = (
        f"Judged by our runs at scale {scale_of(table)}, which need not agree with the paper's scale: differences are "
        "paired over seeds, with a 95% Student t interval; fewer than two pairs, or an interval that crosses the "
        "border, is not enough evidence."
    )
    header = ["claim", "origin", "published", f"ours (scale {scale_of(table)})", "verdict"]
    widths = [0.25, 0.19, 0.18, 0.18, 0.11]
    return Block("claims", f"Claims, scale {scale_of(table)}", caption, header, rows, widths=widths)


def cell_text(cell: Cell, line: Line, digits: int) -> Text:
    """``85.31 ± 0.42 (3)``; NaN counted; without a value the reason why there is none."""
    if cell.mean is None:
        if cell.not_finite:
            return Text("NaN", f"({cell.not_finite} of {len(line.slots)})")
        if line.finished:
            return Text("no value", f"({len(line.finished)} finished)")
        return Text("not run") if set(line.outcomes()) <= {MISSING} else Text("none", f"({_outcomes(line)})")
    spread = f"± {cell.std:.{digits}f} " if cell.std is not None else ""
    excluded = f"; {cell.not_finite} NaN" if cell.not_finite else ""
    return Text(_fixed(cell.mean, digits), f"{spread}({cell.n}{excluded})")


def cost_text(line: Line, name: str) -> Text:
    """A cost in the unit of its heading."""
    cell = line.cost(name)
    if cell.mean is None:
        return cell_text(cell, line, 0)
    factor, digits = _COST_SCALE.get(name, (1.0, 0))
    return Text(f"{cell.mean * factor:,.{digits}f}", f"({cell.n})")


def runs_text(line: Line) -> Text:
    """``3 of 3``, or ``1 of 3 (1 failed, 1 missing)``."""
    return Text(f"{len(line.finished)} of {len(line.slots)}", f"({_outcomes(line)})" if line.outcomes() else "")


def scale_of(table: Table) -> str:
    """The scale of a grid's jobs, as every heading says it."""
    return _listed(table.facts("scale.name"))


def tidy_csv(data: Gathered) -> str:
    """One line per method and column, ours and published told apart by ``kind``, ``scale`` and ``source``."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    outcomes = list(OUTCOMES)
    names = ["kind", "scale", "source", "method", "label", "column"]
    writer.writerow([*names, "mean", "std", "n", "not_finite", "finished", *outcomes])

    def ours(table: Table) -> None:
        for line in table.lines:
            counts = [len(line.finished), *(line.outcomes().get(status, 0) for status in outcomes)]
            cells = [(column.key, table.cell(line, column)) for column in table.columns]
            cells += [(name, line.cost(name)) for name in data.sweep.costs]
            for key, cell in cells:
                numbers = [_number(cell.mean), _number(cell.std), cell.n, cell.not_finite, *counts]
                writer.writerow(["ours", scale_of(table), "records", line.row.key, line.row.label, key, *numbers])

    ours(data.table)
    for published in data.sweep.published:
        source = f"{published.source.paper}, Table {published.source.table}"
        for row in published.rows:
            for column, text in zip(published.columns, row.values, strict=True):
                mean, _, std = (text or "").partition(" ± ")
                label = ["published", published.scale, source, row.key, row.label, column.key, mean, std]
                writer.writerow([*label, *[""] * (3 + len(outcomes))])
        if published.key in data.at_published_scale:
            ours(data.at_published_scale[published.key])
    return out.getvalue()


def write(data: Gathered, folder: Path | str, *, plots: bool = True, save_records: bool = False) -> list[Path]:
    """Write ``table.md``, ``table.tex``, ``table.csv``, the plots, and with ``save_records`` the bundle behind them."""
    folder = Path(folder)
    page = document(data)
    files = {"table.md": render.markdown(page), "table.tex": render.latex(page), "table.csv": tidy_csv(data)}
    written = [write_atomic(folder / name, content) for name, content in files.items()]
    if plots:
        from lrx.results import plot

        drawn = plot.images(data.sweep, data.table)
        written += [write_atomic(folder / name, content) for name, content in drawn.items()]
    if save_records:
        written.append(save_bundle(data, folder / "records.jsonl"))
    return written


def _best(table: Table, column: Column) -> str:
    """The best mean as it is printed: means that print alike are equally good."""
    direction = table.higher_is_better(column)
    means = [mean for line in table.lines if (mean := table.cell(line, column).mean) is not None]
    if direction is None or len(means) < 2:
        return ""
    return _fixed((max if direction else min)(means), column.digits)


def _fixed(number: float, digits: int) -> str:
    """Fixed digits, with a minus sign instead of a hyphen."""
    return f"{number:.{digits}f}".replace("-", claims.MINUS)


def _outcomes(line: Line) -> str:
    return ", ".join(f"{count} {OUTCOMES[status]}" for status, count in line.outcomes().items())


def _outcome_notes(table: Table) -> list[str]:
    """A sentence for each job that ran and did not finish."""
    notes = []
    for line in table.lines:
        for slot in line.slots:
            if slot.record and slot.status != "finished":
                message = " ".join(slot.record.message.split()) or "no message"
                message = message if len(message) <= 160 else message[:159] + "…"
                notes.append(f"{line.row.label}, seed {slot.job.seed}: {OUTCOMES[slot.status]}: {message}")
    return notes


def _counterpart(published: Published, ours: Table | None, key: str, column: str) -> Text:
    line = ours.line(key) if ours and key else None
    if ours is None or line is None:
        return Text("not run")
    wanted = next((item for item in ours.columns if item.key == column), None)
    if wanted is None:
        return Text("not run")
    cell = ours.cell(line, wanted)
    text = cell_text(cell, line, wanted.digits)
    theirs = published.value(key, column)
    if cell.mean is None or theirs is None:
        return text
    return Text(text.main, f"{text.detail}, {claims.signed(cell.mean - theirs, wanted.digits)}")


def _published_text(value: str | None) -> Text:
    if value is None:
        return Text("not reported")
    mean, _, std = value.partition(" ± ")
    return Text(mean, f"± {std}" if std else "")


def _listed(values: list[str]) -> str:
    return ", ".join(values) or "unknown"


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)
