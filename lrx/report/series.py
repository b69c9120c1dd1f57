"""The curves that a run leaves beside its record: training log, evaluation history, and the low-rank lens.

A series is ``{"x": [steps], "y": [values]}`` with at most ``POINTS`` points, evenly chosen, first and last included.
A line that a kill cut short is passed over; a missing file is no series.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from lrx.results.record import Part, RunRecord

POINTS = 80
SPECTRUM = 32  # singular values shown of each matrix
Series = dict[str, list[Any]]
Point = TypeVar("Point")
_NUMBERS = {int, float}  # a bool is none

LOSS = "train/loss"
RATE = "lr"


def listing(root: Path, record: RunRecord) -> dict[str, int]:
    """Files in the run's folder and in those of its parts, ``sentiment/metrics.jsonl`` -> bytes, without hidden ones.

    Empty when there are none, or when the record's run id is no name of a folder.
    """
    if record.run_id in ("", ".", "..") or "/" in record.run_id or "\0" in record.run_id:
        return {}
    found: dict[str, int] = {}
    _list(os.path.join(root, "runs", record.run_id), "", found)
    return found


def curves(root: Path, record: RunRecord, files: Iterable[str]) -> dict[str, dict[str, Series]]:
    """Part -> name (``train/loss``, ``lr``, ``select/accuracy``) -> series of a run. ``files``: its ``listing``."""
    found: dict[str, dict[str, Series]] = {}
    for part, path in _logs(root, record, files, "metrics.jsonl"):
        if columns := _columns(json_lines(path)):
            found[part] = columns
    for name, stored in record.parts.items():
        if history := _history(stored):
            found[name] = {**found.get(name, {}), **history}
    return found


def lens(root: Path, record: RunRecord, files: Iterable[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Part -> matrix -> its ranks and principal angles over the steps, and its first and last spectra."""
    found = {}
    for part, path in _logs(root, record, files, "lens.jsonl"):
        matrices: dict[str, list[dict[str, Any]]] = {}
        for line in json_lines(path):
            if isinstance(line.get("name"), str) and _is_number(line.get("step")):
                matrices.setdefault(line["name"], []).append(line)
        if matrices:
            found[part] = {key: _lens_of(lines) for key, lines in matrices.items()}
    return found


def json_lines(path: str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none if there is no such file, and without lines that are no objects."""
    try:
        with open(path, "rb") as stream:
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = text.split("\n")
    try:
        values = json.loads(f"[{','.join(filter(None, lines))}]")  # one call is several times faster than one per line
    except (ValueError, RecursionError):
        values = []
        for line in lines:
            try:
                values.append(json.loads(line))
            except (ValueError, RecursionError):
                continue  # cut short by a kill
    return [value for value in values if isinstance(value, dict)]


def chosen(points: list[Point], count: int = POINTS) -> list[Point]:
    """At most ``count`` of the points, evenly chosen, the first and the last among them."""
    if len(points) <= count:
        return points
    return [points[round(i * (len(points) - 1) / (count - 1))] for i in range(count)]


def text(values: Sequence[float]) -> str:
    """Numbers with five significant digits, parted by commas: read and written faster than a list of numbers."""
    return ("%.5g," * len(values) % tuple(values))[:-1]


def rounded(value: float) -> float | None:
    """Five significant digits: a curve needs no more. None for what JSON and a plot have no place for."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _list(folder: str, prefix: str, found: dict[str, int]) -> None:
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    continue
                if entry.is_file(follow_symlinks=False):
                    found[prefix + entry.name] = entry.stat(follow_symlinks=False).st_size
                elif not prefix and entry.is_dir(follow_symlinks=False):
                    _list(entry.path, f"{entry.name}/", found)
    except OSError:
        return  # no such folder, or one that went away


def _logs(root: Path, record: RunRecord, files: Iterable[str], name: str) -> list[tuple[str, str]]:
    """(part, path) of each part's log called ``name``."""
    folder = os.path.join(root, "runs", record.run_id)
    found = [file.split("/") for file in files if file.endswith(f"/{name}")]
    return [(part, os.path.join(folder, part, name)) for part, *_ in found]


def _columns(lines: list[dict[str, Any]]) -> dict[str, Series]:
    """The series of a log. A log has few kinds of lines, so lines with equal keys are taken apart together."""
    kinds: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in lines:
        kinds.setdefault(tuple(line), []).append(line)
    found: dict[str, Series] = {}
    for keys, alike in kinds.items():
        steps = [line.get("step") for line in alike]
        if not _all_numbers(steps):
            continue
        for key in keys:
            values = [line[key] for line in alike]
            if key != "step" and _all_numbers(values):
                series = found.setdefault(key, {"x": [], "y": []})
                series["x"] += steps
                series["y"] += values
    return {key: _in_order(series) for key, series in found.items()}


def _in_order(series: Series) -> Series:
    """The series by step, which several kinds of lines may have mixed, thinned out."""
    xs, ys = series["x"], series["y"]
    if any(after < before for before, after in pairwise(xs)):
        xs, ys = map(list, zip(*sorted(zip(xs, ys, strict=True), key=itemgetter(0)), strict=True))
    return {"x": chosen(xs), "y": chosen(ys)}


def _history(part: Part) -> dict[str, Series]:
    """The evaluation history that the record itself holds (``Part.curve``)."""
    found: dict[str, Series] = {}
    for point in chosen(part.curve):
        for split, metrics in point["splits"].items():
            for metric, value in metrics.items():
                series = found.setdefault(f"{split}/{metric}", {"x": [], "y": []})
                series["x"].append(point["step"])
                series["y"].append(value)
    return found


def _lens_of(lines: list[dict[str, Any]]) -> dict[str, Any]:
    lines = sorted(lines, key=lambda line: line["step"])
    shown = chosen(lines, 40)
    over_time: dict[str, Any] = {"x": [line["step"] for line in shown]}
    for key in ("effective_rank", "stable_rank"):
        over_time[key] = [rounded(line[key]) if _is_number(line.get(key)) else None for line in shown]
    for key in ("angles_start", "angles_previous"):
        over_time[key] = [_degrees(line.get(key)) for line in shown]
    ends = [lines[0], lines[-1]] if len(lines) > 1 else lines
    spectra = [
        {"step": line["step"], "weight": _spectrum(line.get("weight")), "update": _spectrum(line.get("update"))}
        for line in ends
    ]
    return {"shape": _spectrum(lines[-1].get("shape")), "time": over_time, "spectra": spectra}


def _spectrum(values: Any) -> list[float | None]:
    return [rounded(v) for v in values[:SPECTRUM] if _is_number(v)] if isinstance(values, list) else []


def _degrees(angles: Any) -> list[float]:
    return [round(math.degrees(a), 2) for a in angles if _is_number(a)] if isinstance(angles, list) else []


def _is_number(value: Any) -> bool:
    return type(value) in _NUMBERS


def _all_numbers(values: list[Any]) -> bool:
    """Whether all are numbers, none of them an integer that no float can hold."""
    if not _NUMBERS.issuperset(map(type, values)):
        return False
    try:
        return bool(list(map(float, values)))
    except OverflowError:
        return False
