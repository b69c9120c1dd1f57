"""A sweep, the jobs of its grid and the records they left, brought together for a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrx.errors import UserError
from lrx.results.collect import Table, join
from lrx.results.record import Problem, read_all, read_bundle, read_folder, write_bundle
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
) -> Gathered:
    """Read a sweep and its records: those below ``root``, or those in ``records_from`` (a folder or a bundle).

    ``overrides`` change the grid as they do on the command line of the run. ``jobs_of`` composes the grid (default:
    ``lrx.launch.sweep_jobs``); a bundle that lists its own jobs needs none. ``folder``: where sweep files are.
    """
    sweep = load(name, folder)
    header: dict[str, Any] = {}
    if records_from is None:
        records, problems = read_all(root)
    elif Path(records_from).is_dir():
        records, problems = read_folder(Path(records_from))
    elif Path(records_from).exists():
        header, records, problems = read_bundle(records_from)
    else:
        raise UserError(f"--records {records_from}: no such file or folder")
    saved = header.get("jobs", {}) if header.get("sweep") == name and not overrides else {}
    jobs_of = jobs_of or _compose

    def jobs(key: str, extra: Sequence[str]) -> Sequence[JobLike]:
        if key not in saved:
            return jobs_of(name, [*overrides, *extra])
        try:
            return [SavedJob(**job) for job in saved[key]]
        except TypeError as error:
            raise UserError(f"{records_from}, line 1: broken list of jobs ({error})") from None

    table = join(sweep.rows, sweep.columns, jobs("", ()), records)
    others = {}
    for published in sweep.published:
        # Composing a second grid takes as long as the first; without a record of that scale it would stay empty.
        if published.overrides and any(record.scale == published.scale for record in records):
            columns = [column.as_ours() for column in published.columns if column.metric or column.mean_of]
            others[published.key] = join(sweep.rows, columns, jobs(published.key, published.overrides), records)
    return Gathered(sweep, table, others, problems)


def save_bundle(data: Gathered, path: Path) -> Path:
    """The records behind a table and the jobs they answer, from which ``--records`` makes the same table again."""
    tables = {"": data.table, **data.at_published_scale}
    keys = ("overrides", "fingerprint", "run_id", "method", "seed", "config")
    jobs = {key: [{k: getattr(job, k) for k in keys} for job in table.jobs()] for key, table in tables.items()}
    records = {record.run_id: record for table in tables.values() for record in table.records()}
    return write_bundle(path, records.values(), {"sweep": data.sweep.name, "jobs": jobs})


def _compose(name: str, overrides: Sequence[str]) -> Sequence[JobLike]:
    from lrx import launch

    return launch.sweep_jobs(name, overrides)
