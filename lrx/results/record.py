"""The record of a run: one JSON file, ``<paths.root>/records/<run_id>.json``, whatever the run's outcome was.

A record is the truth about a run; wandb and the tables are made of it. NaN and the infinities, which JSON has not, are
stored as ``{"$float": "NaN"}``, ``{"$float": "Infinity"}``, ``{"$float": "-Infinity"}`` and come back as floats.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lrx.errors import UserError
from lrx.files import AlreadyThere, cannot, read_text, write_atomic

__all__ = [
    "SCHEMA",
    "AlreadyThere",
    "Part",
    "Problem",
    "RecordError",
    "RunRecord",
    "Status",
    "read",
    "read_all",
    "read_bundle",
    "read_folder",
    "record_path",
    "write_bundle",
]

SCHEMA = 1
Status = Literal["finished", "failed", "diverged", "out_of_memory", "interrupted"]
STATUSES: tuple[str, ...] = get_args(Status)

Metrics = dict[str, dict[str, float]]  # split -> metric -> value


class RecordError(UserError):
    """A file that is not a readable record: truncated, foreign, or of a newer schema. The message names the file."""


@dataclass
class Part:
    """What one part of a benchmark (e.g. RTE of GLUE) gave."""

    primary: str  # the metric that fills a table's cell
    higher_is_better: dict[str, bool]
    metrics: Metrics = field(default_factory=dict)  # of the selected checkpoint
    last: Metrics = field(default_factory=dict)  # of the last step's weights
    reported: list[str] = field(default_factory=list)  # the splits that tables may show
    selects_on_reported: bool = False  # the checkpoint was chosen on a reported split
    best_step: int | None = None
    steps: int = 0
    sizes: dict[str, int] = field(default_factory=dict)  # split -> number of examples
    notes: dict[str, float] = field(default_factory=dict)  # e.g. {"truncated": 3}
    predictions: dict[str, str] = field(default_factory=dict)  # split -> path relative to paths.root
    last_predictions: dict[str, str] = field(default_factory=dict)  # the same of the last step's weights
    # One entry per evaluation in step order, the last step at the end; records of earlier versions have none:
    # {"step": 40, "splits": {"select": {"accuracy": 0.80}, "test": {"accuracy": 0.79}}}
    curve: list[dict[str, Any]] = field(default_factory=list)
    selector: str = ""  # the metric that selects models, where it is not the primary one

    @property
    def selects_by(self) -> str:
        """The metric on the selection split that decides between weights and between trials."""
        return self.selector or self.primary


@dataclass
class RunRecord:
    """One run. ``parts`` is empty or incomplete unless ``status`` is ``finished``."""

    run_id: str
    fingerprint: str
    status: Status
    method: str
    model: str
    task: str
    scale: str
    source: str
    seed: int
    message: str = ""
    versions: dict[str, int] = field(default_factory=dict)  # {"method": 1, "model": 1, "task": 1}
    config: dict[str, Any] = field(default_factory=dict)  # fully resolved
    parts: dict[str, Part] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    started: str = ""  # ISO 8601, UTC
    finished: str = ""
    schema: int = SCHEMA

    def to_json(self, indent: int | None = 1) -> str:
        """Strict JSON (no bare NaN), ``schema`` first."""
        fields = dataclasses.asdict(self)
        ordered = {"schema": fields.pop("schema"), **fields}
        return json.dumps(_encode(ordered), indent=indent, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, name: str = "record") -> RunRecord:
        """The record in ``text``. Raises ``RecordError``, in which ``name`` says where the text came from."""
        return cls.from_dict(_parse(text, name), name)

    @classmethod
    def from_dict(cls, raw: Any, name: str = "record") -> RunRecord:
        """The record in decoded JSON; keys that this version does not know are left out."""
        if not isinstance(raw, dict) or not isinstance(raw.get("schema"), int) or "run_id" not in raw:
            raise RecordError(f"{name}: not a record of lrx")
        if raw["schema"] > SCHEMA:
            raise RecordError(f"{name}: schema {raw['schema']} is newer than this lrx reads ({SCHEMA}); update lrx")
        if raw.get("status") not in STATUSES:
            raise RecordError(f"{name}: unknown status {raw.get('status')!r}")
        try:
            parts = {key: Part(**_known(Part, value)) for key, value in raw.get("parts", {}).items()}
            record = cls(**{**_known(cls, raw), "parts": parts})
        except (TypeError, AttributeError) as error:  # a required key is missing, or a part is no mapping
            raise RecordError(f"{name}: broken record ({error})") from error
        if complaint := _complaint(record):
            raise RecordError(f"{name}: broken record ({complaint})")
        return record

    @classmethod
    def load(cls, path: Path | str) -> RunRecord:
        """The record in a file. Raises ``RecordError`` (not a record) or ``UserError`` (not readable)."""
        return cls.from_json(read_text(path), name=str(path))

    def save(self, root: Path | str, *, overwrite: bool = False) -> Path:
        """Write to ``<root>/records/<run_id>.json``, atomically.

        Raises ``AlreadyThere`` if there is one and ``overwrite`` is not given, ``UserError`` if the system refuses.
        """
        return write_atomic(record_path(root, self.run_id), self.to_json() + "\n", overwrite=overwrite)


def read(path: Path | str) -> RunRecord:
    """The record in a file; see ``RunRecord.load``."""
    return RunRecord.load(path)


@dataclass(frozen=True)
class Problem:
    """A file among the records that could not be read, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return self.reason


