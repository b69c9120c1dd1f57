"""Noisy quadratic problems on a few matrices, the ground on which optimizers of whole matrices meet their equations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

SHAPES = [(12, 8), (7, 13), (12, 8), (9, 9)]
Gradient = Callable[[int, np.ndarray], np.ndarray]


def problems(shapes=SHAPES, seed=0, steps=60) -> list[tuple[np.ndarray, Gradient]]:
    """(start, gradient(step, W)) of each matrix: the distance to a target, and noise."""
    rng = np.random.default_rng(seed)
    found = []
    for shape in shapes:
        start, target, noise = rng.normal(size=shape), rng.normal(size=shape), 0.3 * rng.normal(size=(steps, *shape))
        found.append((start, lambda t, W, target=target, noise=noise: W - target + noise[t]))
    return found


def trace(optimizer_of, given, steps: int, dtype=torch.float64) -> tuple[list[list[np.ndarray]], torch.optim.Optimizer]:
    """The matrices after each step of ``optimizer_of(parameters)``, and the optimizer."""
    params = [nn.Parameter(torch.tensor(start, dtype=dtype)) for start, _ in given]
    optimizer = optimizer_of(params)
    found = []
    for t in range(steps):
        for p, (_, gradient) in zip(params, given, strict=True):
            p.grad = torch.tensor(gradient(t, p.detach().double().numpy()), dtype=dtype)
        optimizer.step()
        found.append([p.detach().double().numpy().copy() for p in params])
    return found, optimizer


def assert_follows(found: list[list[np.ndarray]], expected: list[list[np.ndarray]], tolerance=1e-9) -> None:
    """``found[step][matrix]`` and ``expected[matrix][step]`` agree at every step."""
    for t, now in enumerate(found):
        for i, (ours, theirs) in enumerate(zip(now, (one[t] for one in expected), strict=True)):
            assert np.abs(ours - theirs).max() <= tolerance * max(1, np.abs(theirs).max()), (t, i)
