"""``mode=eval``: score the stored weights of a finished run again and hold the result against its record."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lrx.errors import RunFailed, UserError
from lrx.experiment import build_suite
from lrx.modules.evaluate import score_split
from lrx.results.record import read, record_path
from lrx.schema import Settings
from lrx.seeds import derive
from lrx.tasks.base import Task
from lrx.training import assemble, submit


def rescore(settings: Settings, run_id: str, folder: Path) -> None:
    """Print each reported metric beside the record's. The record is not changed.

    Raises ``UserError`` when there is no finished run to score, ``RunFailed`` when a metric is not the recorded one.
    """
    path = record_path(settings.paths.root, run_id)
    if not path.exists():
        raise UserError(f"mode=eval: no record {path}; train first: the same command without mode=eval")
    record = read(path)
    if record.status != "finished":
        raise UserError(f"mode=eval: the run in {path} is {record.status}; finish it first with mode=train")
    different = []
    for task in build_suite(settings).parts():
        scores = score_stored(task, settings, folder / task.name)
        for split, metrics in scores.items():
            known = record.parts[task.name].metrics[split]
            for metric in sorted(set(metrics) ^ set(known)):  # METEOR is scored only where Java is
                where = "in the record" if metric in metrics else "computed here"
                print(f"  {task.name:<12} {split:<12} {metric} is not {where}")
            for metric in (metric for metric in metrics if metric in known):
                value, recorded = metrics[metric], known[metric]
                same = value == recorded or (value != value and recorded != recorded)
                print(f"  {task.name:<12} {split:<12} {metric} {value:.6f}   recorded {recorded:.6f}"
                      f"{'' if same else '   DIFFERENT'}")  # fmt: skip
                if not same:
                    different.append(f"{task.name} {split} {metric}")
    if different:
        raise RunFailed(f"{len(different)} metrics differ from {path}: {', '.join(different[:3])}")
    print(f"every metric equals the record {path}")


def score_stored(task: Task, settings: Settings, folder: Path) -> dict[str, dict[str, float]]:
    """Metrics of the reported splits with the weights in ``folder/adapter.safetensors``; a submission, if asked for."""
    state = read_weights(folder / "adapter.safetensors")
    backbone, method = assemble(task, settings)
    task.bind(backbone, derive(settings.seed, "data"))
    try:
        method.load_adapter(backbone, state)
    except ValueError as error:
        raise UserError(f"mode=eval: {folder / 'adapter.safetensors'} does not fit this run: {error}") from None
    precision = settings.trainer.precision
    if settings.callbacks.submission:
        submit(backbone, task, folder, precision)
    return {split: score_split(backbone, task, split, precision) for split in task.reported}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The stored weights of a part. Raises ``UserError`` when they are gone or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; rerun=all trains it again") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); rerun=all trains it again") from None
