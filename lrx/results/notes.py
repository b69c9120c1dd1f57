"""The notes below a table of scores: what could not be read, what did not finish, what is not of equal seeds."""

from __future__ import annotations

from lrx.results.collect import OUTCOMES, Table
from lrx.results.compare import compare


def unequal_notes(table: Table) -> list[str]:
    """A sentence for the columns whose rows rest on different seeds."""
    unequal = [column for column in table.distinct_columns() if compare(table, column).unequal]
    if not unequal:
        return []
    names = ", ".join(table.heading(column) for column in unequal)
    return [
        f"Unequal seeds in {names}: a mean is over the row's own seeds, letters and bold are over the seeds that two "
        "rows have in common, so the two need not agree; what is missing is missing perhaps because it went badly"
    ]


def protocol_notes(table: Table) -> list[str]:
    """What the protocol could not read, and which predictions could not be used."""
    found: dict[str, dict[str, list[str]]] = {}  # reason -> row and part -> seeds
    for line in table.lines:
        for column in table.columns:
            for record in table.only(line, column).finished:
                if not column.mean_of and (reading := table.reading(record, column)).value is None:
                    seeds = found.setdefault(reading.reason, {}).setdefault(f"{line.row.label} {column.part}", [])
                    seeds += [str(record.seed)] if str(record.seed) not in seeds else []
    notes = []
    for reason, where in found.items():
        places = [f"{place} (seeds {', '.join(seeds)})" for place, seeds in where.items()]
        notes.append(f"No value under this protocol, {reason}: {', '.join(places)}")
    reasons = table.items.reasons if "items" in table.cache else {}
    notes += [f"Over seeds only, {reason}: {_some(where)}" for reason, where in reasons.items()]
    metric = table.protocol.metric
    reported = [
        metrics for record in table.records() for part in record.parts.values() for metrics in part.metrics.values()
    ]
    if metric not in ("column", "both") and reported and not any(metric in metrics for metrics in reported):
        notes.append(f"No run here reports {metric}: every column shows its own metric.")
    return notes


def _some(what: list[str]) -> str:
    distinct = list(dict.fromkeys(what))
    return ", ".join(distinct[:3]) + (f" and {len(distinct) - 3} more" if len(distinct) > 3 else "")


def outcome_notes(table: Table) -> list[str]:
    """A sentence for each job that ran and did not finish."""
    notes = []
    for line in table.lines:
        for slot in line.slots:
            if slot.record and slot.status != "finished":
                message = " ".join(slot.record.message.split()) or "no message"
                message = message if len(message) <= 160 else message[:159] + "…"
                notes.append(f"{line.row.label}, seed {slot.job.seed}: {OUTCOMES[slot.status]}: {message}")
    return notes
