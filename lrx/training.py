"""Training and scoring one part of a benchmark, resumable at any moment."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from lrx import config as lrx_config
from lrx import registry, sharding, slurm, stop, warm
from lrx.callbacks.costs import Costs, resident_now
from lrx.callbacks.extra import extra_callbacks, report_of
from lrx.callbacks.lens import lens_of
from lrx.callbacks.metric_log import MetricLog
from lrx.callbacks.progress import StepProgress
from lrx.callbacks.selection import Selection
from lrx.callbacks.stop import StopSignals
from lrx.checkpoints import AtomicCheckpoints, Passport, newest_readable, snapshots
from lrx.errors import RunFailed, UserError
from lrx.files import sweep_temporary, write_atomic
from lrx.methods.base import Method, split_trainable
from lrx.models.base import Backbone
from lrx.modules.evaluate import predict_split, score_split
from lrx.modules.supervised import Schedule, Supervised
from lrx.results.record import Part
from lrx.schema import Settings
from lrx.seeds import derive
from lrx.tasks.base import Task
from lrx.trackers import Tracker, is_rank_zero


def assemble(task: Task, settings: Settings) -> tuple[Backbone, Method]:
    """Build the backbone for ``task`` and let the method adapt it. Nothing is trained and no data is read yet."""
    method = registry.load("methods", settings.method["name"])(**_arguments(settings.method))
    backbone = build_backbone(task, settings)
    method.adapt(backbone, torch.Generator().manual_seed(derive(settings.seed, "method")))
    return backbone.train(), method  # once more: batch normalisation follows what the method has frozen


def build_backbone(task: Task, settings: Settings) -> Backbone:
    """The backbone for ``task``, not adapted yet; in a job of the warm server, a copy of what is kept there."""
    model = registry.load("models", settings.model["family"])(**_arguments(settings.model))
    seed = derive(settings.seed, "model")
    key = ("backbone", json.dumps(settings.model, sort_keys=True), task.inputs, task.outputs, seed)
    try:
        kept = key in warm.kept
        backbone: Backbone = warm.keep(key, lambda: model.build(task.inputs, task.outputs, seed))
        backbone.pretrained = is_pretrained(settings)
    except (ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        raise UserError(f"model={settings.model['name']}: {' '.join(str(error).split())[:200]}") from error
    if not kept or warm.keeping():
        return backbone
    return copy.deepcopy(backbone, {id(backbone.tokenizer): backbone.tokenizer})  # nothing changes a tokenizer


def is_pretrained(settings: Settings) -> bool:
    """Whether the model starts from trained weights. A family without a choice of weights has random ones."""
    return settings.model.get("weights", "random") != "random"


def prepare_part(task: Task, settings: Settings) -> None:
    """In the warm server: build what training on ``task`` will read, so that the jobs forked afterwards find it."""
    if settings.trial:
        withhold_reported(task)
    task.bind(build_backbone(task, settings), derive(settings.seed, "data"))
    if task.size("train") and settings.mode == "train":
        task.train_dataloader()
    for split in ("select", *task.reported):
        if task.size(split):
            task.eval_dataloader(split)


def withhold_reported(task: Task) -> None:
    """Let a tuning trial have no reported splits: nothing can read or score what the task does not offer.

    Raises ``UserError`` when there is no selection split of its own to judge a trial by.
    """
    if task.selects_on_reported:
        raise UserError(f"task {task.name} selects on its reported split; a trial needs task.holdout above 0, e.g. 0.1")
    task.reported = ()
    if not task.size("select"):
        raise UserError(f"task {task.name} has no selection split; there is nothing to tune on")


def train_part(task: Task, settings: Settings, folder: Path, tracker: Tracker) -> tuple[Part, dict[str, float]]:
    """Train on ``task``, score its reported splits; (what the record keeps, costs).

    ``folder`` receives checkpoints, ``metrics.jsonl``, ``adapter.safetensors`` (the reported weights), predictions
    and at the end ``part.json``, whose presence means that this part is done and only the run's record is missing.
    """
    done = folder / "part.json"
    if (finished := read_part(done)) is not None:
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    for place in (folder, folder / "checkpoints"):
        sweep_temporary(place)  # what a killed process was writing
    for split in ("train", "select", *task.reported):
        task.size(split)  # read before memory is measured: the jobs of a sweep share what others have to read
    memory_before = resident_now()
    backbone, method = assemble(task, settings)
    task.bind(backbone, derive(settings.seed, "data"))
    if settings.callbacks.submission:
        for split in task.unlabelled:
            task.size(split)  # reads the file: a missing one is told now, not after the training
    if not method.trains and settings.callbacks.lens:
        raise UserError(f"callbacks=lens: method={method.name} changes no matrix of this model; leave it out")
    parameters = list(backbone.parameters())
    if method.trains and parameters and not any(p.requires_grad for p in parameters):
        raise UserError(f"method={settings.method['name']} trains nothing of model={settings.model['name']}")
    fixed = not method.trains or not parameters  # an interpolation has nothing to train
    schedule = Schedule(settings.trainer.schedule, 0, 0) if fixed else plan(task, settings)
    module = Supervised(backbone, task, method, schedule, derive(settings.seed, "train"))
    method.plan(backbone, schedule.steps)
    if schedule.steps:
        method.warm_start(backbone, iter(task.train_dataloader()), task.loss)
    adapter, head = split_trainable(backbone)
    selection = Selection(
        steps=evaluation_steps(schedule.steps, settings.trainer.evaluations),
        split="select" if task.size("select") else None,
        best_file=folder / f"best{os.environ.get('LOCAL_RANK', '')}.safetensors",  # one for each process of a run
        precision=settings.trainer.precision,
        patience=settings.trainer.patience,
    )
    costs = Costs(memory_before)
    fit(module, task, settings, folder, [costs, selection, *lens_of(settings, folder, costs)], tracker)
    train_seconds = costs.elapsed()

    part = score(module, task, settings, folder, selection)
    if not settings.trial and is_rank_zero():
        for name, picture in task.pictures(backbone, folder).items():
            tracker.picture(f"{task.name}/{name}", picture)
    cost = costs.summary() | {
        "trainable_parameters": float(sum(p.numel() for _, p in adapter + head)),
        "adapter_parameters": float(sum(p.numel() for _, p in adapter)),
        "train_seconds": train_seconds,
        "earlier_seconds": costs.earlier_seconds,
        "steps": float(part.steps),
    }
    write_atomic(done, json.dumps({"part": dataclasses.asdict(part), "cost": cost}, indent=1))
    selection.best_file.unlink(missing_ok=True)  # not earlier: a run killed while it is scored needs it again
    for checkpoint in (folder / "checkpoints").glob("*.ckpt"):
        checkpoint.unlink(missing_ok=True)  # the part is done; its weights are in adapter.safetensors
    return part, cost


def read_part(done: Path) -> tuple[Part, dict[str, float]] | None:
    """What a finished part left for the record, or None; a file that is none is named, and the part trained again."""
    if not done.exists():
        return None
    try:
        stored = json.loads(done.read_text())
        return Part(**stored["part"]), dict(stored["cost"])
    except (ValueError, TypeError, KeyError) as error:
        print(f"warning: {done} cannot be read ({type(error).__name__}); this part is trained again", flush=True)
        return None


def plan(task: Task, settings: Settings) -> Schedule:
    """Number of optimizer steps and of warm-up steps."""
    trainer = settings.trainer
    if task.size("train") == 0:
        raise UserError(f"task {task.name}: there is no training split here; mode=eval scores an already trained run")
    limits = [] if trainer.max_steps is None else [trainer.max_steps]
    if trainer.max_epochs is not None:
        batches = math.ceil(len(task.train_dataloader()) / processes(settings))
        limits.append(math.ceil(batches / trainer.accumulate) * trainer.max_epochs)
    steps = min(limits)
    return Schedule(trainer.schedule, steps, round(steps * trainer.warmup_ratio))


def processes(settings: Settings) -> int:
    """How many processes share each optimizer step."""
    devices = settings.trainer.devices
    if settings.trainer.strategy == "auto":
        return 1
    return devices if isinstance(devices, int) else max(1, torch.cuda.device_count())


def evaluation_steps(steps: int, count: int) -> set[int]:
    """``count`` steps spread evenly over training, the last step among them."""
    return {max(1, round(steps * k / count)) for k in range(1, count + 1)} if steps else set()


def fit(
    module: Supervised, task: Task, settings: Settings, folder: Path, meters: list[pl.Callback], tracker: Tracker
) -> None:
    """Run Lightning's trainer, from the newest readable checkpoint in ``folder`` if there is one."""
    if module.schedule.steps == 0:
        return
    selection = next(m for m in meters if isinstance(m, Selection))
    interactive = (
        sys.stdout.isatty() if settings.callbacks.progress == "auto" else settings.callbacks.progress == "rich"
    )
    every = settings.logger.every_n_steps
    log = MetricLog(folder / "metrics.jsonl", task.name, every, selection, tracker, verbose=not interactive)
    checkpoints = folder / "checkpoints"
    identity = lrx_config.identity(settings)
    callbacks: list[pl.Callback] = [*meters, log, Passport(identity), StopSignals(checkpoints)]
    callbacks += [*extra_callbacks(settings), *snapshots(settings, checkpoints)]
    if interactive:
        callbacks.append(StepProgress(task.name, selection))
    trainer = make_trainer(
        settings,
        accelerator=settings.trainer.accelerator,
        devices=settings.trainer.devices,
        strategy=sharding.strategy(settings.trainer.strategy, module.backbone, settings.trainer.clip),
        precision=settings.trainer.precision,
        max_steps=module.schedule.steps,
        max_epochs=-1,
        accumulate_grad_batches=settings.trainer.accumulate,
        gradient_clip_val=settings.trainer.clip,
        logger=report_of(settings, folder),
        log_every_n_steps=every,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=str(checkpoints),  # where Lightning saves what it goes on from when Slurm requeues the job
    )
    checkpoint = newest_readable(checkpoints, identity)
    for other in set(checkpoints.glob("hpc_ckpt_*.ckpt")) - {checkpoint}:
        other.unlink()  # broken or outdated; Lightning would take one by itself where there is no other
    if checkpoint is not None:
        print(f"{task.name}: going on from {checkpoint.name}", flush=True)
    with stop.deferred():
        trainer.fit(module, datamodule=task, ckpt_path=checkpoint, weights_only=True)
    module.backbone.to(trainer.strategy.root_device)


