"""Plain multilayer perceptrons with ReLU, at first Xavier-uniform with biases of 0, as in jaxrl (Kostrikov 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

EPS = 1e-6  # of LayerNorm, as in flax


def mlp(sizes: Sequence[int], generator: torch.Generator, *, norm: bool = False) -> nn.Sequential:
    """``forward``: (n, sizes[0]) -> (n, sizes[-1]). ``norm``: a LayerNorm of the input comes first."""
    stages: list[nn.Module] = [nn.LayerNorm(sizes[0], eps=EPS)] if norm else []
    for place, (n, m) in enumerate(pairwise(sizes)):
        with torch.random.fork_rng(devices=[]):  # a new layer draws numbers that are overwritten at once
            layer = nn.Linear(n, m)
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        stages += [nn.ReLU()] * (place > 0) + [layer]
    return nn.Sequential(*stages)


class Ensemble(nn.Module):
    """``members`` values of (state, action): (n, o), (n, a) -> (members, n)."""

    def __init__(self, members: int, states: int, actions: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [states + actions, hidden, hidden, 1]
        self.members = nn.ModuleList(mlp(sizes, generator) for _ in range(members))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        x = torch.cat([observations, actions], dim=-1)
        return torch.stack([member(x).squeeze(-1) for member in self.members])
