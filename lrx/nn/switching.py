"""Exchanging rank-1 components of a low-rank pair with vectors of a pool, while the matrix absorbs the difference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lrx.nn.absorb import absorb
from lrx.nn.lowrank import LowRank
from lrx.nn.pair_optim import Factor
from lrx.seeds import derive

FACTORS: tuple[Factor, Factor] = ("A", "B")


@dataclass
class Ring:
    """Which vectors of two pools are at work in a pair of rank r, and which components are frozen.

    ``pool_A`` (K, n), ``pool_B`` (K, m): candidates for rows of A and columns of B, on the CPU whatever the device of
    the layer. ``count`` (1 + freeze,) int64: the number s of switches so far, then how many of them each of the last
    ``freeze`` steps made, the newest first.

    Components switch in turn and slots are taken in turn, so s says it all: the next component to switch is s mod r
    of A and (s + r // 2) mod r of B; seen from there, component k holds slot K - r + s + k (mod K) of its pool. A slot
    whose vector is at work holds an old copy of it.
    """

    pool_A: Tensor
    pool_B: Tensor
    count: Tensor
    rank: int

    @property
    def size(self) -> int:
        """K, the number of candidates for each factor."""
        return len(self.pool_A)

    @property
    def switched(self) -> int:
        """s, the number of switches of each factor so far."""
        return int(self.count[0])

    def first(self, factor: Factor) -> int:
        """The component of ``factor`` that switches next."""
        return (self.switched + (self.rank // 2 if factor == "B" else 0)) % self.rank

    def slots(self, factor: Factor) -> list[int]:
        """The pool slot of each component of ``factor``, in the order of components."""
        start, first = self.size - self.rank + self.switched, self.first(factor)
        return [(start + (i - first) % self.rank) % self.size for i in range(self.rank)]

    def frozen(self, factor: Factor) -> list[slice]:
        """The components of ``factor`` that are held still: those whose counterpart switched in the last steps."""
        still = sum(self.count.tolist()[1:])
        return arc(self.first("B" if factor == "A" else "A") - still, still, self.rank)

    def room(self) -> int:
        """How many components may switch in the next step.

        No index is switched in both factors while one of them is frozen; and each candidate that is read is a spare.
        """
        still = sum(self.count.tolist()[1:-1])  # the oldest will have been freed
        return max(0, min(self.rank // 2 - still, self.size - self.rank))

    def idle(self) -> bool:
        """Whether nothing is frozen."""
        return not any(self.count.tolist()[1:])

    def advance(self, number: int) -> None:
        """Record that this step switches ``number`` components of each factor."""
        switched, *last = self.count.tolist()
        self.count.copy_(torch.tensor([switched + number, *([number, *last[:-1]] if last else [])]))


def arc(first: int, number: int, size: int) -> list[slice]:
    """``number`` places of a ring of ``size`` from ``first`` on, in order, as one slice or two."""
    first %= size
    wrapped = max(0, first + number - size)
    return [slice(a, b) for a, b in ((first, first + number - wrapped), (0, wrapped)) if a < b]


def std(m: int, n: int, rank: int) -> tuple[float, float]:
    """Standard deviations of the entries of A and B for an (m, n) matrix: (1/r) B A then has gain / sqrt(n).

    That is the deviation of a linear layer's usual start (``gain`` of leaky ReLU with slope sqrt(5)), and both factors'
    first steps change the matrix by equal amounts.
    """
    gain = math.sqrt(2 / (1 + 5))
    A = (math.sqrt(m) * rank / n**1.5) ** 0.25 * math.sqrt(gain)
    B = (rank / math.sqrt(m * n)) ** 0.25 * math.sqrt(gain)
    return A, B


@torch.no_grad()
def start(layer: LowRank, freeze: int, generator: torch.Generator) -> Ring:
    """Draw the pools of ``layer``, put the last r candidates to work, and take their product out of its matrix."""
    (r, n), m = layer.A.shape, layer.B.shape[0]
    size = min(m, n)
    pools = []
    for width, deviation in zip((n, m), std(m, n, r), strict=True):
        bound = math.sqrt(3) * deviation
        draw = torch.rand(size, width, generator=generator)  # on the CPU: the same on every device
        pools.append(draw.mul_(2 * bound).sub_(bound).to(layer.A.dtype))
    ring = Ring(pools[0], pools[1], torch.zeros(1 + freeze, dtype=torch.int64), r)
    layer.A.copy_(ring.pool_A[ring.slots("A")])
    layer.B.copy_(ring.pool_B[ring.slots("B")].mT)
    absorb(layer, -layer.B, layer.A)
    # No buffer: the pools stay on the CPU when the layer moves, and no process sends them to the others at every step.
    layer.ring = ring  # type: ignore[assignment]
    return ring


def ring_of(layer: LowRank) -> Ring:
    """The ring that ``start`` gave to ``layer``."""
    return layer.ring  # type: ignore[return-value]


@torch.no_grad()
def switch(layer: LowRank, number: int) -> dict[Factor, list[slice]]:
    """Exchange ``number`` components of A, then of B, with spare vectors; the effective matrix stays as it is.

    With I the components and C (q, n) the candidates:  W <- W + scaling B[:, I] (A[I] - C),  A[I] <- C, and the old
    rows go back to their slots. B: the mirror image, with the A just switched. Returns the components of each factor.
    ``number`` must not exceed the ring's ``room()``.
    """
    ring = ring_of(layer)
    switched: dict[Factor, list[slice]] = {}
    for factor in FACTORS:
        moving, fixed, pool = (
            (layer.A.data, layer.B.data.mT, ring.pool_A)
            if factor == "A"
            else (layer.B.data.mT, layer.A.data, ring.pool_B)
        )  # all as rows: views of the parameters
        chosen = arc(ring.first(factor), number, ring.rank)
        oldest = ring.size - ring.rank + ring.switched  # the slot of the first of them
        candidates = take(pool, arc(ring.size + ring.switched, number, ring.size)).to(moving.device)
        old, other = take(moving, chosen), take(fixed, chosen)
        if factor == "A":
            absorb(layer, other.mT, old - candidates)
        else:
            absorb(layer, (old - candidates).mT, other)
        put(pool, arc(oldest, number, ring.size), old)
        put(moving, chosen, candidates)
        switched[factor] = chosen
    ring.advance(number)
    return switched


def take(rows: Tensor, places: list[slice]) -> Tensor:
    """The rows at ``places``, as a copy."""
    return torch.cat([rows[place] for place in places])


def put(rows: Tensor, places: list[slice], values: Tensor) -> None:
    """Write ``values`` to the rows at ``places``."""
    for place, part in zip(places, values.split([p.stop - p.start for p in places]), strict=True):
        rows[place] = part.to(rows.device)


def draw(expected: float, layers: int, seed: int, step: int) -> list[int]:
    """A number of switches for each layer whose mean is ``expected``: its integer part, and one more by chance.

    A pure function of its arguments, so that a resumed run draws what the uninterrupted one would have drawn.
    """
    whole = int(expected)
    generator = torch.Generator().manual_seed(derive(seed, "switch", step))
    more = torch.rand(layers, generator=generator) < expected - whole
    return [whole + int(one) for one in more.tolist()]
