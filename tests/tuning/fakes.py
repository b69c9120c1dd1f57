"""Trials without training: a runner that leaves the records that runs would leave."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from lrx import config as lrx_config
from lrx.engine.compose import Composer
from lrx.engine.sweep import Outcome
from lrx.results.record import Part, RunRecord, Status, record_path
from lrx.schema import Settings
from lrx.tuning import command

SWEEP = "altlora_glue"
COMPOSER = Composer()  # files are read once for all tests
Score = Callable[[Settings], float | Status]


def best_at(center: float) -> Score:
    """A score that is 0.8 at the rate ``center`` and lower away from it."""
    return lambda settings: 0.8 - 0.1 * abs(math.log10(settings.method["lr"] / center))


class Runner:
    """Calls are counted in ``runs``; after ``stop_after`` of them comes a signal."""

    def __init__(self, score: Score, stop_after: int | None = None) -> None:
        self.score, self.stop_after = score, stop_after
        self.runs: list[Settings] = []

    def __call__(self, lists: Sequence[Sequence[str]], jobs: int) -> Outcome:
        outcome = Outcome()
        for overrides in lists:
            settings = lrx_config.settings_of(COMPOSER(overrides))
            name = lrx_config.run_id(settings)
            if record_path(settings.paths.root, name).exists() and settings.rerun == "none":
                outcome.skipped.append(name)
                continue
            if self.stop_after is not None and len(self.runs) >= self.stop_after:
                outcome.signum = 15
                return outcome
            self.runs.append(settings)
            record_of(settings, self.score(settings)).save(settings.paths.root, overwrite=True)
            outcome.done.append(name)
        return outcome


def record_of(settings: Settings, score: float | Status) -> RunRecord:
    """The record of a trial that scored so, or that ended so."""
    status: Status = score if isinstance(score, str) else "finished"
    parts = {}
    if not isinstance(score, str):
        for name, metric in (("sentiment", "accuracy"), ("intensity", "pearson")):
            splits = {"select": {metric: score}}
            parts[name] = Part(metric, {metric: True}, metrics=splits, last=splits, steps=8)
    return RunRecord(
        run_id=lrx_config.run_id(settings),
        fingerprint=lrx_config.fingerprint(settings),
        status=status,
        message="" if status == "finished" else f"it {status}",
        method=settings.method["name"],
        model=settings.model["name"],
        task=settings.task["name"],
        scale=settings.scale.name,
        source="embedded",
        seed=settings.seed,
        config=settings.model_dump(mode="json", exclude={"sweep"}),
        parts=parts,
    )


def tune(root: Path, runner: Runner, *words: str, **options: Any) -> str:
    """Tune at the smoke scale and return what was printed; winners go below ``root/tuned``."""
    out = StringIO()
    request = command.parse(SWEEP, ["scale=smoke", *words])
    options = {"to": root / "tuned", **options}
    command.tune(request, root, Console(file=out, width=160), runner=runner, **options)
    return out.getvalue()
