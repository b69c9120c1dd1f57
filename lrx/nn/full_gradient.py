"""The full gradient dL/dW of frozen matrices, for optimizers that need more of it than the factors' gradients show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lrx.nn.lowrank import LowRank, lowrank_layers, matrix


class FullGradient:
    """Sums dL/dW (m, n) of one low-rank layer over backward passes until it is taken.

    W is the layer's frozen matrix: of ``y = W x + update(x)`` the sum of ``dL/dy x^T``, in float32, with x before
    dropout. Each backward pass forms one m x n product, as full fine-tuning does, and until ``take`` the layer holds
    one m x n buffer; nothing is held between steps. Micro-batches of one step are added up, as autograd adds up
    gradients. Where several processes train together, ``take`` gives their mean. Loss scaling (float16) is not undone.
    """

    def __init__(self, layer: LowRank) -> None:
        self.layer = layer
        self.total: Tensor | None = None
        layer.register_forward_hook(self._watch)

    def _watch(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if torch.is_grad_enabled() and output.requires_grad:
            x = inputs[0].detach()
            output.register_hook(lambda gradient: self._add(x, gradient))

    @torch.no_grad()
    def _add(self, x: Tensor, gradient: Tensor) -> None:
        base = self.layer.base
        if isinstance(base, nn.Linear):
            found = gradient.flatten(0, -2).mT @ x.flatten(0, -2).to(gradient.dtype)
        else:
            weight = base.weight.detach().requires_grad_(True)
            with torch.enable_grad():
                output = torch.func.functional_call(base, {"weight": weight}, (x,))
            (found,) = torch.autograd.grad(output, weight, gradient.to(output.dtype))
        found = found.flatten(1).to(torch.promote_types(found.dtype, torch.float32))
        self.total = found if self.total is None else self.total.add_(found)

    def take(self) -> Tensor:
        """What the backward passes since the last call have added up (m, n). Zeros where there was none."""
        total, self.total = self.total, None
        if total is None:
            weight = matrix(self.layer.base)
            total = torch.zeros(weight.shape, dtype=self.layer.A.dtype, device=weight.device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
            total /= torch.distributed.get_world_size()
        return total


def watch_full_gradients(root: nn.Module) -> None:
    """Let every low-rank layer below ``root`` sum its full gradient from now on; see ``full_gradients``."""
    for _, layer in lowrank_layers(root):
        watched: Any = layer
        watched.full_gradient = FullGradient(layer)


def full_gradients(root: nn.Module) -> Callable[[nn.Parameter], Tensor]:
    """A function from a layer's factor A to what ``FullGradient.take`` of that layer gives."""
    layers: list[Any] = [layer for _, layer in lowrank_layers(root)]
    found: dict[int, FullGradient] = {id(layer.A): layer.full_gradient for layer in layers}
    return lambda A: found[id(A)].take()
