"""From the command line to runs: Hydra composes, finished runs are skipped, errors are one clear line.

Everything here answers without torch; a run that has to be trained imports the rest (``lrx.experiment``).
Exit codes: 0 done, 1 a run failed, 2 a user's mistake, 128 + n ended by signal n.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lrx import config as lrx_config
from lrx import paths
from lrx.errors import Busy, RunFailed, UserError, did_you_mean
from lrx.schema import Settings


@dataclass
class Outcome:
    """What became of the runs of one command."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)  # another process is at work on them
    error: BaseException | None = None  # ends the command; kept here because Hydra prints what a job raises


@dataclass(frozen=True)
class Job:
    """One run of a sweep: the overrides that compose it and the identity it gets."""

    overrides: list[str]
    fingerprint: str
    run_id: str
    method: str
    seed: int
    config: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return its exit code."""
    arguments = flags_first(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & set(arguments):
        print(help_text())
        return 0
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing and exiting, so that we can explain
    outcome = Outcome()
    try:
        _hydra(arguments, outcome)
        if outcome.error is not None:
            raise outcome.error
    except KeyboardInterrupt as stop:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 128 + getattr(stop, "signum", 2)
    except Exception as error:
        message = explain(error)
        if message is None or full_error:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
    finally:
        if not full_error:
            del os.environ["HYDRA_FULL_ERROR"]
    if len(outcome.done) + len(outcome.skipped) + len(outcome.failed) + len(outcome.busy) > 1:
        busy = f", {len(outcome.busy)} being run by another process" if outcome.busy else ""
        print(f"{len(outcome.done)} run, {len(outcome.skipped)} already finished, {len(outcome.failed)} failed{busy}")
    for name, message in outcome.failed:
        print(f"failed: {name}: {message}", file=sys.stderr)
    return 1 if outcome.failed else 0


VALUED_FLAGS = {
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--info", "-i", "--experimental-rerun"),
}


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Hydra's flags before the overrides: its parser does not find a flag that stands between two of them."""
    flags: list[str] = []
    overrides: list[str] = []
    remaining = list(arguments)
    while remaining:
        word = remaining.pop(0)
        (flags if word.startswith("-") else overrides).append(word)
        if word in VALUED_FLAGS and remaining:
            flags.append(remaining.pop(0))
    return [*flags, *overrides]


def _hydra(arguments: list[str], outcome: Outcome) -> None:
    import hydra

    lrx_config.register_resolvers()

    def job(config: DictConfig) -> None:
        if outcome.error is not None:
            return
        try:
            run(config, outcome, keep_going=_is_multirun())
        except (Exception, KeyboardInterrupt) as error:
            outcome.error = error

    saved, sys.argv = sys.argv, ["run.py", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(paths.conf_dir()), config_name="config")(job)()
    finally:
        sys.argv = saved


def _is_multirun() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run(config: DictConfig, outcome: Outcome, *, keep_going: bool = False) -> None:
    """Carry out one composed configuration, or print what its finished record says.

    A failed run leaves a record and an entry in ``outcome``; with ``keep_going`` so does a mistake in its
    configuration, so that the other jobs of a multirun go on.
    """
    try:
        settings = lrx_config.settings_of(config)
        check_data(settings)
        name = lrx_config.run_id(settings)
        if settings.mode == "train" and not _to_do(settings, name, outcome):
            return
        experiment = import_module("lrx.experiment")  # imports torch: only when there is something to do
        experiment.execute(settings, name)
        outcome.done.append(name)
    except RunFailed as error:
        outcome.failed.append((name, str(error)))
        if error.outcome == "interrupted":
            stop = KeyboardInterrupt()
            stop.signum = getattr(error, "signum", 2)  # type: ignore[attr-defined]
            raise stop from None
    except Busy as error:
        if not keep_going:
            raise
        print(error)
        outcome.busy.append(name)
    except UserError as error:
        if not keep_going:
            raise
        outcome.failed.append((_overrides(), str(error)))


def check_data(settings: Settings) -> None:
    """Let the task look at its options and files before anything heavy is imported. Raises ``UserError``."""
    module = lrx_config.data_module(settings.task)
    if module is not None:
        module.check(settings.task, settings.mode)


def _to_do(settings: Settings, name: str, outcome: Outcome) -> bool:
    """Whether the run is to be carried out; if not, says why and counts it in ``outcome``.

    A finished run is repeated with ``rerun=all`` only, one that failed (diverged, ran out of memory) with
    ``rerun=failed`` or ``all``; an interrupted one always goes on.
    """
    from lrx.results import record, summary

    path = record.record_path(settings.paths.root, name)
    if settings.rerun == "all" or not path.exists():
        return True
    try:
        found = record.read(path)
    except record.RecordError as error:
        raise UserError(f"{error}; delete the file or give rerun=all") from None
    if found.status == "finished":
        print(summary.render(found))
        print(f"already finished, nothing done; rerun=all repeats it: {path}")
        if settings.callbacks.submission:
            print("mode=eval callbacks.submission=true writes the submission of a finished run")
        outcome.skipped.append(name)
        return False
    if found.status == "interrupted" or settings.rerun == "failed":
        return True
    outcome.failed.append((name, f"{found.message} (an earlier attempt; rerun=failed tries again)"))
    return False


