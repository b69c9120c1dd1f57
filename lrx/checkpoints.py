"""Checkpoints of a run: when they are taken, how they are written, and which one a broken run goes on from."""

from __future__ import annotations

import io
import json
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins import TorchCheckpointIO

from lrx.errors import UserError
from lrx.files import write_atomic
from lrx.schema import Settings

_RUN = "lrx_identity"  # the key of a checkpoint under which it says what run it belongs to


def snapshots(settings: Settings, folder: Path) -> list[ModelCheckpoint]:
    """Checkpoint callbacks that keep the newest two: if a kill or a bad disk ruins one, the other is there."""
    choice = settings.callbacks.checkpoint
    common: dict[str, Any] = {
        "dirpath": folder, "monitor": "step", "mode": "max", "save_top_k": 2, "enable_version_counter": False,
        "auto_insert_metric_name": False,
    }  # fmt: skip
    made: list[ModelCheckpoint] = []
    if choice.every_seconds is not None:
        interval = timedelta(seconds=choice.every_seconds)
        made.append(Snapshot(filename="time-{step}", train_time_interval=interval, **common))
    if choice.every_n_steps is not None:
        made.append(Snapshot(filename="step-{step}", every_n_train_steps=choice.every_n_steps, **common))
    return made


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it; Lightning goes through the system's temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomic(Path(path), buffer.getvalue())


class Snapshot(ModelCheckpoint):
    """Saves after an optimizer step only: an open accumulation window is in no checkpoint and would be lost."""

    _seen_step = -1

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step != self._seen_step:
            self._seen_step = trainer.global_step
            super().on_train_batch_end(trainer, *args, **kwargs)


class Passport(pl.Callback):
    """Writes into every checkpoint which run it belongs to: ``lrx.config.identity`` of its settings."""

    def __init__(self, identity: dict[str, Any]) -> None:
        self.identity = identity

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[_RUN] = self.identity


def newest_readable(folder: Path, identity: dict[str, Any]) -> Path | None:
    """The checkpoint with the most steps that is whole; broken ones are named and passed over.

    Raises ``UserError`` for a checkpoint of another run than ``identity`` says, with the keys in which they differ.
    """
    found = []
    broken = 0
    for path in sorted(folder.glob("*.ckpt")):
        try:
            checkpoint = read(path)
            found.append((int(checkpoint["global_step"]), path))
        except Exception as error:  # torn by a kill, a full disk or another hand: any reason is the same here
            print(f"warning: checkpoint {path} cannot be read ({type(error).__name__}); it is passed over", flush=True)
            broken += 1
            continue
        differences = compare(checkpoint.get(_RUN, identity), identity)  # those of earlier versions do not say
        if differences:
            raise UserError(
                f"{path} is a checkpoint of another run: {', '.join(differences[:5])}; remove it, or give rerun=all"
            )
    if broken:
        print("going on from " + (f"the earlier {max(found)[1].name}" if found else "the beginning"), flush=True)
    return max(found)[1] if found else None


def read(path: Path) -> dict[str, Any]:
    """A checkpoint whose every byte is what was written: torch itself does not look at the checksums in the file."""
    with zipfile.ZipFile(path) as archive:
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"checksum of {bad}")
    loaded: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return loaded


def compare(there: Any, here: Any, prefix: str = "") -> list[str]:
    """What differs between two nested mappings: ``["method.rank is 4 there and 8 here"]``."""
    if isinstance(there, dict) and isinstance(here, dict):
        if there.get("name") != here.get("name"):  # then so do its options, which says nothing
            there, here = {"name": there.get("name")}, {"name": here.get("name")}
        keys = sorted({*there, *here}, key=str)
        return [d for k in keys for d in compare(there.get(k), here.get(k), f"{prefix}.{k}" if prefix else str(k))]
    if json.dumps(there) == json.dumps(here):
        return []
    return [f"{prefix} is {_short(there)} there and {_short(here)} here"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
