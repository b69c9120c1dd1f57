"""Typed schemas of a composed configuration. What they reject is a user's error, named by its key.

The sections ``method``, ``model`` and ``task`` are checked against the constructor of the class they name (read from
its source by ``lrx.registry``), so a new method needs no schema of its own.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)

from lrx import registry
from lrx.errors import UserError, did_you_mean


class Section(BaseModel):
    """A section of the configuration: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Paths(Section):
    root: Path = Field(strict=False)


class Scale(Section):
    name: Literal["smoke", "mini", "paper"]


class Trainer(Section):
    """How a run is trained. Training ends at ``max_steps`` or ``max_epochs``, whichever comes first."""

    accelerator: Literal["cpu", "gpu", "auto"]
    devices: int | str
    strategy: str
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    max_steps: int | None = Field(ge=0)
    max_epochs: PositiveInt | None
    accumulate: PositiveInt
    clip: PositiveFloat | None
    schedule: Literal["constant", "linear", "cosine"]
    warmup_ratio: float = Field(ge=0, lt=1)
    evaluations: int = Field(ge=0)
    select: Literal["best", "last"]
    patience: PositiveInt | None
    threads: PositiveInt | None


class Logger(Section):
    kind: Literal["wandb", "csv", "tensorboard", "none"]
    online: bool = False
    project: str = "lrx"
    entity: str | None = None
    group: str | None = None
    every_n_steps: PositiveInt = 10


class Checkpoint(Section):
    every_seconds: PositiveFloat | None
    every_n_steps: PositiveInt | None


class Lens(Section):
    """The low-rank lens (``lrx.callbacks.lens``)."""

    every: PositiveInt
    weight_every: PositiveInt | None
    top: PositiveInt
    rank: PositiveInt
    target_modules: str | list[str] | None


class Callbacks(Section):
    checkpoint: Checkpoint
    progress: Literal["auto", "rich", "none"]
    submission: bool
    lens: Lens | None = None
    extra: dict[str, dict[str, Any]] = Field(default_factory=dict)  # Lightning callbacks by ``_target_`` (lrx.safety)


class Tuned(Section):
    """Where tuned values come from: written by ``python -m lrx tune`` into ``conf/tuned``, kept in every record.

    ``values``: what was tuned, by dotted key. ``trials``: how many the method got. ``score``: the winner's, the mean of
    ``metric`` on the selection split (a metric that is better when lower counts negative). ``started_from``: the first
    trial's values and where they came from; files of earlier versions do not say.
    """

    sweep: str
    model: str
    source: str
    values: dict[str, Any] = Field(min_length=1)
    trials: PositiveInt
    seed: int | list[int]
    metric: str
    score: float
    command: str
    started_from: str = ""


