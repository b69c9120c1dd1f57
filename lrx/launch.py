"""From the command line to runs: Hydra composes, finished runs are skipped, errors are one clear line.

Everything here answers without torch; a run that has to be trained imports the rest (``lrx.experiment``). A single run
is carried out in this process; the jobs of a multirun go through an engine (``lrx.engine``), each in its own process.
Exit codes: 0 done, 1 a run failed, 2 a user's mistake, 128 + n ended by signal n.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from omegaconf import DictConfig

from lrx import config as lrx_config
from lrx import paths, safety, slurm
from lrx.engine.jobs import Job, Mistake
from lrx.engine.state import state_of
from lrx.engine.sweep import Engine, Options, Outcome, run_sweep
from lrx.errors import RunFailed, UserError, did_you_mean
from lrx.explain import explain, options
from lrx.schema import Settings, validate

__all__ = ["explain", "main", "run_list", "sweep_jobs", "sweep_names"]


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
        return interrupted(getattr(stop, "signum", 2))
    except Exception as error:
        message = explain(error)
        if message is None or full_error:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
    finally:
        if not full_error:
            del os.environ["HYDRA_FULL_ERROR"]
    return report(outcome)


def report(outcome: Outcome) -> int:
    """Say in a line or two what became of the runs; the exit code that follows from it."""
    if outcome.total > 1 or (outcome.multirun and outcome.total):
        counts = f"{len(outcome.done)} run, {len(outcome.skipped)} already finished, {len(outcome.failed)} failed"
        if outcome.interrupted:
            counts += f", {len(outcome.interrupted)} interrupted"
        if outcome.not_started:
            counts += f", {len(outcome.not_started)} not started"
        if outcome.left:
            counts += f", {len(outcome.left)} still in the cluster"
        if outcome.skipped and not outcome.done and not outcome.failed:
            counts += "; rerun=all repeats what is finished"
        print(counts)
    for name, message in outcome.failed:
        print(f"failed: {name}: {message}", file=sys.stderr)
    if outcome.signum is not None:
        return interrupted(outcome.signum)
    return 1 if outcome.failed or outcome.interrupted or outcome.not_started else 0


def interrupted(signum: int) -> int:
    """The exit code of a command that signal ``signum`` ended; in a Slurm job it may have to start again."""
    print("interrupted; the same command goes on where it stopped", file=sys.stderr)
    slurm.requeue(signum)
    return 128 + signum


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
        """One run, in this process. What it raises is kept: Hydra would print it."""
        if outcome.error is None:
            try:
                run(config, outcome)
            except (Exception, KeyboardInterrupt) as error:
                outcome.error = error

    def jobs(made: list[Job | Mistake]) -> None:
        """All runs of a multirun: called by the launcher in ``hydra_plugins.lrx_launcher``."""
        try:
            run_made(made, outcome)
        except (Exception, KeyboardInterrupt) as error:
            outcome.error = error

    job.many = jobs  # type: ignore[attr-defined]
    saved, sys.argv = sys.argv, ["run.py", *arguments]
    try:
        with safety.guarded():
            hydra.main(version_base="1.3", config_path=str(paths.conf_dir()), config_name="config")(job)()
    finally:
        sys.argv = saved


# What a multirun as a whole follows; its jobs cannot differ in it.
COMMON = ("paths.root", "jobs", "fail_fast", "time_limit", "rerun", "mode", "engine")


def _value(settings: Settings, key: str) -> Any:
    found: Any = settings
    for name in key.split("."):
        found = getattr(found, name)
    return found


def run_made(made: Sequence[Job | Mistake], outcome: Outcome) -> None:
    """Carry out composed jobs as their common settings say (``jobs``, ``fail_fast``, ``time_limit``, ``engine``)."""
    first = next((job.settings for job in made if isinstance(job, Job)), None)
    if first is None:
        outcome.failed += [(" ".join(job.overrides), job.message) for job in made if isinstance(job, Mistake)]
        return
    for key in COMMON:
        values = {str(_value(job.settings, key)): None for job in made if isinstance(job, Job)}
        if len(values) > 1:
            raise UserError(f"{key} differs among the jobs ({', '.join(values)}); it is one for the whole multirun")
    how = Options(rerun=first.rerun, fail_fast=first.fail_fast, time_limit=first.time_limit)
    found = run_sweep(made, engine_of(first), how)
    vars(outcome).update(vars(found), multirun=True)


def engine_of(settings: Settings) -> Engine:
    """The engine that ``engine=...`` names, for ``jobs`` jobs at a time."""
    if settings.engine.name == "inline":
        from lrx.engine.inline import InlineEngine

        return InlineEngine()
    if settings.engine.name == "submitit":
        from lrx.engine.submitit_engine import SubmititEngine

        return SubmititEngine(settings.engine, settings.paths.root, settings.jobs)
    if settings.engine.name == "ray":
        from lrx.engine.ray_engine import RayEngine

        return RayEngine(settings.engine, settings.jobs)
    from lrx.engine.local import LocalEngine

    return LocalEngine(settings.jobs)


def run_list(lists: Sequence[Sequence[str]], jobs: int = 1) -> Outcome:
    """Run a list of override lists as ``python run.py -m`` would: finished ones skipped, each in its own process.

    Says on standard output what happens. What failed, and why, is in the outcome and in the records.
    """
    from lrx.engine.compose import Composer
    from lrx.engine.jobs import make_all

    outcome = Outcome()
    run_made(make_all([[*overrides, f"jobs={jobs}"] for overrides in lists], Composer()), outcome)
    return outcome


def run(config: DictConfig, outcome: Outcome) -> None:
    """Carry out one composed configuration, or print what its finished record says.

    A failed run leaves a record and an entry in ``outcome``; a mistake in its configuration raises ``UserError``.
    """
    settings = lrx_config.settings_of(config)
    lrx_config.check_data(settings)
    name = lrx_config.run_id(settings)
    if settings.mode == "train" and not _to_do(settings, name, outcome):
        return
    if settings.mode == "train" and settings.engine.name in ("submitit", "ray"):  # elsewhere, though it is but one
        run_made([Job([], settings, lrx_config.fingerprint(settings), name)], outcome)
        return
    lrx_config.check_weights(settings)
    experiment = import_module("lrx.experiment")  # imports torch: only when there is something to do
    try:
        experiment.execute(settings, name)
        outcome.done.append(name)
    except RunFailed as error:
        outcome.failed.append((name, str(error)))
        if error.outcome == "interrupted":
            stop = KeyboardInterrupt()
            stop.signum = getattr(error, "signum", 2)  # type: ignore[attr-defined]
            raise stop from None


def _to_do(settings: Settings, name: str, outcome: Outcome) -> bool:
    """Whether the run is to be carried out; if not, says why and counts it in ``outcome``."""
    from lrx.results import record, summary

    state = state_of(settings.paths.root, name, settings.rerun)
    if state.kind == "to do" or state.record is None:
        return True
    if state.kind == "failed":
        outcome.failed.append((name, f"{state.record.message} (an earlier attempt; rerun=failed tries again)"))
        return False
    print(summary.render(state.record))
    path = record.record_path(settings.paths.root, name)
    print(f"already finished, nothing done; rerun=all repeats it: {path}")
    if settings.callbacks.submission:
        print("mode=eval callbacks.submission=true writes the submission of a finished run")
    outcome.skipped.append(name)
    return False


def sweep_jobs(name: str, extra_overrides: Sequence[str] = ()) -> list[Job]:
    """The jobs of ``sweeps/<name>.yaml`` in order, as ``python run.py +sweeps=<name>`` would start them.

    Raises ``UserError`` for a wrong name, and for overrides that compose no run.
    """
    from lrx.engine import known
    from lrx.engine.jobs import job_of

    if not (paths.sweeps_dir() / f"{name}.yaml").is_file():
        raise UserError(f"no sweep is called {name!r}; {did_you_mean(name, sweep_names())}")
    key = known.key(name, extra_overrides)
    composed = known.recall(key)
    if composed is None:
        composed = _compose_grid(name, extra_overrides)
        known.remember(key, composed)
    jobs: dict[str, Job] = {}
    for overrides, config in composed:
        job = job_of(overrides, validate(config))
        jobs.setdefault(job.run_id, job)  # a seed that stands twice is one run
    return list(jobs.values())


def _compose_grid(name: str, extra_overrides: Sequence[str]) -> list[tuple[list[str], dict[str, Any]]]:
    from omegaconf import OmegaConf

    from lrx.engine.compose import Composer, expand

    grid = OmegaConf.select(OmegaConf.load(paths.sweeps_dir() / f"{name}.yaml"), "hydra.sweeper.params") or {}
    lists = expand([f"+sweeps={name}", *(f"{key}={value}" for key, value in grid.items()), *extra_overrides])
    composer = Composer()
    return [(overrides, lrx_config.container_of(composer(overrides))) for overrides in lists]


def sweep_names() -> list[str]:
    """Names of the sweep files."""
    return sorted(path.stem for path in paths.sweeps_dir().glob("*.yaml"))


def help_text() -> str:
    """What ``--help`` prints: how to ask for a run, and every group with its options."""
    groups = []
    for folder in sorted(path for path in paths.conf_dir().iterdir() if path.is_dir()):
        if found := options(folder.name):
            groups.append(f"  {folder.name + ':':<11} {', '.join(found)}")
    return HELP.replace("GROUPS", "\n".join(groups)).replace("SWEEPS", ", ".join(sweep_names()))


HELP = """\
lrx: reproduce papers on low-rank adaptation. One run = one method, one model, one task, one seed.

  python run.py method=altlora task=glue                 one run, minutes on two CPU cores, no network
  python run.py -m method=lora,altlora seed=0,1 jobs=2   several runs, two at a time; finished ones are skipped
  python run.py +sweeps=altlora_glue                     a whole table: methods x seeds
  python run.py method=altlora task=glue mode=eval       score a finished run again
  python run.py method=altlora task=glue scale=paper     the paper's setting (hub weights and data, GPU)

Choose with GROUP=OPTION:
GROUPS
  +sweeps:    SWEEPS

Set any value with KEY=VALUE:
  seed=0  rerun=none|all|failed  paths.root=results  trainer.max_steps=N  trainer.precision=bf16-mixed
  jobs=N  fail_fast=true  time_limit=SECONDS         for several runs: at a time; end with the first failure; for each
  task.source=embedded|local|hub  task.data_dir=DIR  task.subset=rte  task.subset=[cola,rte]  method.rank=8

More:
  python -m lrx list methods        what there is, with papers      python -m lrx info altlora   one of them
  python run.py --cfg job           the whole composed config       python run.py --hydra-help   Hydra's own flags
  eval "$(python run.py -sc install=bash)"                          tab completion"""
