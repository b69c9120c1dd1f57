"""Dion: orthonormalised steps of rank r, by one power iteration on the momentum per step.

"Dion: Distributed Orthonormalized Updates", Ahn et al. 2025, arXiv 2504.05295.

    W (m, n),  M (m, n) = 0 at first,  Q (n, r) standard normal at first;  G = dL/dW
    (1)  M = M + G
    (2)  P = orthonormal factor of qr(M Q) (m, r),  R = M^T P (n, r)
    (3)  M = M - (1 - mu) P R^T                              what the step leaves stays in the momentum
    (4)  Q = R / (column norms of R + 1e-8)
    (5)  W = (1 - lr weight_decay) W - lr sqrt(m/n) P Q^T

Trained: everything; the target matrices as above, the rest with AdamW. Per step: one step of each.
The rule is that of dion_simple.py in the official code (github.com/microsoft/dion). ``wide: transposed`` solves the
transposed problem for m < n, as its full version does (Q is then (m, r)); that version's randomised Cholesky QR gives
the same P up to rounding, and signs cancel.
Departures: the rest is stepped by AdamW with the usual coefficients.
Cost per matrix: m n parameters, m n + r n state; O(m n r) operations per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from lrx.methods import parts
from lrx.methods.base import Method
from lrx.models.base import Backbone
from lrx.nn.matrix_optim import Matrices, MatrixOptimizer, add_product, gradients
from lrx.nn.polar import shape_factor

EPS = 1e-8


class DionOptimizer(MatrixOptimizer):
    """Equations (1)-(5). State per matrix: ``momentum`` (m, n) and ``Q`` (n, r), of a transposed one (m, r)."""

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        *,
        lr: float,
        weight_decay: float = 0.0,
        rank: int,
        seed: int,
        mu: float = 0.95,
        transposed: bool = False,
    ) -> None:
        self.rank, self.mu, self.transposed = rank, mu, transposed
        super().__init__(params, lr=lr, weight_decay=weight_decay, seed=seed)

    def flips(self, m: int, n: int) -> bool:
        return self.transposed and m < n

    def update(self, batch: Matrices, group: dict[str, Any]) -> None:
        M = batch.turn(self.stacked("momentum", batch, (batch.m, batch.n)))
        Q = self.stacked("Q", batch, (batch.d, self.rank))
        if batch.count == 1:
            for start, place in zip(Q, batch.places, strict=True):
                generator = torch.Generator().manual_seed(group["seed"] + place)
                start.copy_(torch.randn(batch.d, self.rank, generator=generator))
        M += gradients(batch)  # (1)
        P = torch.linalg.qr(M @ Q).Q  # (2)
        R = M.mT @ P
        M.baddbmm_(P, R.mT, alpha=-(1 - self.mu))  # (3)
        Q.copy_(R / (torch.linalg.vector_norm(R, dim=-2, keepdim=True) + EPS))  # (4)
        step = group["lr"] * shape_factor(batch.m, batch.n, "dion")
        add_product(batch, P, Q.mT, step=step, keep=1 - group["lr"] * group["weight_decay"])  # (5)


class Dion(Method):
    """``rank``: r. ``mu``: momentum. ``wide``: matrices with m < n as they are (``simple``) or ``transposed``.

    ``head_lr``, ``rest_lr``: AdamW's rates for the task head and for all other parameters outside ``target_modules``
    (null: ``lr``).
    """

    name: ClassVar[str] = "dion"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Dion (Ahn et al. 2025, arXiv 2504.05295)"
    exact_at_init: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    trains_base: ClassVar[bool] = True
    peft_form: ClassVar[Literal["lora"] | None] = None

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float = 0.0,
        head_lr: float | None = None,
        rest_lr: float | None = None,
        rank: int = 8,
        target_modules: str | list[str] = "all-linear",
        mu: float = 0.95,
        wide: Literal["simple", "transposed"] = "simple",
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_rest(rest_lr)
        parts.check_beta("mu", mu)
        parts.require(rank >= 1, "rank", rank, "the rank must be at least 1")
        self.lr, self.weight_decay, self.head_lr, self.rest_lr = lr, weight_decay, head_lr, rest_lr
        self.rank, self.target_modules, self.mu, self.wide = rank, target_modules, mu, wide
        self.seed = 0

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        parts.train_all(backbone, self.target_modules, self.rank)
        self.seed = int(torch.randint(2**62, (1,), generator=generator))  # the optimizer keeps it in its state

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        def matrices(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
            return DionOptimizer(
                weights,
                lr=self.lr,
                weight_decay=self.weight_decay,
                rank=self.rank,
                seed=self.seed,
                mu=self.mu,
                transposed=self.wide == "transposed",
            )

        return parts.with_rest(
            matrices,
            backbone,
            target_modules=self.target_modules,
            rest_lr=self.rest_lr or self.lr,
            head_lr=self.head_lr or self.lr,
            weight_decay=self.weight_decay,
        )

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return m * n

    def state_per_matrix(self, m: int, n: int) -> int:
        return m * n + self.rank * (m if self.wide == "transposed" and m < n else n)
