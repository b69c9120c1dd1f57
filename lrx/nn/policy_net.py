"""The network of a diffusion policy: an MLP-ResNet that predicts the noise in an action (IDQL, arXiv 2304.10573)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrx.nn.diffusion import Diffusion

TIME = 64  # Fourier features of the step
EPS = 1e-6  # of LayerNorm, as in flax
_CUT = 0.87962566103423978  # standard deviation of N(0, 1) cut off at two


class Fourier(nn.Module):
    """Steps (n,) -> (n, 64): cosines and sines of 2 pi t w with trained frequencies w, N(0, 0.2^2) at first."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(0.2 * torch.randn(TIME // 2, 1))

    def forward(self, step: Tensor) -> Tensor:
        f = 2 * math.pi * step.to(self.kernel.dtype).unsqueeze(-1) @ self.kernel.T
        return torch.cat([f.cos(), f.sin()], dim=-1)


class Block(nn.Module):
    """(n, width) -> (n, width)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.mish(self.up(self.norm(self.dropout(x)))))


class NoisePredictor(nn.Module):
    """``forward(observations (n, o), noisy actions (n, a), steps (n,) int64)`` -> noise (n, a), all float32.

    ``skills``: what a method that composes skills puts there (``lrx.nn.skills.Library``); None without one.
    ``critics``: the same of a method that trains values beside the policy (``lrx.nn.iql.Critics``).
    """

    skills: nn.Module | None
    critics: nn.Module | None

    def __init__(self, states: int, actions: int, width: int, blocks: int, steps: int, dropout: float) -> None:
        super().__init__()
        self.states, self.actions = states, actions
        self.diffusion = Diffusion(steps)
        self.fourier = Fourier()
        self.time_in, self.time_out = nn.Linear(TIME, 2 * TIME), nn.Linear(2 * TIME, 2 * TIME)
        self.input = nn.Linear(actions + states + 2 * TIME, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(blocks))
        self.output = nn.Linear(width, actions)
        self.skills, self.critics = None, None
        for layer in self.modules():  # flax's: LeCun-normal in the blocks, Xavier-uniform elsewhere, biases 0
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("up.weight", "down.weight")):
                lecun_normal_(weight)

    def forward(self, observations: Tensor, noisy: Tensor, step: Tensor) -> Tensor:
        code = self.time_out(F.mish(self.time_in(self.fourier(step))))
        x = self.input(torch.cat([noisy, observations, code], dim=-1))
        for block in self.blocks:
            x = block(x)
        return self.output(F.mish(x))

    def still(self) -> None:
        """Switch dropout off."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.eval()


def lecun_normal_(weight: Tensor, generator: torch.Generator | None = None) -> None:
    """N(0, 1 / n) for a matrix (m, n), cut off at two deviations and stretched to this variance, as in flax."""
    std = 1 / math.sqrt(weight.shape[1]) / _CUT
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