def make_trainer(settings: Settings, **options: Any) -> pl.Trainer:
    """Lightning's trainer. Raises ``UserError`` for devices, strategies or precisions that cannot be had here."""
    plugins: list[Any] = [] if settings.trainer.strategy.startswith("fsdp") else [AtomicCheckpoints()]
    if slurm.requeues() and settings.trainer.strategy != "auto":
        plugins.append(LightningEnvironment())  # one task of Slurm, in which Lightning starts the run's processes
    try:
        return pl.Trainer(plugins=plugins, **options)
    except (MisconfigurationException, ValueError, TypeError, ImportError, RuntimeError) as error:
        given = ", ".join(f"{key}={getattr(settings.trainer, key)}" for key in ("accelerator", "devices", "strategy"))
        raise UserError(f"trainer ({given}): {' '.join(str(error).split())[:200]}") from None


def score(module: Supervised, task: Task, settings: Settings, folder: Path, selection: Selection) -> Part:
    """Score the reported splits with the last weights and, where one was selected, with the best; keep the latter."""
    backbone, method = module.backbone, module.method
    precision = settings.trainer.precision
    part = Part(
        primary=task.primary,
        selector=task.selector,
        higher_is_better=dict(task.higher_is_better),
        reported=list(task.reported),
        selects_on_reported=task.selects_on_reported,
        steps=selection_steps(module, selection),
        sizes={split: task.size(split) for split in ("train", "select", *task.reported) if task.size(split)},
    )
    predictions = {split: predict_split(backbone, task, split, precision) for split in task.reported}
    part.last = {split: task.measure(split, *pair) for split, pair in predictions.items()}
    if not module.schedule.steps and task.size("select"):
        part.last["select"] = score_split(backbone, task, "select", precision)
    if selection.last:
        part.last["select"] = selection.last
    part.metrics, part.best_step = dict(part.last), part.steps
    earlier = [entry for entry in selection.curve if entry["step"] < part.steps]
    part.curve = [*earlier, {"step": part.steps, "splits": dict(part.last)}]
    if settings.trainer.select == "best" and selection.best_step >= 0 and selection.best_step != part.steps:
        part.last_predictions = store_predictions(folder, "last_predictions", predictions, task)
        method.load_adapter(backbone, best_weights(selection.best_file))
        predictions = {split: predict_split(backbone, task, split, precision) for split in task.reported}
        part.metrics = {split: task.measure(split, *pair) for split, pair in predictions.items()}
        part.metrics["select"] = selection.best
        part.best_step = selection.best_step
    if not settings.trial:  # the weights of a trial serve nothing: they may not be scored on a reported split
        state = {name: tensor.contiguous().cpu() for name, tensor in method.adapter_state(backbone).items()}
        write_atomic(folder / "adapter.safetensors", save(state))
        if is_rank_zero():
            known = {"task": settings.task["name"], "part": task.name, "run": folder.parent.name}
            method.finish(backbone, known)
    part.predictions = store_predictions(folder, "predictions", predictions, task)
    if part.best_step == part.steps:
        part.last_predictions = dict(part.predictions)
    if settings.callbacks.submission:
        submit(backbone, task, folder, precision)
    part.notes = dict(task.notes)  # last: a split is read, and its irregularities counted, when first needed
    return part


