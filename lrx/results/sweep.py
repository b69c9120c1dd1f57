"""A sweep file read as the description of one table: rows, columns, published numbers and claims.

``sweeps/<name>.yaml`` is at once a Hydra config (``python run.py +sweeps=<name>`` runs its grid) and, below its key
``sweep``, the table that the grid's records fill. This module reads the second half, without torch and without Hydra.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lrx.errors import UserError, did_you_mean
from lrx.results import protocol as protocols
from lrx.tuning.space import Tune

COSTS = {
    "trainable_parameters": "trainable parameters",
    "adapter_parameters": "adapter parameters",
    "optimizer_state_bytes": "optimizer state (MiB)",
    "peak_memory_bytes": "peak memory (MiB)",
    "median_step_seconds": "median step (ms)",
    "wall_seconds": "wall time (s)",
    "examples_per_second": "examples/s",
}


class JobLike(Protocol):
    """A cell of the grid before it has run: ``lrx.launch.Job`` (plain attributes, for the type checker)."""

    @property
    def overrides(self) -> list[str]: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def config(self) -> dict[str, Any]: ...


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(_Node):
    """A line of the table: the records of ``method`` whose config agrees with ``where`` (``{"method.rank": 8}``)."""

    key: str
    label: str
    method: str
    where: dict[str, Any] = {}

    def matches(self, method: str, config: Mapping[str, Any]) -> bool:
        """Whether a run of ``method`` with ``config`` belongs to this row."""
        return method == self.method and all(lookup(config, key) == value for key, value in self.where.items())


class Column(_Node):
    """A column of scores: ``metric`` of ``part`` on ``split`` (default: the only reported one), times ``factor``.

    ``mean_of`` instead makes it the mean of other columns, per seed; a list inside is averaged first, as GLUE does
    with the two metrics of one task.
    """

    key: str
    label: str
    part: str = ""
    metric: str = ""
    split: str = ""
    factor: float = 100.0
    digits: int = Field(2, ge=0, le=6)
    mean_of: list[str | list[str]] = []
    note: str = ""

    @model_validator(mode="after")
    def _one_kind(self) -> Column:
        if bool(self.mean_of) == bool(self.part and self.metric):
            raise ValueError(f"column {self.key!r} needs either part and metric, or mean_of")
        return self


def _paper_number(value: Any) -> Any:
    """``85.81±0.03`` or ``88.3`` as the paper prints it; YAML reads the second as a float, which keeps no zeros."""
    text = str(value).strip()
    if value is not None and not re.fullmatch(r"[-+]?\d+(\.\d+)?(\s*±\s*\d+(\.\d+)?)?", text):
        raise ValueError(f"{text!r} is no number of a paper (mean, or mean±std)")
    return None if value is None else re.sub(r"\s*±\s*", " ± ", text)


PaperNumber = Annotated[str, BeforeValidator(_paper_number)]


class PublishedRow(_Node):
    """A row of a paper's table. ``key``: the row of ours it corresponds to, if any. ``values``: as printed."""

    label: str
    values: list[PaperNumber | None]
    key: str = ""
    note: str = ""


class PublishedColumn(_Node):
    """A column of a paper's table, and where a run of ours at the same scale has the same quantity."""

    key: str
    label: str
    part: str = ""
    metric: str = ""
    split: str = ""
    factor: float = 100.0
    mean_of: list[str | list[str]] = []

    def as_ours(self) -> Column:
        """The column of ours that holds the same quantity, in percent like the paper's unless ``factor`` is another."""
        given = self.model_dump(include={"key", "label", "part", "metric", "split", "factor", "mean_of"})
        return Column(**given)


class Source(_Node):
    """Where published numbers stand."""

    paper: str
    table: str


class Published(_Node):
    """A paper's table. It stands in its own block, under its own scale; ours at that scale needs ``overrides``."""

    key: str
    title: str
    source: Source
    scale: Literal["smoke", "mini", "paper"]
    setting: str
    columns: list[PublishedColumn]
    rows: list[PublishedRow]
    overrides: list[str] = []
    headline: str = ""  # the column in which ours, if there is any, stands beside the published value
    needs: str = ""  # what a run of ours would need, said where its numbers are missing
    notes: list[str] = []

    @model_validator(mode="after")
    def _rectangular(self) -> Published:
        keys = [column.key for column in self.columns]
        for row in self.rows:
            if len(row.values) != len(keys):
                raise ValueError(f"{self.key}: row {row.label!r} has {len(row.values)} values, {len(keys)} expected")
        if self.headline:
            _known("column", self.headline, keys, f"{self.key}: headline")
        return self

    def value(self, row: str, column: str) -> float | None:
        """The published mean, or None where the paper has none."""
        index = [item.key for item in self.columns].index(column)
        text = next((item.values[index] for item in self.rows if item.key == row), None)
        return float(text.split(" ± ")[0]) if text else None


class PublishedRef(_Node):
    """The published numbers that a claim is about."""

    table: str
    column: str


