"""GaLore: Adam on gradients that are projected on their leading singular directions, found anew every T steps.

"GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection", Zhao et al., ICML 2024, arXiv 2403.03507
(Algorithm 2). Written for W (L, d) with L >= d; a wide matrix is transposed.

    every T steps, the first among them:  P (d, r) = leading right singular vectors of G = dL/dW (L, d)
    g = G P (L, r)
    M = beta1 M + (1 - beta1) g,  V = beta2 V + (1 - beta2) g * g
    W = W - lr scale sqrt(1 - beta2^t) / (1 - beta1^t) (M / (sqrt(V) + eps)) P^T,  then  W = W - lr weight_decay W

Trained: everything; the target matrices as above, the rest with AdamW.
Per step: one step of each. M and V are not transformed when P changes.

Everything is as in the official code (github.com/jiaweizzhao/GaLore): eps is added to the uncorrected sqrt(V), decay
follows the step and is not scaled, the SVD is in float32.
Departures: a singular vector's sign, which decides what M means after the next refresh and which LAPACK leaves open,
is fixed by making its largest entry positive; the rest is stepped by the usual AdamW (eps 1e-8 after the correction);
the projection to r x r (``full``) is not offered; on the longer side (``side: reverse``) r may equal the shorter one,
for which the official back-projection fails.

Cost per matrix: m n parameters, 2 r max(m, n) + r min(m, n) state; O(m n r) operations per step, an SVD every T steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lrx.methods import parts
from lrx.methods.base import Method
from lrx.models.base import Backbone
from lrx.nn.matrix_optim import Matrices, MatrixOptimizer, adam, add_product, gradients


def right_vectors(G: Tensor, rank: int) -> Tensor:
    """The ``rank`` leading right singular vectors of G (N, L, d) as columns (N, d, rank), largest entries positive.

    NaN for a matrix that is not finite, for which LAPACK raises.
    """
    finite = G.isfinite().flatten(1).all(1)[:, None, None]
    P = torch.linalg.svd(torch.where(finite, G, torch.zeros_like(G)), full_matrices=False).Vh[:, :rank].mT
    largest = P.gather(-2, P.abs().argmax(-2, keepdim=True))
    return torch.where(finite, torch.where(largest < 0, -P, P), torch.nan)


class GaLoreOptimizer(MatrixOptimizer):
    """State per matrix: ``projector`` P (d, r), ``exp_avg`` and ``exp_avg_sq`` (L, r)."""

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        *,
        lr: float,
        weight_decay: float = 0.0,
        rank: int,
        every: int = 200,
        scale: float = 0.25,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        side: Literal["std", "reverse", "right", "left"] = "std",
    ) -> None:
        self.rank, self.every, self.scale, self.betas, self.eps, self.side = rank, every, scale, betas, eps, side
        super().__init__(params, lr=lr, weight_decay=weight_decay)

    def flips(self, m: int, n: int) -> bool:
        """``right`` projects the columns of W, ``left`` its rows; ``std`` the shorter side, ``reverse`` the longer."""
        return {"std": m < n, "reverse": m >= n, "right": False, "left": True}[self.side]

    def update(self, batch: Matrices, group: dict[str, Any]) -> None:
        G, t = gradients(batch), batch.count
        P = self.stacked("projector", batch, (batch.d, self.rank))
        if (t - 1) % self.every == 0:
            P.copy_(right_vectors(G, self.rank))
        direction = adam(self, batch, G @ P, self.betas, self.eps)
        step = group["lr"] * self.scale * math.sqrt(1 - self.betas[1] ** t) / (1 - self.betas[0] ** t)
        keep = 1 - group["lr"] * group["weight_decay"]
        add_product(batch, direction, P.mT, step=step * keep, keep=keep)


class GaLore(Method):
    """``lr``: of everything (``rest_lr``: null). ``rank``: r. ``every``: T, steps between refreshes of the projection.

    ``scale``: of the projected step. ``side``: the side that is projected: the shorter one (``std``), the longer one,
    or always the columns (``right``) or rows (``left``). ``head_lr``, ``rest_lr``: AdamW's rates for the task head and
    for all other parameters outside ``target_modules`` (null: ``lr``).
    """

    name: ClassVar[str] = "galore"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "GaLore (Zhao et al. 2024, arXiv 2403.03507)"
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
        every: int = 200,
        scale: float = 0.25,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-6,
        side: Literal["std", "reverse", "right", "left"] = "std",
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_rest(rest_lr)
        parts.check_beta("beta1", beta1)
        parts.check_beta("beta2", beta2)
        parts.check_eps(eps)
        parts.require(rank >= 1, "rank", rank, "the rank must be at least 1")
        parts.require(every >= 1, "every", every, "the projection is refreshed every 1 step or more")
        parts.require(0 < scale < math.inf, "scale", scale, "must be positive and finite")
        self.lr, self.weight_decay, self.head_lr, self.rest_lr = lr, weight_decay, head_lr, rest_lr
        self.rank, self.target_modules, self.every, self.scale = rank, target_modules, every, scale
        self.betas, self.eps, self.side = (beta1, beta2), eps, side

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        parts.train_all(backbone, self.target_modules, self.rank)

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        def matrices(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
            return GaLoreOptimizer(
                weights,
                lr=self.lr,
                weight_decay=self.weight_decay,
                rank=self.rank,
                every=self.every,
                scale=self.scale,
                betas=self.betas,
                eps=self.eps,
                side=self.side,
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
        long, short = {"std": (max(m, n), min(m, n)), "reverse": (min(m, n), max(m, n)), "right": (m, n)}.get(
            self.side, (n, m)
        )
        return 2 * self.rank * long + self.rank * short
