"""The blocks of a table's page: scores, comparisons, costs, published numbers, claims.

Ours and the published numbers stand in separate columns, each under the scale it was measured at.
"""

from __future__ import annotations

from lrx.results import claims
from lrx.results.cells import MARK, cell_text, cost_text, listed, published_text, runs_text, scale_of
from lrx.results.claims import Judged
from lrx.results.collect import Table
from lrx.results.compare import EQUAL, Comparison, Pair, compare
from lrx.results.notes import outcome_notes, protocol_notes, unequal_notes
from lrx.results.render import Block, Text
from lrx.results.sweep import COSTS, Column, Published, Sweep
from lrx.tuning import provenance

ANOTHER = "another metric"
SEEDS_ONLY_IS_WEAKER = (
    "Without predictions methods are told apart more easily: a verdict over seeds only is about these very test items "
    "and need not hold for others."
)


def scores_block(sweep: Sweep, table: Table, published: Published | None = None) -> Block:
    """One line per method: mean ± std (n) letters in each column, the significantly best in bold, what did not run.

    ``published``: the table whose scale and columns these are; ours less its value then stands in each cell.
    """
    columns = table.distinct_columns()
    comparisons = {column.key: compare(table, column) for column in columns}
    rows = []
    for line in table.lines:
        cells = []
        for column in columns:
            found = comparisons[column.key]
            letters = found.letters.get(line.row.key, "")
            cell = table.cell(line, column)
            shown = cell_text(cell, table.only(line, column), column.digits, letters)
            theirs = published.value(line.row.key, column.key) if published else None
            beside = ""
            if theirs is not None and cell.mean is not None:
                gap = claims.signed(cell.mean - theirs, column.digits)
                beside = f"; {gap if table.own_metric(column) else ANOTHER}"
            cells.append(Text(shown.main, shown.detail + beside, bold=line.row.key == found.best))
        rows.append([Text(line.row.label), *cells, runs_text(line)])
    facts = f"model {listed(table.facts('model.name'))}, data {listed(table.facts('task.source'))}"
    sentences = [
        f"{MARK}: scores are optimistic." if table.on_reported else "",
        f"Scale {scale_of(table)}: {facts}.",
        "" if published else sweep.setting,
        f"Behind a semicolon: ours less the published value ({source_of(published)})." if published else "",
        table.protocol_sentence(),
        _spread_sentence(table),
        _letters_sentence(list(comparisons.values())),
        *(f"{table.heading(column)}: {column.note.rstrip('.')}." for column in columns if column.note),
        sweep.tuning,
        provenance.caption(table.records()),
    ]
    title = f"Ours at scale {published.scale}, columns of {published.title}" if published else ""
    title = (title or f"Ours, scale {scale_of(table)}") + (f" ({MARK})" if table.on_reported else "")
    key = f"{published.key}-ours" if published else "scores"
    header = ["method", *(table.heading(column) for column in columns), "runs"]
    notes = [*sweep.notes, *provenance.notes(table.records()), *protocol_notes(table), *unequal_notes(table)]
    notes += outcome_notes(table)
    return Block(key, title, " ".join(filter(None, map(str.strip, sentences))), header, rows, notes)


def comparison_block(sweep: Sweep, table: Table) -> Block | None:
    """Every pair of methods in the headline column; None where no pair has two seeds in common."""
    column = sweep.column(sweep.headline) if sweep.headline else table.columns[-1]
    pairs = compare(table, column).pairs
    if not pairs:
        return None
    labels = {line.row.key: line.row.label for line in table.lines}
    rows = [_pair_row(pair, labels, column.digits) for pair in pairs]
    caption = (
        f"Scale {scale_of(table)}, column {table.heading(column)}: the first method less the second, over the seeds "
        "that both have. Intervals are at 95% each: Student's t over seeds; and over seeds and test items together, "
        "with the variance over seeds and that of a bootstrap over test items added. p is the larger one of the two "
        "tests', adjusted by Holm's method over these pairs; below 0.05 they differ. Seeds needed: for 80% power at "
        "5% divided by the number of pairs, two-sided, were the difference as large as seen."
        + (f" {SEEDS_ONLY_IS_WEAKER}" if any(pair.effect.seeds_only for pair in pairs) else "")
    )
    header = [
        "methods",
        "difference",
        "95% over seeds",
        "95% over seeds and test items",
        "n",
        "p (Holm)",
        "verdict",
        "seeds needed",
    ]
    title = f"Pairs of methods in {table.heading(column)}, scale {scale_of(table)}"
    title += f" ({MARK})" if table.on_reported else ""
    return Block("pairs", title, caption, header, rows, widths=[0.18, 0, 0, 0, 0, 0, 0, 0])


