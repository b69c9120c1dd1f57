"""Full gradients of frozen matrices, averaged over some batches, for initialisations from data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Elements of gradient that are held at a time: 1 GB in float32.
HELD = 2**28


def mean_gradients(
    net: nn.Module, weights: Mapping[str, Tensor], losses: Sequence[Callable[[], Tensor]], *, held: int = HELD
) -> Iterator[tuple[str, Tensor]]:
    """(name, mean over ``losses`` of dL/dW) for each of ``weights``, in their shapes and in at least float32.

    ``weights``: parameters of ``net`` by a name. ``losses``: each computes a loss by a forward pass. Matrices are taken
    in groups of at most ``held`` elements, for each of which every loss is computed again, so that the memory for
    gradients does not grow with the network; a matrix's gradient in one batch is added to its mean and dropped as soon
    as the backward pass has made it. Parameters' ``requires_grad`` and ``grad`` are as before, when the iterator ends.
    """
    groups: list[dict[str, Tensor]] = []
    size = held
    for name, weight in weights.items():
        if size + weight.numel() > held:
            groups.append({})
            size = 0
        groups[-1][name] = weight
        size += weight.numel()
    for group in groups:
        means = {
            id(weight): torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            for weight in group.values()
        }
        with _only(net, list(group.values())), torch.enable_grad():
            for loss in losses:
                _accumulate(loss, means, 1 / len(losses), group)
        for name, weight in group.items():
            yield name, means[id(weight)]


def _accumulate(
    loss: Callable[[], Tensor], means: dict[int, Tensor], share: float, group: Mapping[str, Tensor]
) -> None:
    def take(weight: Tensor) -> None:
        assert weight.grad is not None
        means[id(weight)].add_(weight.grad, alpha=share)
        weight.grad = None

    hooks = [weight.register_post_accumulate_grad_hook(take) for weight in {id(w): w for w in group.values()}.values()]
    try:
        value = loss()
        if value.requires_grad:  # else none of these matrices takes part
            value.backward()
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _only(net: nn.Module, weights: Sequence[Tensor]) -> Iterator[None]:
    """Within: ``weights`` alone require gradients, and have none yet."""
    before = [(p, p.requires_grad, p.grad) for p in net.parameters()]
    for p, _, _ in before:
        p.requires_grad_(False)
        p.grad = None
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for p, required, grad in before:
            p.requires_grad_(required)
            p.grad = grad
