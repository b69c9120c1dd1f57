"""Hydra's sweeper and launcher for ``python run.py -m``: they hand the grid to ``lrx.engine``, which does the rest.

Hydra looks for plugins in the namespace package ``hydra_plugins``. Nothing heavy is imported here: Hydra imports every
plugin at each start.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, configure_log
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class LrxSweeper(BasicSweeper):
    """Hydra's grid; jobs are composed once, by the launcher, which explains a mistake in one without the others."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None = None) -> None:
        super().__init__(None, params)  # one batch: ``jobs=N`` says how many run at a time

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Left to the launcher."""


class LrxLauncher(Launcher):
    """Composes the jobs of a batch and gives them to the task function's ``many``."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from lrx.engine.compose import Composer
        from lrx.engine.jobs import make_all

        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        common = OmegaConf.to_container(self.config.hydra.overrides.hydra)
        loader: Any = self.context.config_loader
        flags = [text for text in common if isinstance(text, str)] if isinstance(common, list) else []
        composer = Composer(flags, loader.get_search_path())
        self.task_function.many(make_all(job_overrides, composer))  # type: ignore[attr-defined]
        return []


_SWEEPER = {"_target_": "hydra_plugins.lrx_launcher.LrxSweeper", "max_batch_size": None, "params": None}
_LAUNCHER = {"_target_": "hydra_plugins.lrx_launcher.LrxLauncher"}
ConfigStore.instance().store(group="hydra/sweeper", name="lrx", node=_SWEEPER, provider="lrx")
ConfigStore.instance().store(group="hydra/launcher", name="lrx", node=_LAUNCHER, provider="lrx")