def best_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights that selection kept. Raises ``RunFailed`` when the file is gone or broken."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:100]
        raise RunFailed(f"{path}: the best weights cannot be read ({reason}); rerun=all trains anew") from error


def submit(backbone: Backbone, task: Task, folder: Path, precision: str) -> None:
    """Predict the unlabelled test splits and write them in the leaderboard's format, beside the other parts' files."""
    unlabelled = {split: predict_split(backbone, task, split, precision)[0] for split in task.unlabelled}
    together = folder.parent / "submission"  # the leaderboard takes one archive of all tasks
    for name in task.write_submission(together, unlabelled):
        print(f"{task.name}: wrote {together / name}", flush=True)


def selection_steps(module: Supervised, selection: Selection) -> int:
    """Optimizer steps really taken: fewer than planned after early stopping."""
    stopped = selection.patience is not None and selection.waited >= selection.patience and selection.history
    return int(selection.history[-1]["step"]) if stopped else module.schedule.steps


def store_predictions(
    folder: Path, name: str, pairs: dict[str, tuple[np.ndarray, np.ndarray]], task: Task
) -> dict[str, str]:
    """Write ``folder/<name>.<split>.csv`` for each split; split -> path relative to ``paths.root``."""
    stored = {}
    for split, (predicted, references) in pairs.items():
        path = folder / f"{name}.{split}.csv"
        write_predictions(path, predicted, references, task.groups(split), task.item_scores(predicted, references))
        stored[split] = str(path.relative_to(folder.parents[2]))
    return stored


