"""A column's value in bootstrap samples of the test items, means of columns too."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from lrx.results.collect import Table, names_of, split_of
from lrx.results.record import RunRecord
from lrx.results.sweep import Column


def resampled(table: Table, record: RunRecord, column: Column, *, paired: bool) -> Any:
    """The column's value in bootstrap samples of the test items, (R,), or None where that is not known.

    ``paired``: by stored predictions, with the same samples for every run of the table; otherwise an accuracy without
    predictions is resampled by itself. In a mean that is right only for a part that enters once: two metrics of the
    same items rise and fall together.
    """
    if not column.mean_of:
        return _one(table, record, column, "never" if paired else "first")
    entered = Counter(leaf.part for leaf in _leaves(table, column))
    return _mean(table, record, column, paired, entered)


def _mean(table: Table, record: RunRecord, column: Column, paired: bool, entered: Counter[str]) -> Any:
    """``entered``: how often each part is in the mean as a whole."""
    several = []
    for item in column.mean_of:
        found = []
        for key in [item] if isinstance(item, str) else item:
            component = table.column(key)
            if component.mean_of:
                found.append(_mean(table, record, component, paired, entered))
            else:
                alone = not paired and entered[component.part] == 1
                found.append(_one(table, record, component, "last" if alone else "never"))
        several.append(_average(found))
    return _average(several)


def _one(table: Table, record: RunRecord, column: Column, binomial: Literal["never", "first", "last"]) -> Any:
    """``binomial``: whether an accuracy is drawn by its law: never, before predictions are looked at, or after."""
    found = table.reading(record, column)
    part = record.parts.get(column.part)
    if found.value is None or part is None:
        return None
    place = (record, column.part, split_of(part, column), column.metric, found)
    values = table.items.binomial(*place) if binomial == "first" else None
    if values is None:
        values = table.items.values(*place, note=binomial != "last")
    if values is None and binomial == "last":
        values = table.items.binomial(*place)
        values = table.items.values(*place) if values is None else values  # once more, for the note
    return None if values is None else values * column.factor


def _leaves(table: Table, column: Column) -> list[Column]:
    """The columns that are no means which a column is made of."""
    if not column.mean_of:
        return [column]
    return [leaf for name in names_of(column) for leaf in _leaves(table, table.column(name))]


def _average(several: list[Any]) -> Any:
    """The mean of resampled values; None if one is missing. Larger splits are resampled fewer times."""
    if any(values is None for values in several):
        return None
    count = min(len(values) for values in several)
    return sum(values[:count] for values in several) / len(several)
