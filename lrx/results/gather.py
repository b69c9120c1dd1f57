"""A sweep, the jobs of its grid and the records they left, brought together for a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lrx.errors import UserError, did_you_mean
from lrx.results import protocol as protocols
from lrx.results.collect import Table, join
from lrx.results.record import Problem, RunRecord, read_all, write_bundle
from lrx.results.sources import Source, open_source
from lrx.results.stale import stale
from lrx.results.sweep import JobLike, Sweep, load

JobsOf = Callable[[str, Sequence[str]], Sequence[JobLike]]


@dataclass(frozen=True)
class SavedJob:
    """A job as a bundle of records stores it, so that the table can be made again without composing the grid."""

    overrides: list[str]
    fingerprint: str
    run_id: str
    method: str
    seed: int
    config: dict[str, Any]


@dataclass(frozen=True)
class Gathered:
    """A sweep with its table, the tables of ours at published scales (by the published table's key), and problems."""

    sweep: Sweep
    table: Table
    at_published_scale: dict[str, Table] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def gather(
    name: str,
    root: Path | str,
    *,
    records_from: Path | str | None = None,
    overrides: Sequence[str] = (),
    jobs_of: JobsOf | None = None,
    folder: Path | None = None,
    read: tuple[list[RunRecord], list[Problem]] | None = None,
    published: bool = True,
) -> Gathered:
    """Read a sweep and its records: those below ``root``, or those in ``records_from`` (``lrx.results.sources``).

    ``overrides`` change the grid as they do on the command line of the run; those that begin with ``protocol.`` change
    what is reported. ``jobs_of`` composes the grid (default: ``lrx.launch.sweep_jobs``); a bundle that lists its own
    jobs needs none. ``folder``: where sweep files are. ``read``: the records below ``root`` if they are at hand.
    ``published``: whether ours at the scales of published tables are wanted too.
    """
    if records_from is None:
        records, problems = read or read_all(root)
        source = Source(records, problems)
    else:
        source = open_source(records_from)
    records, problems, files = source.records, source.problems, source.files or Path(root)
    same_sweep = source.header.get("sweep") == name
    made_with = list(map(str, source.header.get("overrides") or ())) if same_sweep else []
    grid, given = protocols.take(overrides or made_with)
    saved = source.header.get("jobs", {}) if same_sweep and grid in ([], protocols.take(made_with)[0]) else {}
    if not isinstance(saved, dict):
        raise UserError(f"{records_from}: broken list of jobs (no mapping)")
    overrides = grid
    sweep = load(name, folder or (source.sweeps if same_sweep else None))
    sweep = sweep.model_copy(update={"protocol": protocols.changed(sweep.protocol, given)})
    jobs_of = jobs_of or _compose

    def jobs(key: str, extra: Sequence[str]) -> Sequence[JobLike]:
        if key not in saved:
            return jobs_of(name, [*overrides, *extra])
        try:
            return [SavedJob(**job) for job in saved[key]]
        except TypeError as error:
            raise UserError(f"{records_from}, line 1: broken list of jobs ({error})") from None

    table = join(sweep.rows, sweep.columns, jobs("", ()), records, sweep.protocol, files, sweep.parts_by)
    _check_protocol(table)
    others = {}
    for paper in sweep.published if published else ():
        # Composing a second grid takes as long as the first; without a record of that scale it would stay empty.
        if paper.overrides and any(record.scale == paper.scale for record in records):
            columns = [column.as_ours() for column in paper.columns if column.metric or column.mean_of]
            listed = jobs(paper.key, paper.overrides)
            others[paper.key] = join(sweep.rows, columns, listed, records, sweep.protocol, files, sweep.parts_by)
    if records_from is None:
        problems = [*problems, *stale(root, table.jobs(), records)]
    return Gathered(sweep, table, others, problems)


def save_bundle(data: Gathered, path: Path) -> Path:
    """The records behind a table and the jobs they answer, from which ``--records`` makes the same table again."""
    tables = [data.table, *data.at_published_scale.values()]
    records = {record.run_id: record for table in tables for record in table.records()}
    return write_bundle(path, records.values(), {"sweep": data.sweep.name, "jobs": jobs_of_tables(data)})


def jobs_of_tables(data: Gathered) -> dict[str, list[dict[str, Any]]]:
    """The jobs of the table (key "") and of those at published scales, as a bundle stores them for ``SavedJob``."""
    tables = {"": data.table, **data.at_published_scale}
    keys = [item.name for item in fields(SavedJob)]
    return {key: [{name: getattr(job, name) for name in keys} for job in table.jobs()] for key, table in tables.items()}


def _check_protocol(table: Table) -> None:
    """Raises ``UserError`` for a metric that nobody has heard of, and for more evaluations than any run made."""
    protocol = table.protocol
    parts = [part for line in table.lines for record in line.finished for part in record.parts.values()]
    reported = {name for part in parts for metrics in part.metrics.values() for name in metrics}
    known = {"column", "both", *protocols.METRIC_NAMES, *reported, *(c.metric for c in table.columns if c.metric)}
    if protocol.metric not in known:
        raise UserError(f"protocol.metric={protocol.metric}: no such metric; {did_you_mean(protocol.metric, known)}")
    longest = max((len(part.curve) for part in parts), default=0)
    if protocol.checkpoint == "mean_last_k" and 0 < longest < protocol.k:
        raise UserError(f"protocol.k={protocol.k}: the longest curve here has {longest} evaluations; give at most that")


def _compose(name: str, overrides: Sequence[str]) -> Sequence[JobLike]:
    from lrx import launch

    return launch.sweep_jobs(name, overrides)
