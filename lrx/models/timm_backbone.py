"""Any image classifier of the ``timm`` package (Wightman 2019, github.com/huggingface/pytorch-image-models)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lrx.errors import UserError, did_you_mean
from lrx.models import efficientnet_lite
from lrx.models.base import Backbone, Inputs, Model, Outputs
from lrx.models.image_classifier import refuse
from lrx.models.weights import explained, resolve

# Role -> pattern for the end of a layer's name. ``expand`` and ``project``: the convolutions that widen and narrow an
# inverted-residual block (MobileNetV2, arXiv 1801.04381), of EfficientNet and its kin.
_ROLES = {
    "qkv": r"attn\.qkv", "output": r"attn\.proj", "mlp_in": r"mlp\.fc1", "mlp_out": r"mlp\.fc2",
    "expand": "conv_exp|conv_pw", "project": "conv_pwl|conv_pw",
}  # fmt: skip
FILES = ("config.json", "model.safetensors")


class Timm(Model):
    """``architecture``: a name in ``timm.list_models()``; pixels (batch, 3, height, width) in ``pixel_values``.

    ``weights``: ``package`` (what ``python -m lrx fetch`` brings), ``local`` (a folder with ``config.json`` and
    ``model.safetensors``, as timm's own repositories), ``hub`` (such a repository, at ``revision``) or ``random``. A
    pretrained head is kept where it has as many classes as the task, and is new otherwise. ``gradient_checkpointing``:
    activations of the blocks are computed a second time in the backward pass instead of being kept. ``options``:
    further arguments of the architecture, such as ``drop_path_rate``.
    """

    name: ClassVar[str] = "timm"
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        architecture: str,
        weights: Literal["package", "local", "hub", "random"],
        path: str | None = None,
        revision: str | None = None,
        gradient_checkpointing: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        if weights != "random" and path is None:
            raise UserError(f"model.weights={weights} needs model.path")
        self.architecture, self.weights, self.path, self.revision = architecture, weights, path, revision
        self.gradient_checkpointing, self.options = gradient_checkpointing, dict(options or {})

    def build(self, inputs: Inputs, outputs: Outputs, seed: int) -> Backbone:
        import timm

        refuse(inputs, outputs)
        if not timm.is_model(self.architecture):
            known = timm.list_models()
            raise UserError(
                f"model.architecture={self.architecture}: timm has none; {did_you_mean(self.architecture, known)}"
            )
        state, facts = (None, {}) if self.weights == "random" else self._read()
        if state is not None and inputs.shape[0] != 3:
            raise UserError(f"model: these weights read 3 channels, this task gives {inputs.shape[0]}")
        arguments: dict[str, Any] = {"num_classes": outputs.size, "in_chans": inputs.shape[0], **self.options}
        default = timm.get_pretrained_cfg(self.architecture)
        if default is not None and default.fixed_input_size:
            arguments["img_size"] = inputs.shape[1:]
        if state is not None:
            arguments |= {"pretrained": True, "pretrained_cfg_overlay": {**facts, "state_dict": state, "source": ""}}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the head (and random weights) are a function of the seed alone
            with explained(f"model.architecture={self.architecture}"):
                net: Any = timm.create_model(self.architecture, **arguments)
        head = _head(net)
        if state is not None:
            self._complete(net, state, head)
        if self.gradient_checkpointing:
            with explained("model.gradient_checkpointing"):
                net.set_grad_checkpointing(True)
        size = "x".join(map(str, inputs.shape[1:]))
        with explained(f"task.image_size: {self.architecture} cannot read {size} pixels"), torch.no_grad():
            net.eval()(torch.zeros(1, *inputs.shape))  # each architecture has a rule of its own
        image = _image(facts) if state is not None else None
        return TimmBackbone(net, head=head, roles=roles_of(net), reads="image", image=image)

    def _read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weights by timm's names, and what timm says about them (``pretrained_cfg``)."""
        path = str(self.path)
        if self.weights == "package":
            if self.architecture not in efficientnet_lite.ARCHITECTURES:
                known = ", ".join(efficientnet_lite.ARCHITECTURES)
                raise UserError(f"model.weights=package: only weights of {known} come in a package; use hub or local")
            return efficientnet_lite.load(path)
        folder = _folder(self.weights, path, self.revision)
        from safetensors.torch import load_file

        with explained(f"model weights {path!r}"):
            described = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
            state = load_file(folder / FILES[1])
        if (there := described.get("architecture")) != self.architecture:
            raise UserError(f"model weights {path!r} are of {there!r}, and model.architecture={self.architecture}")
        facts = described.get("pretrained_cfg") or {}
        return state, {key: facts[key] for key in _FACTS if key in facts}

    def _complete(self, net: nn.Module, state: Mapping[str, Tensor], head: tuple[str, ...]) -> None:
        own = [key for key in net.state_dict() if not any(key.startswith(h + ".") for h in head)]
        if lacking := [key for key in own if key not in state and not key.endswith("num_batches_tracked")]:
            raise UserError(
                f"model weights {self.path!r}: {len(lacking)} tensors of {self.architecture} are missing, "
                f"e.g. {lacking[0]!r}; they would be random"
            )


_FACTS = ("num_classes", "input_size", "mean", "std", "interpolation", "classifier", "first_conv", "fixed_input_size")


class TimmBackbone(Backbone):
    """``forward``: (batch, classes) scores in float32."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(batch["pixel_values"]).float()


def _folder(source: str, path: str, revision: str | None) -> Path:
    """The folder that holds ``FILES``. Raises ``UserError`` when it cannot be had."""
    where, local = resolve(source, path, revision)
    if local:
        folder = Path(where)
        if missing := [name for name in FILES if not (folder / name).is_file()]:
            raise UserError(f"model weights {path!r}: no {missing[0]} there")
        return folder
    from huggingface_hub import hf_hub_download

    with explained(f"model weights {path!r}"):
        return [Path(hf_hub_download(path, name, revision=revision)).parent for name in FILES][-1]


def _head(net: Any) -> tuple[str, ...]:
    names = net.pretrained_cfg["classifier"]
    return (names,) if isinstance(names, str) else tuple(names)


def _image(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    if "mean" not in facts:
        return None
    return {
        "mean": tuple(facts["mean"]),
        "std": tuple(facts["std"]),
        "interpolation": facts.get("interpolation", "bilinear"),
        "size": tuple(facts["input_size"][1:]) if "input_size" in facts else None,
    }


def roles_of(net: nn.Module) -> dict[str, str]:
    """Role -> pattern, of the roles that layers of ``net`` play.

    In a block that does not widen (depthwise-separable), ``conv_pw`` narrows; there the roles name whole layers.
    """
    names = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    found: dict[str, list[str]] = {}
    for name in names:
        for role, pattern in _ROLES.items():
            if re.search(rf"(?:^|\.)(?:{pattern})$", name):
                if name.endswith("conv_pw") and (role == "expand") != (name + "l" in names):
                    continue
                found.setdefault(role, []).append(name)
    return {
        role: _ROLES[role] if "conv_pw" not in _ROLES[role] else "|".join(map(re.escape, layers))
        for role, layers in found.items()
    }