class Engine(Section):
    """Where the jobs of a multirun run (``lrx.engine``). What is null is not given: the cluster's own default."""

    name: Literal["local", "inline", "submitit", "ray"]
    # submitit
    executor: Literal["local", "slurm"] | None = None
    timeout_min: PositiveInt | None = None
    max_num_timeout: int | None = Field(default=None, ge=0)
    signal_delay_s: PositiveInt | None = None
    mem_gb: PositiveFloat | None = None
    cpus_per_task: PositiveInt | None = None
    gpus_per_node: int | None = Field(default=None, ge=0)
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    array_parallelism: PositiveInt | None = None
    setup: list[str] | None = None
    additional_parameters: dict[str, Any] | None = None
    # ray
    address: str | None = None
    cpus_per_job: PositiveFloat | None = None
    gpus_per_job: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _belongs(self) -> Engine:
        needed = {"submitit": ("executor", "timeout_min", "max_num_timeout"), "ray": ("cpus_per_job",)}
        for key in needed.get(self.name, ()):
            if getattr(self, key) is None:
                raise ValueError(f"engine.{key} must be set")
        ray = {"address", "cpus_per_job", "gpus_per_job"}
        known = {"submitit": set(type(self).model_fields) - ray, "ray": {"name", *ray}}.get(self.name, {"name"})
        for key in self.model_dump():
            if key not in known:
                raise ValueError(f"engine.{key} is no option of engine={self.name}")
        return self

    @model_serializer(mode="wrap")
    def _given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is set: a record says nothing of the options of other engines."""
        return {key: value for key, value in handler(self).items() if value is not None}


class Settings(Section):
    """A validated run. ``method``, ``model`` and ``task`` hold ``name`` and the arguments of the class it names."""

    seed: int = Field(ge=0, lt=2**63)
    mode: Literal["train", "eval"]
    rerun: Literal["none", "all", "failed"]
    trial: bool = False
    jobs: PositiveInt = 1
    fail_fast: bool = False
    time_limit: PositiveFloat | None = None
    # Records of before there were engines have none.
    engine: Engine = Field(default_factory=lambda: Engine.model_validate({"name": "local"}))
    paths: Paths
    scale: Scale
    trainer: Trainer
    logger: Logger
    callbacks: Callbacks
    method: dict[str, Any]
    model: dict[str, Any]
    task: dict[str, Any]
    sweep: dict[str, Any] | None = None
    tuned: Tuned | None = None


_ANNOTATIONS = {t.__name__: t for t in (int, float, bool, str, list, tuple, dict)} | {
    "Literal": Literal,
    "Any": Any,
    "None": None,
}


def validate(config: dict[str, Any]) -> Settings:
    """Check a composed configuration and return it typed.

    Raises ``UserError`` naming the first offending key, what was given and what is accepted.
    """
    sections = {
        "method": ("methods", "name"),
        "model": ("models", "family"),
        "task": ("tasks", "name"),
    }
    config = dict(config)
    if config.get("seed") is None:  # a run that is to be trained has drawn one by now
        raise UserError("seed is null or missing: there each run draws its own, so give the seeds that are meant")
    for section, (kind, key) in sections.items():
        given = config.get(section)
        if not isinstance(given, dict) or not all(isinstance(given.get(k), str) for k in {key, "name"}):
            raise UserError(f"{section}: choose one with {section}=NAME (python -m lrx list {kind})")
        config[section] = _check_arguments(section, kind, key, given)
    try:
        settings = Settings.model_validate(config)
    except ValidationError as error:
        raise UserError(_explain(error, Settings)) from None
    if settings.trainer.max_steps is None and settings.trainer.max_epochs is None:
        raise UserError("trainer.max_steps or trainer.max_epochs must be set: neither says when training ends")
    if settings.trial and (settings.mode == "eval" or settings.callbacks.submission):
        raise UserError("trial=true: a trial never touches the reported splits; no mode=eval, no callbacks.submission")
    return settings


def _check_arguments(section: str, kind: str, key: str, given: dict[str, Any]) -> dict[str, Any]:
    entry = registry.find(kind, given[key])
    labels = {"name", "family"} if section == "model" else {"name"}
    checked: dict[str, Any] = {label: given[label] for label in labels if label in given}
    for name, value in given.items():
        if name in labels:
            continue
        if name not in entry.signature:
            raise UserError(
                f"{section}.{name}: {given['name']} has no such option; {did_you_mean(name, entry.signature)}"
            )
        annotation = entry.signature[name][0]
        adapter = _adapter(annotation, entry, name)
        if isinstance(value, bool) and "bool" not in annotation and "Any" not in annotation:
            raise UserError(f"{section}.{name}={value}: expected {annotation}")
        try:
            checked[name] = adapter.validate_python(value)
        except ValidationError as error:
            problem = min(error.errors(), key=lambda e: len(e["loc"]))["msg"].lower()
            raise UserError(f"{section}.{name}={_short(value)}: expected {annotation} ({problem})") from None
    for name, (annotation, default) in entry.signature.items():
        if name not in checked and default is registry.REQUIRED:
            raise UserError(f"{section}.{name} is missing: expected {annotation}")
    return checked


@functools.cache
def _type_adapter(annotation: str) -> TypeAdapter[Any]:
    return TypeAdapter(eval(annotation, {"__builtins__": {}}, _ANNOTATIONS))  # the text of an installed source file


def _adapter(annotation: str, entry: registry.Entry, argument: str) -> TypeAdapter[Any]:
    try:
        return _type_adapter(annotation)
    except Exception:
        raise UserError(
            f"{entry.path}: {entry.class_name}: the type of {argument!r}, {annotation}, cannot be read without running "
            f"the file; use {', '.join(_ANNOTATIONS)}"
        ) from None


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("function-", "constrained")))
    if first["type"] == "extra_forbidden":
        owner: Any = model
        for part in first["loc"][:-1]:
            owner = _section_of(owner.model_fields[part].annotation)
        return f"{where}: no such key; {did_you_mean(str(first['loc'][-1]), owner.model_fields)}"
    keys = [part for part in first["loc"] if part in _field_names(model)]
    name = ".".join(str(part) for part in keys) or where
    if first["type"] == "missing":
        return f"{name} is missing"
    return f"{name}={_short(first['input'])}: {first['msg'].lower()}"


def _field_names(model: type[BaseModel]) -> set[str]:
    names: set[str] = set()
    for name, info in model.model_fields.items():
        names.add(name)
        if (section := _section_of(info.annotation)) is not None:
            names |= _field_names(section)
    return names


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also where it may be null instead."""
    choices = [each for each in (annotation, *get_args(annotation)) if isinstance(each, type)]
    return next((each for each in choices if issubclass(each, BaseModel)), None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
