"""The plots of a sweep as data: which series, which points, which words. The page draws them and computes nothing.

A figure is a dictionary: ``id``, ``title``, ``caption``, ``choices`` (what its selectors are called and offer) and
``panels``, keyed by the chosen positions (``"0"`` or ``"1,0"``). A panel has axes ``x`` and ``y`` (``label``, ``log``,
``names`` of categories) and ``series`` (``label``, ``colour``: the row's place, ``kind``, ``data``). A datum is
``[x, y]`` or ``[x, y, words shown at it]``. Kinds: ``seeds``, ``mean``, ``spread``, ``line``, ``faint``, ``front``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

from lrx.report import series
from lrx.report.content import SweepPage, View
from lrx.results.cells import cell_text, cost_number, cost_text
from lrx.results.collect import Cell, Line, Table
from lrx.results.record import RunRecord
from lrx.results.sweep import COSTS, Column, Sweep, lookup

Figure = dict[str, Any]
Panel = dict[str, Any]
_AGAINST = ("trainable_parameters", "median_step_seconds", "peak_memory_bytes")


def of_view(sweep: Sweep, view: View, root: Any) -> list[Figure]:
    """Scores by seed, scores against costs, learning curves: those that there are numbers for."""
    columns = _ordered(sweep, view.table)
    figures = [_scores(view, columns), _against(view, columns), _learning(view, root), _lens(view, root)]
    return [figure for figure in figures if figure and figure["panels"]]


def of_trials(page: SweepPage) -> Figure | None:
    """Metric on the selection split against learning rate, a series per method; None without trials."""
    finished = [record for record in page.trials if record.status == "finished"]
    names = [row.method for row in page.sweep.rows]
    keys = {(name, part.primary): None for record in finished for name, part in record.parts.items()}
    panels: dict[str, Panel] = {}
    options: list[str] = []
    for part, metric in keys:
        lines: list[dict[str, Any]] = []
        for method in dict.fromkeys(record.method for record in finished):
            points = sorted(_trial_points(finished, method, part, metric))
            if points:
                colour = names.index(method) if method in names else len(names)
                label = page.sweep.rows[colour].label if method in names else method
                lines.append({"label": label, "colour": colour, "kind": "line", "data": [list(p) for p in points]})
        if lines:
            panels[str(len(options))] = {
                "x": {"label": "learning rate", "log": True},
                "y": {"label": f"{part}: {metric}, selection split"},
                "series": lines,
            }
            options.append(f"{part} {metric}")
    if not panels:
        return None
    scales = ", ".join(dict.fromkeys(record.scale for record in finished))
    failed = len(page.trials) - len(finished)
    rest = f" {failed} more did not finish." if failed else ""
    caption = f"Scale {scales}: {len(finished)} tuning trials, scored on the selection split alone.{rest}"
    return _figure("sensitivity", "Sensitivity to the learning rate", caption, [("score", options)], panels)


def _scores(view: View, columns: list[Column]) -> Figure:
    panels: dict[str, Panel] = {}
    options: list[str] = []
    for column in columns:
        lines: list[dict[str, Any]] = []
        for place, line in enumerate(view.table.lines):
            cell = view.table.cell(line, column)
            if cell.mean is not None:
                lines += _strip(line, place, cell, column)
        if lines:
            panels[str(len(options))] = {
                "x": {"label": view.table.heading(column)},
                "y": {"names": [line.row.label for line in view.table.lines]},
                "series": lines,
            }
            options.append(view.table.heading(column))
    caption = (
        f"Scale {view.scale}: each seed is a small point; the large one is the mean, the bar one standard deviation."
    )
    return _figure("scores", "Scores", caption, [("column", options)], panels)


def _strip(line: Line, place: int, cell: Cell, column: Column) -> list[dict[str, Any]]:
    mean, label = cell.mean or 0.0, line.row.label
    seeds = [[number, place, f"seed {seed}: {number:.{column.digits}f}"] for seed, number in sorted(cell.values.items())
             if math.isfinite(number)]  # fmt: skip
    found = [_series(label, place, "seeds", seeds)]
    if cell.std is not None:
        found.append(_series(label, place, "spread", [[mean - cell.std, place], [mean + cell.std, place]]))
    return [*found, _series(label, place, "mean", [[mean, place, str(cell_text(cell, line, column.digits))]])]


def _against(view: View, columns: list[Column]) -> Figure:
    """Score against cost, with the front of methods that no other beats in both."""
    scored = [column for column in columns if any(view.table.cell(line, column).n for line in view.table.lines)]
    costs = [name for name in _AGAINST if any(line.cost(name).n for line in view.table.lines)]
    panels = {}
    for i, column in enumerate(scored):
        for j, name in enumerate(costs):
            panels[f"{i},{j}"] = _against_panel(view.table, column, name)
    caption = (
        f"Scale {view.scale}: means over finished seeds. The dashed line joins the methods that no other beats in "
        "score and cost at once; times and memory depend on the machine."
    )
    choices = [("score", [view.table.heading(column) for column in scored]), ("cost", [COSTS[name] for name in costs])]
    return _figure("pareto", "Score against cost", caption, choices, panels if scored and costs else {})


def _against_panel(table: Table, column: Column, name: str) -> Panel:
    lines: list[dict[str, Any]] = []
    means: list[tuple[float, float]] = []
    for place, line in enumerate(table.lines):
        cell, cost = table.cell(line, column), line.cost(name)
        if cell.mean is None or cost.mean is None:
            continue
        x = _in_unit(name, cost.mean)
        seeds = [[_in_unit(name, cost.values[seed]), number, f"seed {seed}: {number:.{column.digits}f}"]
                 for seed, number in sorted(cell.values.items())
                 if math.isfinite(number) and seed in cost.values]  # fmt: skip
        words = f"{cell_text(cell, table.only(line, column), column.digits)} at {cost_text(line, name)}"
        lines += [_series(line.row.label, place, "seeds", seeds)]
        lines += [_series(line.row.label, place, "mean", [[x, cell.mean, words]])]
        means.append((x, cell.mean))
    higher = table.higher_is_better(column)
    best = [] if higher is None else front(means, higher)
    if len(best) > 1:
        lines.append(_series("best for its cost", -1, "front", [list(point) for point in best]))
    sizes = [x for x, _ in means if x > 0]
    log = bool(sizes) and len(sizes) == len(means) and max(sizes) > 8 * min(sizes)
    return {"x": {"label": COSTS[name], "log": log}, "y": {"label": table.heading(column)}, "series": lines}


def front(points: Iterable[tuple[float, float]], higher_is_better: bool) -> list[tuple[float, float]]:
    """The (cost, score) pairs that no other pair equals or beats in both, by cost."""
    sign = 1.0 if higher_is_better else -1.0
    best, kept = -math.inf, []
    for cost, score in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if sign * score > best:
            best = sign * score
            kept.append((cost, score))
    return kept


def _learning(view: View, root: Any) -> Figure:
    """Evaluation history and training loss: each seed faintly, and their mean where all have the same steps."""
    found: dict[tuple[str, str], dict[int, dict[int, series.Series]]] = {}
    for place, line in enumerate(view.table.lines):
        for slot in line.slots:
            if slot.record:
                files = series.listing(root, slot.record)
                for part, curves in series.curves(root, slot.record, files).items():
                    for name, curve in curves.items():
                        if name != series.RATE and len(curve["x"]) > 1:
                            found.setdefault((part, name), {}).setdefault(place, {})[slot.job.seed] = curve
    panels: dict[str, Panel] = {}
    options: list[str] = []
    for part, name in sorted(found, key=lambda key: (key[1] == series.LOSS, key[1].startswith("train"))):
        lines: list[dict[str, Any]] = []
        for place, by_seed in sorted(found[part, name].items()):
            label = view.table.lines[place].row.label
            for seed, curve in sorted(by_seed.items()):
                points = zip(curve["x"], curve["y"], strict=True)
                data = [[x, series.rounded(y), f"seed {seed}"] for x, y in points]
                lines.append(_series(label, place, "faint" if len(by_seed) > 1 else "line", data))
            if mean := _mean_curve(list(by_seed.values())):
                lines.append(_series(label, place, "line", mean))
        split, _, metric = name.partition("/")
        words = "training loss" if name == series.LOSS else f"{metric} ({split})"
        panels[str(len(options))] = {
            "x": {"label": "optimizer step"},
            "y": {"label": f"{part}: {words}"},
            "series": lines,
        }
        options.append(f"{part}: {words}")
    caption = (
        f"Scale {view.scale}: values as logged while training, at most {series.POINTS} points per run. Thin lines are "
        "seeds, thick ones their mean."
    )
    return _figure("learning", "Learning curves", caption, [("curve", options)], panels)


def _mean_curve(curves: list[series.Series]) -> list[list[Any]]:
    if len(curves) < 2 or any(curve["x"] != curves[0]["x"] for curve in curves):
        return []
    means = [statistics.fmean(values) for values in zip(*(curve["y"] for curve in curves), strict=True)]
    words = f"mean of {len(curves)}"
    return [[x, series.rounded(y), words] for x, y in zip(curves[0]["x"], means, strict=True)]


def _lens(view: View, root: Any) -> Figure:
    """Effective rank of the update over the steps, matrix by matrix, for the runs that looked through the lens."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for place, line in enumerate(view.table.lines):
        for slot in line.slots:
            files = series.listing(root, slot.record) if slot.record else {}
            for part, matrices in (series.lens(root, slot.record, files) if slot.record else {}).items():
                for matrix, seen in matrices.items():
                    pairs = zip(seen["time"]["x"], seen["time"]["effective_rank"], strict=True)
                    data = [[x, y, f"seed {slot.job.seed}"] for x, y in pairs]
                    found.setdefault((part, matrix), []).append(_series(line.row.label, place, "line", data))
    panels: dict[str, Panel] = {}
    options: list[str] = []
    for (part, matrix), lines in found.items():
        x, y = {"label": "optimizer step"}, {"label": "effective rank of the update"}
        panels[str(len(options))] = {"x": x, "y": y, "series": lines}
        options.append(f"{part}: {matrix}")
    caption = f"Scale {view.scale}: exp of the entropy of the update's normalised singular values; a line per run."
    return _figure("lens", "Low-rank lens", caption, [("matrix", options)], panels)


