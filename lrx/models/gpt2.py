"""GPT-2 with ``nn.Linear`` layers, as methods adapt them; the same function of the same parameters.

transformers stores GPT-2's matrices transposed (``Conv1D``) and query, key and value as one. Here each ``Conv1D`` is an
``nn.Linear``, and ``attn.c_attn`` has the children ``query``, ``key`` and ``value``, so that each is a matrix of its
own for every method, and ``target_modules=[query,value]`` is the choice of LoRA's code (``MergedLinear`` with
``enable_lora=[True, False, True]``, github.com/microsoft/LoRA).

An adapter of these layers has no counterpart in PEFT's format, which knows the fused matrix only. A merged network is
written in transformers' own layout (``fuse``).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

ROLES = {
    "query": r"c_attn\.query", "key": r"c_attn\.key", "value": r"c_attn\.value",
    "output": r"attn\.c_proj", "mlp_in": r"mlp\.c_fc", "mlp_out": r"mlp\.c_proj",
}  # fmt: skip


class QueryKeyValue(nn.Module):
    """Three linear layers side by side: x (..., n) -> (..., 3 n), query, key and value in this order."""

    def __init__(self, query: nn.Linear, key: nn.Linear, value: nn.Linear) -> None:
        super().__init__()
        self.query, self.key, self.value = query, key, value

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.query(x), self.key(x), self.value(x)], dim=-1)


def unfuse(net: Any) -> None:
    """Rewrite the layers of a ``GPT2LMHeadModel`` in place."""
    from transformers.pytorch_utils import Conv1D

    for block in net.transformer.h:
        for owner in (block.attn, block.mlp):
            for name, layer in list(owner.named_children()):
                if isinstance(layer, Conv1D):
                    rows = zip(layer.weight.T.chunk(3), layer.bias.chunk(3), strict=True)
                    new = (
                        QueryKeyValue(*(_linear(weight, bias) for weight, bias in rows))
                        if name == "c_attn"
                        else _linear(layer.weight.T, layer.bias)
                    )
                    setattr(owner, name, new)


def fuse(net: Any) -> Any:
    """A ``GPT2LMHeadModel`` in transformers' own layout, with the parameters of an unfused and merged ``net``."""
    from transformers.pytorch_utils import Conv1D

    net = copy.deepcopy(net)
    for block in net.transformer.h:
        for owner in (block.attn, block.mlp):
            for name, layer in list(owner.named_children()):
                parts: list[Any] = list(layer.children()) if isinstance(layer, QueryKeyValue) else [layer]
                if all(isinstance(part, nn.Linear) for part in parts):
                    rows = torch.cat([part.weight for part in parts])
                    new = Conv1D(*rows.shape).to(rows)
                    new.weight = nn.Parameter(rows.detach().T.contiguous())
                    new.bias = nn.Parameter(torch.cat([part.bias for part in parts]).detach())
                    setattr(owner, name, new)
    return net


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    m, n = weight.shape
    layer = nn.Linear(n, m, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    layer.bias = nn.Parameter(bias.detach().clone())
    return layer