class Claim(_Node):
    """A statement about two rows, from the paper or a check of our own (``origin`` says which).

    ``better``: ``a`` scores better than ``b`` in ``column``. ``close``: they differ by at most ``within``.
    ``cost_ratio``: ``a``'s ``cost`` is at most ``at_most`` times ``b``'s. ``own``: a check of our own, counted apart.
    """

    kind: Literal["better", "close", "cost_ratio"]
    a: str
    b: str
    origin: str
    own: bool = False
    column: str = ""
    within: float = Field(0.0, ge=0)
    cost: str = ""
    at_most: float = Field(0.0, ge=0)
    published: PublishedRef | None = None

    @model_validator(mode="after")
    def _complete(self) -> Claim:
        needed = {"better": ("column",), "close": ("column", "within"), "cost_ratio": ("cost", "at_most")}[self.kind]
        for key in needed:
            if not getattr(self, key):
                raise ValueError(f"claim {self.kind}({self.a}, {self.b}) needs {key}")
        if self.cost and self.cost not in COSTS:
            raise ValueError(f"cost {self.cost!r} is unknown; {did_you_mean(self.cost, COSTS)}")
        return self


class Sweep(_Node):
    """The table of a sweep file. ``grid``: what Hydra sweeps over, for display.

    ``parts_by``: a config key that names the part of a run, such as ``task.dataset``: a row then has a run for each
    part at each seed, instead of one run with all parts.
    """

    name: str
    title: str
    paper: str
    rows: list[Row]
    columns: list[Column]
    setting: str = ""  # data, backbone, which split is reported: the caption's first sentence
    tuning: str = ""  # how learning rates were found, with which budget
    parts_by: str = ""
    headline: str = ""  # the column of the plot against trainable parameters
    costs: list[str] = ["trainable_parameters", "median_step_seconds", "peak_memory_bytes", "optimizer_state_bytes"]
    published: list[Published] = []
    claims: list[Claim] = []
    protocol: protocols.Protocol = protocols.Protocol()  # what is reported of each run; the command line can change it
    notes: list[str] = []
    tune: Tune | None = None
    grid: dict[str, str] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Sweep:
        rows = _distinct("row", [row.key for row in self.rows])
        columns = _distinct("column", [column.key for column in self.columns])
        tables = {table.key: table for table in self.published}
        for column in self.columns:
            for name in _flat(column.mean_of):
                _known("column", name, columns, f"mean_of of {column.key}")
        for name in self.costs:
            _known("cost", name, COSTS, "costs")
        if self.headline:
            _known("column", self.headline, columns, "headline")
        for name in self.tune.rows if self.tune else ():
            _known("row", name, rows, "tune.rows")
        for claim in self.claims:
            _known("row", claim.a, rows, "claims")
            _known("row", claim.b, rows, "claims")
            if claim.column:
                _known("column", claim.column, columns, "claims")
            if claim.published:
                _known("published table", claim.published.table, tables, "claims")
                keys = [column.key for column in tables[claim.published.table].columns]
                _known("published column", claim.published.column, keys, "claims")
        return self

    def row(self, key: str) -> Row:
        """The row called ``key``."""
        return next(row for row in self.rows if row.key == key)

    def column(self, key: str) -> Column:
        """The column called ``key``."""
        return next(column for column in self.columns if column.key == key)


def sweep_names(folder: Path | None = None) -> list[str]:
    """Names of the sweep files."""
    return sorted(path.stem for path in (folder or _folder()).glob("*.yaml"))


def load(name: str, folder: Path | None = None) -> Sweep:
    """The sweep called ``name``. Raises ``UserError`` for a wrong name and for a mistake in the file, with its key."""
    folder = folder or _folder()
    if name not in sweep_names(folder):
        raise UserError(f"no sweep is called {name!r}; {did_you_mean(name, sweep_names(folder))}")
    path = folder / f"{name}.yaml"
    raw = load_yaml(path)
    grid = lookup(raw, "hydra.sweeper.params") or {}
    table = raw.get("sweep")
    if not isinstance(table, dict):
        raise UserError(f"{path}: has no section 'sweep' that describes the table")
    try:
        return Sweep.model_validate({"name": name, **table, "grid": {key: str(text) for key, text in grid.items()}})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["sweep", *(str(part) for part in first["loc"])])
        raise UserError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; a mistake becomes a ``UserError`` with the line."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: holds no mapping")
    return raw


def lookup(config: Mapping[str, Any], dotted: str) -> Any:
    """``lookup({"method": {"rank": 8}}, "method.rank") == 8``; None where there is nothing."""
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _folder() -> Path:
    from lrx import paths

    return paths.sweeps_dir()


def _flat(items: Sequence[str | list[str]]) -> list[str]:
    return [name for item in items for name in ([item] if isinstance(item, str) else item)]


def _distinct(what: str, keys: list[str]) -> list[str]:
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"{what} {twice[0]!r} stands twice")
    return keys


def _known(what: str, name: str, choices: Mapping[str, Any] | Sequence[str], where: str) -> None:
    if name not in choices:
        raise ValueError(f"{where}: no {what} is called {name!r}; {did_you_mean(name, choices)}")
