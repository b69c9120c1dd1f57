"""The common ground of optimizers over factor pairs (B, A): batching equal shapes, per-parameter state, alternation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lrx.nn.lowrank import Pair

Factor = Literal["A", "B"]
# Pairs of one batch together have at most this many elements (1 MiB in float32): its temporaries then stay in a core's
# cache. `python -m benchmarks.optimizers` times it, at wide matrices too, where it matters.
CACHED = 2**18


@dataclass(frozen=True)
class Batch:
    """N pairs of equal shape of which ``factor`` moves in one batched computation.

    ``moving``: the N parameters that move, (r, n) each for A or (m, r) each for B; ``fixed``: the other factors.
    ``scaling``: the pairs' s. ``count``: which update of these parameters this is, from 1.
    """

    factor: Factor
    moving: list[Tensor]
    fixed: list[Tensor]
    scaling: float
    count: int

    def rows(self, moving: Tensor) -> Tensor:
        """Stacked values shaped like ``moving`` as (N, r, width): A as it is, B transposed. A view; its own inverse."""
        return moving if self.factor == "A" else moving.mT

    def from_left(self, square: Tensor, values: Tensor) -> Tensor:
        """``square`` (N, r, r) times the rows of ``values``, which has the layout of ``moving`` as the result does."""
        return square @ values if self.factor == "A" else values @ square.mT

    def rows_of_fixed(self, fixed: Tensor) -> Tensor:
        """Stacked values shaped like ``fixed`` as (N, r, width): B transposed, A as it is. A view."""
        return fixed.mT if self.factor == "A" else fixed


class PairOptimizer(torch.optim.Optimizer):
    """Base of optimizers over pairs. A subclass implements ``update(group)`` and, if it alternates, says how.

    There is one parameter group, ``[A_0, B_0, A_1, B_1, ...]``; ``lr`` and ``weight_decay`` are read from it at every
    step, and ``calls`` in it counts the steps, so that checkpoints hold the position in an alternation. State is kept
    per parameter in PyTorch's format (tensors of the parameter's type, and ``step``, its number of updates). The state
    tensors of equal-shaped parameters are rows of one buffer; tensors that came from elsewhere (a loaded checkpoint)
    are gathered into a new buffer when they are next used, with the same values.

    ``moves(call)``: the factors that step number ``call`` moves, in order. ``largest``: upper limit for N m n of one
    batch, for optimizers that form m x n matrices.
    """

    def __init__(self, pairs: Sequence[Pair], *, lr: float, weight_decay: float, largest: int | None = None) -> None:
        factors = [factor for pair in pairs for factor in (pair.A, pair.B)]
        super().__init__(factors, {"lr": lr, "weight_decay": weight_decay, "calls": 0})
        buckets: dict[tuple[Any, ...], list[Pair]] = defaultdict(list)
        for pair in pairs:
            key = (pair.A.shape, pair.B.shape, pair.A.dtype, pair.A.device, pair.scaling)
            buckets[key].append(pair)
        self._buckets: list[list[Pair]] = []
        for bucket in buckets.values():
            (rank, n), m = bucket[0].A.shape, bucket[0].B.shape[0]
            size = max(1, CACHED // (rank * (m + n)))
            if largest is not None:
                size = max(1, min(size, largest // (m * n)))
            self._buckets += [bucket[i : i + size] for i in range(0, len(bucket), size)]
        self._buffers: dict[tuple[str, int], tuple[Tensor, list[Tensor]]] = {}

    def moves(self, call: int) -> tuple[Factor, ...]:
        """The factors that move in step ``call`` (from 0), in order."""
        return ("A", "B")

    def update(self, group: dict[str, Any]) -> None:
        """Move the factors of ``moves(group["calls"])``."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        self.update(group)
        group["calls"] += 1
        return loss

    def drop_idle_gradients(self) -> None:
        """Set the gradients of factors that the next step does not move to None.

        Called before gradient clipping, so that the clipped norm counts only what moves.
        """
        moving = self.moves(self.param_groups[0]["calls"])
        for bucket in self._buckets:
            for pair in bucket:
                if "A" not in moving:
                    pair.A.grad = None
                if "B" not in moving:
                    pair.B.grad = None

    def batches(self, factor: Factor) -> Iterator[Batch]:
        """Batches of pairs whose ``factor`` has a gradient; counts the update of each of those parameters.

        Parameters without a gradient are left out and keep their state, as in PyTorch's optimizers.
        """
        for bucket in self._buckets:
            yield from self._batches_of(bucket, factor)

    def joint_batches(self) -> Iterator[list[Batch]]:
        """The batches of both factors, A before B, of a few pairs at a time."""
        for bucket in self._buckets:
            yield [*self._batches_of(bucket, "A"), *self._batches_of(bucket, "B")]

    def _batches_of(self, bucket: list[Pair], factor: Factor) -> Iterator[Batch]:
        by_count: dict[int, list[tuple[nn.Parameter, nn.Parameter]]] = defaultdict(list)
        for pair in bucket:
            moving, fixed = (pair.A, pair.B) if factor == "A" else (pair.B, pair.A)
            if moving.grad is None:
                continue
            state = self.state[moving]
            # A new tensor each time: PyTorch's load_state_dict leaves ``step`` shared with the dict it was given.
            state["step"] = state["step"] + 1 if "step" in state else torch.ones((), dtype=torch.float32)
            by_count[int(state["step"])].append((moving, fixed))
        for count, chosen in by_count.items():
            movings, fixeds = zip(*chosen, strict=True)
            yield Batch(factor, list(movings), list(fixeds), bucket[0].scaling, count)

    def stacked(self, key: str, batch: Batch, shape: Sequence[int] | None = None) -> Tensor:
        """State ``key`` of the moving parameters as one (N, *shape) buffer, zeros at first; writing to it updates them.

        ``shape`` is the parameter's own by default.
        """
        first = batch.moving[0]
        states = [self.state[p] for p in batch.moving]
        buffer, views = self._buffers.get((key, id(first)), (None, []))
        held = [state.get(key) for state in states]
        if buffer is not None and len(views) == len(held) and all(a is b for a, b in zip(views, held, strict=True)):
            return buffer
        zeros = torch.zeros(tuple(shape or first.shape), dtype=first.dtype, device=first.device)
        buffer = torch.stack([zeros if value is None else value for value in held])
        views = list(buffer.unbind(0))
        for state, view in zip(states, views, strict=True):
            state[key] = view
        self._buffers[key, id(first)] = (buffer, views)
        return buffer


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Equal-shaped tensors as one (N, ...) tensor in at least float32, the precision of all Gram computations."""
    stacked = torch.stack(list(tensors))
    return stacked.to(torch.promote_types(stacked.dtype, torch.float32))


def gradients(batch: Batch) -> Tensor:
    """The moving factors' gradients as one tensor (N, r, n) or (N, m, r), in at least float32."""
    return stack([p.grad for p in batch.moving if p.grad is not None])


def add(batch: Batch, direction: Tensor, *, step: float) -> None:
    """``p <- p - step * direction`` for the moving parameters; ``direction`` (N, r, n) or (N, m, r)."""
    torch._foreach_add_(batch.moving, list(direction.to(batch.moving[0].dtype).unbind(0)), alpha=-step)


def decay(batch: Batch, factor: float) -> None:
    """``p <- factor * p`` for the moving parameters."""
    if factor != 1:
        torch._foreach_mul_(batch.moving, factor)
