"""LoRA-Pro: LoRA factors are stepped so that their product changes as under full fine-tuning (AdamW form).

"LoRA-Pro: Are Low-Rank Adapters Properly Optimized?", Wang et al., ICLR 2025, arXiv 2407.18242 (Theorems 2.1 and 2.2).

    W = W0 + s B A,  B (m, r),  A (r, n);  gA = dL/dA = s B^T G (r, n),  gB = dL/dB = s G A^T (m, r),  G = dL/dW
    (1)  fA = (1/s^2) (B^T B)^-1 gA + X A
         fB = (1/s^2) (I - B (B^T B)^-1 B^T) gB (A A^T)^-1 - B X          for any X (r, r)
    (2)  E = s B fA + s fB A = G - (I - Pi_B) G (I - Pi_A)                equivalent gradient (m, n), independent of X
    (3)  M = beta1 M + (1 - beta1) E,  V = beta2 V + (1 - beta2) E * E    moments of the equivalent gradient (m, n)
         H = M / (1 - beta1^t) / (sqrt(V / (1 - beta2^t)) + eps)
    (4)  (1) again with gA = s B^T H, gB = s H A^T and the X that keeps fA, fB nearest to gA, gB:
         (B^T B) X + X (A A^T) = -(1/s^2) (B^T B)^-1 gA A^T
    (5)  A = A - lr (fA + weight_decay A),  B = B - lr (fB + weight_decay B)

Trained: A, B and the task head (AdamW); frozen: the rest. Inverses are (Gram + damping I)^+, the Sylvester equation is
undamped; one eigendecomposition of each Gram matrix serves both.
Departures from the official code (github.com/mrflogs/LoRA-Pro, inside its copy of DeepSpeed): bias corrections use t,
not t + 1; V is not fed a bfloat16-rounded gradient; s is the adapter's alpha/r, not 2; gradient clipping acts on the
raw gradients before the step, not on (4). Its special first step never runs there and, with B = 0, would not differ.
Cost per matrix: r (m + n) parameters, but 2 m n state: the moments of (3) live in the full matrix, so LoRA-Pro's memory
grows like full fine-tuning's; O(m n r) operations per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lrx.methods import parts
from lrx.methods.base import Method
from lrx.models.base import Backbone
from lrx.nn.lowrank import Pair
from lrx.nn.pair_optim import Batch, PairOptimizer, gradients, stack
from lrx.nn.solve import symmetric_eigh, symmetric_pinv, symmetric_sylvester

# Pairs of one batch together hold at most this many elements of m x n (64 MB in float32): the optimizer has about four
# temporaries of that size.
LARGEST = 2**24


class Adjustment:
    """Equation (1) for N equal pairs: B (N, m, r), A (N, r, n). Eigendecompositions once, then applied twice."""

    def __init__(self, B: Tensor, A: Tensor, scaling: float, damping: float) -> None:
        self.B, self.A, self.scaling = B, A, scaling
        self.BB, self.AA = symmetric_eigh(B.mT @ B), symmetric_eigh(A @ A.mT)
        self.BB_inverse = symmetric_pinv(self.BB[0] + damping, self.BB[1])
        self.AA_inverse = symmetric_pinv(self.AA[0] + damping, self.AA[1])

    def minimal(self, gA: Tensor, gB: Tensor) -> tuple[Tensor, Tensor]:
        """(fA, fB) with X = 0."""
        fA = self.BB_inverse @ gA / self.scaling**2
        gB_AA = gB @ self.AA_inverse
        fB = (gB_AA - self.B @ (self.BB_inverse @ (self.B.mT @ gB_AA))) / self.scaling**2
        return fA, fB

    def nearest(self, gA: Tensor, gB: Tensor) -> tuple[Tensor, Tensor]:
        """(fA, fB) with the X of (4)."""
        fA, fB = self.minimal(gA, gB)
        X = symmetric_sylvester(self.BB, self.AA, -fA @ self.A.mT)
        return fA + X @ self.A, fB - self.B @ X

    def equivalent(self, fA: Tensor, fB: Tensor) -> Tensor:
        """Equation (2), (N, m, n), as one product of inner dimension 2 r."""
        return (torch.cat([self.B, fB], -1) * self.scaling) @ torch.cat([fA, self.A], -2)


class LoRAProOptimizer(PairOptimizer):
    """Equations (1)-(5). State of a pair, kept with A: ``exp_avg`` and ``exp_avg_sq``, both (m, n)."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        damping: float = 1e-8,
    ) -> None:
        super().__init__(pairs, lr=lr, weight_decay=weight_decay, largest=LARGEST)
        self.betas, self.eps, self.damping = betas, eps, damping

    def update(self, group: dict[str, Any]) -> None:
        for batch in self.batches("A"):
            if any(B.grad is None for B in batch.fixed):
                raise RuntimeError("LoRA-Pro needs the gradients of both factors of a pair, and a B has none")
            self._step(batch, group["lr"], group["weight_decay"])

    def _step(self, batch: Batch, lr: float, weight_decay: float) -> None:
        B, A = stack(batch.fixed), stack(batch.moving)
        gB = stack([p.grad for p in batch.fixed if p.grad is not None])
        adjustment = Adjustment(B, A, batch.scaling, self.damping)
        E = adjustment.equivalent(*adjustment.minimal(gradients(batch), gB))  # (2)
        H = self._normalised(batch, E)  # (3)
        s = batch.scaling
        fA, fB = adjustment.nearest(s * (B.mT @ H), s * (H @ A.mT))  # (4)
        factors = [*batch.moving, *batch.fixed]
        if weight_decay:
            torch._foreach_mul_(factors, 1 - lr * weight_decay)
        steps = [f.to(p.dtype) for f, p in zip([*fA.unbind(0), *fB.unbind(0)], factors, strict=True)]
        torch._foreach_add_(factors, steps, alpha=-lr)  # (5)

    def _normalised(self, batch: Batch, E: Tensor) -> Tensor:
        (beta1, beta2), t = self.betas, batch.count
        M = self.stacked("exp_avg", batch, E.shape[1:])
        V = self.stacked("exp_avg_sq", batch, E.shape[1:])
        M.copy_(M.to(E.dtype).lerp_(E, 1 - beta1))
        V.copy_(V.to(E.dtype).mul_(beta2).addcmul_(E, E, value=1 - beta2))
        denominator = V.to(E.dtype).sqrt().div_((1 - beta2**t) ** 0.5).add_(self.eps)
        return torch.div(M.to(E.dtype), denominator, out=denominator).div_(1 - beta1**t)


class LoRAPro(Method):
    """``damping``: added to the Gram matrices' eigenvalues before they are inverted (not in the Sylvester equation)."""

    name: ClassVar[str] = "lora_pro"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "LoRA-Pro (Wang et al. 2025, arXiv 2407.18242), AdamW form"
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
        eps: float = 1e-8,
        damping: float = 1e-8,
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
        factors = LoRAProOptimizer(
            self.pairs(backbone),
            lr=self.lr,
            weight_decay=self.weight_decay,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            damping=self.damping,
        )
        return parts.with_head([factors], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return self.rank * (m + n)

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * m * n
