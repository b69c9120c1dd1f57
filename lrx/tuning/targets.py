"""What is tuned: a row of a sweep with its space, the configuration around it, and the runs of one trial."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lrx import config as lrx_config
from lrx import launch
from lrx.engine.compose import Composer
from lrx.errors import UserError, did_you_mean
from lrx.explain import explain
from lrx.results.sweep import JobLike, Row, Sweep, lookup
from lrx.schema import Settings
from lrx.tuning.journal import Facts
from lrx.tuning.space import Point, Space

Compose = Callable[[Sequence[str]], Settings]
_OWN = ("seed", "trial", "paths.root", "rerun", "mode")  # what tuning sets itself


@dataclass(frozen=True)
class Target:
    """A row to tune, or a part of it. ``present``: the configuration's own values. ``file``: below ``conf/tuned``.

    It is scale/task/method, and where the grid is one of models scale/task/method/model.
    """

    facts: Facts
    space: Space
    present: Point
    base: list[str]
    file: Path
    compose: Compose

    def overrides(self, point: Point) -> list[list[str]]:
        """The command lines of a trial, one for each seed."""
        values = [f"{key}={json.dumps(value)}" for key, value in point.items()]
        return [[*self.base, f"seed={seed}", *values] for seed in self.facts.seeds]

    def run_ids(self, point: Point) -> list[str]:
        """The ids of a trial's runs. Raises ``UserError`` for a point that is no valid configuration."""
        return [lrx_config.run_id(self.compose(words)) for words in self.overrides(point)]


def targets(sweep: Sweep, chosen: Sequence[str], overrides: Sequence[str], folder: Path) -> list[Target]:
    """The rows of the sweep's grid, or those that ``chosen`` names by row or method, ready to be tried.

    ``overrides`` change the grid as in the run; ``folder`` receives the trials. Everything that a trial could stumble
    over is looked at here. Raises ``UserError``.
    """
    if sweep.tune is None:
        raise UserError(f"sweeps/{sweep.name}.yaml has no section sweep.tune: what to tune, and between what")
    for word in overrides:
        if (key := _key(word)) in _OWN:
            raise UserError(f"{word}: tuning sets {key} itself (seeds stand in sweep.tune.seed)")
    rows = _rows(sweep, chosen)
    jobs = launch.sweep_jobs(sweep.name, overrides)
    if shared := {job.seed for job in jobs} & set(sweep.tune.seeds):
        raise UserError(f"sweep.tune.seed={min(shared)} is a seed of the table; tune with another one")
    found, files, composer = [], dict[Path, str](), Composer()
    for row in rows:
        if row.key not in chosen and row.key in sweep.tune.rows and not sweep.tune.space(row.key):
            continue  # it has nothing to tune, and the sweep says so
        own: dict[str, JobLike] = {}  # the first job of each part
        for job in jobs:
            if row.matches(job.method, job.config):
                own.setdefault(str(lookup(job.config, sweep.parts_by)) if sweep.parts_by else "", job)
        if not own and chosen:
            raise UserError(f"method={row.key}: the grid of {sweep.name} has no job of it")
        for part, first in own.items():
            target = _target(sweep, row, part, first.overrides, overrides, folder, _composing(composer, row.key))
            if other := files.get(target.file):
                raise UserError(
                    f"rows {other} and {row.key} are tuned into the same file, conf/tuned/{target.file}; choose one of "
                    f"them: method={other}"
                )
            files[target.file] = row.key
            found.append(target)
    if chosen and not found:
        raise UserError(f"method={','.join(chosen)}: sweep.tune of {sweep.name} says that these have nothing to tune")
    return found


def _target(
    sweep: Sweep, row: Row, part: str, job: Sequence[str], overrides: Sequence[str], folder: Path, compose: Compose
) -> Target:
    tune = sweep.tune
    assert tune is not None
    space = tune.space(row.key)
    if not space:
        raise UserError(f"sweep.tune: nothing to tune for row {row.key}; give sweep.tune.default or rows.{row.key}")
    for word in overrides:
        if (key := _key(word)) in space:
            raise UserError(f"{word}: {sweep.name} tunes {key} of row {row.key}; leave it out, or change sweep.tune")
    grid = [word for word in job if word not in overrides]
    words = _last_of_each([*grid, *tune.overrides, *overrides, "trial=true", f"paths.root={folder}"])
    base = [word for word in words if _key(word) not in {"seed", *space}]
    settings = compose([*base, f"seed={tune.seeds[0]}"])
    for key, dimension in space.items():  # an unknown key or a value of the wrong kind shows here
        compose([*base, f"{key}={json.dumps(dimension.at(0.5))}"])
    lrx_config.check_data(settings)
    if not settings.trainer.evaluations or settings.trainer.max_steps == 0:
        raise UserError("tuning needs the selection score of the last step: trainer.evaluations and max_steps above 0")
    config = settings.model_dump(mode="json")
    facts = Facts(
        key=_digest(settings, space, tune.seeds),
        sweep=sweep.name,
        row=row.key,
        label=f"{row.label}, {part}" if part else row.label,
        method=row.method,
        model=settings.model["name"],
        task=settings.task["name"],
        source=str(settings.task.get("source", "")),
        scale=settings.scale.name,
        seeds=tune.seeds,
        space={key: dimension.model_dump(exclude_defaults=True) for key, dimension in space.items()},
    )
    choices = _choices(base)
    file = Path(choices["scale"], choices["task"], f"{choices['method']}.yaml")
    if any(_key(word) == "model" for word in grid):  # rows that differ by model have a file for each
        file = file.with_suffix("") / f"{choices['model']}.yaml"
    return Target(facts, space, {key: lookup(config, key) for key in space}, base, file, compose)


def _rows(sweep: Sweep, chosen: Sequence[str]) -> list[Row]:
    names = {row.key for row in sweep.rows} | {row.method for row in sweep.rows}
    for name in chosen:
        if name not in names:
            raise UserError(f"method={name}: {sweep.name} has no such method; {did_you_mean(name, names)}")
    return [row for row in sweep.rows if not chosen or row.key in chosen or row.method in chosen]


def _composing(composer: Composer, row: str) -> Compose:
    """Composing and validating for a row; a mistake names it."""

    def compose(overrides: Sequence[str]) -> Settings:
        try:
            return lrx_config.settings_of(composer(overrides))
        except Exception as error:
            message = explain(error)
            if message is None:
                raise
            raise UserError(f"tuning row {row}: {message}") from None

    return compose


def _choices(overrides: Sequence[str]) -> dict[str, str]:
    """Which option of each config group the overrides choose: ``{"method": "lora", "scale": "mini", ...}``."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from lrx import paths

    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(paths.conf_dir()), version_base="1.3"):
        config = compose("config", overrides=list(overrides), return_hydra_config=True)
    return dict(OmegaConf.to_container(config.hydra.runtime.choices))  # type: ignore[arg-type]


def _digest(settings: Settings, space: Space, seeds: list[int]) -> str:
    """Names a study: everything that its trials share, and which keys are tuned. A wider space is the same study."""
    identity: dict[str, Any] = lrx_config.identity(settings)
    for key in space:
        *sections, last = key.split(".")
        node = identity
        for section in sections:
            node = node.get(section, {})
        node.pop(last, None)
    return hashlib.sha256(json.dumps([identity, sorted(space), seeds], sort_keys=True).encode()).hexdigest()


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _last_of_each(overrides: Iterable[str]) -> list[str]:
    """Hydra refuses a group that is chosen twice; the later choice counts."""
    return list({_key(word): word for word in overrides}.values())