def record_path(root: Path | str, run_id: str) -> Path:
    """Where the record of ``run_id`` is, or would be. Refuses an id that would lead out of the folder."""
    if not run_id or Path(run_id).name != run_id or run_id.startswith("."):
        raise UserError(f"{run_id!r} is no run id")
    return Path(root) / "records" / f"{run_id}.json"


def read_all(root: Path | str) -> tuple[list[RunRecord], list[Problem]]:
    """All records below ``<root>/records``, by run id, and the files that are none. A missing folder holds none."""
    return read_folder(Path(root) / "records")


def read_folder(folder: Path) -> tuple[list[RunRecord], list[Problem]]:
    """All records in a folder, by file name, and the files that are none."""
    records, problems = [], []
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json" and path.name[0] != ".")
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise cannot("read", folder, error) from error
    for path in paths:
        try:
            record = RunRecord.load(path)
            if record.run_id != path.stem:
                raise RecordError(f"{path}: holds the record of {record.run_id!r}; the file was renamed or copied")
            records.append(record)
        except UserError as error:
            problems.append(Problem(path, str(error)))
    return records, problems


def write_bundle(path: Path | str, records: Iterable[RunRecord], header: Mapping[str, Any]) -> Path:
    """All ``records`` in one JSON-lines file below a line with ``header``, small enough to be tracked."""
    first = json.dumps(_encode({"bundle": SCHEMA, **header}), allow_nan=False, ensure_ascii=False)
    lines = [first, *(record.to_json(indent=None) for record in sorted(records, key=lambda record: record.run_id))]
    return write_atomic(path, "\n".join(lines) + "\n")


def read_bundle(path: Path | str) -> tuple[dict[str, Any], list[RunRecord], list[Problem]]:
    """The header (empty if there is none), the records, and the lines that are none, of a JSON-lines file."""
    header: dict[str, Any] = {}
    records, problems = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        name = f"{path}, line {number}"
        try:
            raw = _parse(line, name)
            if number == 1 and isinstance(raw, dict) and "bundle" in raw:
                header = raw
            else:
                records.append(RunRecord.from_dict(raw, name))
        except RecordError as error:
            problems.append(Problem(Path(path), str(error)))
    return header, records, problems


def _known(cls: type, raw: Mapping[str, Any]) -> dict[str, Any]:
    names = _field_names(cls)
    return {key: value for key, value in raw.items() if key in names}


@functools.cache
def _field_names(cls: Any) -> frozenset[str]:
    return frozenset(item.name for item in dataclasses.fields(cls))


def _complaint(record: RunRecord) -> str:
    """What is ill-typed in a record, or nothing. Only what tables compute with is looked at."""
    for key in ("run_id", "fingerprint", "method", "model", "task", "scale", "source", "message"):
        if not isinstance(getattr(record, key), str):
            return f"{key} is no text"
    if not isinstance(record.seed, int):
        return "seed is no integer"
    for key in ("versions", "config", "cost", "environment"):
        if not isinstance(getattr(record, key), dict):
            return f"{key} is no mapping"
    for name, part in record.parts.items():
        for key, table in (("metrics", part.metrics), ("last", part.last)):
            if not _are_metrics(table):
                return f"{key} of part {name!r} are no numbers"
        if not isinstance(part.reported, list) or not all(isinstance(split, str) for split in part.reported):
            return f"reported of part {name!r} is no list of splits"
        for key, files in (("predictions", part.predictions), ("last_predictions", part.last_predictions)):
            if not isinstance(files, dict) or not all(isinstance(path, str) for path in files.values()):
                return f"{key} of part {name!r} are no paths"
        entries = part.curve if isinstance(part.curve, list) else [None]
        if not all(
            isinstance(e, dict) and type(e.get("step")) is int and _are_metrics(e.get("splits")) for e in entries
        ):
            return f"curve of part {name!r} is no list of evaluations"
    if not {*map(type, record.cost.values())} <= _NUMBERS | {type(None)}:
        return "cost holds something that is no number"
    return ""


_NUMBERS = {int, float}  # by type, since a bool is an int too; thousands of records are looked through


def _are_metrics(splits: Any) -> bool:
    """Whether ``splits`` maps split -> metric -> number."""
    return isinstance(splits, dict) and all(
        isinstance(metrics, dict) and {*map(type, metrics.values())} <= _NUMBERS for metrics in splits.values()
    )


def _encode(value: Any) -> Any:
    """``value`` as JSON can hold it: NaN and infinities marked, NumPy and torch scalars and paths made plain."""
    if isinstance(value, dict):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return {"$float": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Path):
        return str(value)
    if callable(getattr(value, "item", None)):  # a scalar of NumPy or torch
        return _encode(value.item())
    raise TypeError(f"a record cannot hold {value!r} ({type(value).__name__})")


def _decode_float(raw: dict[str, Any]) -> Any:
    return float(raw["$float"]) if raw.keys() == {"$float"} else raw


def _parse(text: str, name: str) -> Any:
    """Decoded JSON. The hook that restores marked floats is slow, and nearly no record needs it."""
    try:
        return json.loads(text, object_hook=_decode_float if '"$float"' in text else None)
    except (ValueError, TypeError, RecursionError) as error:
        reason = f"truncated or no JSON ({error})" if text.strip() else "empty file"
        raise RecordError(f"{name}: {reason}") from error
