"""A diffusion policy: an MLP-ResNet that predicts the noise in an action, given the state and the step.

IDQL's network (Hansen-Estruch et al. 2023, arXiv 2304.10573) as PSEC uses it (Liu et al. 2025, arXiv 2502.05932),
sizes of the official code (github.com/ltlhuuu/PSEC):

    code(t) = MLP(cos(2 pi t w), sin(2 pi t w)),  w (32,) trained, t = 0..T-1;  MLP 64 -> 128 -> 128
    eps(s, x, t) = output(act(ResNet(input([x, s, code(t)]))))
    a block: x + down(act(up(LayerNorm(dropout(x))))),  up: width -> 4 width

Loss: the mean over the batch of the sum over action dimensions of (eps - eps(s, noised action, t))^2, t uniform.
Departures: one activation (mish) for everything; the official code trains the policy with mish and every skill on top
of it with swish, so that its skills do not start from the policy. ``weights=made`` gives the trained weights without
the official code's moving average.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lrx.errors import UserError
from lrx.models.base import Backbone, Inputs, Model, Outputs
from lrx.nn.policy_net import NoisePredictor

ROLES = {"mlp_in": r"blocks\.\d+\.up", "mlp_out": r"blocks\.\d+\.down"}


class DiffusionPolicy(Model):
    """``width``, ``blocks``: of the ResNet. ``steps``: T. ``dropout``: of its blocks.

    ``weights``: ``random``, or ``made``: skill 0, trained here once by noise regression on the data set ``pretrain``
    (``<environment>/<data set>`` of task d4rl, from ``pretrain_source``) for ``pretrain_steps`` steps, by the recipe of
    ``lrx.models.pretrain_policy``, and kept in the cache.
    """

    name: ClassVar[str] = "diffusion_policy"
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        width: int = 256,
        blocks: int = 3,
        steps: int = 5,
        dropout: float = 0.1,
        weights: Literal["made", "random"] = "random",
        pretrain: str | None = None,
        pretrain_source: Literal["embedded", "hub"] = "embedded",
        pretrain_steps: int = 4000,
    ) -> None:
        for key, value in {"width": width, "blocks": blocks, "steps": steps, "pretrain_steps": pretrain_steps}.items():
            if value < 1:
                raise UserError(f"model.{key}={value}: must be at least 1")
        if not 0 <= dropout < 1:
            raise UserError(f"model.dropout={dropout}: a dropout probability lies in [0, 1)")
        if weights == "made" and not pretrain:
            raise UserError(
                "model.weights=made needs model.pretrain=<environment>/<data set>, what it is pretrained on"
            )
        self.width, self.blocks, self.steps, self.dropout = width, blocks, steps, dropout
        self.weights, self.pretrain = weights, pretrain
        self.pretrain_source, self.pretrain_steps = pretrain_source, pretrain_steps

    def build(self, inputs: Inputs, outputs: Outputs, seed: int) -> Backbone:
        """Raises ``UserError`` for a task that has no states and actions."""
        if inputs.kind != "state" or outputs.kind != "actions":
            raise UserError(
                f"model: a policy reads states and gives actions, this task has {inputs.kind} and {outputs.kind}; "
                "choose another model"
            )
        if self.weights == "made":
            from lrx.models.pretrain_policy import made

            return made(self, str(self.pretrain), inputs, outputs)
        return self.fresh(inputs.features, outputs.size, seed)

    def fresh(self, states: int, actions: int, seed: int) -> PolicyBackbone:
        """A policy with new weights, a function of ``seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = NoisePredictor(states, actions, self.width, self.blocks, self.steps, self.dropout)
        return PolicyBackbone(net, head=["output"], roles=ROLES, reads="state")


class PolicyBackbone(Backbone):
    """``forward``: the noise (n, a) predicted in ``noisy`` (n, a) actions at ``steps`` (n,), by default in 0 at step 0.

    ``loss``, ``act``: noise regression on a batch's actions, and the sampler.
    """

    net: NoisePredictor

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        observations = batch["observations"]
        noisy = batch.get("noisy", observations.new_zeros(len(observations), self.net.actions))
        steps = batch.get("steps", torch.zeros(len(observations), dtype=torch.int64, device=observations.device))
        library: Any = self.net.skills
        if library is None:
            return self.net(observations, noisy, steps).float()
        return library.predict(self.net, observations, noisy, steps, library.alphas(observations)).float()

    def sample(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions (n, a) for ``noise`` (n, T, a), by the skills where there are some."""
        library: Any = self.net.skills
        if library is not None:
            return library.sample(self.net, observations, noise)
        return self.net.diffusion.sample(lambda x, t: self.net(observations, x, t), noise)

    @torch.no_grad()
    def act(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        noise = self.net.diffusion.noise(len(observations), self.net.actions, generator)
        return self.sample(observations, noise.to(observations.device)).float()

    def noise_losses(self, batch: dict[str, Tensor]) -> Tensor:
        """(n,): squared errors of the predicted noise, summed over action dimensions, at steps drawn uniformly."""
        actions = batch["actions"]
        step, noise = self.net.diffusion.draw(actions)
        predicted = self.net(batch["observations"], self.net.diffusion.noised(actions, noise, step), step)
        return (predicted - noise).square().sum(-1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Noise regression: behaviour cloning."""
        return self.noise_losses(batch).mean()
