"""The optimizers of factor pairs written down literally, pair after pair: what ``benchmarks.optimizers`` races with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lrx.nn.lowrank import Pair

LR, BETA1, BETA2 = 1e-3, 0.9, 0.999


def inverse(gram: Tensor, damping: float) -> Tensor:
    return torch.linalg.inv(gram + damping * torch.eye(len(gram)))


@dataclass
class Loop:
    """The literal form of a pair optimizer: one pair after another, one product after another."""

    pairs: Sequence[Pair]
    rule: Callable[[Loop, int, Pair], None]
    memory: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    count: int = 0

    @torch.no_grad()
    def step(self) -> None:
        self.count += 1
        for index, pair in enumerate(self.pairs):
            self.rule(self, index, pair)

    def state(self, index: int, key: str, *shape: int) -> Tensor:
        """A tensor that is kept between steps, zeros at first."""
        return self.memory.setdefault((index, key), torch.zeros(shape))


def altlora_loop(loop: Loop, index: int, pair: Pair, plus: bool = False) -> None:
    """AltLoRA, Algorithms 1 and 2: A in odd steps, B in even ones."""
    A, B, s = pair.A, pair.B, pair.scaling
    moves_a = loop.count % 2 == 1
    moving, fixed = (A, B) if moves_a else (B, A)
    M = loop.state(index, f"M{moves_a}", *moving.shape)
    old = loop.state(index, f"old{moves_a}", *fixed.shape)
    assert moving.grad is not None
    if moves_a:
        gram = inverse(B.T @ B, 1e-6)
        g = gram @ moving.grad / s**2
        carried = gram @ B.T @ old @ M
    else:
        gram = inverse(A @ A.T, 1e-6)
        g = moving.grad @ gram / s**2
        carried = M @ old @ A.T @ gram
    M.copy_(BETA1 * carried + (1 - BETA1) * g)
    old.copy_(fixed)
    if plus:
        V = loop.state(index, f"V{moves_a}", *moving.shape)
        V.copy_(BETA2 * V + (1 - BETA2) * g * g)
        moving.sub_(LR * M / (V.sqrt() + 1e-6))
    else:
        moving.sub_(LR * M)


def altlora_plus_loop(loop: Loop, index: int, pair: Pair) -> None:
    altlora_loop(loop, index, pair, plus=True)


def scaled_adamw_loop(loop: Loop, index: int, pair: Pair) -> None:
    """Riemannian preconditioned LoRA: both factors' Gram matrices before either moves."""
    A, B = pair.A, pair.B
    assert A.grad is not None
    assert B.grad is not None
    g_a, g_b = inverse(B.T @ B, 1e-6) @ A.grad, B.grad @ inverse(A @ A.T, 1e-6)
    for p, g, key in ((A, g_a, "A"), (B, g_b, "B")):
        M, V = loop.state(index, "M" + key, *p.shape), loop.state(index, "V" + key, *p.shape)
        M.copy_(BETA1 * M + (1 - BETA1) * g)
        V.copy_(BETA2 * V + (1 - BETA2) * g * g)
        correction = math.sqrt(1 - BETA2**loop.count) / (1 - BETA1**loop.count)
        p.sub_(LR * correction * M / (V.sqrt() + 1e-6))


def adaprelora_loop(loop: Loop, index: int, pair: Pair) -> None:
    """AdaPreLoRA with momentum and the surrogate's statistics, its m x n matrix formed."""
    A, B, s = pair.A, pair.B, pair.scaling
    assert A.grad is not None
    assert B.grad is not None
    (m, r), n = B.shape, A.shape[1]
    squares = ((B.grad @ A + B @ A.grad) / s).square()
    L, R = loop.state(index, "L", m), loop.state(index, "R", n)
    L.lerp_(squares.mean(1) + 1e-30, 1 - BETA2)
    R.lerp_(squares.mean(0) + 1e-30, 1 - BETA2)
    P, Q = (L / L.mean()).sqrt()[:, None], (R / (1 - BETA2**loop.count)).sqrt()[None]
    averages = []
    for key, g in (("A", A.grad / s), ("B", B.grad / s)):
        M = loop.state(index, "M" + key, *g.shape).lerp_(g, 1 - BETA1)
        averages.append(M / (1 - BETA1**loop.count))
    g_a, g_b = averages
    S_B, S_A = B.T @ (P * B), (A * Q) @ A.T
    inverse_B, inverse_A = (inverse(S, 1e-6 * S.trace().item() / r) for S in (S_B, S_A))
    dA = inverse_B @ (g_a / Q - 0.5 * g_a @ A.T @ inverse_A @ A)
    dB = (g_b / P - 0.5 * B @ inverse_B @ B.T @ g_b) @ inverse_A
    A.sub_(LR / s * dA)
    B.sub_(LR / s * dB)


def lora_rite_loop(loop: Loop, index: int, pair: Pair) -> None:
    """LoRA-RITE, Algorithm 1 with escaped mass, without the official code's clipping."""
    A, B = pair.A, pair.B
    assert A.grad is not None
    assert B.grad is not None
    steps = []
    b1, b2 = (b * (1 - b ** (loop.count - 1)) / (1 - b**loop.count) for b in (BETA1, BETA2))
    for key, p, other, g in (("A", A, B.T, A.grad), ("B", B.T, A, B.grad.T)):
        values, vectors = torch.linalg.eigh(other.double() @ other.double().T)
        inverse_R = ((vectors / values.sqrt()) @ vectors.T).float()
        basis = inverse_R @ other
        U = inverse_R @ g
        V = loop.state(index, "V" + key, len(p), len(p))
        M = loop.state(index, "M" + key, *p.shape)
        old = loop.state(index, "Q" + key, *basis.shape)
        escaped = loop.state(index, "e" + key)
        T = basis @ old.T
        carried = T @ V @ T.T
        lost = min(
            float((torch.linalg.eigvalsh(V) - torch.linalg.eigvalsh(carried)).max()), float((V - carried).trace())
        )
        escaped.copy_(b2 * (escaped + max(0.0, lost)))
        V.copy_(b2 * carried + (1 - b2) * U @ U.T / U.shape[1])
        w, E = torch.linalg.eigh((V + V.T) / 2)
        root = (E / ((w.clamp_min(0) + escaped).sqrt() + 1e-6)) @ E.T
        M.copy_(b1 * T @ M + (1 - b1) * root @ U)
        old.copy_(basis)
        steps.append((p, inverse_R @ M))
    for p, step in steps:
        p.sub_(LR * step)
