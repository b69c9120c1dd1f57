"""Typed schemas of a composed configuration. What they reject is a user's error, named by its key.

The sections ``method``, ``model`` and ``task`` are checked against the constructor of the class they name (read from
its source by ``lrx.registry``), so a new method needs no schema of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

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


class Callbacks(Section):
    checkpoint: Checkpoint
    progress: Literal["auto", "rich", "none"]
    submission: bool


class Settings(Section):
    """A validated run. ``method``, ``model`` and ``task`` hold ``name`` and the arguments of the class it names."""

    seed: int = Field(ge=0, lt=2**63)
    mode: Literal["train", "eval"]
    rerun: Literal["none", "all", "failed"]
    paths: Paths
    scale: Scale
    trainer: Trainer
    logger: Logger
    callbacks: Callbacks
    method: dict[str, Any]
    model: dict[str, Any]
    task: dict[str, Any]
    sweep: dict[str, Any] | None = None


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


def _adapter(annotation: str, entry: registry.Entry, argument: str) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(eval(annotation, {"__builtins__": {}}, _ANNOTATIONS))  # the text of an installed source file
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
            owner = owner.model_fields[part].annotation
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
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            names |= _field_names(info.annotation)
    return names


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
