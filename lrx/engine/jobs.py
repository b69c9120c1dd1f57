"""A job: one run of a sweep, composed and named, before anything has been trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import DictConfig

from lrx import config as lrx_config
from lrx.errors import UserError
from lrx.schema import Settings


@dataclass(frozen=True)
class Job:
    """One run: the overrides that compose it, its validated settings and the identity they give."""

    overrides: list[str]
    settings: Settings
    fingerprint: str
    run_id: str

    @property
    def method(self) -> str:
        return str(self.settings.method["name"])

    @property
    def seed(self) -> int:
        return self.settings.seed

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json", exclude={"sweep"})


@dataclass(frozen=True)
class Mistake:
    """Overrides that compose no run, and why: the other jobs of a sweep go on."""

    overrides: list[str]
    message: str


def make(overrides: Sequence[str], config: DictConfig, check: bool = True) -> Job:
    """The job of a composed configuration, with ``check`` its data looked at. Raises ``UserError``."""
    settings = lrx_config.settings_of(config)
    if check:
        lrx_config.check_data(settings)
    return job_of(overrides, settings)


def job_of(overrides: Sequence[str], settings: Settings) -> Job:
    """The job of validated settings."""
    return Job(list(overrides), settings, lrx_config.fingerprint(settings), lrx_config.run_id(settings))


def make_all(
    lists: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], DictConfig], check: bool = True
) -> list[Job | Mistake]:
    """A job for each list of overrides, in order; for one whose values do not fit together, the mistake.

    Raises Hydra's error for overrides that do not compose at all (a name that is misspelt): then nothing is run, as
    Hydra itself has it.
    """
    made: list[Job | Mistake] = []
    for overrides in lists:
        composed = compose(overrides)
        try:
            made.append(make(overrides, composed, check))
        except UserError as error:
            made.append(Mistake(list(overrides), str(error)))
    return made
