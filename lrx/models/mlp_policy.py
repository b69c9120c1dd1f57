"""A deterministic policy: an MLP with tanh at its end, trained by squared error. Behaviour cloning's usual network.

    pi(s) = tanh(W_L relu(... relu(W_1 s + b_1) ...) + b_L),   loss = mean over batch and dimensions of (pi(s) - a)^2

Two hidden layers of 256, as the actor and the BC baseline of TD3+BC (Fujimoto, Gu 2021, arXiv 2106.06860) and of CORL.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrx.errors import UserError
from lrx.models.base import Backbone, Inputs, Model, Outputs


class MLPPolicy(Model):
    """``width``, ``depth``: of the hidden layers. Weights are new."""

    name: ClassVar[str] = "mlp_policy"
    version: ClassVar[int] = 1

    def __init__(self, *, width: int = 256, depth: int = 2) -> None:
        for key, value in {"width": width, "depth": depth}.items():
            if value < 1:
                raise UserError(f"model.{key}={value}: must be at least 1")
        self.width, self.depth = width, depth

    def build(self, inputs: Inputs, outputs: Outputs, seed: int) -> Backbone:
        """Raises ``UserError`` for a task that has no states and actions."""
        if inputs.kind != "state" or outputs.kind != "actions":
            raise UserError(
                f"model: a policy reads states and gives actions, this task has {inputs.kind} and {outputs.kind}; "
                "choose another model"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = [inputs.features, *[self.width] * self.depth]
            hidden = [nn.Linear(m, n) for m, n in pairwise(sizes)]
            net = MLP(hidden, nn.Linear(self.width, outputs.size))
        return MLPBackbone(net, head=["output"], roles={"mlp_in": r"hidden\.\d+"}, reads="state")


class MLP(nn.Module):
    """States (n, o) -> actions (n, a) in (-1, 1)."""

    def __init__(self, hidden: list[nn.Linear], output: nn.Linear) -> None:
        super().__init__()
        self.hidden, self.output = nn.ModuleList(hidden), output

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = layer(x).relu()
        return self.output(x).tanh()


class MLPBackbone(Backbone):
    """``forward``: actions (n, a) in float32 of ``observations`` (n, o)."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(batch["observations"]).float()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error of the actions."""
        return F.mse_loss(self(batch), batch["actions"])

    @torch.no_grad()
    def act(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Deterministic: nothing is drawn."""
        return self.net(observations).float()
