"""LoRA-RITE: an adaptive step for LoRA's factors that does not depend on which factors make up the product.

"LoRA Done RITE: Robust Invariant Transformation Equilibration for LoRA Optimization", Yen et al., ICLR 2025, arXiv
2410.20625 (Algorithm 1).

    W = W0 + s B A,  B (m, r),  A (r, n);  gA = dL/dA (r, n),  gB = dL/dB (m, r) from one backward pass
    B = Q_B R_B with orthonormal Q_B (m, r) and R_B = (B^T B)^(1/2)  (polar decomposition);  A^T = Q_A R_A likewise
    For A, with the old factors (B's step is the mirror image):
    (1)  U = R_B^+ gA                                        "unmagnified" gradient (r, n)
    (2)  T = Q_B^T Q_B_old                                   from the last step's basis to this one's
         V~ = T V T^T;  e = b2 (e + max(0, min(max_i (eig_i V - eig_i V~), tr V - tr V~)))     escaped mass
         V = b2 V~ + (1 - b2) U U^T / n                                                        (r, r)
    (3)  M = b1 T M + (1 - b1) (V + e I)^(-1/2) U            (r, n)
    (4)  A = A - lr (R_B^+ M + weight_decay A)
    b = beta (1 - beta^(t-1)) / (1 - beta^t) for b1, b2: the averages need no other correction; (V + e I)^(-1/2) is
    E diag(1 / (sqrt(w) + eps)) E^T for eigenvalues w and eigenvectors E

Trained: A, B and the task head (AdamW); frozen: the rest.
From the official code (github.com/gkevinyen5418/LoRA-RITE), and not in Algorithm 1: ``skip``: U is 0 where its root
mean square exceeds this; ``clip``: then all U of all pairs together have at most this norm; ``cap``: R_B^+ M in (4)
from an M of at most this root mean square; ``balance``: after (4) A and B are scaled to equal norms. 0 or false: off.
There the defaults are skip 1 and clip 1, kept here, and no escaped mass, which is in the paper (``escape``).
Departures: Q R factors there, polar ones (paper) here: the steps are the same, as every quantity turns with the basis.
The Gram matrices of the decomposition are in float64. A basis of a rank-deficient factor has rank-deficient columns
here, arbitrary ones there. Non-finite gradients propagate; there they become 0.
With B = 0 (the first step) R_B^+ = 0: A only decays.
Cost per matrix: r (m + n) parameters; state 2 r (m + n) + 2 r^2, and 2 with ``escape``; O((m + n) r^2 + r^3) operations
per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lrx.methods import parts
from lrx.methods.base import Method
from lrx.models.base import Backbone
from lrx.nn.lowrank import Pair
from lrx.nn.pair_optim import Batch, PairOptimizer, add, decay, gradients, stack
from lrx.nn.solve import symmetric_eigh


@dataclass
class Work:
    """One factor of N equal pairs between (1) and (4), as rows: written for A.

    ``inverse``: R_B^+ (N, r, r). ``basis``: Q_B^T (N, r, m). ``U`` (N, r, n).
    """

    batch: Batch
    inverse: Tensor
    basis: Tensor
    U: Tensor


class LoRARiteOptimizer(PairOptimizer):
    """Equations (1)-(4) over pairs of equal shapes at a time.

    State of A (of B alike): ``momentum`` (r, n), ``second`` (r, r), ``basis`` (r, m), the other factor's Q transposed
    at the last step, and with ``escape`` ``escaped`` (1,); of B the rows are (r, m) and (r, n).
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        escape: bool = True,
        skip: float = 1.0,
        clip: float = 1.0,
        cap: float = 0.0,
        balance: bool = False,
    ) -> None:
        super().__init__(pairs, lr=lr, weight_decay=weight_decay)
        self.betas, self.eps, self.escape = betas, eps, escape
        self.skip, self.clip, self.cap, self.balance = skip, clip, cap, balance

    def update(self, group: dict[str, Any]) -> None:
        # Every decomposition is taken before any factor moves, and the norm that is clipped is that of all pairs.
        work = [self._unmagnified(batch) for factor in self.moves(0) for batch in self.batches(factor)]
        if self.clip and work:
            norm = torch.stack([item.U.square().sum() for item in work]).sum().sqrt()
            for item in work:
                item.U *= torch.where(norm > self.clip, self.clip / norm, 1.0).to(item.U.dtype)
        for item in work:
            self._move(item, group["lr"], group["weight_decay"])
        if self.balance:
            for item in work:
                if item.batch.factor == "A":
                    _balance(item.batch)

    def _unmagnified(self, batch: Batch) -> Work:
        fixed = rows_of(stack(batch.fixed), turned=batch.factor == "A")
        inverse, basis = polar(fixed)
        U = inverse @ rows_of(gradients(batch), turned=batch.factor == "B")  # (1)
        if self.skip:
            rms = U.square().mean((1, 2), keepdim=True).sqrt()
            U = torch.where(rms > self.skip, torch.zeros_like(U), U)
        return Work(batch, inverse, basis, U)

    def _move(self, work: Work, lr: float, weight_decay: float) -> None:
        batch, U = work.batch, work.U
        b1, b2 = (beta * (1 - beta ** (batch.count - 1)) / (1 - beta**batch.count) for beta in self.betas)
        r, width = U.shape[1:]
        old = self.stacked("basis", batch, work.basis.shape[1:])
        momentum = self.stacked("momentum", batch, (r, width))
        second = self.stacked("second", batch, (r, r))
        transport = work.basis @ old.to(U.dtype).mT  # (2)
        before = second.to(U.dtype)
        carried = _symmetric(transport @ before @ transport.mT)
        V = torch.lerp(_symmetric(U @ U.mT / width), carried, b2)
        values, vectors = symmetric_eigh(V)
        if self.escape:
            values = values + self._escaped(batch, before, carried, b2)
        root = (vectors / (values.sqrt() + self.eps).unsqueeze(1)) @ vectors.mT
        M = torch.baddbmm(root @ U, transport, momentum.to(U.dtype), beta=1 - b1, alpha=b1)  # (3)
        second.copy_(V)
        momentum.copy_(M)
        old.copy_(work.basis)
        if self.cap:
            M = M / (M.square().mean((1, 2), keepdim=True).sqrt() / self.cap).clamp_min(1)
        step = rows_of(work.inverse @ M, turned=batch.factor == "B")
        decay(batch, 1 - lr * weight_decay)
        add(batch, step, step=lr)  # (4)

    def _escaped(self, batch: Batch, before: Tensor, carried: Tensor, b2: float) -> Tensor:
        """The escaped mass e (N, 1) after this step; ``before`` and ``carried`` are V and V~."""
        escaped = self.stacked("escaped", batch, (1,))
        eigenvalues = (symmetric_eigh(before)[0] - symmetric_eigh(carried)[0]).amax(1, keepdim=True)
        traces = (before - carried).diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
        lost = torch.minimum(eigenvalues, traces).clamp_min(0)
        escaped.copy_(b2 * (escaped.to(lost.dtype) + lost))
        return escaped.to(lost.dtype)


