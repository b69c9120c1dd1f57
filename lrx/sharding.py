"""Parameters sharded over GPUs (``trainer=fsdp``): which layers are gathered one at a time.

Without a policy Lightning takes the whole network as one unit, which every process would gather at once.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from lrx.errors import UserError
from lrx.models.base import Backbone


def units(backbone: Backbone) -> set[type[nn.Module]]:
    """The classes of the layers that transformers itself keeps whole: one unit for each decoder or encoder layer."""
    whole = set(getattr(backbone.net, "_no_split_modules", None) or ())
    return {type(module) for module in backbone.net.modules() if type(module).__name__ in whole}


def strategy(name: str, backbone: Backbone, clip: float | None) -> Any:
    """What Lightning's trainer takes for ``trainer.strategy``: ``name``, or for ``fsdp`` a strategy with ``units``.

    Raises ``UserError`` for what FSDP cannot do: parameters of several types, clipping by the norm.
    """
    if name != "fsdp":
        return name
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in backbone.parameters()})
    if len(kinds) > 1:
        types = " and ".join(kinds)
        raise UserError(f"trainer=fsdp shards parameters of one type, these are {types}; give model.dtype=float32")
    if clip is not None:
        raise UserError("trainer=fsdp: Lightning does not clip sharded gradients by their norm; give trainer.clip=null")
    from pytorch_lightning.strategies import FSDPStrategy

    return FSDPStrategy(auto_wrap_policy=units(backbone) or None)
