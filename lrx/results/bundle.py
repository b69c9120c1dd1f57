"""One archive that holds a sweep's results: the table comes out of it again, and its runs can be run again.

``write_archive`` makes it, ``read_archive`` lets ``--records`` read it, ``unpack`` turns it into a results folder. The
same inputs give the same bytes: files in order of their names, without times. An archive may come from a stranger:
names that lead out of a folder, links and bombs are refused before anything is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lrx import __version__, paths
from lrx.errors import UserError
from lrx.files import cannot, write_atomic
from lrx.results import bundle_page
from lrx.results.record import Problem, RecordError, RunRecord

if TYPE_CHECKING:
    from lrx.results.gather import Gathered

SCHEMA = 1
MANIFEST = "manifest.json"
WEIGHTS = "adapter.safetensors"
# Of a part's folder; checkpoints and a tracker's files stay where they are.
PART_FILES = ("metrics.jsonl", "lens.jsonl", "predictions.*.csv", "last_predictions.*.csv")
MOST_FILES = 200_000
FREE_BYTES = 256 * 2**20  # an archive may always unpack to this much, and beyond it to MOST_RATIO times its size
MOST_RATIO = 100
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip archive can say
_MODE = 0o644


def is_archive(path: Path) -> bool:
    """Whether a file begins like a zip archive, whole or not."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise cannot("read", path, error) from error


def write_archive(
    data: Gathered, root: Path, out: Path, *, overrides: Sequence[str] = (), weights: bool = False
) -> Path:
    """The results behind a table, which lie below ``root``, in the archive ``out``.

    ``overrides``: those that ``data`` was gathered with. ``weights``: the trained weights too. Raises ``UserError``
    when there is no record, or the system refuses; the archive is then the old one, or none.
    """
    from lrx.results import table as tables
    from lrx.results.gather import jobs_of_tables

    gathered = {"": data.table, **data.at_published_scale}
    records = sorted(
        {r.run_id: r for table in gathered.values() for r in table.records()}.values(), key=lambda record: record.run_id
    )
    if not records:
        raise UserError(f"sweep {data.sweep.name}: no record of its jobs below {root}; run it first")
    files: dict[str, bytes | Path] = {}
    for record in records:
        files[f"records/{record.run_id}.json"] = (record.to_json() + "\n").encode()
        files |= _run_files(root, record, weights)
    jobs = jobs_of_tables(data)
    files["jobs.json"] = _json({"sweep": data.sweep.name, "overrides": list(overrides), "jobs": jobs})
    configs = {job["run_id"]: job["config"] for listed in jobs.values() for job in listed}
    configs |= {record.run_id: record.config for record in records}
    for run_id, config in configs.items():
        files[f"configs/{run_id}.yaml"] = bundle_page.resolved(config).encode()
    with tempfile.TemporaryDirectory(prefix="lrx-") as folder:
        for path in tables.write(data, folder, plots=False):
            files[f"tables/{path.name}"] = path.read_bytes()
    files[f"sweeps/{data.sweep.name}.yaml"] = paths.sweeps_dir() / f"{data.sweep.name}.yaml"
    for path in sorted(paths.conf_dir().rglob("*.yaml")):
        files[f"conf/{path.relative_to(paths.conf_dir()).as_posix()}"] = path
    for name in ("requirements.lock", "constraints.txt", "pyproject.toml"):
        if (path := paths.search_root() / name).is_file() and (paths.search_root() / "run.py").is_file():
            files[name] = path
    for path in sorted((root / "tuning" / data.sweep.name / "records").glob("*.json")):
        files[f"tuning/{data.sweep.name}/records/{path.name}"] = path
    files["environment.json"] = _json(bundle_page.environments(records))
    files["README.md"] = bundle_page.readme(data.sweep, overrides, records, list(configs), weights).encode()
    _zip(out, files, data.sweep.name)
    return out


def read_archive(path: Path, folder: Path) -> tuple[dict[str, Any], list[RunRecord], list[Problem]]:
    """The jobs of an archive's grid, its records, and the files that are none.

    Predictions and the sweep file are written below ``folder``. Raises ``UserError`` for an archive that is truncated,
    foreign, damaged or not safe.
    """
    header: dict[str, Any] = {}
    records, problems = [], []
    for name, content in _members(path, ("records/*", "jobs.json", "runs/*/*/*.csv", "sweeps/*.yaml")):
        if name == "jobs.json":
            header = _load(content, f"{path}: {name}")
        elif name.startswith("records/"):
            try:
                record = RunRecord.from_json(content.decode("utf-8", "replace"), f"{path}: {name}")
                if name != f"records/{record.run_id}.json":
                    raise RecordError(f"{path}: {name}: holds the record of {record.run_id!r}")
                records.append(record)
            except RecordError as error:
                problems.append(Problem(path, str(error)))
        else:
            write_atomic(folder / name, content)
    return header, records, problems


