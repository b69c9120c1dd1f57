"""The image task: metrics, splits, transforms against Pillow, randomness that nothing has to be stored for, runs."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from PIL import Image
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import functional

from lrx.data import images_store
from lrx.errors import UserError
from lrx.tasks.image_transforms import HALF, IMAGENET, Look, ScoringBatches, look
from lrx.tasks.imagenet import ImageNet, ImageTask
from tests.conftest import ROOT
from tests.contract.test_convolutions import LINEAR_ONLY
from tests.data import images as make
from tests.faults import forked


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRX_CACHE", str(tmp_path / "cache"))


def backbone(**image: Any) -> Any:
    return SimpleNamespace(reads="image", image=image or None)


def digits(seed: int = 0, **options: Any) -> ImageTask:
    options = {"batch_size": 16, "image_size": 16, "train_limit": 70, "eval_limit": 40} | options
    (task,) = ImageNet(**options).parts()
    task.bind(backbone(), seed)
    return task


def folder(root: Path, **options: Any) -> ImageTask:
    (task,) = ImageNet(source="local", dataset="folder", data_dir=str(root), image_size=8, **options).parts()
    task.bind(backbone(), 0)
    return task


def batches(task: ImageTask, epoch: int = 0) -> list[dict[str, torch.Tensor]]:
    loader = task.train_dataloader()
    loader.batches.set_epoch(epoch)
    return list(loader)


# options


def test_the_yaml_is_the_constructor() -> None:
    shown = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "task" / "imagenet.yaml"))
    assert shown.pop("name") == "imagenet"
    parameters = inspect.signature(ImageNet).parameters
    assert shown == {name: parameter.default for name, parameter in parameters.items()}
    assert all(name in (ImageNet.__doc__ or "") for name in parameters)


# metrics


def test_accuracy_and_top5_are_torchmetrics_micro() -> None:
    task = digits()
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(500, 10, generator=generator)
    labels = torch.randint(3, (500,), generator=generator)  # few classes: micro and macro averages differ
    found = task.score(task.predict(scores).numpy(), labels.numpy())
    for name, k in (("accuracy", 1), ("top5", 5)):
        official = MulticlassAccuracy(num_classes=10, top_k=k, average="micro")(scores, labels)
        assert found[name] == pytest.approx(float(official), abs=1e-6)
    items = task.item_scores(task.predict(scores).numpy(), labels.numpy())
    assert items["top5"].mean() == found["top5"]
    assert set(task.higher_is_better) == {"accuracy", "top5"}


def test_ties_are_torch_s_and_nan_is_wrong() -> None:
    task = digits()
    scores = torch.zeros(3, 10)
    scores[2, 4] = float("nan")
    found = task.predict(scores)
    assert found[0].tolist() == scores[0].topk(5).indices.tolist()
    assert found[2].tolist() == [-1] * 5
    assert task.score(found[2:].numpy(), np.array([4])) == {"accuracy": 0.0, "top5": 0.0}
    assert np.isnan(task.score(found[:0].numpy(), np.array([], dtype=np.int64))["accuracy"])


def test_top5_of_few_classes_is_not_reported(tmp_path: Path) -> None:
    task = folder(make.folder(tmp_path / "f", {s: dict.fromkeys("abcd", 2) for s in ("train", "val")}))
    assert task.higher_is_better == {"accuracy": True}
    predictions = task.predict(torch.eye(4)).numpy()
    assert predictions.shape == (4, 4)
    assert task.score(predictions, np.arange(4)) == {"accuracy": 1.0}
    assert task.item_scores(predictions, np.arange(4)) == {}
    five = folder(make.folder(tmp_path / "g", {s: dict.fromkeys("abcde", 2) for s in ("train", "val")}))
    assert five.outputs.size == 5
    assert "top5" in five.higher_is_better


# splits


def test_roles_of_the_splits() -> None:
    task = digits(train_limit=None, eval_limit=None)
    assert (task.size("train"), task.size("select"), task.size("test")) == (1078, 120, 599)
    assert (task.reported, task.selects_on_reported) == (("test",), False)
    ranks = [set(task.split(name).ranks.tolist()) for name in ("train", "select", "test")]
    assert sum(map(len, ranks)) == len(set.union(*ranks))
    with pytest.raises(KeyError):
        task.split("validation")


def test_without_holdout_selection_is_on_the_reported_split_and_said_so() -> None:
    task = digits(holdout=0.0, train_limit=None)
    assert task.selects_on_reported
    assert task.size("train") == 1198
    assert task.split("select") is task.split("test")


def test_a_folder_s_own_validation_split_selects(tmp_path: Path) -> None:
    counts = {"train": {"a": 5, "b": 5}, "val": {"a": 2, "b": 2}, "test": {"a": 3, "b": 3}}
    root = make.folder(tmp_path / "f", counts)
    (root / "train" / "a" / "9.png").write_bytes(b"")
    task = folder(root, holdout=0.0)
    assert (task.reported, task.selects_on_reported) == (("test",), False)
    assert (task.size("train"), task.size("select"), task.size("test")) == (10, 4, 6)
    assert task.notes == {"train.unreadable_images": 1}


def test_a_model_of_text_is_refused() -> None:
    (task,) = ImageNet().parts()
    with pytest.raises(UserError, match="task digits is images; this model reads text"):
        task.bind(SimpleNamespace(reads="pair"), 0)


# batches


def test_every_image_once_in_both_loaders() -> None:
    task = digits()
    train = batches(task)
    assert sorted(torch.cat([b["index"] for b in train]).tolist()) == list(range(70))
    assert [len(b["index"]) for b in train] == [16, 16, 16, 16, 6]  # nothing is dropped
    scored = list(task.eval_dataloader("test"))
    assert torch.cat([b["index"] for b in scored]).tolist() == list(range(40))
    for batch in (train[0], scored[0]):
        assert batch["pixel_values"].shape[1:] == (3, 16, 16)
        assert (batch["pixel_values"].dtype, batch["labels"].dtype) == (torch.float32, torch.int64)
    assert train[0]["labels"].tolist() == task.split("train").labels[train[0]["index"]].tolist()


ALL = {
    "rand_augment": 2, "color_jitter": 0.4, "random_erasing": 0.9, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, ALL], ids=["plain", "all"])
def test_augmentation_is_a_function_of_seed_epoch_and_index(options: dict) -> None:
    state = torch.get_rng_state()
    first, again, later, other = (
        batches(digits(seed, **options), epoch) for seed, epoch in ((3, 1), (3, 1), (3, 2), (4, 1))
    )
    assert torch.equal(torch.get_rng_state(), state)  # the run's own random numbers are left as they were
    torch.manual_seed(5)
    workers = batches(digits(3, workers=2, **options), 1)
    for a, b, c in zip(first, again, workers, strict=True):
        assert all(torch.equal(a[key], b[key]) and torch.equal(a[key], c[key]) for key in a)
    for changed in (later, other):
        assert not torch.equal(first[0]["pixel_values"], changed[0]["pixel_values"])

    task = digits(3, **options)
    loader = task.train_dataloader()
    loader.load_state_dict({"epoch": 1, "batches": 3})
    loader.batches.set_epoch(1)
    rest = list(loader)
    assert len(rest) == 2
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(rest, first[3:], strict=True))


def test_an_image_s_augmentation_does_not_depend_on_its_batch() -> None:
    def of(batch_size: int) -> dict[int, torch.Tensor]:
        found = batches(digits(batch_size=batch_size, random_erasing=0.5), 4)
        return {int(i): x for b in found for i, x in zip(b["index"], b["pixel_values"], strict=True)}

    small, large = of(3), of(64)
    assert all(torch.equal(small[i], large[i]) for i in small)


def test_mixed_labels_are_shares_and_the_loss_follows() -> None:
    task = digits(mixup=0.8, label_smoothing=0.1)
    batch = batches(task)[0]
    assert batch["labels"].shape == (16, 10)
    assert torch.allclose(batch["labels"].sum(1), torch.ones(16))
    assert (batch["labels"].max(1).values < 1).any()
    scores = torch.randn(16, 10)
    smooth = 0.9 * batch["labels"] + 0.01
    expected = -(smooth * scores.log_softmax(1)).sum(1).mean()
    assert torch.allclose(task.loss(lambda _: scores, batch), expected)
    plain = digits()
    batch = batches(plain)[0]
    assert torch.allclose(plain.loss(lambda _: scores, batch), F.cross_entropy(scores, batch["labels"]))


def test_each_kind_of_mixing_occurs() -> None:
    def kinds(**options: float) -> set[bool]:
        plain = batches(digits(batch_size=4, train_crop="center", flip=0.0))
        mixed = batches(digits(batch_size=4, train_crop="center", flip=0.0, **options))
        found = set()
        for a, b in zip(plain, mixed, strict=True):
            same = (a["pixel_values"] == b["pixel_values"]).flatten(1).float().mean(1)
            found.add(bool(same.max() > 0.6))  # CutMix leaves pixels as they were
        return found

    assert kinds(cutmix=1.0, mixup=1.0) == {True, False}


def test_flips_and_crops() -> None:
    still = batches(digits(train_crop="center", flip=0.0, crop_ratio=1.0))[0]
    flipped = batches(digits(train_crop="center", flip=1.0, crop_ratio=1.0))[0]
    assert torch.equal(still["pixel_values"].flip(3), flipped["pixel_values"])
    cropped = batches(digits(flip=0.0))[0]["pixel_values"]
    assert not torch.allclose(still["pixel_values"], cropped)


# how a network wants its images

OPTIONS = {"interpolation": "model", "normalization": "model", "mean": None, "std": None}


def test_the_look_is_the_model_s_or_as_said() -> None:
    wants = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "interpolation": "bicubic"}
    assert look(OPTIONS, wants) == Look("bicubic", (0.1, 0.2, 0.3), (1, 1, 1))
    assert look(OPTIONS, None) == Look("bilinear", *IMAGENET)
    assert look({**OPTIONS, "normalization": "half", "interpolation": "bilinear"}, wants) == Look("bilinear", *HALF)
    own = {**OPTIONS, "normalization": "own", "mean": [0.0, 0.0, 0.5], "std": [1.0, 1.0, 2.0]}
    assert look(own, wants) == Look("bicubic", (0.0, 0.0, 0.5), (1.0, 1.0, 2.0))
    with pytest.raises(UserError, match="the model asks for interpolation 'fancy'"):
        look(OPTIONS, {"interpolation": "fancy"})


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(300, 200), (97, 256), (20, 31)])
def test_scoring_is_pillow_s_resize_and_crop(mode: str, shape: tuple[int, int]) -> None:
    """Resize to round(64 / 0.875) = 73 and crop 64 by Pillow, then [0, 1] and normalised, as torchvision's recipe."""
    coarse = Image.fromarray(make.noise(1, 6, 5, 3)).resize(shape[::-1], Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse)
    images = images_store.Images(np.array([7]), np.array([0]), np.array([0]), lambda _: pixels)
    seen = Look(mode, *IMAGENET)
    batch = ScoringBatches(images, {"image_size": 64, "crop_ratio": 0.875}, seen)([0])
    height, width = shape
    short = 73
    size = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[mode]
    resized = functional.center_crop(coarse.resize(size[::-1], resample), [64, 64])
    expected = functional.normalize(functional.to_tensor(resized), *map(list, IMAGENET))
    assert batch["pixel_values"].shape == (1, 3, 64, 64)
    assert (batch["pixel_values"][0] - expected).abs().max() < 2.01 / 255 / min(IMAGENET[1])  # two grey levels


