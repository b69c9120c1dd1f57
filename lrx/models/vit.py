"""Vision transformers with a classification head, from Hugging Face transformers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lrx.errors import UserError
from lrx.models.base import Backbone, Inputs, Model, Outputs
from lrx.models.weights import check_options, explained, load

ROLES = {
    "query": r"attention\.q_proj", "key": r"attention\.k_proj", "value": r"attention\.v_proj",
    "output": r"attention\.o_proj", "mlp_in": r"mlp\.fc1", "mlp_out": r"mlp\.fc2",
}  # fmt: skip

HEADS = {"vit": ("classifier",)}


class VisionTransformer(Model):
    """``ViTForImageClassification``: pixels (batch, channels, height, width) in ``batch["pixel_values"]``.

    ``weights``: ``local`` or ``hub`` (pretrained, at ``path``), or ``random`` with the architecture in ``config``.
    """

    name: ClassVar[str] = "vit"
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        weights: Literal["local", "hub", "random"],
        path: str | None = None,
        revision: str | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        if weights != "random" and path is None:
            raise UserError(f"model.weights={weights} needs model.path")
        self.weights, self.path, self.revision, self.config = weights, path, revision, config

    def build(self, inputs: Inputs, outputs: Outputs, seed: int) -> Backbone:
        from transformers import ViTConfig, ViTForImageClassification

        if inputs.kind != "image":
            raise UserError(f"model: a vision transformer reads images, this task gives {inputs.kind}; choose another")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.weights == "random":
                channels, *size = inputs.shape
                shape = {"num_channels": channels, "image_size": size, "num_labels": outputs.size}
                check_options(ViTConfig, self.config or {})
                with explained("model.config"):
                    net = ViTForImageClassification(ViTConfig(**{**(self.config or {}), **shape}))
            else:
                path, options = str(self.path), {"num_labels": outputs.size}
                net = load(ViTForImageClassification, self.weights, path, self.revision, HEADS, **options)
        return VisionBackbone(net, head=("classifier",), roles=ROLES, reads="image")


class VisionBackbone(Backbone):
    """``forward``: (batch, classes) scores in float32."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(pixel_values=batch["pixel_values"]).logits.float()