def rows_of(values: Tensor, *, turned: bool) -> Tensor:
    """(N, r, width), or with ``turned`` (N, width, r), as rows (N, r, width) and back."""
    return values.mT.contiguous() if turned else values


def polar(X: Tensor) -> tuple[Tensor, Tensor]:
    """Of X = R Q, rows (N, r, width) with R = (X X^T)^(1/2): R^+ (N, r, r) and Q = R^+ X.

    Singular values up to r eps of the largest count as zero, eps being that of float32: the Gram matrix is in float64,
    which knows them no better than that.
    """
    values, vectors = symmetric_eigh(X.double() @ X.double().mT)
    singular = values.sqrt()
    cutoff = X.shape[1] * torch.finfo(torch.float32).eps * singular.amax(1, keepdim=True)
    inverse = torch.where(singular > cutoff, 1 / singular, torch.zeros_like(singular))
    R = ((vectors * inverse.unsqueeze(1)) @ vectors.mT).to(X.dtype)
    return R, R @ X


def _symmetric(square: Tensor) -> Tensor:
    return (square + square.mT) / 2


def _balance(batch: Batch) -> None:
    """Scale A and B of each pair to the geometric mean of their Frobenius norms."""
    norms_A, norms_B = (torch.stack(torch._foreach_norm(p)) + 1e-6 for p in (batch.moving, batch.fixed))
    ratio = (norms_B / norms_A).sqrt()
    torch._foreach_mul_(batch.moving, list(ratio.unbind(0)))
    torch._foreach_mul_(batch.fixed, list((1 / ratio).unbind(0)))


class LoRARite(Method):
    """``beta1``, ``beta2``, ``eps``: of the averages. ``escape``: the escaped mass of Algorithm 1.

    ``skip``, ``clip``, ``cap``, ``balance``: additions of the official code; 0 or false for none.
    """

    name: ClassVar[str] = "lora_rite"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "LoRA-RITE (Yen et al. 2025, arXiv 2410.20625)"
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
        escape: bool = True,
        skip: float = 1.0,
        clip: float = 1.0,
        cap: float = 0.0,
        balance: bool = False,
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_lowrank(rank, alpha, dropout)
        parts.check_beta("beta1", beta1)
        parts.check_beta("beta2", beta2)
        parts.check_eps(eps)
        for key, value in (("skip", skip), ("clip", clip), ("cap", cap)):
            parts.check_nonnegative(key, value)
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr
        self.rank, self.alpha, self.dropout, self.target_modules = rank, alpha, dropout, target_modules
        self.beta1, self.beta2, self.eps, self.escape = beta1, beta2, eps, escape
        self.skip, self.clip, self.cap, self.balance = skip, clip, cap, balance

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
        factors = LoRARiteOptimizer(
            self.pairs(backbone),
            lr=self.lr,
            weight_decay=self.weight_decay,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            escape=self.escape,
            skip=self.skip,
            clip=self.clip,
            cap=self.cap,
            balance=self.balance,
        )
        return parts.with_head([factors], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return self.rank * (m + n)

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * self.rank * (m + n) + 2 * self.rank**2 + (2 if self.escape else 0)
