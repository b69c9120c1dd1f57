"""A library of skills over one frozen policy: a LoRA set for each, mixed by weights that depend on the state.

PSEC (Liu et al. 2025, arXiv 2502.05932). Skill i is a pair (B_i, A_i) on every dense layer. What each sample's layers
are is

    W_0 + sum_i alpha_i(s) B_i A_i,  W_0 (m, n),  B_i (m, r),  A_i (r, n),  alpha(s) (k,)

computed without any merged matrix: x A^T for all skills at once (k r numbers), times alpha, times B^T.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrx.nn.iql import Critics
from lrx.nn.lowrank import replace_module
from lrx.nn.mlp import mlp
from lrx.nn.policy_net import NoisePredictor, lecun_normal_

Compose = Literal["parameter", "noise", "action", "fixed"]


class Use:
    """What the layers of a network do now: nothing, one skill in training, or the averages of all by weights."""

    training: int | None = None  # the place of a skill whose trained factors are used
    weights: Tensor | None = None  # (n, k) or (k,), of the averages


class SkilledLinear(nn.Module):
    """A frozen linear layer with ``k`` skills of ``rank``. ``forward``: (n, inputs) -> (n, outputs).

    ``mean_A`` (k, rank, inputs) and ``mean_B`` (k, rank, outputs), the transpose of B: averages over training, which
    are what is mixed, stored and evaluated. ``A[j]`` (rank, inputs), ``B[j]`` (outputs, rank): the trained factors of
    the last ``new`` skills. A starts LeCun-normal and B at zero.
    """

    mean_A: Tensor
    mean_B: Tensor

    def __init__(
        self, base: nn.Linear, k: int, new: int, rank: int, scale: float, use: Use, generator: torch.Generator
    ) -> None:
        super().__init__()
        m, n = base.weight.shape
        self.base = base.requires_grad_(False)
        self.k, self.rank, self.scale, self.first, self.use = k, rank, scale, k - new, use
        self.A, self.B = nn.ParameterList(), nn.ParameterList()
        self.register_buffer("mean_A", base.weight.new_zeros(k, rank, n))
        self.register_buffer("mean_B", base.weight.new_zeros(k, rank, m))
        for place in range(self.first, k):
            a = torch.empty(rank, n)
            lecun_normal_(a, generator)
            self.A.append(nn.Parameter(a))
            self.B.append(nn.Parameter(torch.zeros(m, rank)))
            self.mean_A[place] = a

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if self.use.training is not None:
            j = self.use.training - self.first
            return y + self.scale * F.linear(F.linear(x, self.A[j]), self.B[j])
        if self.use.weights is None or not self.k:
            return y
        weights = self.use.weights.repeat_interleave(self.rank, -1)
        return y + (F.linear(x, self.mean_A.flatten(0, 1)) * weights) @ self.mean_B.flatten(0, 1)

    @torch.no_grad()
    def average(self, rate: float) -> None:
        """Move the averages by ``rate`` towards the trained factors."""
        for place, (a, b) in enumerate(zip(self.A, self.B, strict=True), start=self.first):
            self.mean_A[place].lerp_(a, rate)
            self.mean_B[place].lerp_(b.T, rate)

    @torch.no_grad()
    def merged(self, weights: Tensor) -> nn.Linear:
        """The plain layer with the matrix ``W + sum_i weights_i B_i A_i``, ``weights`` (k,)."""
        self.base.weight += torch.einsum("k,krm,krn->mn", weights, self.mean_B, self.mean_A)
        return self.base


class Library(nn.Module):
    """The skills of a policy and how they are mixed; ``net.skills`` of a ``NoisePredictor``.

    ``names``: of all skills, the last ``new`` ones in training. ``critics``: values that
    training needs, ``reward`` or ``cost``. ``compose``: ``parameter`` (PSEC), ``noise`` (NSEC: the
    skills' predicted noises are summed), ``action`` (ASEC: their sampled actions) or ``fixed`` (constant weights
    ``weights``, (k,)). ``composing``: 0 until the new skills have been trained, then 1; until then the policy is its
    last skill.
    """

    composing: Tensor
    fixed: Tensor

    def __init__(
        self, names: Sequence[str], new: int, compose: Compose, scale: float, weights: Sequence[float], alpha: nn.Module
    ) -> None:
        super().__init__()
        self.names, self.new, self.compose, self.scale, self.use = list(names), new, compose, scale, Use()
        self.alpha: nn.Module = alpha
        self.critics = nn.ModuleDict()
        self.register_buffer("composing", torch.tensor(0))
        self.register_buffer("fixed", torch.tensor(list(weights), dtype=torch.float32), persistent=False)

    def critic(self, kind: str) -> Critics:
        """The values of ``reward`` or ``cost``."""
        return cast(Critics, self.critics[kind])

    def alphas(self, observations: Tensor) -> Tensor:
        """(n, k): the weights of the skills in the states ``observations`` (n, o)."""
        if self.compose == "fixed":
            return self.fixed.expand(len(observations), -1)
        if not self.composing:
            return self.alone(-1).expand(len(observations), -1)
        return self.alpha(observations)

    @contextmanager
    def training_of(self, place: int) -> Iterator[None]:
        """Inside, the network is the policy with skill ``place`` alone, by its trained factors at full strength."""
        self.use.training = place
        try:
            yield
        finally:
            self.use.training = None

    @contextmanager
    def mixed(self, weights: Tensor) -> Iterator[None]:
        """Inside, the network is the mixture of the skills' averages with ``weights`` (n, k) or (k,)."""
        self.use.weights = weights
        try:
            yield
        finally:
            self.use.weights = None

    def alone(self, place: int) -> Tensor:
        """Weights (k,) of skill ``place`` at full strength."""
        weights = torch.zeros_like(self.fixed)
        weights[place] = self.scale
        return weights

    def predict(self, net: NoisePredictor, observations: Tensor, noisy: Tensor, step: Tensor, alpha: Tensor) -> Tensor:
        """The noise (n, a) that the composed policy predicts, for weights ``alpha`` (n, k).

        ASEC has none of its own; here it is that of NSEC.
        """
        if self.composing and self.compose in ("noise", "action"):
            parts = []
            for place in range(len(self.names)):
                with self.mixed(self.alone(place)):
                    parts.append(net(observations, noisy, step))
            return torch.einsum("nk,kna->na", alpha, torch.stack(parts))
        with self.mixed(alpha):
            return net(observations, noisy, step)

    def sample(self, net: NoisePredictor, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions (n, a) in [-1, 1] of the composed policy for ``noise`` (n, T, a)."""
        return self.sampled(net, observations, noise, self.alphas(observations)).clamp(-1, 1)

    def sampled(self, net: NoisePredictor, observations: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
        """Actions (n, a) for weights ``alpha`` (n, k); of ``action`` they are not clipped."""
        if self.composing and self.compose == "action":
            return self.mixed_actions(net, observations, noise, alpha)
        return net.diffusion.sample(lambda x, t: self.predict(net, observations, x, t, alpha), noise)

    def mixed_actions(self, net: NoisePredictor, observations: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
        """ASEC: sum_i alpha_i a_i (n, a), not clipped, of actions a_i that every skill samples from the same noise."""
        parts = []
        with torch.no_grad():  # they do not depend on alpha
            for place in range(len(self.names)):
                with self.mixed(self.alone(place)):
                    parts.append(net.diffusion.sample(lambda x, t: net(observations, x, t), noise))
        return torch.einsum("nk,kna->na", alpha, torch.stack(parts))


def attach(
    net: NoisePredictor,
    names: Sequence[str],
    *,
    new: int,
    rank: int,
    scale: float,
    compose: Compose,
    weights: Sequence[float],
    hidden: int,
    generator: torch.Generator,
) -> Library:
    """Freeze ``net``, put a ``SkilledLinear`` over every dense layer and a ``Library`` into ``net.skills``."""
    net.requires_grad_(False)
    alpha = nn.Identity() if compose == "fixed" else mlp([net.states, hidden, hidden, len(names)], generator)
    library = Library(names, new, compose, scale, weights, alpha)
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.Linear):
            skilled = SkilledLinear(layer, len(names), new, rank, scale, library.use, generator)
            replace_module(net, name, skilled)
    net.skills = library
    return library


def layers(net: nn.Module) -> dict[str, SkilledLinear]:
    """Every layer with skills below ``net`` by name, in registration order."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, SkilledLinear)}


def library_of(net: Any) -> Library:
    """The library that ``attach`` has put into ``net``."""
    return cast(Library, net.skills)
