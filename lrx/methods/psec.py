"""PSEC: a library of LoRA skills over one frozen diffusion policy, composed by weights that depend on the state.

"Skill Expansion and Composition in Parameter Space", Liu et al., ICLR 2025, arXiv 2502.05932.

    W(s) = W_0 + sum_i alpha_i(s) B_i A_i,  W_0 (m, n),  B_i (m, r),  A_i (r, n),  alpha(s) (k,),  every dense layer

Skill 0 is the policy itself, frozen; skill i alone is alpha = s e_i with s = ``scale``, not divided by the rank.
1. Expand, the first ``expand`` of all steps. Every new skill is trained by noise regression at full strength:
    imitation  L = mean_b |eps - eps_i|^2, a sum over action dimensions
    reward     L = mean_b w |eps - eps_i|^2,  w = clip(exp(b_r (Q - V)), 0, 100),  Q the smaller of two
    cost       L = mean_b w |eps - eps_i|^2,  w = 1[Qc < Vc] clip(exp(b_c (Vc - Qc)), 0, 100),  Qc the larger of two
   with values by expectile regression (lrx/nn/iql.py). Averages of (B_i, A_i), moved by ``ema`` after every step, are
   what is composed, stored and evaluated.
2. Compose, the other steps. Only alpha(s) = MLP(s), raw outputs, is trained:
    parameter (PSEC)  L = mean_b |eps - eps_W(s)|^2 + penalty ((mean alpha - s/k)^2 + (mean alpha_k - s)^2)
    noise (NSEC)      eps = sum_i alpha_i(s) eps_i in every step of the sampler,  L = mean_b |a - sampled a|^2
    action (ASEC)     a = sum_i alpha_i(s) a_i of separately sampled a_i,  L as of NSEC
    fixed             constant ``weights``; nothing to train, so all steps expand
Trained: first the factors of the new skills, with AdamW, and their values, with Adam; then alpha alone, with Adam.
Departures from the official code (github.com/ltlhuuu/PSEC), which the equations above follow: one activation
throughout (there a skill does not start from the policy); losses of skills and values are summed into one step, each
held against the others as they were before it (there one after the other); every step draws its own noise (there the
composition draws the same in all); ``penalty`` is 0, as in the paper's text, where the code has 1; dropout is off while
composing; the sampled action is the first one, as in its shipped evaluation (N = 1). A share of the run's steps takes
the place of separate runs. NSEC's gradient goes through the sampler; an action that is clipped there has none.
Cost: k r (m + n) numbers for k skills; r (m + n) trained and 2 r (m + n) state for each new one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lrx import skills as stored_skills
from lrx.errors import UserError
from lrx.methods import parts
from lrx.methods.base import Method
from lrx.methods.policies import policy_of
from lrx.models.base import Backbone
from lrx.models.diffusion_policy import PolicyBackbone
from lrx.nn import skills as nn_skills
from lrx.nn.iql import Critics, cost_weights, reward_weights
from lrx.nn.lowrank import replace_module
from lrx.nn.optim import CompositeOptimizer, adamw


class PSEC(Method):
    """``new``: the skills that this run trains, of ``imitation``, ``reward``, ``cost``; ``skills``: stored ones to use.

    ``rank``, ``scale``: r and s. ``compose``: ``parameter``, ``noise``, ``action`` or ``fixed``; ``weights``: of fixed,
    one for each skill, stored ones first (null: s / k each). ``expand``: share of the steps that trains the new skills.
    ``guide``: what composing regresses on: ``imitation``, the data as they are, or ``reward`` or ``cost``, weighted as
    for that new skill. ``penalty``: see above. ``lr``, ``critic_lr``, ``compose_lr``: rates of the skills, the values
    and alpha. ``expectile``, ``temperature``, ``discount``: of rewards, ``cost_expectile``, ``cost_temperature``: of
    costs. ``reward_factor``: what rewards are multiplied by. ``ema``, ``soft``: rates of the skills' averages and of
    the slow critics. ``hidden``: width of values and alpha. ``library``: the folder of stored skills. ``save``: store
    the new skills under this name (with several, NAME-imitation and so on). ``head_lr``: always null; no head is left.
    """

    name: ClassVar[str] = "psec"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "PSEC (Liu et al. 2025, arXiv 2502.05932)"
    exact_at_init: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False
    for_policies: ClassVar[bool] = True
    peft_form: ClassVar[Literal["lora"] | None] = None

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float = 1e-4,
        head_lr: float | None = None,
        rank: int = 8,
        scale: float = 16.0,
        new: tuple[Literal["imitation", "reward", "cost"], ...] = ("imitation", "reward"),
        skills: tuple[str, ...] = (),
        compose: Literal["parameter", "noise", "action", "fixed"] = "parameter",
        weights: list[float] | None = None,
        expand: float = 0.7,
        guide: Literal["imitation", "reward", "cost"] = "imitation",
        penalty: float = 0.0,
        critic_lr: float = 3e-4,
        compose_lr: float = 3e-4,
        expectile: float = 0.7,
        temperature: float = 1.0,
        cost_expectile: float = 0.9,
        cost_temperature: float = 1.0,
        discount: float = 0.99,
        reward_factor: float = 1.0,
        ema: float = 0.001,
        soft: float = 0.005,
        hidden: int = 256,
        library: str | None = None,
        save: str | None = None,
    ) -> None:
        parts.check_training(lr, weight_decay, None)
        parts.require(head_lr is None, "head_lr", head_lr, "every dense layer has skills, so there is no head to train")
        parts.check_lowrank(rank, scale, 0.0)
        parts.require(len(set(new)) == len(new), "new", list(new), "each kind of skill is trained once")
        parts.require(bool(new or skills), "skills", "[]", "nothing to compose: name stored skills, or new ones")
        parts.require(len(set(skills)) == len(skills), "skills", list(skills), "each stored skill is named once")
        count = len(skills) + len(new)
        accepted = f"one weight for each of the {count} skills, for method.compose=fixed only"
        parts.require(weights is None or (compose == "fixed" and len(weights) == count), "weights", weights, accepted)
        accepted = "a share of the steps in [0, 1]; below 1 for what is to be composed by learned weights"
        parts.require(0 <= expand <= 1 and (expand < 1 or compose == "fixed"), "expand", expand, accepted)
        parts.require(guide == "imitation" or guide in new, "guide", guide, "needs a new skill of this kind")
        parts.check_nonnegative("penalty", penalty)
        parts.check_values(critic_lr, expectile, temperature, discount, reward_factor, soft, hidden)
        parts.require(0 < compose_lr < math.inf, "compose_lr", compose_lr, "must be positive and finite")
        parts.require(0 < cost_expectile < 1, "cost_expectile", cost_expectile, "an expectile lies in (0, 1)")
        parts.check_nonnegative("cost_temperature", cost_temperature)
        parts.require(0 < ema <= 1, "ema", ema, "the rate of an average lies in (0, 1]")
        parts.require(bool(new) or compose != "fixed", "new", "[]", "with compose=fixed nothing would be trained")
        if save is not None:
            stored_skills.check_name(save)
        self.lr, self.weight_decay, self.rank, self.scale = lr, weight_decay, rank, scale
        self.new, self.skills, self.compose, self.guide = list(new), list(skills), compose, guide
        self.penalty_weight = penalty
        self.weights = [scale / count] * count if weights is None else list(weights)
        self.expand = expand if new and compose != "fixed" else float(bool(new))
        self.critic_lr, self.compose_lr, self.hidden = critic_lr, compose_lr, hidden
        self.expectile = {"reward": expectile, "cost": cost_expectile}
        self.temperature = {"reward": temperature, "cost": cost_temperature}
        self.discount, self.reward_factor, self.ema, self.soft = discount, reward_factor, ema, soft
        self.library, self.save = library, save
        self.mergeable = compose == "fixed"  # type: ignore[misc]
        self._expanding = 0

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        net = policy_of(backbone, self.name)
        stored = stored_skills.load(self.skills, self.library)
        backbone.head = ()  # the output layer has skills as every other
        backbone.frozen = True
        nn_skills.attach(
            net,
            [*self.skills, *self.new],
            new=len(self.new),
            rank=self.rank,
            scale=self.scale,
            compose=self.compose,
            weights=self.weights,
            hidden=self.hidden,
            generator=generator,
        )
        for place, skill in enumerate(stored):
            skill.put(nn_skills.layers(net), place, self.rank, self.scale)
        critics: dict[str, nn.Module] = {
            kind: Critics(net.states, net.actions, self.hidden, generator, cost=kind == "cost")
            for kind in self.new
            if kind != "imitation"
        }
        self._library(backbone).critics = nn.ModuleDict(critics)

    @staticmethod
    def _library(backbone: Backbone) -> nn_skills.Library:
        return nn_skills.library_of(backbone.net)

    def plan(self, backbone: Backbone, total_steps: int) -> None:
        self._expanding = round(self.expand * total_steps)
        if self._expanding == 0:
            self._library(backbone).composing.fill_(1)

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        library = self._library(backbone)
        trained = [(name, p) for name, p in backbone.net.named_parameters() if p.requires_grad]
        factors = [(name, p) for name, p in trained if not name.startswith("skills.")]
        values = [(n, p) for n, p in library.critics.named_parameters() if p.requires_grad]
        found = [(factors, self.lr, self.weight_decay), (values, self.critic_lr, 0.0)]
        found.append((list(library.alpha.named_parameters()), self.compose_lr, 0.0))
        return CompositeOptimizer([adamw(named, lr=lr, weight_decay=decay) for named, lr, decay in found if named])

    def rate_factors(self, backbone: Backbone) -> dict[str, float]:
        names = [name for name, p in backbone.net.named_parameters() if p.requires_grad]
        rates = {"skills.critics.": self.critic_lr, "skills.alpha.": self.compose_lr}
        return {n: rate / self.lr for n in names for prefix, rate in rates.items() if n.startswith(prefix)}

    def objective(self, backbone: Backbone, batch: dict[str, Tensor]) -> Tensor:
        """The loss of the stage that the library is in. Raises ``UserError`` for a cost skill without costs."""
        assert isinstance(backbone, PolicyBackbone)
        if "cost" in self.new and "costs" not in batch:
            raise UserError("method.new: a cost skill needs a task whose batches have costs; this one has none")
        batch = {**batch, "rewards": self.reward_factor * batch["rewards"]}
        return self._composing(backbone, batch) if self._library(backbone).composing else self._expand(backbone, batch)

    def _expand(self, backbone: PolicyBackbone, batch: dict[str, Tensor]) -> Tensor:
        library, losses = self._library(backbone), []
        for place, kind in enumerate(self.new, start=len(self.skills)):
            with library.training_of(place):
                errors = backbone.noise_losses(batch)
            if kind != "imitation":
                critics = library.critic(kind)
                advantage = critics.advantage(batch)
                errors = errors * self._weights_of(kind, advantage)
                losses.append(critics.loss(batch, advantage, expectile=self.expectile[kind], discount=self.discount))
            losses.append(errors.mean())
        return torch.stack(losses).sum()

    def _weights_of(self, kind: str, advantage: Tensor) -> Tensor:
        weigh = cost_weights if kind == "cost" else reward_weights
        return weigh(advantage.detach(), self.temperature[kind])

    def _composing(self, backbone: PolicyBackbone, batch: dict[str, Tensor]) -> Tensor:
        library, net = self._library(backbone), backbone.net
        net.still()
        observations, actions = batch["observations"], batch["actions"]
        alpha = library.alphas(observations)
        step, noise = net.diffusion.draw(actions)
        if self.compose == "parameter":
            noisy = net.diffusion.noised(actions, noise, step)
            errors = (library.predict(net, observations, noisy, step, alpha) - noise).square().sum(-1)
        else:
            start = torch.randn(len(actions), net.diffusion.steps, net.actions, device=actions.device)
            errors = (library.sampled(net, observations, start, alpha) - actions).square().sum(-1)
        if self.guide != "imitation":
            errors = errors * self._weights_of(self.guide, library.critic(self.guide).advantage(batch))
        return errors.mean() + self.penalty_weight * strength_penalty(alpha, self.scale)

    def after_step(self, backbone: Backbone, optimizer: torch.optim.Optimizer, step: int) -> None:
        library = self._library(backbone)
        if library.composing:
            return
        for layer in nn_skills.layers(backbone.net).values():
            layer.average(self.ema)
        for kind in library.critics:
            library.critic(kind).follow(self.soft)
        if step + 1 >= self._expanding:
            library.composing.fill_(1)

    def merge(self, backbone: Backbone) -> None:
        if not self.mergeable:
            raise UserError(
                f"method=psec cannot be merged into plain weights: with compose={self.compose} they differ from state "
                "to state (only method.compose=fixed can be merged)"
            )
        for name, layer in nn_skills.layers(backbone.net).items():
            replace_module(backbone.net, name, layer.merged(self._library(backbone).fixed))
        backbone.net.skills = None

    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        """All skills, their averages, alpha, the values with their slow copies, and the stage."""
        frozen = {f"{name}.base.{key}" for name in nn_skills.layers(backbone.net) for key in ("weight", "bias")}
        own = tuple(f"{name}." for name in (*nn_skills.layers(backbone.net), "skills"))
        state = backbone.net.state_dict()
        return {key: value for key, value in state.items() if key.startswith(own) and key not in frozen}

    def finish(self, backbone: Backbone, about: Mapping[str, str]) -> None:
        if self.save is None:
            return
        layers = nn_skills.layers(backbone.net)
        for place, kind in enumerate(self.new, start=len(self.skills)):
            name = self.save if len(self.new) == 1 else f"{self.save}-{kind}"
            skill = stored_skills.Skill.of(name, layers, place, self.rank, self.scale, {**about, "kind": kind})
            skill.write(self.library)

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return len(self.new) * self.rank * (m + n)

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * self.trainable_per_matrix(m, n)


def strength_penalty(alpha: Tensor, scale: float) -> Tensor:
    """``(mean alpha - s/k)^2 + (mean alpha_k - s)^2`` of weights (n, k): the last skill at s, the others 0 on average.

    Official code, there for k = 2.
    """
    return (alpha.mean() - scale / alpha.shape[1]).square() + (alpha[:, -1].mean() - scale).square()
