"""The best trial of a method, and the file in ``conf/tuned`` that later runs compose."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lrx.errors import UserError
from lrx.files import read_text, write_atomic
from lrx.results.sweep import load_yaml
from lrx.tuning.journal import Facts, Trial
from lrx.tuning.judge import metric_text
from lrx.tuning.proposal import started_from
from lrx.tuning.space import Space

_PACKAGE = "# @package _global_"
_OURS = "# tuned: "  # lines that the next tuning replaces; other comments stay


def winner(trials: Sequence[Trial]) -> Trial | None:
    """The finished trial with the best score, the earliest of equal ones; None when none finished."""
    scored = [(trial.score, -trial.number, trial) for trial in trials if trial.score is not None]
    return max(scored, key=lambda item: item[:2])[2] if scored else None


def at_edge(best: Trial, trials: Sequence[Trial], space: Space) -> list[str]:
    """A line for each key whose best value has no tried value beyond it: the best may then lie outside.

    A failed trial beyond it counts as tried.
    """
    lines = []
    for key, dimension in space.items():
        tried = [trial.point[key] for trial in trials if dimension.contains(trial.point.get(key))]
        if dimension.choices or len(set(tried)) < 2 or best.point[key] not in (min(tried), max(tried)):
            continue
        end = "smallest" if best.point[key] == min(tried) else "largest"
        lines.append(
            f"{key}={best.point[key]:g} is the {end} value tried (space {dimension.describe()}): the best may lie "
            "beyond; more trials or a wider sweep.tune would tell"
        )
    return lines


def text(
    old: Path | None,
    facts: Facts,
    space: Space,
    trials: Sequence[Trial],
    best: Trial,
    command: str,
) -> str:
    """The tuned file: what ``old`` holds with the winner's values put in, their provenance, and every trial's score.

    ``command``: what found them. Raises ``UserError`` when ``old`` cannot be read.
    """
    comments, content = _parsed(old)
    content = copy.deepcopy(content)
    for key, value in best.point.items():
        *sections, last = key.split(".")
        node = content
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    provenance = {
        "sweep": facts.sweep,
        "model": facts.model,
        "source": facts.source,
        "values": dict(best.point),
        "trials": len(trials),
        "seed": facts.seeds[0] if len(facts.seeds) == 1 else list(facts.seeds),
        "metric": metric_text(best),
        "score": round(float(best.score or 0.0), 6),
        "command": command,
        "started_from": started_from(space, trials[0].point),
    }
    content.pop("tuned", None)
    ours = [
        f"{command}: score of each trial ({metric_text(best)}; seed {', '.join(map(str, facts.seeds))})",
        *(f"{_shown(trial.point)}: {outcome_text(trial)}" for trial in sorted(trials, key=lambda t: _order(t.point))),
        *at_edge(best, trials, space),
    ]
    lines = [_PACKAGE, *comments, *(_OURS + line for line in ours)]
    lines += [_flow({key: value}) for key, value in content.items()]
    return "\n".join([*lines, _block({"tuned": provenance})])


def write(path: Path, content: str) -> Path:
    """Put the file in place, whole or not at all."""
    return write_atomic(path, content)


def outcome_text(trial: Trial) -> str:
    """``0.8312``, or the word for what came instead."""
    return f"{trial.score:.4f}" if trial.score is not None else trial.outcome.replace("_", " ")


def _parsed(old: Path | None) -> tuple[list[str], dict[str, Any]]:
    """The comments that are not ours, and the content."""
    if old is None or not old.exists():
        return [], {}
    lines = [line for line in read_text(old).splitlines() if line.startswith("#")]
    content = load_yaml(old)
    for key in content:
        if not isinstance(key, str):
            raise UserError(f"{old}: the key {key!r} is no text")
    return [line for line in lines if line.strip() != _PACKAGE and not line.startswith(_OURS.rstrip())], content


def _flow(section: dict[str, Any]) -> str:
    """``method: {lr: 0.003, rank: 8}``: a section on one line, as in the hand-written files."""
    (key, value) = next(iter(section.items()))
    body = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True)
    return f"{key}: {body.removesuffix('...' + chr(10)).strip()}"


def _block(section: dict[str, Any]) -> str:
    return yaml.safe_dump(section, sort_keys=False, width=float("inf"), allow_unicode=True)


def _shown(point: dict[str, Any]) -> str:
    return ", ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in point.items()
    )


def _order(point: dict[str, Any]) -> list[tuple[int, Any]]:
    return [(0, value) if isinstance(value, int | float) else (1, str(value)) for value in point.values()]
