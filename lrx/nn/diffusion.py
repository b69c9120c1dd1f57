"""Denoising diffusion over actions: the variance-preserving schedule, forward noising and the ancestral sampler.

Ho et al. 2020, arXiv 2006.11239 (DDPM); the schedule of a few steps is that of Diffusion-QL (Wang et al. 2023, arXiv
2208.06193) and IDQL (Hansen-Estruch et al. 2023, arXiv 2304.10573). Steps are counted from 0 here; the papers' t is one
more.

    beta_t = 1 - exp(-b_min / T - (b_max - b_min) (2 t - 1) / (2 T^2)),  t = 1..T,  alpha_t = 1 - beta_t
    abar_t = alpha_1 ... alpha_t
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

B_MIN, B_MAX = 0.1, 10.0  # official code of PSEC and IDQL

Predict = Callable[[Tensor, Tensor], Tensor]  # (noisy actions (n, a), steps (n,) int64) -> noise (n, a)


def vp_betas(steps: int) -> Tensor:
    """beta_t (steps,) in float64, each in (0, 1). Raises ``ValueError`` for less than one step."""
    if steps < 1:
        raise ValueError(f"a diffusion has at least one step, not {steps}")
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    return 1 - torch.exp(-B_MIN / steps - 0.5 * (B_MAX - B_MIN) * (2 * t - 1) / steps**2)


class Diffusion(nn.Module):
    """The constants of a diffusion of ``steps`` steps, in float32: ``betas``, ``alphas`` and ``abar`` (steps,)."""

    betas: Tensor
    alphas: Tensor
    abar: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        betas = vp_betas(steps)
        alphas = 1 - betas
        for name, values in {"betas": betas, "alphas": alphas, "abar": alphas.cumprod(0)}.items():
            self.register_buffer(name, values.float(), persistent=False)

    def draw(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """A step (n,) int64 and noise (n, a) for each of ``actions`` (n, a), from the global generator."""
        step = torch.randint(self.steps, (len(actions),), device=actions.device)
        return step, torch.randn_like(actions)

    def noised(self, actions: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """q(x_t | x_0): ``sqrt(abar_t) a + sqrt(1 - abar_t) eps`` (n, a), a step (n,) for each row."""
        abar = self.abar[step].unsqueeze(-1)
        return abar.sqrt() * actions + (1 - abar).sqrt() * noise

    def sample(self, predict: Predict, noise: Tensor) -> Tensor:
        """Actions (n, a) in [-1, 1] by ancestral sampling, clipped after every step.

        ``noise`` (n, steps, a) is standard normal: the first is the start, the others are added in turn; the last step
        adds none. Gradients flow through unless the caller forbids it.
        """
        x = noise[:, 0]
        for place, t in enumerate(range(self.steps - 1, -1, -1), start=1):
            eps = predict(x, torch.full((len(x),), t, dtype=torch.int64, device=x.device))
            x = (x - self.betas[t] / (1 - self.abar[t]).sqrt() * eps) / self.alphas[t].sqrt()
            if t > 0:
                x = x + self.betas[t].sqrt() * noise[:, place]
            x = x.clamp(-1, 1)
        return x

    def noise(self, rows: int, actions: int, generator: torch.Generator) -> Tensor:
        """What ``sample`` needs for ``rows`` actions: (rows, steps, actions) on the CPU."""
        return torch.randn(rows, self.steps, actions, generator=generator)
