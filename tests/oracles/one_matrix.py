"""A network of one linear layer with a squared loss, whose gradients are plain formulas, and AdamW in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from lrx.methods.base import Method
from lrx.models.base import Backbone

Array = np.ndarray


class OneMatrix(Backbone):
    """``x -> x W^T + bias``; the loss is half the squared distance from y."""

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        return self.net(batch["x"])

    def loss(self, batch: dict[str, Any]) -> torch.Tensor:
        return 0.5 * (self(batch) - batch["y"]).square().sum()


def one_matrix(m: int = 5, n: int = 7, seed: int = 0, bias: bool = False) -> OneMatrix:
    torch.manual_seed(seed)
    return OneMatrix(nn.Sequential(nn.Linear(n, m, bias=bias)), head=(), roles={})


def batch(m: int = 5, n: int = 7, size: int = 4, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(size, n, dtype=torch.float64, generator=generator),
        "y": torch.randn(size, m, dtype=torch.float64, generator=generator),
    }


def gradient(W: Array, data: dict[str, torch.Tensor], bias: Array | float = 0.0) -> Array:
    """dL/dW (m, n)."""
    x, y = data["x"].numpy(), data["y"].numpy()
    return (x @ W.T + bias - y).T @ x


class Adam:
    """AdamW of some arrays: ``p - lr decay p - lr mean / (sqrt(square) + eps)``, bias-corrected."""

    def __init__(self, lr: float, weight_decay: float) -> None:
        self.lr, self.weight_decay, self.t = lr, weight_decay, 0
        self.M: Array | float = 0.0
        self.V: Array | float = 0.0

    def __call__(self, p: Array, g: Array) -> Array:
        self.t += 1
        self.M = 0.9 * self.M + 0.1 * g
        self.V = 0.999 * self.V + 0.001 * g * g
        step = (self.M / (1 - 0.9**self.t)) / (np.sqrt(self.V / (1 - 0.999**self.t)) + 1e-8)
        return p - self.lr * self.weight_decay * p - self.lr * step


def trained(backbone: OneMatrix, method: Method, data: dict[str, torch.Tensor], steps: int) -> list[float]:
    """Losses of ``steps`` training steps."""
    optimizer, losses = method.optimizer(backbone), []
    for step in range(steps):
        loss = backbone.loss(data)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        method.before_step(backbone, optimizer, step)
        optimizer.step()
        method.after_step(backbone, optimizer, step)
    return losses