def _overrides() -> str:
    from hydra.core.hydra_config import HydraConfig

    return " ".join(HydraConfig.get().overrides.task) if HydraConfig.initialized() else "run"


def sweep_jobs(name: str, extra_overrides: Sequence[str] = ()) -> list[Job]:
    """The jobs of ``sweeps/<name>.yaml`` in order, as ``python run.py +sweeps=<name>`` would start them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    path = paths.sweeps_dir() / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"no sweep is called {name!r}; {did_you_mean(name, sweep_names())}")
    grid = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params") or {}
    texts = [f"+sweeps={name}", *(f"{key}={value}" for key, value in grid.items()), *extra_overrides]
    batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(texts), None)
    jobs = []
    for overrides in batches[0]:
        settings = lrx_config.settings_of(lrx_config.compose(overrides))
        jobs.append(
            Job(
                overrides=list(overrides),
                fingerprint=lrx_config.fingerprint(settings),
                run_id=lrx_config.run_id(settings),
                method=settings.method["name"],
                seed=settings.seed,
                config=settings.model_dump(mode="json", exclude={"sweep"}),
            )
        )
    return jobs


def sweep_names() -> list[str]:
    """Names of the sweep files."""
    return sorted(path.stem for path in paths.sweeps_dir().glob("*.yaml"))


def help_text() -> str:
    """What ``--help`` prints: how to ask for a run, and every group with its options."""
    groups = []
    for folder in sorted(path for path in paths.conf_dir().iterdir() if path.is_dir()):
        if options := _options(folder.name):
            groups.append(f"  {folder.name + ':':<11} {', '.join(options)}")
    return HELP.replace("GROUPS", "\n".join(groups)).replace("SWEEPS", ", ".join(sweep_names()))


HELP = """\
lrx: reproduce papers on low-rank adaptation. One run = one method, one model, one task, one seed.

  python run.py method=altlora task=glue                 one run, minutes on two CPU cores, no network
  python run.py -m method=lora,altlora seed=0,1          several runs; finished ones are skipped
  python run.py +sweeps=altlora_glue                     a whole table: methods x seeds
  python run.py method=altlora task=glue mode=eval       score a finished run again
  python run.py method=altlora task=glue scale=paper     the paper's setting (hub weights and data, GPU)

Choose with GROUP=OPTION:
GROUPS
  +sweeps:    SWEEPS

Set any value with KEY=VALUE:
  seed=0  rerun=none|all|failed  paths.root=results  trainer.max_steps=N  trainer.precision=bf16-mixed
  task.source=embedded|local|hub  task.data_dir=DIR  task.subset=rte  task.subset=[cola,rte]  method.rank=8

More:
  python -m lrx list methods        what there is, with papers      python -m lrx info altlora   one of them
  python run.py --cfg job           the whole composed config       python run.py --hydra-help   Hydra's own flags
  eval "$(python run.py -sc install=bash)"                          tab completion"""


def explain(error: BaseException) -> str | None:
    """One line for a user's mistake, or None when ``error`` is a defect of ours and its traceback is wanted."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        if group.startswith("model/for"):
            return f"model: this task has no default backbone at scale {group.rpartition('/')[2]!r}; give model=NAME"
        return f"{group or 'config'}={choice}: no such option; {did_you_mean(choice, error.options or _options(group))}"
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}: {_first_line(error)} (the form is key=value)"
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key and cause.parent_node is not None:
        key = str(cause.full_key)
        names = [str(name) for name in getattr(cause.parent_node, "keys", list)()]
        if not names:  # a mapping that is filled freely, such as method.options
            return f"{key}: not set yet; add it with a plus: +{key}=VALUE"
        return f"{key}: no such key; {did_you_mean(key.rpartition('.')[2], names)}"
    if isinstance(error, OmegaConfBaseException | HydraException):
        text = _first_line(error)
        if match := re.match(r"Could not override '([^']+)'\.? ?No match in the defaults list", text):
            return f"{match[1]}: no such group; {did_you_mean(match[1], _groups())}"
        return text + (f" ({_first_line(cause)})" if cause else "")
    if isinstance(error, ValueError) and _inside_hydra(error):
        return f"cannot compose the configuration: {_first_line(error)} (the form of an override is key=value)"
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or 'a file the run writes'}; check paths.root and the disk"
    return None


def _inside_hydra(error: BaseException) -> bool:
    """Whether the error was raised by Hydra's or OmegaConf's own code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return name.startswith(("hydra.", "omegaconf."))


def _groups() -> list[str]:
    return ["sweeps", *(p.name for p in paths.conf_dir().iterdir() if p.is_dir())]


def _options(group: str) -> list[str]:
    folder = paths.sweeps_dir() if group == "sweeps" else paths.conf_dir() / group
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).strip().splitlines()[:1])
