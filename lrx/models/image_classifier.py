"""Image classifiers of Hugging Face transformers: vision transformers (ViT, DINOv2) and ConvNeXt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lrx.data import pretraining
from lrx.errors import UserError, did_you_mean
from lrx.models.base import Backbone, Inputs, Model, Outputs
from lrx.models.weights import check_options, explained, load, resolve

_TRANSFORMER = {
    "query": r"attention\.q_proj", "key": r"attention\.k_proj", "value": r"attention\.v_proj",
    "output": r"attention\.o_proj", "mlp_in": r"mlp\.fc1", "mlp_out": r"mlp\.fc2",
}  # fmt: skip
ROLES: dict[str, dict[str, str]] = {
    "convnext": {"mlp_in": "pwconv1", "mlp_out": "pwconv2"},
    "dinov2": _TRANSFORMER,
    "vit": _TRANSFORMER,
}
HEADS = dict.fromkeys(ROLES, ("classifier",))
_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # ``resample`` in preprocessor_config.json, as in PIL


class ImageClassifier(Model):
    """A network for ``AutoModelForImageClassification``: pixels (batch, 3, height, width) in ``pixel_values``.

    ``weights``: ``local`` or ``hub`` (pretrained, at ``path``), ``made`` (pretrained here, by ``python -m lrx pretrain
    <path>``), or ``random`` with the architecture in ``config``. A pretrained head is kept where it has as many classes
    as the task, and is new otherwise. ``gradient_checkpointing``: activations of the blocks are computed a second time
    in the backward pass instead of being kept.
    """

    name: ClassVar[str] = "image_classifier"
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        weights: Literal["local", "hub", "made", "random"],
        path: str | None = None,
        revision: str | None = None,
        gradient_checkpointing: bool = False,
        config: dict[str, Any] | None = None,
    ) -> None:
        if weights == "random" and config is None:
            raise UserError("model.weights=random needs model.config")
        if weights != "random" and path is None:
            raise UserError(f"model.weights={weights} needs model.path")
        self.weights, self.path, self.revision, self.config = weights, path, revision, config
        self.gradient_checkpointing = gradient_checkpointing

    def build(self, inputs: Inputs, outputs: Outputs, seed: int) -> Backbone:
        refuse(inputs, outputs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the head (and random weights) are a function of the seed alone
            net, image = self._random(inputs, outputs) if self.weights == "random" else self._pretrained(outputs)
        if (channels := getattr(net.config, "num_channels", 3)) != inputs.shape[0]:
            raise UserError(f"model: these weights read {channels} channels, this task gives {inputs.shape[0]}")
        kind = net.config.model_type
        if (least := smallest(net.config)) > min(inputs.shape[1:]):
            raise UserError(f"task.image_size={min(inputs.shape[1:])}: this model needs at least {least} pixels")
        if self.gradient_checkpointing:
            with explained("model.gradient_checkpointing"):
                net.gradient_checkpointing_enable({"use_reentrant": False})
        size = net.config.image_size if kind == "vit" else None
        size = (size, size) if isinstance(size, int) else size
        # ViT wants to be told that its position embeddings are for another size; the others find out by themselves.
        resized = size is not None and tuple(size) != tuple(inputs.shape[1:])
        return ImageBackbone(net, head=HEADS[kind], roles=ROLES[kind], image=image, resized=resized)

    def _random(self, inputs: Inputs, outputs: Outputs) -> tuple[Any, None]:
        from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageClassification

        options = dict(self.config or {})
        kind = options.get("model_type")
        if kind not in ROLES:
            raise UserError(f"model.config.model_type={kind!r}: not known here; {did_you_mean(str(kind), ROLES)}")
        check_options(CONFIG_MAPPING[kind], options)
        channels, *size = inputs.shape
        shape = {"num_channels": channels, "image_size": size}
        with explained("model.config"):
            config = AutoConfig.for_model(**{**shape, **options}, num_labels=outputs.size)
            return AutoModelForImageClassification.from_config(config), None

    def _pretrained(self, outputs: Outputs) -> tuple[Any, Mapping[str, Any] | None]:
        from transformers import AutoModelForImageClassification

        source, path, revision = self.weights, str(self.path), self.revision
        if source == "made":
            source, path, revision = "local", str(pretraining.made(path)), None
        net = load(AutoModelForImageClassification, source, path, revision, HEADS, num_labels=outputs.size)
        return net, preprocessing(source, path, revision)


class ImageBackbone(Backbone):
    """``forward``: (batch, classes) scores in float32. ``resized``: position embeddings are interpolated."""

    def __init__(self, *args: Any, resized: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, reads="image", **kwargs)
        self.resized = resized

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        more = {"interpolate_pos_encoding": True} if self.resized else {}
        return self.net(pixel_values=batch["pixel_values"], **more).logits.float()


def smallest(config: Any) -> int:
    """Pixels of the shortest side from which a patch is left: ConvNeXt halves what its patches give at each stage."""
    return config.patch_size * 2 ** (len(config.hidden_sizes) - 1 if config.model_type == "convnext" else 0)


def refuse(inputs: Inputs, outputs: Outputs) -> None:
    """Raise ``UserError`` for a task that is no image classification (or regression)."""
    if inputs.kind != "image":
        raise UserError(f"model: this one reads images, this task gives {inputs.kind}; choose another")
    if outputs.kind == "text":
        raise UserError("model: an image classifier writes no text, which this task asks for; choose another")


def preprocessing(source: str, path: str, revision: str | None) -> dict[str, Any] | None:
    """How the images were prepared that the weights were trained on, from ``preprocessor_config.json``.

    ``mean``, ``std`` (three channels, of values in [0, 1]), ``interpolation``, ``size`` (height, width); None where the
    repository says nothing. Raises ``UserError`` for a file that cannot be read.
    """
    name = "preprocessor_config.json"
    where, local = resolve(source, path, revision)
    with explained(f"model weights {path!r}: {name}"):
        if local:
            file = Path(where) / name
            if not file.is_file():
                return None
        else:
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import EntryNotFoundError

            try:
                file = Path(hf_hub_download(path, name, revision=revision))
            except EntryNotFoundError:
                return None
        found = json.loads(file.read_text(encoding="utf-8"))
        if "image_mean" not in found:
            return None
        size = found.get("crop_size") or found.get("size")
        if isinstance(size, dict):
            size = (size["height"], size["width"]) if "height" in size else size.get("shortest_edge")
        return {
            "mean": tuple(found["image_mean"]),
            "std": tuple(found["image_std"]),
            "interpolation": _INTERPOLATIONS.get(found.get("resample", 2), "bilinear"),
            "size": (size, size) if isinstance(size, int) else size and tuple(size),
        }
