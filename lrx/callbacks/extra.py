"""Lightning's own observers, named in the configuration: ``callbacks.extra: {name: {_target_: ..., arguments}}``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from lrx.errors import UserError
from lrx.safety import check_extra
from lrx.schema import Settings


class Report(Logger):
    """What the observers log: a JSON line per call in ``path``, whatever tracker there is or is not."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "extra"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """They are in the record."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **values}) + "\n")


def extra_callbacks(settings: Settings) -> list[pl.Callback]:
    """The callbacks of ``callbacks.extra``. Raises ``UserError`` for what is refused or does not fit."""
    return [_make(f"callbacks.extra.{name}", section) for name, section in settings.callbacks.extra.items()]


def report_of(settings: Settings, folder: Path) -> Report | bool:
    """Lightning's logger for these callbacks, ``folder/extra.jsonl``; False where there are none."""
    return Report(folder / "extra.jsonl") if settings.callbacks.extra else False


def _make(key: str, section: Mapping[str, Any]) -> pl.Callback:
    name, arguments = check_extra(key, section)  # again: interpolations are resolved by now
    try:
        made = getattr(pl.callbacks, name)(**arguments)  # one package under two names
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError(f"{key}: {' '.join(str(error).split())[:200]}") from None
    assert isinstance(made, pl.Callback)
    return made
