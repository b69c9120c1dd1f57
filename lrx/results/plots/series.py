"""What each plot shows, as plain data made of a table: numbers and words, no drawing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lrx.errors import UserError
from lrx.results.cells import MARK, cell_text, scale_of
from lrx.results.collect import Line, Table
from lrx.results.history import metric_log, read_history
from lrx.results.record import RunRecord
from lrx.results.sweep import Column, Sweep
from lrx.tuning.journal import published

POINTS = 200  # of a curve, at most
Figure = dict[str, Any]


class NoData(Exception):
    """A plot that has nothing to show; the message says what is missing."""


def scores(sweep: Sweep, table: Table) -> Figure:
    """A panel per column and in it a cell per method: ``{"label", "cells": [{"seeds", "mean", "std", "text"}]}``."""
    columns = []
    for column in table.distinct_columns():
        cells = []
        for line in table.lines:
            cell = table.cell(line, column)
            text = "" if cell.mean is not None else str(cell_text(cell, table.only(line, column), column.digits))
            cells.append({"seeds": cell.finite, "mean": cell.mean, "std": cell.std, "text": text})
        columns.append({"label": table.heading(column), "cells": cells})
    spread = "standard error over test items" if table.protocol.std == "items" else "standard deviation"
    title = f"{_ours(sweep, table)} Each seed; below it mean ± {spread}"
    return {"title": title, "rows": labels(table), "columns": columns}


def pareto(sweep: Sweep, table: Table) -> Figure:
    """The headline score against each of two costs: ``{"panels": [{"label", "items", "free", "front": [[x, y]]}]}``.

    ``free``: the rows that cost nothing, such as the backbone as it is. They have no place on a logarithmic axis and
    are drawn as levels.
    """
    column = sweep.column(sweep.headline) if sweep.headline else table.columns[-1]
    higher = table.higher_is_better(column)
    panels = []
    for name, label, factor in (
        ("trainable_parameters", "trainable parameters", 1.0),
        ("median_step_seconds", "median step (ms)", 1e3),
    ):
        items = [
            item for index, line in enumerate(table.lines) if (item := _item(table, line, column, name, factor, index))
        ]
        free, items = [i for i in items if i["x"] == 0], [i for i in items if i["x"] > 0]
        front = [] if higher is None else pareto_front([(item["x"], item["y"]) for item in items], higher)
        panels.append({"cost": name, "label": label, "items": items, "free": free, "front": front})
    if not any(panel["items"] for panel in panels):
        raise NoData("no finished run has both a score and its cost")
    title = _ours(sweep, table)
    return {"title": title, "ylabel": table.heading(column), "rows": labels(table), "panels": panels}


def pareto_front(points: Sequence[tuple[float, float]], higher: bool) -> list[list[float]]:
    """The points that no other beats: lower x is better, and higher (or lower) y. In order of x."""
    sign = 1 if higher else -1
    front: list[list[float]] = []
    for x, y in sorted(set(points), key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * y > sign * front[-1][1]:
            front.append([x, y])
    return front


def sensitivity(sweep: Sweep, table: Table) -> Figure:
    """The selection score against each tuned value, of all trials of the table's scale and model."""
    path = next((path for path in trial_files(sweep, table) if path.exists()), None)
    if path is None:
        raise NoData(f"no trials; python -m lrx tune {sweep.name} budget=N makes some")
    try:
        studies = published(path)["studies"]
    except UserError as error:
        raise NoData(str(error)) from None
    scales, models = table.facts("scale.name"), table.facts("model.name")
    # The latest of each row, or of each part of it.
    chosen = {(s["row"], s["label"]): s for s in studies if s["scale"] in scales and s["model"] in models}
    rows = [line.row.key for line in table.lines]
    keys = dict.fromkeys(key for study in chosen.values() for key in study["space"])
    panels = []
    for key in keys:
        lines = [
            line for (row, _), study in chosen.items() if row in rows and (line := _trials(study, key, rows.index(row)))
        ]
        log = all(study["space"].get(key, {}).get("log") for study in chosen.values() if key in study["space"])
        if lines:
            panels.append({"label": key, "log": log, "lines": lines})
    if not panels:
        raise NoData(f"no trial of scale {scale_of(table)} has ended")
    metrics = dict.fromkeys(name for s in chosen.values() for trial in s["trials"] for name in trial.parts)
    title = f"{sweep.title}: all trials, scale {scale_of(table)}"
    words = ", ".join(metrics)
    ylabel = f"selection score\n({'mean of ' if len(metrics) > 1 else ''}{words})" if metrics else "selection score"
    return {"title": title, "ylabel": ylabel, "rows": labels(table), "panels": panels}


def trial_files(sweep: Sweep, table: Table) -> list[Path]:
    """Where the trials of a sweep may be: below the folder that runs wrote to."""
    return [] if table.root is None else [Path(table.root) / "tuning" / sweep.name / "trials.json"]


