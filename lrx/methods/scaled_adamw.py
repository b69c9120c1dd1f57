"""ScaledAdamW: AdamW on LoRA gradients that are preconditioned by the Gram matrix of the other factor.

"Riemannian Preconditioned LoRA for Fine-Tuning Foundation Models", Zhang and Pilanci, ICML 2024, arXiv 2402.02347.

    W = W0 + s B A,  B (m, r),  A (r, n);  gA = dL/dA (r, n),  gB = dL/dB (m, r) from one backward pass
    (1)  gA~ = (B^T B + damping I)^-1 gA,   gB~ = gB (A A^T + damping I)^-1
    (2)  M = beta1 M + (1 - beta1) g~,      V = beta2 V + (1 - beta2) g~ * g~
    (3)  p = p - lr sqrt(1 - beta2^t) / (1 - beta1^t) M / (sqrt(V) + eps),  then  p = (1 - lr weight_decay) p

Trained: A, B and the task head (AdamW); frozen: the rest. Per step: A, then B.
eps stands outside the bias correction (PyTorch's AdamW divides V first), decay comes last: both as in the official code
(github.com/pilancilab/Riemannian_Preconditioned_LoRA), with bias correction as in its GPT-2 runs.
Departure from the official code: there B's Gram matrix is formed from a view of A after A has moved (and decayed);
``b_gram: moved`` does the same, the default ``old`` takes both Gram matrices at the point of the gradients, as the
paper writes it. The official code's GPT-2 classes treat the factors of a fused query-value matrix as two stacked heads;
here every matrix is a pair of its own. There is no factor 1/s^2. A singular Gram matrix without damping gets its
pseudo-inverse (the official code: the identity).
Cost per matrix: r (m + n) parameters, 2 r (m + n) state, O((m + n) r^2 + r^3) operations per step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lrx.methods import parts
from lrx.methods.base import Method
from lrx.models.base import Backbone
from lrx.nn.lowrank import Pair
from lrx.nn.pair_optim import Batch, PairOptimizer, add, decay, gradients, stack
from lrx.nn.solve import gram_inverse


class ScaledAdamWOptimizer(PairOptimizer):
    """Equations (1)-(3). State per factor: ``exp_avg`` and ``exp_avg_sq``, the factor's shape."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        damping: float = 1e-6,
        bias_correction: bool = True,
        b_gram: Literal["old", "moved"] = "old",
    ) -> None:
        super().__init__(pairs, lr=lr, weight_decay=weight_decay)
        self.betas, self.eps, self.damping = betas, eps, damping
        self.bias_correction, self.b_gram = bias_correction, b_gram

    def update(self, group: dict[str, Any]) -> None:
        for batches in self.joint_batches():
            work: Iterable[tuple[Batch, Tensor]] = ((batch, self._precondition(batch)) for batch in batches)
            if self.b_gram == "old":
                work = list(work)  # both Gram matrices of a pair are taken before either factor moves
            for batch, g in work:
                self._adamw(batch, g, group["lr"], group["weight_decay"])

    def _precondition(self, batch: Batch) -> Tensor:
        X = batch.rows_of_fixed(stack(batch.fixed))
        return batch.from_left(gram_inverse(X @ X.mT, self.damping), gradients(batch))  # (1)

    def _adamw(self, batch: Batch, g: Tensor, lr: float, weight_decay: float) -> None:
        (beta1, beta2), t = self.betas, batch.count
        exp_avg, exp_avg_sq = self.stacked("exp_avg", batch), self.stacked("exp_avg_sq", batch)
        M = exp_avg.to(g.dtype).lerp(g, 1 - beta1)  # (2)
        V = exp_avg_sq.to(g.dtype).mul(beta2).addcmul_(g, g, value=1 - beta2)
        exp_avg.copy_(M)
        exp_avg_sq.copy_(V)
        step = lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t) if self.bias_correction else lr
        add(batch, M.div_(V.sqrt_().add_(self.eps)), step=step)  # (3)
        decay(batch, 1 - lr * weight_decay)


class ScaledAdamW(Method):
    """``damping``: added to the Gram matrices' diagonals. ``b_gram``: B's Gram matrix from the old or the moved A."""

    name: ClassVar[str] = "scaled_adamw"
    version: ClassVar[int] = 2
    paper: ClassVar[str] = "Riemannian Preconditioned LoRA (Zhang and Pilanci 2024, arXiv 2402.02347)"
    exact_at_init: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    peft_form: ClassVar[Literal["lora"] | None] = "lora"

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float = 0.0,
        head_lr: float | None = None,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        target_modules: str | list[str] = "all-linear",
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-6,
        damping: float = 1e-6,
        bias_correction: bool = True,
        b_gram: Literal["old", "moved"] = "old",
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_lowrank(rank, alpha, dropout)
        parts.check_beta("beta1", beta1)
        parts.check_beta("beta2", beta2)
        parts.check_eps(eps)
        parts.check_nonnegative("damping", damping)
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr
        self.rank, self.alpha, self.dropout, self.target_modules = rank, alpha, dropout, target_modules
        self.beta1, self.beta2, self.eps, self.damping = beta1, beta2, eps, damping
        self.bias_correction, self.b_gram = bias_correction, b_gram

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        parts.attach_lowrank(
            backbone,
            generator,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            target_modules=self.target_modules,
        )

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        factors = ScaledAdamWOptimizer(
            self.pairs(backbone),
            lr=self.lr,
            weight_decay=self.weight_decay,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            damping=self.damping,
            bias_correction=self.bias_correction,
            b_gram=self.b_gram,
        )
        return parts.with_head([factors], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return self.rank * (m + n)

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * self.rank * (m + n)