def unpack(path: Path, folder: Path) -> int:
    """All files of an archive, below ``folder``, which must be empty or absent; how many there were.

    Raises ``UserError`` for an archive as ``read_archive`` does; then there is no folder.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; choose another --to")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
            inside = Path(beside, "files")
            count = 0
            for count, (name, content) in enumerate(_members(path, ("*",)), start=1):  # noqa: B007 - the last counts
                write_atomic(inside / name, content)
            if folder.exists():
                folder.rmdir()
            os.rename(inside, folder)
    except OSError as error:
        raise cannot("write", folder, error) from error
    return count


def _run_files(root: Path, record: RunRecord, weights: bool) -> dict[str, Path]:
    """What a run's folder holds for the archive: archive name -> file."""
    found = {}
    folder = root / "runs" / record.run_id
    if (trace := folder / "traceback.txt").is_file() and record.status != "finished":
        found[f"runs/{record.run_id}/traceback.txt"] = trace
    for pattern in (*PART_FILES, *([WEIGHTS] if weights else [])):
        for path in folder.glob(f"*/{pattern}"):  # of every part, also one that a failed run did not finish
            if path.is_file() and not path.is_symlink():
                found[f"runs/{record.run_id}/{path.parent.name}/{path.name}"] = path
    return found


def _zip(out: Path, files: dict[str, bytes | Path], sweep: str) -> None:
    """Write ``files`` and a manifest of their checksums as a zip archive, beside ``out`` first."""
    temporary = Path()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name[:80]}.", suffix=".tmp", delete=False) as f:
            temporary = Path(f.name)
            sums = {}
            with zipfile.ZipFile(f, "w") as archive:
                for name in sorted(files):
                    content = files[name]
                    content = content if isinstance(content, bytes) else content.read_bytes()
                    sums[name] = hashlib.sha256(content).hexdigest()
                    _add(archive, name, content)
                manifest = {"lrx_bundle": SCHEMA, "lrx": __version__, "sweep": sweep, "files": sums}
                _add(archive, MANIFEST, _json(manifest))
            f.flush()
            os.fsync(f.fileno())
        temporary.chmod(_MODE)
        os.replace(temporary, out)
    except OSError as error:
        raise cannot("write", error.filename or out, error) from error
    finally:
        if temporary.name:
            temporary.unlink(missing_ok=True)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _TIME)
    entry.external_attr = (stat.S_IFREG | _MODE) << 16
    entry.create_system = 3  # the same on every system
    entry.compress_type = zipfile.ZIP_STORED if name.endswith(".safetensors") else zipfile.ZIP_DEFLATED
    archive.writestr(entry, content, compresslevel=6)


def _members(path: Path, patterns: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the members that match, after all names and sizes were found to be safe."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _refuse_unsafe(path, entries)
            names = {entry.filename for entry in entries}
            if MANIFEST not in names:
                raise UserError(f"{path}: no bundle of lrx ({MANIFEST} is missing)")
            manifest = _load(_content(archive, archive.getinfo(MANIFEST)), f"{path}: {MANIFEST}")
            version, sums = manifest.get("lrx_bundle"), manifest.get("files")
            if not isinstance(version, int) or not isinstance(sums, dict):
                raise UserError(f"{path}: no bundle of lrx ({MANIFEST} says nothing of one)")
            if version > SCHEMA:
                raise UserError(f"{path}: bundle {version} is newer than this lrx reads ({SCHEMA}); update lrx")
            if missing := sorted(set(sums) - names):
                raise UserError(f"{path}: damaged: {missing[0]} is missing")
            for entry in entries:
                name = entry.filename
                if not any(PurePosixPath(name).match(pattern) for pattern in patterns):
                    continue
                content = _content(archive, entry)
                if name != MANIFEST and sums.get(name) != hashlib.sha256(content).hexdigest():
                    raise UserError(f"{path}: damaged: {name} is not what {MANIFEST} says")
                yield name, content
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: truncated or no zip archive ({reason})") from None
    except OSError as error:
        raise cannot("read", path, error) from error


def _refuse_unsafe(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MOST_FILES:
        raise UserError(f"{path}: refused: {len(entries)} files are more than any sweep leaves")
    seen = set()
    for entry in entries:
        name = entry.filename
        steps = name.split("/")
        if not name or any(step in ("", ".", "..") for step in steps) or re.search(r"[\\:\x00-\x1f]", name):
            raise UserError(f"{path}: refused: {name!r} would lead out of its folder")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise UserError(f"{path}: refused: {name!r} is no plain file")
        if name.lower() in seen:
            raise UserError(f"{path}: refused: {name!r} stands twice")
        seen.add(name.lower())
    total, allowed = sum(entry.file_size for entry in entries), FREE_BYTES + MOST_RATIO * path.stat().st_size
    if total > allowed:
        raise UserError(f"{path}: refused: it would unpack to {total / 2**20:,.0f} MiB, far beyond its own size")


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """A member's bytes, never more than the size that was checked."""
    with archive.open(entry) as stream:
        content = stream.read(entry.file_size)
        if len(content) < entry.file_size or stream.read(1):
            raise zipfile.BadZipFile(f"{entry.filename} has another size than stated")
    return content


def _load(content: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{name}: damaged: no mapping in JSON")
    return found


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
