"""Depth super-resolution as a task: losses, metrics, batches, composition, whole runs with their pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lrx import config
from lrx.engine.compose import Composer
from lrx.errors import UserError
from lrx.models.base import Inputs
from lrx.results.sweep import load
from lrx.tasks.depth_sr import DepthSR, DepthTask, per_image, silog
from lrx.tuning.targets import targets
from tests.data.test_depth import middlebury, own_folder
from tests.models.test_depth_models import build

RENDERED = {"train_size": 6, "select_size": 3, "test_size": 4, "scene_size": 16, "batch_size": 4}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRX_CACHE", str(tmp_path / "cache"))


def task(**options: Any) -> DepthTask:
    (found,) = DepthSR(**{**RENDERED, **options}).parts()
    assert isinstance(found, DepthTask)
    found.bind(SimpleNamespace(reads="depth"), 0)  # type: ignore[arg-type]
    return found


def maps(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found, truth = (torch.rand(3, 1, 5, 7, generator=generator, dtype=torch.float64) * 0.9 + 0.05 for _ in range(2))
    return found, truth, torch.rand(3, 1, 5, 7, generator=generator) < 0.7


def test_silog_is_its_formula_and_its_remainder_under_a_scale() -> None:
    found, truth, valid = maps()
    rows = []
    for f, t, v in zip(found.numpy(), truth.numpy(), valid.numpy(), strict=True):
        d = np.log(f[v]) - np.log(t[v])
        rows.append(10 * math.sqrt((d**2).mean() - 0.85 * d.mean() ** 2))
    assert silog(found, truth, valid, 0.85, 10.0).item() == pytest.approx(np.mean(rows), rel=1e-12)
    one = [each[:1] for each in (found, truth, valid)]
    scaled = [one[0] * 0.7, *one[1:]]
    assert silog(*scaled, 1.0, 1.0).item() == pytest.approx(silog(*one, 1.0, 1.0).item(), rel=1e-12)
    # L^2 = mean d^2 - w mean(d)^2: with d + c it grows by (1 - w)(2 c mean d + c^2)
    d = (found.log() - truth.log())[0][valid[0]]
    c = math.log(0.7)
    grown = silog(*scaled, 0.85, 1.0) ** 2 - silog(*one, 0.85, 1.0) ** 2
    assert grown.item() == pytest.approx(0.15 * (2 * c * d.mean().item() + c * c), rel=1e-9)


def test_silog_has_a_derivative_at_the_truth_and_leaves_out_empty_images() -> None:
    found, truth, valid = maps(1)
    perfect = truth.clone().requires_grad_()
    silog(perfect, truth, valid, 0.85, 10.0).backward()
    assert perfect.grad is not None
    assert perfect.grad.isfinite().all()
    valid[1] = False
    both = silog(found[[0, 2]], truth[[0, 2]], valid[[0, 2]], 0.85, 10.0)
    assert silog(found, truth, valid, 0.85, 10.0).item() == pytest.approx(both.item(), rel=1e-12)


def test_metrics_are_means_of_images_over_known_pixels() -> None:
    found, truth, valid = maps(2)
    truth[0, 0, 0, 0], valid[0, 0, 0, 0] = float("nan"), False
    scores = per_image(found - truth, valid).numpy()
    for i in range(3):
        error = (found[i] - truth[i])[valid[i]].numpy()
        assert scores[i] == pytest.approx([math.sqrt((error**2).mean()), np.abs(error).mean()])
    done = task()
    assert done.score(scores, np.zeros(3)) == pytest.approx({"rmse": scores[:, 0].mean(), "mae": scores[:, 1].mean()})
    assert math.isnan(done.score(np.full((2, 2), np.nan), np.zeros(2))["rmse"])


@pytest.mark.parametrize(("border", "cut"), [(None, 0), (2, 2)])
def test_scores_of_a_model_are_in_centimetres_without_the_border(border: int | None, cut: int) -> None:
    done = task(border=border)
    backbone = build("bicubic", done.inputs)
    (batch,) = done.eval_dataloader("test")
    found = done.infer(backbone, batch)
    assert (found.shape, found.dtype) == ((4, 2), np.float64)
    inner = slice(cut, 16 - cut)
    error = (backbone(batch).double() - batch["depth"].double())[:, 0, inner, inner].numpy() * 1000
    assert found[:, 0] == pytest.approx(np.sqrt((error**2).mean((1, 2))))
    assert found[:, 1] == pytest.approx(np.abs(error).mean((1, 2)))
    assert len(done.references("test")) == 4
    assert task(protocol="standard").infer(backbone, batch)[0, 0] != found[0, 0]  # whose border is 6


def test_batches_are_a_function_of_the_seed_and_cut_at_one_place() -> None:
    clean = {"patch": 8, "flip": 0.0, "quantiser": "none", "noise": 0.0}
    done = task(**clean)
    assert done.inputs == Inputs("image_depth", (3, 8, 8), factor=4)
    loader = done.train_dataloader()
    first, again = (
        next(iter(loader)),
        next(iter(task(patch=8, flip=0.0, quantiser="none", noise=0.0).train_dataloader())),
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert first["image"].shape == (4, 3, 8, 8)
    assert first["depth_low"].shape == (4, 1, 2, 2)
    assert len(loader) == 6  # 6 images of 4 patches in batches of 4
    mean = torch.nn.functional.avg_pool2d(first["depth"], 4)
    torch.testing.assert_close(first["depth_low"], mean, rtol=1e-5, atol=1e-5)
    loader.batches.set_epoch(1)
    assert not torch.equal(next(iter(loader))["depth"], first["depth"])
    flipped = next(iter(task(flip=1.0, quantiser="none", noise=0.0).train_dataloader()))
    mean = torch.nn.functional.avg_pool2d(flipped["depth"], 4)
    torch.testing.assert_close(flipped["depth_low"], mean, rtol=1e-5, atol=1e-5)
    seen = torch.cat([each["index"] for each in done.eval_dataloader("select")])
    assert sorted(seen.tolist()) == [0, 1, 2]


def test_losses_differ_and_other_models_are_refused() -> None:
    backbone = build("tiny_gdnet", task().inputs)
    batch = next(iter(task().train_dataloader()))
    values = {loss: task(loss=loss).loss(backbone, batch).item() for loss in ("silog", "l1", "mse")}
    error = backbone(batch) - batch["depth"]
    assert values["l1"] == pytest.approx(error.abs().mean().item())
    assert values["mse"] == pytest.approx(error.square().mean().item())
    assert len(set(values.values())) == 3
    with pytest.raises(UserError, match="this model reads none"):
        task().bind(SimpleNamespace(reads="image"), 0)  # type: ignore[arg-type]


def test_selection_on_the_reported_split_is_said() -> None:
    assert not task().selects_on_reported
    done = task(select_size=0)
    assert done.selects_on_reported
    assert done.size("select") == done.size("test")


def test_files_train_by_patches_and_are_scored_whole(tmp_path: Path) -> None:
    done = task(dataset="middlebury", source="local", data_dir=str(middlebury(tmp_path)), patch=8, holdout=0.25,
                train_items=["art", "aloe"], test_items=["cones", "venus"])  # fmt: skip
    backbone = build("tiny_gdnet", done.inputs)
    for batch in done.train_dataloader():
        assert done.loss(backbone, batch).isfinite()
        assert batch["depth"].shape[1:] == (1, 8, 8)
    shapes = [tuple(batch["depth"].shape) for batch in done.eval_dataloader("test")]
    assert shapes == [(2, 1, 32, 40)]
    assert done.size("select") == 2
    own = task(dataset="folder", source="local", data_dir=str(own_folder(tmp_path / "own")), max_depth=8.0, patch=8)
    assert own.size("train") + own.size("select") == 8
    assert own.notes["train.too_deep"] == 8
    with pytest.raises(UserError, match="no image of folder is left for the select split"):
        task(dataset="folder", source="local", data_dir=str(tmp_path / "own"), max_depth=8.0, patch=8,
             holdout=1e-9).size("train")  # fmt: skip


def test_configurations_compose_to_plain_training() -> None:
    compose = Composer()
    for scale in ("smoke", "mini", "paper"):
        settings = config.settings_of(compose(["task=depth_sr", f"scale={scale}"]))
        assert settings.method["name"] == "full"
        assert settings.model["family"] == "gdnet"
    assert settings.task["dataset"] == "nyu"
    with pytest.raises(UserError, match=r"needs task\.data_dir"):
        config.check_data(settings)
    for name in ("bicubic", "joint_bilateral", "depth_unet", "gdnet_no_detail"):
        assert config.settings_of(compose(["task=depth_sr", f"model={name}"])).model["name"] == name
    assert config.run_id(config.settings_of(compose(["task=depth_sr", "scale=smoke"]))).startswith(
        "depth_sr-rendered-full-"
    )


def test_no_published_row_is_called_gdnet() -> None:
    sweep = load("gdnet_depth")
    assert "lrx-compressed" in sweep.setting
    assert not [row for table in sweep.published for row in table.rows if row.label.startswith("GDNet")]


SMALL = ["task=depth_sr", "scale=smoke", "task.train_size=8", "task.test_size=4", "trainer.max_steps=2"]


def stored(root: Path) -> tuple[dict[str, Any], str]:
    (record,), (file,) = (root / "records").glob("*.json"), root.glob("runs/*/rendered/predictions.test.csv")
    return json.loads(record.read_text())["parts"]["rendered"]["metrics"], file.read_text()


def test_a_run_leaves_a_picture_and_is_scored_again_to_the_digit(cli: Any, tmp_path: Path) -> None:
    result = cli(*SMALL, "logger=none", f"paths.root={tmp_path}")
    assert result.code == 0, result
    metrics, predictions = stored(tmp_path)
    rows = np.genfromtxt(predictions.splitlines(), delimiter=",", names=True)
    assert metrics["test"]["rmse"] == pytest.approx(rows["itemrmse"].mean(), rel=1e-9)
    assert metrics["test"]["mae"] == pytest.approx(rows["itemmae"].mean(), rel=1e-9)
    (picture,) = tmp_path.glob("runs/*/rendered/panel.test.png")
    with Image.open(picture) as image:
        assert image.size[0] > 1000
        assert np.asarray(image.convert("RGB")).std() > 30
    again = cli(*SMALL, "logger=none", f"paths.root={tmp_path}", "mode=eval")
    assert "every metric equals the record" in again.out, again


@pytest.mark.slow
def test_the_same_command_gives_the_same_scores(cli: Any, tmp_path: Path) -> None:
    for root in ("one", "two"):
        assert cli(*SMALL, "logger=none", f"paths.root={tmp_path / root}").code == 0
    assert stored(tmp_path / "one") == stored(tmp_path / "two")


@pytest.mark.slow
def test_rows_that_differ_by_model_are_tuned_into_files_of_their_own(tmp_path: Path) -> None:
    found = targets(load("gdnet_depth"), ["gdnet", "joint_bilateral"], [], tmp_path)
    assert [target.file.as_posix() for target in found] == [
        "mini/depth_sr/full/joint_bilateral.yaml", "mini/depth_sr/full/gdnet.yaml",
    ]  # fmt: skip
    assert set(found[0].space) == {"model.sigma_space", "model.sigma_range"}


@pytest.mark.slow
def test_what_has_no_parameters_is_scored_as_it_is_and_its_picture_is_logged(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrx import trackers

    logged = []
    monkeypatch.setattr(trackers.Tracker, "picture", lambda self, name, path: logged.append((name, path.name)))
    for method in ("full", "none"):
        result = cli(*SMALL, "logger=none", "model=bicubic", f"method={method}", f"paths.root={tmp_path}")
        assert result.code == 0, result
        assert "step 0" in result.out
    assert logged == [("rendered/test", "panel.test.png")] * 2
    assert len({json.loads(path.read_text())["parts"]["rendered"]["metrics"]["test"]["rmse"]
                for path in (tmp_path / "records").glob("*.json")}) == 1  # fmt: skip
    refused = cli(*SMALL, "logger=none", "model=bicubic", "method=lora", f"paths.root={tmp_path}")
    assert refused.code != 0
    assert len(refused.err.strip().splitlines()) == 1, refused
