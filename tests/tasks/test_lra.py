"""The Long Range Arena's task: options, composition, batches, splits, noise, errors, a run."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from lrx import config
from lrx.data import lra, lra_noise, lra_text
from lrx.engine.compose import Composer
from lrx.errors import UserError
from lrx.tasks.lra import LongRangeArena, SequenceTask
from tests.conftest import ROOT

SHORT = {
    "max_depth": 5, "max_args": 4, "min_length": 5, "max_length": 40, "train_size": 40, "select_size": 10,
    "test_size": 12,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRX_CACHE", str(tmp_path / "cache"))


def task(dataset: str, **options: Any) -> SequenceTask:
    (found,) = LongRangeArena(dataset=dataset, **options).parts()
    assert isinstance(found, SequenceTask)
    found.bind(SimpleNamespace(reads="sequence"), 0)  # type: ignore[arg-type]
    return found


def test_every_yaml_composes_to_plain_training_and_knows_its_options() -> None:
    compose = Composer()
    parameters = inspect.signature(LongRangeArena).parameters
    assert all(name in (LongRangeArena.__doc__ or "") for name in parameters)
    for name in lra.SETS:
        shown = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "task" / "lra" / f"{name}.yaml"))
        assert set(shown) - {"defaults", "name"} <= set(parameters)
        assert shown["dataset"] == name
        for scale in ("smoke", "mini"):
            settings = config.settings_of(compose([f"task=lra/{name}", f"scale={scale}"]))
            assert settings.method["name"] == "full"
            assert settings.task["dataset"] == name
    chosen = config.settings_of(compose(["task=lra/listops", "method=lora"]))
    assert chosen.method["name"] == "lora"
    assert config.settings_of(compose([])).method["name"] == "lora"  # other tasks keep their default


def test_paper_recipes_are_each_models_own_in_any_order() -> None:
    compose = Composer()
    expected = {
        "s4": (6, 256, 0.01),
        "s5": (8, 128, 0.003),
        "lra_transformer": (4, 512, 1.58e-3),
        "s4d": (6, 256, 0.01),
    }
    for model, (depth, width, rate) in expected.items():
        found = config.settings_of(compose(["task=lra/listops", "scale=paper", f"model={model}"]))
        assert (found.model["depth"], found.model["width"], found.method["lr"]) == (depth, width, rate)
    assert found.model["slow"] == ["A", "B"]  # s5's list, composed in between, is not this one's
    for name in ("listops", "text", "retrieval", "image", "pathfinder", "pathx"):
        config.settings_of(compose([f"task=lra/{name}", "scale=paper"]))


def test_the_run_id_names_the_data_set() -> None:
    found = config.run_id(config.settings_of(config.compose(["task=lra/listops", "scale=smoke"])))
    assert found.startswith("lra-listops-full-")
    assert "/" not in found


def test_batches_are_padded_and_the_same_for_a_seed() -> None:
    first, second = task("listops", **SHORT), task("listops", **SHORT)
    batch = next(iter(first.train_dataloader()))
    again = next(iter(second.train_dataloader()))
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert batch["input_ids"].shape[1] == batch["lengths"].max() <= first.inputs.max_length
    behind = torch.arange(batch["input_ids"].shape[1]) >= batch["lengths"][:, None]
    assert (batch["input_ids"][behind] == 0).all()
    assert (batch["input_ids"][~behind] > 0).all()
    seen = torch.cat([each["index"] for each in first.eval_dataloader("test")])
    assert sorted(seen.tolist()) == list(range(12))
    train, test = first.split("train"), first.split("test")
    most = np.bincount(train.labels).argmax()
    assert first.notes["test.majority"] == pytest.approx((test.labels == most).mean())
    assert "test.in_train" not in first.notes


def test_digits_are_held_out_by_content_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrx.data.images_files.DEBIAN", Path("/nowhere"))
    found = task("smnist")
    sizes = [found.size(name) for name in ("train", "select", "test")]
    assert sizes == [1078, 120, 599]
    assert found.notes["data.digits"] == 1
    assert not found.selects_on_reported
    assert not set(found.split("train").ranks()) & set(found.split("select").ranks())
    batch = next(iter(found.train_dataloader()))
    assert batch["values"].shape == (32, 64, 1)
    assert batch["values"].min() == -1
    assert batch["values"].max() == 1
    assert task("smnist", holdout=0.0).selects_on_reported


def test_noise_adds_a_tone_to_the_test_split_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrx.data.images_files.DEBIAN", Path("/nowhere"))
    found = task("smnist", eval_limit=40, noise={"states": 16, "dt": 0.02, "amplitude": 0.5})
    assert found.reported == ("test", "test_spike", "test_control")
    clean, spike = (next(iter(found.eval_dataloader(name))) for name in ("test", "test_spike"))
    tone = (spike["values"] - clean["values"])[:, :, 0].numpy()
    omega = 0.02 * lra_noise.top_frequency(16)
    basis = np.stack([np.sin(omega * np.arange(64)), np.cos(omega * np.arange(64))])
    weights = np.linalg.lstsq(basis.T, tone.T, rcond=None)[0]
    assert np.abs(basis.T @ weights - tone.T).max() < 1e-5
    assert np.hypot(*weights) == pytest.approx(0.5, abs=1e-5)
    assert torch.equal(clean["labels"], spike["labels"])


def test_the_top_mode_is_that_of_hippo() -> None:
    for n in (8, 16, 32):
        rows, columns = np.arange(n)[:, None], np.arange(n)[None]
        hippo = -np.sqrt((2 * rows + 1) * (2 * columns + 1)) * (rows > columns) - (rows + 1) * (rows == columns)
        p = np.sqrt(np.arange(n) + 0.5)
        top = np.linalg.eigvals(hippo + np.outer(p, p)).imag.max()
        assert lra_noise.top_frequency(n) == pytest.approx(top, rel=1e-9)
        assert top == pytest.approx(n**2 / np.pi - 0.52, abs=0.02)


def test_texts_and_pairs_from_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("neg", "pos"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(5):
                (tmp_path / split / name / f"{i}_1.txt").write_text(f"{split} {name} {i} \u2028 é")
    found = task("text", source="local", data_dir=str(tmp_path), max_length=12, holdout=0.2)
    assert (found.size("train"), found.size("select"), found.size("test")) == (8, 2, 10)
    assert found.split("test").labels.tolist() == [0] * 5 + [1] * 5
    assert found.split("test").lengths.max() == 12
    assert found.notes["test.truncated"] == 10
    for file in lra_text.AAN.values():
        (tmp_path / file).write_text("1\t7\t8\tb'one'\tb'another'\n0.0\t1\t2\tx\ty\n")
    pairs = task("retrieval", source="local", data_dir=str(tmp_path), max_length=100)
    batch = next(iter(pairs.eval_dataloader("test")))
    assert batch["lengths"].tolist() == [4, 2]
    assert batch["lengths_b"].tolist() == [8, 2]
    assert bytes((batch["input_ids"][0, :3] - 3).tolist()) == b"one"
    assert batch["labels"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "listop"}, "no such set"),
        ({"dataset": "retrieval"}, "come only with lra_release.gz"),
        ({"dataset": "retrieval", "source": "local"}, "with no package"),
        ({"dataset": "image"}, "CIFAR-10 comes with no package"),
        ({"dataset": "listops", "min_length": 30, "max_length": 31}, "no length lies strictly between"),
        ({"dataset": "pathfinder", "contour": 15}, "task.contour=15"),
        ({"dataset": "pathfinder", "size": 20}, "task.size=20: .* 16, 32, 64"),
        ({"dataset": "pathfinder", "size": 16, "source": "local", "data_dir": "x"}, "task.size=16: drawn"),
        ({"dataset": "pathx", "size": 64}, "task.size=64: only images of pathfinder"),
        ({"dataset": "listops", "noise": {"omega": 1.0}, "min_length": 5, "max_length": 40}, "noise needs real values"),
        ({"dataset": "smnist", "noise": {"dt": 0.1, "states": 64}}, "at most pi"),
        ({"dataset": "smnist", "noise": {"tone": 1}}, "task.noise.tone"),
        ({"dataset": "smnist", "holdout": 1.0}, "task.holdout=1.0"),
        ({"dataset": "text", "source": "local", "data_dir": "/nowhere"}, "no such folder"),
        ({"dataset": "acsf1"}, "python -m lrx fetch series"),
    ],
)
def test_a_mistake_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        lra.check({"contour": 6, "max_length": 40, **options})
    assert "\n" not in str(caught.value)


def test_another_kind_of_model_is_refused() -> None:
    (found,) = LongRangeArena(dataset="listops", **SHORT).parts()
    with pytest.raises(UserError, match="this model reads none"):
        found.bind(SimpleNamespace(reads="image"), 0)  # type: ignore[arg-type]
