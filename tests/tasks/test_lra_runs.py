"""Whole runs on the arena's tasks: from a checkpoint to the same end, and the sweeps at paper scale."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lrx import config
from lrx.engine.compose import Composer
from tests.faults.forked import numbers

OFFICIAL = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")


@pytest.mark.parametrize("model", ["tiny_s4", "tiny_s5_ptd", "tiny_lra_transformer"])
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(
    model: str, cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrx import checkpoints

    write = checkpoints.AtomicCheckpoints.save_checkpoint
    kept = tmp_path / "kept"
    kept.mkdir()

    def keep(self: Any, checkpoint: dict[str, Any], path: Path, storage_options: Any = None) -> None:
        write(self, checkpoint, path, storage_options)
        shutil.copy(path, kept)

    choice = [
        f"model={model}", "task=lra/listops", "scale=smoke", "logger=none", "model.dropout=0.1", "model.norm=batch",
        "trainer.max_steps=10", "trainer.evaluations=2", "trainer.select=last", "trainer.schedule=cosine",
        "callbacks.checkpoint.every_n_steps=1", "logger.every_n_steps=1",
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.AtomicCheckpoints, "save_checkpoint", keep)
        result = cli(*choice, f"paths.root={tmp_path / 'whole'}")
        assert result.code == 0, result
    (part,) = (tmp_path / "whole").glob("runs/*/listops")
    again = tmp_path / "again"
    folder = again / part.relative_to(tmp_path / "whole")
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(kept / "step-7.ckpt", folder / "checkpoints")  # an epoch has 8 batches
    shutil.copy(part / "metrics.jsonl", folder)
    result = cli(*choice, f"paths.root={again}")
    assert result.code == 0, result
    assert "listops: going on from step-7.ckpt" in result.out
    assert numbers(again) == numbers(tmp_path / "whole")


@pytest.mark.parametrize("sweep", ["s4_lra", "ptd_lra"])
def test_the_sweeps_compose_at_paper_scale_for_every_official_task(sweep: str) -> None:
    compose = Composer()
    for name in OFFICIAL:
        settings = config.settings_of(compose([f"+sweeps={sweep}", "scale=paper", f"task=lra/{name}"]))
        assert (settings.scale.name, settings.task["dataset"]) == ("paper", name)
        assert settings.trainer.max_epochs
        assert settings.model["width"] >= 256


def test_the_robustness_runs_have_the_spike_at_the_step_of_every_channel() -> None:
    settings = config.settings_of(Composer()(["+sweeps=ptd_robustness"]))
    noise, model = settings.task["noise"], settings.model
    assert noise["dt"] == model["dt_min"] == model["dt_max"]
    assert noise["states"] == model["state"]
    assert model["fixed"] == ["dt"]
