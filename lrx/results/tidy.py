"""A table as tidy CSV: one line per number, ours, published, compared and claimed told apart by ``kind``."""

from __future__ import annotations

import csv
import io
from typing import Any

from lrx.results import claims, stats
from lrx.results.blocks import source_of
from lrx.results.cells import scale_of
from lrx.results.collect import OUTCOMES, Table
from lrx.results.compare import compare
from lrx.results.gather import Gathered
from lrx.results.sweep import Published

_COUNTS = ("finished", *OUTCOMES)
FIELDS = (
    "kind", "scale", "source", "protocol", "selected_on_reported", "method", "label", "against", "column", "heading",
    "mean", "std", "std_over", "n", "not_finite", "low", "high", "both_low", "both_high", "p", "p_holm", "letters",
    "best", "seeds_needed", "verdict", "published", "difference", *_COUNTS,
)  # fmt: skip


def tidy_csv(data: Gathered) -> str:
    """All of a page in one CSV; ``FIELDS`` are explained in docs/statistics.md.

    ``kind``: ``ours`` (a cell of scores), ``cost``, ``pair`` (two methods compared), ``published``, ``claim``.
    ``low`` and ``high``: 95% Student t interval over seeds, of the mean or of the difference.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    rows = _ours(data, data.table, None)
    for published in data.sweep.published:
        rows += _published(published)
        if published.key in data.at_published_scale:
            rows += _ours(data, data.at_published_scale[published.key], published)
    rows += _claims(data)
    for row in rows:
        writer.writerow({key: _plain(value) for key, value in row.items()})
    return out.getvalue()


def _ours(data: Gathered, table: Table, published: Published | None) -> list[dict[str, Any]]:
    common = {
        "scale": scale_of(table), "source": "records", "protocol": table.protocol.code(),
        "selected_on_reported": table.on_reported,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for line in table.lines:
        who = {"method": line.row.key, "label": line.row.label, "finished": len(line.finished)}
        who |= {status: line.outcomes().get(status, 0) for status in OUTCOMES}
        for column in table.columns:
            cell, found = table.cell(line, column), compare(table, column)
            _, low, high = (stats.interval(cell.finite) if cell.n > 1 else None) or (None, None, None)
            theirs = published.value(line.row.key, column.key) if published and table.own_metric(column) else None
            difference = None if theirs is None or cell.mean is None else cell.mean - theirs
            rows.append({
                "kind": "ours", **common, **who, "column": column.key, "heading": table.heading(column),
                "mean": cell.mean, "std": cell.std, "std_over": table.protocol.std, "n": cell.n,
                "not_finite": cell.not_finite, "low": low, "high": high, "letters": found.letters.get(line.row.key),
                "best": line.row.key == found.best, "published": theirs, "difference": difference,
                "verdict": cell.reason if cell.mean is None else None,
            })  # fmt: skip
        for name in data.sweep.costs:
            cost = line.cost(name)
            numbers = {"mean": cost.mean, "std": cost.std, "std_over": "seeds", "n": cost.n}
            rows.append({"kind": "cost", **common, **who, "column": name, "not_finite": cost.not_finite, **numbers})
    return rows + _pairs(table, common)


def _pairs(table: Table, common: dict[str, Any]) -> list[dict[str, Any]]:
    labels = {line.row.key: line.row.label for line in table.lines}
    rows = []
    for column in table.columns:
        for pair in compare(table, column).pairs:
            found = pair.effect
            low, high = found.seeds or (None, None)
            both = dict(zip(("both_low", "both_high"), found.both or (None, None), strict=True))
            rows.append({
                "kind": "pair", **common, "method": pair.a, "label": labels[pair.a], "against": pair.b,
                "column": column.key, "heading": table.heading(column), "mean": found.mean, "std": found.spread,
                "std_over": "seeds", "n": found.n, "low": low, "high": high, **both,
                "p": found.p, "p_holm": pair.adjusted, "verdict": pair.verdict,
                "seeds_needed": pair.needed,
            })  # fmt: skip
    return rows


def _published(published: Published) -> list[dict[str, Any]]:
    rows = []
    for row in published.rows:
        for column, text in zip(published.columns, row.values, strict=True):
            mean, _, std = (text or "not reported").partition(" ± ")
            rows.append({
                "kind": "published", "scale": published.scale, "source": source_of(published), "method": row.key,
                "label": row.label, "column": column.key, "heading": column.label, "mean": mean, "std": std,
            })  # fmt: skip
    return rows


def _claims(data: Gathered) -> list[dict[str, Any]]:
    rows = []
    for judged in claims.judge(data.sweep, data.table):
        claim = judged.claim
        rows.append({
            "kind": "claim", "scale": scale_of(data.table), "source": claim.origin,
            "protocol": data.table.protocol.code(), "selected_on_reported": data.table.on_reported,
            "method": claim.a, "label": judged.text, "against": claim.b, "column": claim.column or claim.cost,
            "mean": judged.mean, "n": judged.n, "low": judged.low, "high": judged.high, "both_low": judged.both_low,
            "both_high": judged.both_high, "verdict": judged.words, "seeds_needed": judged.needed,
            "published": judged.published,
        })  # fmt: skip
    return rows


def _plain(value: Any) -> Any:
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else value