# whole runs


def run(cli, root: Path, *overrides: str):
    result = cli("task=imagenet", "scale=smoke", "logger=none", f"paths.root={root}", "method=lora", *overrides)
    assert result.code == 0, result
    return result


def test_a_run_and_its_predictions(cli, tmp_path: Path) -> None:
    from lrx.results.record import read

    run(cli, tmp_path, "task.rand_augment=1", "trainer.max_steps=4")
    (path,) = (tmp_path / "records").glob("*.json")
    part = read(path).parts["digits"]
    lines = (tmp_path / part.predictions["test"]).read_text().splitlines()
    assert lines[0] == "index,prediction,reference,item.top5"
    rows = [line.split(",") for line in lines[1:]]
    assert len(rows) == part.sizes["test"] == 64
    assert np.mean([p == y for _, p, y, _ in rows]) == part.metrics["test"]["accuracy"]
    assert np.mean([float(hit) for *_, hit in rows]) == part.metrics["test"]["top5"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny_vit", "tiny_conv"])
@pytest.mark.parametrize("method", forked.METHODS)
def test_every_method_on_transformer_and_convolutions(cli, tmp_path: Path, method: str, model: str) -> None:
    common = ["task=imagenet", "scale=smoke", "logger=none", f"paths.root={tmp_path}", "trainer.max_steps=2"]
    result = cli(*common, f"method={method}", f"model={model}", "callbacks.checkpoint.every_n_steps=null")
    if model == "tiny_conv" and method in LINEAR_ONLY:
        assert result.code == 2, result
        last = result.err.strip().splitlines()[-1]
        assert last.startswith("error: method.target_modules=all-linear selects no layer of this model")
        return
    assert result.code == 0, result
    assert "digits       test         accuracy" in result.out


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_mid_epoch_with_everything_random(workers: int, tmp_path: Path) -> None:
    """The run that goes on ends with the numbers of the whole one, though that one had another number of workers."""
    common = [
        "task=imagenet", "method=lora", "scale=smoke", "logger=none", "logger.every_n_steps=1", "trainer.max_steps=12",
        "callbacks.checkpoint.every_n_steps=3", *(f"task.{key}={value}" for key, value in ALL.items()),
    ]  # fmt: skip
    assert forked.run(common, tmp_path / "whole").code == 0
    root = tmp_path / "broken"
    killed = [*common, f"task.workers={workers}"]
    assert forked.run(killed, root, when=forked.logged(root, 10, "digits")).code == -9  # 8 batches are an epoch
    again = forked.run(killed, root)
    assert again.code == 0, again
    assert "digits: going on from step-" in again.out
    assert forked.numbers(root) == forked.numbers(tmp_path / "whole")


def test_a_broken_image_in_a_worker_is_one_line(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_store, "DECODE_AT_ONCE_BYTES", 0)
    root = make.folder(tmp_path / "f", {"train": {"a": 8, "b": 8}, "val": {"a": 2, "b": 2}})
    for path in root.glob("train/*/*.png"):
        path.write_bytes(path.read_bytes()[:60])
    chosen = ["task.source=local", "task.dataset=folder", f"task.data_dir={root}", "task.workers=1"]
    result = cli("task=imagenet", "scale=smoke", "logger=none", f"paths.root={tmp_path}", "method=lora", *chosen)
    assert result.code == 2, result
    last = result.err.strip().splitlines()[-1]
    assert "cannot be decoded" in last
    assert "Traceback" not in result.err