def costs_block(sweep: Sweep, table: Table) -> Block:
    """What the same runs cost: means over the finished seeds."""
    rows = []
    for line in table.lines:
        cells = [cost_text(line, name) for name in sweep.costs]
        rows.append([Text(line.row.label), *cells])
    caption = (
        f"Scale {scale_of(table)}: the runs of the table of scores. Mean over finished seeds, in brackets n. "
        f"{'Of a seed: the mean over its runs. ' if sweep.parts_by else ''}"
        "Times and memory depend on the machine; the records name it."
    )
    return Block("cost", f"Cost, scale {scale_of(table)}", caption, ["method", *(COSTS[c] for c in sweep.costs)], rows)


def published_block(published: Published) -> Block:
    """A paper's numbers as printed."""
    header = ["method", *(f"{column.label} (scale {published.scale})" for column in published.columns)]
    rows = [[Text(row.label), *(published_text(value) for value in row.values)] for row in published.rows]
    caption = (
        f"Published numbers, not ours. Source: {source_of(published)}. Scale {published.scale}: {published.setting}"
    )
    notes = [*(f"{row.label}: {row.note}" for row in published.rows if row.note), *published.notes]
    return Block(published.key, f"Published: {published.title}", caption, header, rows, notes)


def difference_block(published: Published, ours: Table | None, other: Table) -> Block | None:
    """A published column with its source, ours at the same scale, the difference, and ours at the sweep's own scale.

    ``other``: the sweep's table. None when the published table names no headline.
    """
    column = next((c for c in published.columns if c.key == published.headline), None)
    if column is None:
        return None
    same = f"(scale {published.scale})"
    at_same = next((c for c in ours.columns if c.key == column.key), None) if ours else None
    shown = ours.heading(at_same) if ours and at_same else column.label
    own = next((c for c in other.columns if c.key == column.key), None) if scale_of(other) != published.scale else None
    header = [
        "method",
        f"published {column.label} {same}",
        "source",
        f"ours {shown} {same}",
        "ours less published",
    ]
    header += [f"ours {other.heading(own)} (scale {scale_of(other)})"] if own else []
    rows = []
    for row in published.rows:
        value = row.values[published.columns.index(column)]
        cells = [
            published_text(value),
            Text(f"Table {published.source.table}"),
            *_ours(published, ours, row.key, column.key),
        ]
        rows.append([Text(row.label), *cells, *([_at_own_scale(other, own, row.key)] if own else [])])
    marked = bool(ours and ours.on_reported) or (own is not None and other.on_reported)
    caption = (
        f"{f'{MARK}: scores of ours are optimistic. ' if marked else ''}Source: {source_of(published)}. A difference "
        "is given between numbers of one scale and one metric only; other scales have other data and models and "
        "columns of their own."
    )
    notes = [f"Not run: {published.needs}"] if published.needs and not (ours and ours.records()) else []
    title = f"Published and ours: {column.label} of {published.title}" + (f" ({MARK})" if marked else "")
    return Block(f"{published.key}-difference", title, caption, header, rows, notes)


def claims_block(sweep: Sweep, table: Table, judged: list[Judged] | None = None) -> Block:
    """Each claim with its origin, the published difference and the verdict of our runs."""
    judged = claims.judge(sweep, table) if judged is None else judged
    rows = [[Text(j.text), Text(j.claim.origin), Text(j.published), Text(j.statistic), verdict_text(j)] for j in judged]
    scale = scale_of(table)
    caption = (
        f"{f'{MARK}. ' if table.on_reported else ''}{claims.summary(judged)} ({claims.by_origin(judged)}). "
        f"Judged by our runs at scale {scale}, which need not agree with the paper's scale: differences are "
        "paired over seeds, with a 95% Student t interval, and where predictions are stored a 95% interval over seeds "
        "and test items together. A claim holds when every interval agrees with it wholly and fails when every one "
        "disagrees wholly; a verdict in favour of a method that diverged at some seed stays open. Each claim is judged "
        "by itself: claims are not adjusted for each other. Seeds that would decide an open one: 80% power at 5%, "
        "two-sided, were the truth as seen so far. "
        + (f"{SEEDS_ONLY_IS_WEAKER} " if any(j.seeds_only and j.verdict != claims.OPEN for j in judged) else "")
        + table.protocol_sentence()
    )
    header = ["claim", "origin", "published", f"ours (scale {scale})", "verdict"]
    title = f"Claims, scale {scale}" + (f" ({MARK})" if table.on_reported else "")
    return Block("claims", title, caption, header, rows, widths=[0.24, 0.16, 0.17, 0.22, 0.12])


