"""Weights that are made here: the recipe of mini_vit, what it leaves behind, and what is said where it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrx.data import pretraining, vision_weights
from lrx.errors import UserError
from lrx.models import pretrain
from lrx.models.base import Inputs
from tests.conftest import command
from tests.models.building import build, same

torch.set_num_threads(1)
SQUARE = Inputs("image", (3, 32, 32))
QUICK = pretrain.Distillation(crops=32, epochs=2, batch=16)


def quick_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that a linear map of the pixels gives, in place of the real teacher's; and nothing to be fetched."""
    projection = torch.randn(3 * 32 * 32, 12, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(pretrain, "_taught", lambda found: pretrain.normal(found).flatten(1) @ projection / 30)
    monkeypatch.setattr(vision_weights, "check", lambda name: None)


def test_the_recipe_makes_the_same_weights_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import ViTModel

    quick_teacher(monkeypatch)
    said: list[str] = []
    state = torch.get_rng_state()
    place = pretrain.pretrain("mini_vit", tmp_path / "a", QUICK, said.append)
    assert torch.equal(state, torch.get_rng_state())
    assert place == pretraining.made("mini_vit", tmp_path / "a")
    assert sum("loss" in line for line in said) == 2
    manifest = json.loads((place / "manifest.json").read_text())
    assert set(manifest["photographs"]) == {"china.jpg", "flower.jpg", "grace_hopper.jpg"}
    assert manifest["recipe"]["crops"] == 32
    assert manifest["loss_per_epoch"][1] < manifest["loss_per_epoch"][0]
    again = pretrain.pretrain("mini_vit", tmp_path / "b", QUICK, said.append)
    assert json.loads((again / "manifest.json").read_text())["sha256"] == manifest["sha256"]
    before = len(said)
    pretrain.pretrain("mini_vit", tmp_path / "b", QUICK, said.append)
    assert len(said) == before  # it is there
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [".mini_vit-1.lock", "mini_vit-1"]

    monkeypatch.setenv("LRX_CACHE", str(tmp_path / "b"))
    backbone = build("mini_vit", inputs=Inputs("image", (3, 48, 48))).eval()
    assert sum(p.numel() for p in backbone.net.vit.parameters()) == 1_204_608
    assert backbone.image == {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "size": (32, 32)}
    stored = ViTModel.from_pretrained(place, add_pooling_layer=False).state_dict()
    assert same(stored, backbone.net.vit.state_dict())
    assert (
        backbone({"pixel_values": torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))}).std(0).min()
        > 0
    )

    (again / "model.safetensors").write_bytes(b"?")
    with pytest.raises(
        UserError, match="is damaged; delete it and make the weights again with: python -m lrx pretrain"
    ):
        build("mini_vit", inputs=SQUARE)


def test_weights_that_were_not_made_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRX_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="make them once, in minutes, with: python -m lrx pretrain mini_vit"):
        build("mini_vit", inputs=SQUARE)
    done = command("-m", "lrx", "pretrain", "mini_vti")
    assert (done.code, done.err.strip().count("\n")) == (2, 0)
    assert "did you mean 'mini_vit'" in done.err


def test_a_recipe_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_teacher(monkeypatch)

    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "_learn", broken)
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain("mini_vit", tmp_path, QUICK, lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == [".mini_vit-1.lock"]


def test_crops_are_drawn_from_the_seed() -> None:
    photographs = [np.arange(60 * 80 * 3, dtype=np.uint8).reshape(60, 80, 3)]
    first, again = (pretrain.crops(photographs, QUICK) for _ in range(2))
    other = pretrain.crops(photographs, pretrain.Distillation(crops=32, seed=1))
    assert (first.shape, first.dtype) == ((32, 3, 32, 32), torch.uint8)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({bytes(crop.numpy().tobytes()) for crop in first}) == 32
