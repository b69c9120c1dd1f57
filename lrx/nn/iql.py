"""Values of an offline data set by expectile regression, and the weights of samples that they give.

Implicit Q-learning, Kostrikov et al., ICLR 2022, arXiv 2110.06169; the form for costs is FISOR's, Zheng et al., ICLR
2024, arXiv 2401.10700, as PSEC uses it. Batches: ``observations`` (n, o), ``actions`` (n, a), ``rewards`` (n,),
``next_observations`` (n, o), ``terminals`` (n,) and, where there are costs, ``costs`` (n,): 0 is safe.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lrx.nn.mlp import Ensemble, mlp

LARGEST = 100.0  # weight of a sample, official codes of IQL and PSEC
UNSAFE, SAFE = 25.0, -1.0  # what costs count as, official code of PSEC


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """(n,): ``|expectile - 1[difference < 0]| difference^2``."""
    return torch.where(difference < 0, 1 - expectile, expectile) * difference.square()


def reward_weights(advantage: Tensor, temperature: float) -> Tensor:
    """(n,) in [0, 100]: ``exp(temperature (Q - V))``, cut off."""
    return (temperature * advantage).exp().clamp(0, LARGEST)


def cost_weights(advantage: Tensor, temperature: float) -> Tensor:
    """(n,) in [0, 100] of ``Qc - Vc``: 0 where an action costs at least what the state does."""
    return torch.where(advantage < 0, (-temperature * advantage).exp().clamp(0, LARGEST), 0.0)


class Critics(nn.Module):
    """Q of two networks, their slow copies and V, of rewards (``cost=False``) or costs.

    Rewards: Q = the smaller, ``r + discount m V(s')`` is its target, V the ``expectile`` of the slow Q (m = 0 at
    terminal steps). Costs: Q = the larger, V the reversed expectile, and by the paper's default target
    ``m ((1 - discount) c + discount max(c, V(s'))) + (1 - m) c`` with c = 25 for an unsafe step and -1 for a safe one.
    """

    def __init__(
        self, states: int, actions: int, hidden: int, generator: torch.Generator, *, cost: bool = False
    ) -> None:
        super().__init__()
        self.cost = cost
        self.q = Ensemble(2, states, actions, hidden, generator)
        self.slow = copy.deepcopy(self.q).requires_grad_(False)
        self.v = mlp([states, hidden, hidden, 1], generator, norm=True)

    def value(self, observations: Tensor) -> Tensor:
        """V (n,)."""
        return self.v(observations).squeeze(-1)

    def advantage(self, batch: dict[str, Tensor]) -> Tensor:
        """(n,): slow Q(s, a) - V(s), without gradient into Q."""
        with torch.no_grad():
            both = self.slow(batch["observations"], batch["actions"])
            q = both.amax(0) if self.cost else both.amin(0)
        return q - self.value(batch["observations"])

    def loss(self, batch: dict[str, Tensor], advantage: Tensor, *, expectile: float, discount: float) -> Tensor:
        """The loss of V, for ``advantage`` of this batch, and of Q. Neither moves what the other is held against."""
        values = expectile_loss(advantage, 1 - expectile if self.cost else expectile).mean()
        q = self.q(batch["observations"], batch["actions"])
        return values + (q - self.target(batch, discount)).square().mean()

    @torch.no_grad()
    def target(self, batch: dict[str, Tensor], discount: float) -> Tensor:
        """(n,): what Q is held against."""
        goes_on, after = 1 - batch["terminals"], self.value(batch["next_observations"])
        if not self.cost:
            return batch["rewards"] + discount * goes_on * after
        c = torch.where(batch["costs"] > 0, UNSAFE, SAFE)
        return goes_on * ((1 - discount) * c + discount * torch.maximum(c, after)) + (1 - goes_on) * c

    @torch.no_grad()
    def follow(self, rate: float) -> None:
        """Move the slow copies by ``rate`` towards Q."""
        for slow, fast in zip(self.slow.parameters(), self.q.parameters(), strict=True):
            slow.lerp_(fast, rate)