def verdict_text(judged: Judged) -> Text:
    """``holds``, ``fails``, or ``not enough evidence (to decide: about 12 seeds)``."""
    return Text(judged.words, f"(to decide: {judged.advice})" if judged.advice else "", bold=True)


def source_of(published: Published) -> str:
    """``AltLoRA (NeurIPS 2025), Table 4``."""
    return f"{published.source.paper}, Table {published.source.table}"


def _pair_row(pair: Pair, labels: dict[str, str], digits: int) -> list[Text]:
    found = pair.effect
    word, _, detail = pair.verdict.partition(" ")
    return [
        Text(f"{labels[pair.a]} − {labels[pair.b]}"),
        Text(claims.signed(found.mean, digits)),
        _range(found.seeds, digits) if found.seeds else Text("none", f"({EQUAL})"),
        _range(found.both, digits) if found.both else Text(*(("no", "predictions") if found.seeds_only else ("none",))),
        Text(str(found.n), f"(left out: {', '.join(found.left_out)})" if found.left_out else ""),
        Text(f"{pair.adjusted:.3f}" if pair.adjusted >= 0.001 else "<0.001"),
        Text(word, detail),
        _needed(pair),
    ]


def _needed(pair: Pair) -> Text:
    """How many seeds would tell a pair apart, and whether more of them alone could."""
    if pair.differ:
        return Text("enough")
    over_items = pair.effect.over_items
    open_over_items = over_items is not None and over_items[0] <= 0 <= over_items[1]
    if pair.needed is None:
        return Text("no number")
    if pair.needed <= pair.effect.n:
        return Text("more", "test items" if open_over_items else "seeds or test items")
    return Text(f"{pair.needed:,}", "and more test items" if open_over_items else "")


def _range(bounds: tuple[float, float], digits: int) -> Text:
    return Text(f"{claims.signed(bounds[0], digits)} to", claims.signed(bounds[1], digits))


def _ours(published: Published, ours: Table | None, key: str, column: str) -> list[Text]:
    """Ours at the published scale and its difference from the published value."""
    line = ours.line(key) if ours and key else None
    wanted = next((item for item in ours.columns if item.key == column), None) if ours else None
    if ours is None or line is None or wanted is None:
        return [Text("not run"), Text("not run")]
    cell = ours.cell(line, wanted)
    text = cell_text(cell, ours.only(line, wanted), wanted.digits)
    theirs = published.value(key, column)
    if cell.mean is None:
        return [text, Text(text.main)]
    if theirs is None:
        return [text, Text("not reported")]
    if not ours.own_metric(wanted):
        return [text, Text(ANOTHER)]
    return [text, Text(claims.signed(cell.mean - theirs, wanted.digits))]


def _at_own_scale(table: Table, column: Column, key: str) -> Text:
    line = table.line(key) if key else None
    return cell_text(table.cell(line, column), table.only(line, column), column.digits) if line else Text("not run")


def _spread_sentence(table: Table) -> str:
    seeds = ", ".join(map(str, table.seeds())) or "none"
    if table.protocol.std == "seeds":
        return f"Mean ± standard deviation over seeds {seeds}; in brackets n, how many of them enter."
    return (
        f"Mean over seeds {seeds} ± standard error over the test items of one run (root mean square over the seeds); "
        "in brackets n, how many seeds enter."
    )


def _letters_sentence(comparisons: list[Comparison]) -> str:
    if not any(found.pairs for found in comparisons):
        return "No two methods have two seeds in common: no significance is claimed, nothing is bold."
    pairs = sum(len(found.pairs) for found in comparisons)
    over_items = sum(found.over_items for found in comparisons)
    items = "and over seeds and test items together " if over_items == pairs else ""
    if over_items == 0:
        items = "(no predictions are at hand to compare over test items too) "
    elif over_items < pairs:
        items = f"and, in the {over_items} of {pairs} comparisons that have predictions, over test items too "
    weaker = f" {SEEDS_ONLY_IS_WEAKER}" if over_items < pairs else ""
    return (
        "Methods of a column that share a letter are not told apart: paired over seeds (t test) "
        f"{items}at 5%, Holm-adjusted over the column's pairs. A row with fewer than two seeds in common with others "
        "has no letter. Bold: significantly better than every other method that has a value, and never diverged; "
        f"where nothing is bold, no method is.{weaker}"
    )
