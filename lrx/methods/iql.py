"""IQL: a policy regressed on a data set's actions, weighted by how much better they are than the state's value.

"Offline Reinforcement Learning with Implicit Q-Learning", Kostrikov et al., ICLR 2022, arXiv 2110.06169.

    L_V = mean |tau - 1[d < 0]| d^2,  d = Q'(s, a) - V(s),  Q' the smaller of two slow copies          (eq. 5)
    L_Q = mean (r + gamma m V(s') - Q(s, a))^2,  m = 0 at terminal steps                                (eq. 6)
    L_pi = mean w |eps - eps(s, noised a, t)|^2,  w = clip(exp(beta d), 0, 100)                         (eq. 7)
    Q' <- Q' + soft (Q - Q')

Trained: the whole policy with AdamW, Q and V with Adam. As w does not depend on the policy, the policy's loss is that
of ``method=full`` but for its weights.
Departures: the policy is a diffusion policy, for which weighted noise regression stands for the weighted
log-likelihood, as in PSEC; the three losses are summed into one step, each held against the others as they were before
it; V reads its state through a LayerNorm, as in PSEC.
Cost per (m, n) matrix: m n parameters, 2 m n state; besides, Q, its copy and V.
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from lrx.methods import parts
from lrx.methods.base import Method, split_trainable
from lrx.methods.policies import policy_of
from lrx.models.base import Backbone
from lrx.models.diffusion_policy import PolicyBackbone
from lrx.nn.iql import Critics, reward_weights
from lrx.nn.optim import adamw

VALUES = "critics."


class IQL(Method):
    """``lr``: of the policy (``head_lr``: of its output layer, null: ``lr``); ``critic_lr``: of Q and V.

    ``expectile``: tau. ``temperature``: beta. ``discount``: gamma. ``reward_factor``: what rewards are multiplied by.
    ``soft``: rate of the slow critics. ``hidden``: width of Q and V.
    """

    name: ClassVar[str] = "iql"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "IQL (Kostrikov et al. 2022, arXiv 2110.06169)"
    exact_at_init: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    trains_base: ClassVar[bool] = True
    for_policies: ClassVar[bool] = True
    peft_form: ClassVar[Literal["lora"] | None] = None

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float = 0.0,
        head_lr: float | None = None,
        critic_lr: float = 3e-4,
        expectile: float = 0.7,
        temperature: float = 3.0,
        discount: float = 0.99,
        reward_factor: float = 1.0,
        soft: float = 0.005,
        hidden: int = 256,
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_values(critic_lr, expectile, temperature, discount, reward_factor, soft, hidden)
        self.lr, self.weight_decay, self.head_lr, self.critic_lr = lr, weight_decay, head_lr, critic_lr
        self.expectile, self.temperature, self.discount = expectile, temperature, discount
        self.reward_factor, self.soft, self.hidden = reward_factor, soft, hidden

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        net = policy_of(backbone, self.name)
        net.requires_grad_(True)
        net.critics = Critics(net.states, net.actions, self.hidden, generator)

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        body, _ = split_trainable(backbone)
        policy = [(name, p) for name, p in body if not name.startswith(VALUES)]
        values = [(name, p) for name, p in body if name.startswith(VALUES)]
        found = [adamw(policy, lr=self.lr, weight_decay=self.weight_decay)]
        found.append(adamw(values, lr=self.critic_lr, weight_decay=0.0))
        return parts.with_head(found, backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def rate_factors(self, backbone: Backbone) -> dict[str, float]:
        return {name: self.critic_lr / self.lr for name, _ in split_trainable(backbone)[0] if name.startswith(VALUES)}

    def objective(self, backbone: Backbone, batch: dict[str, Tensor]) -> Tensor:
        assert isinstance(backbone, PolicyBackbone)
        batch = {**batch, "rewards": self.reward_factor * batch["rewards"]}
        critics = _critics(backbone)
        advantage = critics.advantage(batch)
        weights = reward_weights(advantage.detach(), self.temperature)
        values = critics.loss(batch, advantage, expectile=self.expectile, discount=self.discount)
        return (weights * backbone.noise_losses(batch)).mean() + values

    def after_step(self, backbone: Backbone, optimizer: torch.optim.Optimizer, step: int) -> None:
        _critics(backbone).follow(self.soft)

    def merge(self, backbone: Backbone) -> None:
        backbone.net.critics = None

    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        """What is trained, and the slow critics."""
        slow = {f"critics.slow.{key}": value for key, value in _critics(backbone).slow.state_dict().items()}
        return super().adapter_state(backbone) | slow

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return m * n

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * m * n


def _critics(backbone: Backbone) -> Critics:
    return cast(Critics, backbone.net.critics)
