"""The passport of a method, model, task or sweep: what ``python -m lrx info`` says, as sections of plain lines.

Read from sources, configs and records, without torch; only the counts (``lrx.counts``) import it, when asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrx import paths
from lrx.errors import UserError
from lrx.results.record import Problem, RunRecord
from lrx.results.sweep import load, load_yaml, sweep_names

if TYPE_CHECKING:
    from lrx.counts import Counts

# The lines of a docstring that begin with one of these words begin a section of it.
_HEADINGS = {
    "Trained": "what is trained",
    "Per step": "per step",
    "Departure": "departures from the official code and the paper",
    "Cost": "cost",
}


@dataclass(frozen=True)
class Section:
    """A heading and its lines."""

    title: str
    lines: list[str] = field(default_factory=list)


def doc_sections(doc: str) -> list[Section]:
    """A method's docstring by its parts: what it is with its equations, then the sections of ``_HEADINGS``.

    Sections of one kind are put together; what follows an empty line below a heading belongs to none.
    """
    sections = [Section("what it does")]
    for line in doc.splitlines():
        heading = next((text for word, text in _HEADINGS.items() if re.match(rf"{word}\w*\b.*:", line)), None)
        if heading is not None:
            found = next((section for section in sections if section.title == heading), None)
            if found is None:
                found = Section(heading)
            else:
                sections.remove(found)
            sections.append(found)
        elif not line.strip() and len(sections) > 1:
            sections.append(Section("besides"))
        if line.strip() or sections[-1].lines:
            sections[-1].lines.append(line)
    stripped = [Section(each.title, "\n".join(each.lines).rstrip().splitlines()) for each in sections]
    return [section for section in stripped if section.lines]


def tuned_values(method: str) -> Section:
    """The values in ``conf/tuned`` with what each file says about where they come from."""
    lines = []
    folder = paths.conf_dir() / "tuned"
    for path in sorted(folder.rglob(f"{method}.yaml")):
        raw = load_yaml(path)
        scale, _, task = path.parent.relative_to(folder).as_posix().partition("/")
        lines.append(f"{scale}, {task}: {_pairs(raw.get('method') or {})}")
        if origin := raw.get("tuned"):
            lines.append(f"    from: {_pairs(origin)}")
        comment = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        if said := " ".join(line for line in comment if not line.startswith("@package")):
            lines.append(f"    {said}")
    return Section("tuned values", lines or ["none: the values above are used"])


def where_it_ran(
    kind: str, name: str, records: Sequence[RunRecord], problems: Sequence[Problem], root: Path
) -> Section:
    """Runs by scale, task and model (or method), with what they trained and kept, from the records below ``root``."""
    key = {"methods": "method", "models": "model", "tasks": "task"}[kind]
    mine = [record for record in records if getattr(record, key) == name]
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in mine:
        parts = "+".join(record.parts) or "no part done"
        groups.setdefault((record.scale, record.task, parts, record.model, record.method), []).append(record)
    lines = []
    for (scale, task, parts, model, method), runs in sorted(groups.items()):
        done = [run for run in runs if run.status == "finished"]
        seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in done}))
        text = f"{scale}: {task} ({parts}), {model}, {method}: {len(done)} finished" + (
            f" (seeds {seeds})" if done else ""
        )
        others = [run.status.replace("_", " ") for run in runs if run.status != "finished"]
        lines.append(text + "".join(f", {others.count(status)} {status}" for status in sorted(set(others))))
        if costs := _measured(done):
            lines.append(f"    measured: {costs}")
    if not mine:
        lines.append(f"no record of it below {root}")
    if problems:
        lines.append(f"{len(problems)} files there are no readable records")
    return Section(f"where it ran (records below {root})", lines)


def claims_about(method: str, records: Sequence[RunRecord], problems: Sequence[Problem], root: Path) -> Section:
    """The claims of all sweeps in which a row of ``method`` takes part, with verdicts where there are records."""
    from lrx.results.claims import judge
    from lrx.results.gather import gather

    lines: list[str] = []
    ran = any(record.method == method and record.status == "finished" for record in records)
    for name in sweep_names():
        try:
            sweep = load(name)
            rows = {row.key: row.method or row.key for row in sweep.rows}
            about = [claim for claim in sweep.claims if method in (rows.get(claim.a), rows.get(claim.b))]
            if not about:
                continue
            if not ran:
                lines += [f"{name}: {c.kind}({c.a}, {c.b}, {c.column or c.cost}): not enough evidence, no finished run"
                          for c in about]  # fmt: skip
                continue
            data = gather(name, root, read=(list(records), list(problems)), published=False)
            judged = [item for item in judge(data.sweep, data.table) if item.claim in about]
            lines += [f"{name}: {item.text}: {item.words} ({item.statistic})" for item in judged]
        except UserError as error:
            lines.append(f"{name}: cannot be judged: {error}")
    return Section("claims", lines or ["no sweep makes a claim about it"])


def shapes_and_counts(counts: Sequence[Counts], command: str, *, method: bool) -> Section:
    """What ``lrx.counts`` found: of the model, and with ``method`` of what the method makes of it."""
    first = counts[0]
    lines = [f"for: {command}", f"parameters of the model with its head: {first.total:,}"]
    what = "adapted" if method else "linear layers"
    shapes = [f"{number} {name} {m} x {n}" for (name, m, n), number in first.matrices.items()]
    lines.append(f"{what}: {', '.join(shapes) or 'no matrix'}")
    for each in counts:
        part = f"{each.part}: " if len(counts) > 1 else ""
        if method:
            share = f"{each.trainable / each.total:.3%} of the model"
            trained = f"trained {each.trainable:,} = {each.adapter:,} + {each.head:,} in the head, {share}"
            lines.append(f"{part}{trained}; optimizer state {each.state:,} numbers, {each.state_bytes:,} bytes")
        else:
            lines.append(f"{part}head {each.head:,}")
    if len(counts) > 1 and method:
        lines.append("each part is trained on its own; a record keeps the largest")
    return Section("shapes and exact counts", lines)


def task_parts(name: str) -> Section:
    """The parts of a task as its torch-free data module describes them (``describe() -> list of lines``)."""
    from lrx.config import data_module

    module = data_module({"name": name})
    describe: Any = getattr(module, "describe", None)
    return Section("parts: metrics, splits, sizes", list(describe()) if describe else [])


def _measured(runs: Sequence[RunRecord]) -> str:
    """Costs on which all runs agree, and the range of those that differ from run to run."""
    found = []
    for key, word in (("trainable_parameters", "trained"), ("optimizer_state_bytes", "bytes of optimizer state")):
        values = sorted({round(run.cost[key]) for run in runs if key in run.cost})
        if values:
            amount = f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"
            found.append(f"{word} {amount}" if word == "trained" else f"{amount} {word}")
    return ", ".join(found)


def _pairs(mapping: Any) -> str:
    if not isinstance(mapping, dict):
        return str(mapping)
    return ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in mapping.items()
    )
