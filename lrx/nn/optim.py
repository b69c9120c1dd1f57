"""Building optimizers: plain AdamW groups, and several optimizers behind one face."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn


class CompositeOptimizer(torch.optim.Optimizer):
    """Several optimizers over disjoint parameters as one ``torch.optim.Optimizer``.

    Lightning, learning-rate schedulers and checkpoints see one list of parameter groups and one state dict in
    PyTorch's usual format. The parts share this object's ``state`` and group dictionaries, so a scheduler that writes
    ``group["lr"]`` reaches the part that owns the group.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        groups = [group for part in self.parts for group in part.param_groups]
        super().__init__(groups, defaults={})
        self._sizes = [len(part.param_groups) for part in self.parts]
        for part in self.parts:
            self.state.update(part.state)
        self._link()

    def _link(self) -> None:
        start = 0
        for part, size in zip(self.parts, self._sizes, strict=True):
            part.param_groups = self.param_groups[start : start + size]
            part.state = self.state
            start += size

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A copy, because PyTorch would leave the loaded tensors (``step`` among them) shared with ``state_dict``.
        super().load_state_dict(copy.deepcopy(state_dict))  # replaces groups and state: the parts must be linked again
        restore_types(self, state_dict)
        self._link()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def restore_types(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """After ``load_state_dict(state_dict)``: give state tensors the types they were saved with.

    PyTorch turns them all into the type of their parameter, which would round the float32 states of half-precision
    weights and make floats of indices.
    """
    saved = [index for group in state_dict["param_groups"] for index in group["params"]]
    own = [p for group in optimizer.param_groups for p in group["params"]]
    for index, p in zip(saved, own, strict=True):
        for key, value in state_dict["state"].get(index, {}).items():
            loaded = optimizer.state[p][key]
            if torch.is_tensor(value) and loaded.dtype != value.dtype:
                optimizer.state[p][key] = value.to(loaded.device, copy=True)


def adamw(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW with decay on matrices only: biases and norm weights (1-D tensors) are not decayed, as in the field."""
    params = [p for _, p in named if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, eps=eps, fused=True)
    # Fused for speed only. Left on, this flag makes trainers skip unscaling, and refuse clipping, under float16
    # autocast.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of tensors the optimizer remembers between steps (moments, bases, ...), scalar counters left out."""
    seen: set[int] = set()
    total = 0
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor) and value.ndim > 0 and id(value) not in seen:
                seen.add(id(value))
                total += value.numel() * value.element_size()
    return total
