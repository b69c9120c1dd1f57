"""Composing a configuration and naming it: from overrides to a validated run with a stable identity."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lrx import paths, registry, safety, skills, slurm
from lrx.results.record import RunRecord, Status
from lrx.schema import Settings, validate

# What does not change a run's numbers. Everything else in the configuration is part of the run's identity.
COSMETIC = (
    *("paths", "logger", "callbacks", "mode", "rerun", "sweep", "tuned"),
    *("jobs", "fail_fast", "time_limit", "engine"),
)
COSMETIC_TRAINER = ("threads",)  # threads change the last digits at most; a record says how many there were
COSMETIC_METHOD = ("library",)  # what the skills in it hold counts, not where they lie
COSMETIC_TASK = ("data_dir", "workers")  # the data's content counts (its digest below), not the folder it lies in


def register_resolvers() -> None:
    """``${lrx_root:}`` is the folder that holds ``sweeps/``."""
    OmegaConf.register_new_resolver("lrx_root", lambda: str(paths.search_root()), replace=True)
    OmegaConf.register_new_resolver("lrx_hydra", _hydra_folder, replace=True)


def _hydra_folder(root: Any) -> str:
    if not isinstance(root, str) or not root.strip():
        raise ValueError("paths.root is empty; give the folder that results go to")
    return f"{root}/hydra"


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The composed configuration for ``overrides``, as ``python run.py`` would see it. Raises Hydra's errors."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register_resolvers()
    GlobalHydra.instance().clear()
    with safety.guarded(), initialize_config_dir(config_dir=str(paths.conf_dir()), version_base="1.3"):
        return hydra_compose("config", overrides=list(overrides))


def settings_of(config: DictConfig) -> Settings:
    """Validate a composed configuration. Raises ``UserError`` naming the offending key.

    A seed that is null or missing is drawn here, once for each run, and printed; the run is then that of this seed.
    """
    container = container_of(config)
    if container.get("seed") is None:
        container["seed"] = secrets.randbelow(2**31)
        print(f"drew seed={container['seed']}; seed={container['seed']} gives this very run again", flush=True)
    settings = validate(container)
    if slurm.restarted() and settings.rerun == "all":  # what the job has done since it first started is to stay
        settings = settings.model_copy(update={"rerun": "failed"})
    return settings


def container_of(config: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain values, without Hydra's own section. Raises ``UserError`` for an unsafe one."""
    safety.check(config)
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items() if key != "hydra"}


def record_of(settings: Settings, run_id: str, status: Status, started: str) -> RunRecord:
    """A run's record with its identity and nothing else yet. ``started``: ISO 8601, UTC."""
    return RunRecord(
        run_id=run_id,
        fingerprint=fingerprint(settings),
        status=status,
        method=settings.method["name"],
        model=settings.model["name"],
        task=settings.task["name"],
        scale=settings.scale.name,
        source=str(settings.task.get("source", "")),
        seed=settings.seed,
        versions=versions(settings),
        config=settings.model_dump(mode="json", exclude={"sweep"}),
        started=started,
    )


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
    if not settings.trial:
        del known["trial"]  # runs that are no trials keep the identity they had before there were any
    known["task"] = {key: value for key, value in known["task"].items() if key not in COSMETIC_TASK}
    known["method"] = {key: value for key, value in known["method"].items() if key not in COSMETIC_METHOD}
    if chosen := settings.method.get("skills"):
        known["skills"] = skills.digests(chosen, settings.method.get("library"))
    if isinstance(known["task"].get("subset"), str | list):
        known["task"]["subset"] = subsets(settings)
    if settings.model.get("weights") == "local":
        known["weights"] = _folder_digest(Path(str(settings.model["path"])))
    known["trainer"] = {key: value for key, value in known["trainer"].items() if key not in COSMETIC_TRAINER}
    known["versions"] = versions(settings)
    known["data"] = _data_digest(settings.task)
    return known


def fingerprint(settings: Settings) -> str:
    """64 hex digits that name a run: equal for equal ``identity``, whatever the folder, the logger or the machine."""
    return hashlib.sha256(json.dumps(identity(settings), sort_keys=True).encode()).hexdigest()


def subsets(settings: Settings) -> list[str]:
    """The chosen sub-tasks, each once and in alphabetical order: they are trained apart, so their order is nothing."""
    chosen = settings.task.get("subset") or ()
    return sorted({chosen} if isinstance(chosen, str) else set(chosen))


def run_id(settings: Settings) -> str:
    """A readable, unique file name for a run: task, method, model, scale, seed and the fingerprint's first digits."""
    chosen = "+".join(subsets(settings))[:40] or str(settings.task.get(_named_by(settings), ""))
    task = f"{settings.task['name']}-{chosen}" if chosen else settings.task["name"]
    parts = [task, settings.method["name"], settings.model["name"], settings.scale.name, f"s{settings.seed}"]
    return re.sub(r"[^A-Za-z0-9_+.-]", "_", "-".join([*parts, fingerprint(settings)[:10]]))


def _named_by(settings: Settings) -> str:
    """The option that names one of a task's data sets in run ids, where its class says that there is one."""
    return str(registry.find("tasks", settings.task["name"]).attributes.get("named_by", ""))


def _folder_digest(folder: Path) -> str:
    """SHA-256 over the configuration and weight files of a local model."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in {".json", ".safetensors", ".bin", ".txt", ".model"}:
            with path.open("rb") as stream:
                total.update(path.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


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


def check_data(settings: Settings) -> None:
    """Let the task look at its options and files before anything heavy is imported. Raises ``UserError``."""
    module = data_module(settings.task)
    if module is not None:
        module.check(settings.task, settings.mode)


def check_weights(settings: Settings) -> None:
    """Look for the model's weights before anything heavy is imported. Raises ``UserError``."""
    if registry.find("models", settings.model["family"]).module.startswith("lrx.models."):  # not a plug-in's
        from lrx.data import weights

        weights.check(settings.model)


def _data_digest(task: dict[str, Any]) -> str | None:
    """Digest of the data a run reads (local files: their content), from the task's ``digest``."""
    module = data_module(task)
    return None if module is None else str(module.digest(task))
