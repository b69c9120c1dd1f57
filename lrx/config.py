"""Composing a configuration and naming it: from overrides to a validated run with a stable identity."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lrx import paths, registry
from lrx.schema import Settings, validate

# What does not change a run's numbers. Everything else in the configuration is part of the run's identity.
COSMETIC = ("paths", "logger", "callbacks", "mode", "rerun", "sweep")
COSMETIC_TRAINER = ("threads",)  # threads change the last digits at most; a record says how many there were
COSMETIC_TASK = ("data_dir", "workers")  # the data's content counts (its digest below), not the folder it lies in


def register_resolvers() -> None:
    """``${lrx_root:}`` is the folder that holds ``sweeps/``."""
    OmegaConf.register_new_resolver("lrx_root", lambda: str(paths.search_root()), replace=True)


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The composed configuration for ``overrides``, as ``python run.py`` would see it. Raises Hydra's errors."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(paths.conf_dir()), version_base="1.3"):
        return hydra_compose("config", overrides=list(overrides))


def settings_of(config: DictConfig) -> Settings:
    """Validate a composed configuration. Raises ``UserError`` naming the offending key."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return validate({str(key): value for key, value in container.items() if key != "hydra"})


def versions(settings: Settings) -> dict[str, int]:
    """Version numbers of the method, model and task: raised when their numbers change, part of the identity."""
    return {
        "method": registry.find("methods", settings.method["name"]).version,
        "model": registry.find("models", settings.model["family"]).version,
        "task": registry.find("tasks", settings.task["name"]).version,
    }


def identity(settings: Settings) -> dict[str, Any]:
    """What a run is: its configuration without cosmetics, the versions, and the digest of its local data."""
    known = settings.model_dump(mode="json", exclude=set(COSMETIC))
    known["task"] = {key: value for key, value in known["task"].items() if key not in COSMETIC_TASK}
    known["trainer"] = {key: value for key, value in known["trainer"].items() if key not in COSMETIC_TRAINER}
    known["versions"] = versions(settings)
    known["data"] = _data_digest(settings.task)
    return known


def fingerprint(settings: Settings) -> str:
    """64 hex digits that name a run: equal for equal ``identity``, whatever the folder, the logger or the machine."""
    return hashlib.sha256(json.dumps(identity(settings), sort_keys=True).encode()).hexdigest()


def run_id(settings: Settings) -> str:
    """A readable, unique file name for a run: task, method, model, scale, seed and the fingerprint's first digits."""
    subset = settings.task.get("subset")
    chosen = "+".join([subset] if isinstance(subset, str) else subset or ())[:40]
    task = f"{settings.task['name']}-{chosen}" if chosen else settings.task["name"]
    parts = [task, settings.method["name"], settings.model["name"], settings.scale.name, f"s{settings.seed}"]
    return re.sub(r"[^A-Za-z0-9_+.-]", "_", "-".join([*parts, fingerprint(settings)[:10]]))


def data_module(task: dict[str, Any]) -> Any:
    """The task's torch-free module with ``check`` and ``digest``: ``<package>.data.<task>`` when its class is in
    ``<package>.tasks``; None if there is none.
    """
    entry = registry.find("tasks", task["name"])
    package = entry.module.rpartition(".tasks.")[0]
    name = f"{package}.data.{task['name']}"
    try:
        found = bool(package) and importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        found = False
    return importlib.import_module(name) if found else None


def _data_digest(task: dict[str, Any]) -> str | None:
    """Digest of the data a run reads (local files: their content), from the task's ``digest``."""
    module = data_module(task)
    return None if module is None else str(module.digest(task))