def _trial_points(records: list[RunRecord], method: str, part: str, metric: str) -> list[tuple[float, float, str]]:
    points = []
    for record in records:
        rate = lookup(record.config, "method.lr")
        found = record.parts.get(part) if record.method == method else None
        score = found.metrics.get("select", {}).get(metric) if found else None
        if isinstance(rate, int | float) and rate > 0 and score is not None and math.isfinite(score):
            points.append((float(rate), score, f"learning rate {rate:g}, seed {record.seed}"))
    return points


def _ordered(sweep: Sweep, table: Table) -> list[Column]:
    """The table's columns, the headline first."""
    return sorted(table.distinct_columns(), key=lambda column: column.key != sweep.headline)


def _in_unit(name: str, number: float) -> float:
    """The number as the table prints it, so that plot and table agree to the last digit."""
    return float(cost_number(name, number).replace(",", ""))


def _series(label: str, colour: int, kind: str, data: list[Any]) -> dict[str, Any]:
    return {"label": label, "colour": colour, "kind": kind, "data": data}


def _figure(
    key: str, title: str, caption: str, choices: list[tuple[str, list[str]]], panels: dict[str, Panel]
) -> Figure:
    named = [{"name": name, "options": options} for name, options in choices]
    return {"id": key, "title": title, "caption": caption, "choices": named, "panels": panels}