def curves(sweep: Sweep, table: Table) -> Figure:
    """Per part what selects models on the selection split and the training loss against the step, over the seeds.

    ``{"parts": [{"name", "select": {"label", "lines"}, "loss": {...}}]}``, a line ``{"row", "n", "x", "mean", "low",
    "high"}`` with the smallest and largest seed.
    """
    names = dict.fromkeys(name for line in table.lines for record in line.finished for name in record.parts)
    parts = []
    for name in names:
        metric = next(r.parts[name].selects_by for line in table.lines for r in line.finished if name in r.parts)
        evaluations = [_over_seeds(line, row, partial(_evaluations, name)) for row, line in enumerate(table.lines)]
        losses = [_over_seeds(line, row, partial(_losses, table, name)) for row, line in enumerate(table.lines)]
        found = {
            "select": {"label": f"selection {metric}", "lines": [line for line in evaluations if line]},
            "loss": {"label": "training loss", "lines": [line for line in losses if line]},
        }
        if any(panel["lines"] for panel in found.values()):
            parts.append({"name": name, **found})
    if not parts:
        raise NoData("no finished run has kept its evaluations or its log")
    title = f"{sweep.title}: ours, scale {scale_of(table)}. Mean over seeds, band from lowest to highest"
    return {"title": title, "rows": labels(table), "parts": parts}


def _ours(sweep: Sweep, table: Table) -> str:
    """The beginning of a title: whose numbers, at which scale, which of each run, and whether chosen by themselves."""
    mark = f"{MARK}. " if table.on_reported else ""
    return f"{mark}{sweep.title}: ours, scale {scale_of(table)}. {table.protocol_sentence()}"


def labels(table: Table) -> list[str]:
    """The rows' labels, in the table's order: a row has the same colour and marker in every plot."""
    return [line.row.label for line in table.lines]


def _item(table: Table, line: Line, column: Column, cost: str, factor: float, index: int) -> dict[str, Any] | None:
    cell, costs = table.cell(line, column), line.cost(cost)
    if cell.mean is None or costs.mean is None:
        return None
    seeds = [
        seed for seed, y in cell.values.items() if math.isfinite(y) and math.isfinite(costs.values.get(seed, math.nan))
    ]
    return {
        "row": index, "x": costs.mean * factor, "y": cell.mean, "std": cell.std,
        "xs": [costs.values[seed] * factor for seed in seeds], "ys": [cell.values[seed] for seed in seeds],
    }  # fmt: skip


def _trials(study: dict[str, Any], key: str, row: int) -> dict[str, Any] | None:
    trials = [trial for trial in study["trials"] if not trial.is_open and isinstance(trial.point.get(key), int | float)]
    points = sorted([trial.point[key], trial.score] for trial in trials if trial.score is not None)
    failed = sorted(trial.point[key] for trial in trials if trial.score is None)
    best = max(points, key=lambda point: point[1], default=None)
    alone = len(study["space"]) == 1  # of several values, each trial changes all: no line joins them
    return {"row": row, "points": points, "failed": failed, "best": best, "joined": alone} if trials else None


def _over_seeds(line: Line, row: int, curve_of: Callable[[RunRecord], dict[int, float]]) -> dict[str, Any] | None:
    """Mean, lowest and highest of the finished seeds at the steps that all of them have."""
    found = [curve for record in line.finished if (curve := curve_of(record))]
    steps = sorted(set.intersection(*map(set, found))) if found else []
    steps = [step for step in steps if any(math.isfinite(curve[step]) for curve in found)]
    if not steps:
        return None
    if len(steps) > POINTS:
        last = len(steps) - 1
        steps = [steps[round(i * last / (POINTS - 1))] for i in range(POINTS)]
    values = [[curve[step] for curve in found if math.isfinite(curve[step])] for step in steps]
    mean = [math.fsum(each) / len(each) for each in values]
    return {
        "row": row,
        "n": len(found),
        "x": steps,
        "mean": mean,
        "low": [*map(min, values)],
        "high": [*map(max, values)],
    }


def _evaluations(name: str, record: RunRecord) -> dict[int, float]:
    """Step -> what selects models on the selection split."""
    part = record.parts.get(name)
    if part is None:
        return {}
    splits = {entry["step"]: entry["splits"].get("select", {}) for entry in part.curve}
    return {step: float(metrics[part.selects_by]) for step, metrics in splits.items() if part.selects_by in metrics}


def _losses(table: Table, part: str, record: RunRecord) -> dict[int, float]:
    """Step -> training loss, as the log beside the run has it."""
    if table.root is None:
        return {}
    try:
        history = read_history(metric_log(table.root, record.run_id, part))
    except UserError:  # a file that cannot be read is no curve
        return {}
    found = {entry["step"]: entry.get("train/loss") for entry in history if "train/loss" in entry}
    return {step: float(loss) for step, loss in found.items() if isinstance(loss, int | float)}
