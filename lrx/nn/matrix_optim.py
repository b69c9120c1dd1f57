"""The common ground of optimizers over whole weight matrices: batching equal shapes, state per parameter."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrx.nn.optim import restore_types

LARGEST = 2**20  # elements of one batch: more are not faster together, and their stacked gradients leave the cache


@dataclass(frozen=True)
class Matrices:
    """N parameters whose matrices (m, n) are of equal shape and move in one batched computation.

    A convolution's matrix has its kernels as rows. ``places``: the parameters' positions in the optimizer. ``count``:
    which update of these parameters this is, from 1. ``flipped``: computations are on the transposed matrices.
    """

    params: list[Tensor]
    places: list[int]
    m: int
    n: int
    count: int
    flipped: bool

    def turn(self, X: Tensor) -> Tensor:
        """(..., m, n) as the (..., L, d) of the computation, a view; its own inverse."""
        return X.mT if self.flipped else X

    @property
    def L(self) -> int:
        return self.n if self.flipped else self.m

    @property
    def d(self) -> int:
        return self.m if self.flipped else self.n

    @property
    def dtype(self) -> torch.dtype:
        """Of all computations and states: float32, or the parameters' own type if that is larger."""
        return torch.promote_types(self.params[0].dtype, torch.float32)


class MatrixOptimizer(torch.optim.Optimizer):
    """Base of optimizers over the matrices of linear layers and convolutions. A subclass implements ``update(batch,
    group)``, which moves the matrices of a batch.

    There is one parameter group; ``lr`` and ``weight_decay`` are read from it at every step, ``calls`` in it counts the
    steps, and ``kept`` adds further entries that checkpoints must hold (a seed). State is kept per parameter in
    PyTorch's format, its numbers in at least float32 whatever the parameter's type, and ``step``, the number of the
    parameter's updates. The state tensors of equal-shaped parameters are rows of one buffer; tensors that came from
    elsewhere (a loaded checkpoint) are gathered into a new buffer when they are next used.

    ``flips(m, n)``: whether matrices of this shape are computed on transposed.
    """

    def __init__(self, params: Sequence[nn.Parameter], *, lr: float, weight_decay: float, **kept: Any) -> None:
        super().__init__(list(params), {"lr": lr, "weight_decay": weight_decay, "calls": 0, **kept})
        shapes: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for place, p in enumerate(params):
            shapes[len(p), p[0].numel(), p.dtype, p.device].append(place)
        self._buckets: list[list[int]] = []
        for (m, n, *_), places in shapes.items():
            size = max(1, LARGEST // (m * n))
            self._buckets += [places[i : i + size] for i in range(0, len(places), size)]
        self._buffers: dict[tuple[str, int], tuple[Tensor, list[Tensor]]] = {}

    def flips(self, m: int, n: int) -> bool:
        """By default computations are on tall matrices, L >= d."""
        return m < n

    def update(self, batch: Matrices, group: dict[str, Any]) -> None:
        """Move the matrices of ``batch``."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        for batch in self._batches(group["params"]):
            self.update(batch, group)
        group["calls"] += 1
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(copy.deepcopy(state_dict))  # PyTorch would leave the tensors shared
        restore_types(self, state_dict)

    def _batches(self, params: list[nn.Parameter]) -> Iterator[Matrices]:
        """Batches of parameters with a gradient; the others are left out and keep their state, as in PyTorch."""
        for bucket in self._buckets:
            by_count: dict[int, list[int]] = defaultdict(list)
            for place in bucket:
                if params[place].grad is None:
                    continue
                state = self.state[params[place]]
                # A new tensor each time: PyTorch's load_state_dict leaves ``step`` shared with the dict it was given.
                state["step"] = state["step"] + 1 if "step" in state else torch.ones((), dtype=torch.float32)
                by_count[int(state["step"])].append(place)
            for count, places in by_count.items():
                chosen: list[Tensor] = [params[place] for place in places]
                m, n = len(chosen[0]), chosen[0][0].numel()
                yield Matrices(chosen, places, m, n, count, self.flips(m, n))

    def stacked(self, key: str, batch: Matrices, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """State ``key`` as one (N, *shape) buffer, zeros at first; writing to it updates the parameters' states."""
        first = batch.params[0]
        states = [self.state[p] for p in batch.params]
        buffer, views = self._buffers.get((key, id(first)), (None, []))
        held = [state.get(key) for state in states]
        if buffer is not None and len(views) == len(held) and all(a is b for a, b in zip(views, held, strict=True)):
            return buffer
        zeros = torch.zeros(tuple(shape), dtype=dtype or batch.dtype, device=first.device)
        buffer = torch.stack([zeros if value is None else value for value in held])
        views = list(buffer.unbind(0))
        for state, view in zip(states, views, strict=True):
            state[key] = view
        self._buffers[key, id(first)] = (buffer, views)
        return buffer


def gradients(batch: Matrices) -> Tensor:
    """The gradients as (N, L, d), in at least float32. Not to be written to: one gradient is passed without a copy."""
    grads = [p.grad.flatten(1) for p in batch.params if p.grad is not None]
    stacked = grads[0].unsqueeze(0) if len(grads) == 1 else torch.stack(grads)
    return batch.turn(stacked.to(batch.dtype))


def add(batch: Matrices, direction: Tensor, *, step: float, keep: float = 1.0) -> None:
    """``W <- keep W - step direction``, direction (N, L, d)."""
    if keep != 1:
        torch._foreach_mul_(batch.params, keep)
    deltas = batch.turn(direction).to(batch.params[0].dtype).unbind(0)
    torch._foreach_add_(
        batch.params, [d.reshape(p.shape) for d, p in zip(deltas, batch.params, strict=True)], alpha=-step
    )


def add_product(batch: Matrices, left: Tensor, right: Tensor, *, step: float, keep: float = 1.0) -> None:
    """``W <- keep W - step left right``, (N, L, r) and (N, r, d), without forming the product where W is float32."""
    if batch.params[0].dtype != batch.dtype:
        add(batch, left @ right, step=step, keep=keep)
        return
    if batch.flipped:
        left, right = right.mT, left.mT
    for p, a, b in zip(batch.params, left, right, strict=True):
        if p.is_contiguous():
            p.view(batch.m, batch.n).addmm_(a, b, beta=keep, alpha=-step)
        else:  # another memory format: its matrix is no view
            p.mul_(keep).add_((a @ b).view(p.shape), alpha=-step)


def adam(optimizer: MatrixOptimizer, batch: Matrices, g: Tensor, betas: tuple[float, float], eps: float) -> Tensor:
    """Adam's averages of g (N, ...) taken on by one step; ``M / (sqrt(V) + eps)``, without bias correction."""
    M = optimizer.stacked("exp_avg", batch, g.shape[1:])
    V = optimizer.stacked("exp_avg_sq", batch, g.shape[1:])
    M.lerp_(g, 1 - betas[0])
    V.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
    return M / V.sqrt().add_(eps)