def write_predictions(
    path: Path,
    predictions: np.ndarray,
    references: np.ndarray,
    groups: list[int] | None = None,
    items: Mapping[str, np.ndarray] | None = None,
) -> None:
    """CSV with one line per item in file order: index, prediction, reference (empty for an unlabelled split).

    With ``groups`` a column says which document an item is from; a column ``item.<metric>`` has the item's own value
    of a metric that is their mean. Texts are quoted.
    """
    labels = references.tolist() if len(references) else [""] * len(predictions)
    answers = predictions[:, 0] if predictions.ndim == 2 else predictions  # of ranked classes the first is the answer
    columns: dict[str, Sequence[Any]] = {"index": range(len(labels)), "prediction": answers.tolist()}
    columns["reference"] = labels
    if groups is not None:
        columns["group"] = groups
    columns |= {f"item.{metric}": values.tolist() for metric, values in (items or {}).items()}
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(columns)
    # By itself the module leaves a text bare that has only "\r" in it, which ends a line for whoever reads the file.
    quoting: Any = csv.QUOTE_NONNUMERIC if predictions.dtype == object else csv.QUOTE_MINIMAL
    writer = csv.writer(text, lineterminator="\n", quoting=quoting)
    writer.writerows(zip(*columns.values(), strict=True))
    write_atomic(path, text.getvalue())


def _arguments(section: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in {"name", "family"}}
