"""AltLoRA: each step moves one LoRA factor, along the full gradient's projection on what that factor can reach.

"AltLoRA: Towards Better Gradient Approximation in Low-Rank Adaptation with Alternating Projections", Yu et al.,
NeurIPS 2025, arXiv 2505.12455 (Algorithms 1 and 2).

    W = W0 + s B A,  W0 (k, d) frozen,  B (k, r),  A (r, d),  s = alpha / r
    gA = dL/dA = s B^T G (r, d),  gB = dL/dB = s G A^T (k, r);  G = dL/dW (k, d) is never formed

A step of A solves min_g ||s B g - G||^2 + damping ||s g||^2 from gA alone (a step of B is its mirror image):

    (1)  g~ = (1/s^2) (B^T B + damping I)^-1 gA             projected gradient
    (2)  M~ = (B^T B + damping I)^-1 B^T B_old M            momentum, carried from the old basis B_old to B
    (3)  M  = beta1 M~ + (1 - beta1) g~
    (4)  A  = A - lr (M + weight_decay A),  B_old = B
    AltLoRA+:  V = beta2 V + (1 - beta2) g~ * g~,  and in (4) M / (sqrt(V) + eps) in the place of M

Trained: A, B and the task head (AdamW); frozen: the rest.
Per step: the idle factor's gradient is dropped before clipping, then the moving factor of every pair is stepped.
Factors take turns at every step, A first. With B = 0 the first step of A changes nothing (gA = 0).

Departures from the official code (github.com/LucasXinYu/AltLoRA): the defaults are the paper's; where the code differs,
options reproduce it: ``mode: joint`` (both factors from one backward pass, B's Gram matrix from the moved A),
``use_scale: false`` (no 1/s^2), ``bias_correction`` (lr / (1 - beta1^t); none for V), ``decay: after`` (p (1 - lr
weight_decay) after the update), damping 1e-5, in AltLoRA+ ``momentum: untransported`` (M~ enters the update, but M
without transport is stored), and ``flip_every: 10`` (its trainer alternates in phases of ten steps; that it trains both
factors until the first flip is not reproduced). Its learning rate ignores schedulers; here it is read from the
parameter group. A Gram matrix that is singular without damping is inverted by its pseudo-inverse (the official code
falls back to the identity); non-finite gradients propagate as in AdamW.

Cost per matrix: r (k + d) parameters; state 2 r (k + d), AltLoRA+ 3 r (k + d), half of the first being the basis
copies; O((k + d) r^2 + r^3) operations per step, and no k x d buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from lrx.methods import parts
from lrx.methods.base import Method
from lrx.models.base import Backbone
from lrx.nn.lowrank import Pair
from lrx.nn.optim import CompositeOptimizer
from lrx.nn.pair_optim import Batch, Factor, PairOptimizer, add, decay, gradients, stack
from lrx.nn.solve import gram_inverse


@dataclass(frozen=True)
class SecondMoment:
    """What AltLoRA+ adds: V and its use.

    ``correct``: divide V by 1 - beta2^t. ``keep_transported``: store the average with M~ (else with M).
    """

    beta2: float = 0.999
    eps: float = 1e-6
    correct: bool = False
    keep_transported: bool = True


class AltLoRAOptimizer(PairOptimizer):
    """Algorithms 1 (``second=None``) and 2 over pairs of equal shapes at a time.

    State per factor: ``momentum`` (the factor's shape), ``basis`` (the other factor at the last update, its shape),
    with ``second`` also ``second`` (the factor's shape); all start at 0. Gram matrices and their inverses are computed
    in float32 (float64 for float64 factors).
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        lr: float,
        weight_decay: float = 0.0,
        beta1: float = 0.9,
        damping: float = 1e-6,
        first: Factor = "A",
        mode: Literal["alternate", "joint"] = "alternate",
        flip_every: int = 1,
        bias_correction: bool = False,
        use_scale: bool = True,
        decay_after: bool = False,
        second: SecondMoment | None = None,
    ) -> None:
        super().__init__(pairs, lr=lr, weight_decay=weight_decay)
        self.beta1, self.damping, self.second = beta1, damping, second
        self.order: tuple[Factor, Factor] = ("A", "B") if first == "A" else ("B", "A")
        self.mode, self.flip_every = mode, flip_every
        self.bias_correction, self.use_scale, self.decay_after = bias_correction, use_scale, decay_after

    def moves(self, call: int) -> tuple[Factor, ...]:
        if self.mode == "joint":
            return self.order
        return (self.order[call // self.flip_every % 2],)

    def update(self, group: dict[str, Any]) -> None:
        for factor in self.moves(group["calls"]):
            for batch in self.batches(factor):  # a later factor's Gram matrix sees the earlier one moved
                self._move(batch, group["lr"], group["weight_decay"])

    def _move(self, batch: Batch, lr: float, weight_decay: float) -> None:
        """One factor of N equal pairs: written for A; for B, products from the left are ones from the right."""
        beta1, fixed = self.beta1, stack(batch.fixed)
        X = batch.rows_of_fixed(fixed)  # B^T, or A for a step of B
        basis = self.stacked("basis", batch, fixed.shape[1:])
        momentum = self.stacked("momentum", batch)
        M = momentum.to(X.dtype)
        inverse = gram_inverse(X @ X.mT, self.damping)

        scale = batch.scaling**2 if self.use_scale else 1.0
        g = batch.from_left(inverse / scale, gradients(batch))  # (1)
        transport = inverse @ (X @ batch.rows_of_fixed(basis).to(X.dtype).mT)  # (2): M~ = transport M
        averaged = batch.from_left(beta1 * transport, M).add_(g, alpha=1 - beta1)  # (3)
        direction = averaged
        if self.second is not None:
            direction = averaged / self._root_mean_square(batch, g, self.second)
            if not self.second.keep_transported:
                averaged = torch.lerp(g, M, beta1)
        momentum.copy_(averaged)
        basis.copy_(fixed)

        step = lr / (1 - beta1**batch.count) if self.bias_correction else lr
        if not self.decay_after:
            decay(batch, 1 - lr * weight_decay)
        add(batch, direction, step=step)  # (4)
        if self.decay_after:
            decay(batch, 1 - lr * weight_decay)

    def _root_mean_square(self, batch: Batch, g: torch.Tensor, second: SecondMoment) -> torch.Tensor:
        """``sqrt(V) + eps`` in the layout of the moving factors, after V has taken in ``g``."""
        V = self.stacked("second", batch)
        averaged = V.to(g.dtype).mul(second.beta2).addcmul_(g, g, value=1 - second.beta2)
        V.copy_(averaged)
        if second.correct:
            averaged /= 1 - second.beta2**batch.count
        return averaged.sqrt_().add_(second.eps)


def _drop_idle(optimizer: torch.optim.Optimizer) -> None:
    members = optimizer.parts if isinstance(optimizer, CompositeOptimizer) else [optimizer]
    for part in members:
        if isinstance(part, PairOptimizer):
            part.drop_idle_gradients()


class AltLoRA(Method):
    """Algorithm 1: projected gradients with transported momentum.

    ``lr``: rate of the factors. AltLoRA has no element-wise scaling, so it wants 10 to 100 times AdamW's rate.
    ``head_lr``: AdamW's rate for the task head (null: ``lr``). ``beta1``: momentum. ``damping``: added to the Gram
    matrices' diagonals. ``first``: the factor that moves first. ``mode``: one factor per step, or both from one
    backward pass. ``flip_every``: steps before the factors change turns. ``bias_correction``: steps of lr / (1 -
    beta1^t).
    ``use_scale``: the factor 1/s^2. ``decay``: weight decay of the old value (paper) or after the update (official
    code).
    """

    name: ClassVar[str] = "altlora"
    version: ClassVar[int] = 2
    paper: ClassVar[str] = "AltLoRA (Yu et al. 2025, arXiv 2505.12455), Algorithm 1"
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
        damping: float = 1e-6,
        first: Literal["A", "B"] = "A",
        mode: Literal["alternate", "joint"] = "alternate",
        flip_every: int = 1,
        bias_correction: bool = False,
        use_scale: bool = True,
        decay: Literal["before", "after"] = "before",
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_lowrank(rank, alpha, dropout)
        parts.check_beta("beta1", beta1)
        parts.check_nonnegative("damping", damping)
        parts.require(flip_every >= 1, "flip_every", flip_every, "a factor's turn lasts at least 1 step")
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr
        self.rank, self.alpha, self.dropout, self.target_modules = rank, alpha, dropout, target_modules
        self.beta1, self.damping, self.first, self.mode, self.flip_every = beta1, damping, first, mode, flip_every
        self.bias_correction, self.use_scale, self.decay = bias_correction, use_scale, decay

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
        factors = AltLoRAOptimizer(
            self.pairs(backbone),
            lr=self.lr,
            weight_decay=self.weight_decay,
            beta1=self.beta1,
            damping=self.damping,
            first=self.first,
            mode=self.mode,
            flip_every=self.flip_every,
            bias_correction=self.bias_correction,
            use_scale=self.use_scale,
            decay_after=self.decay == "after",
        )
        return parts.with_head([factors], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def before_step(self, backbone: Backbone, optimizer: torch.optim.Optimizer, step: int) -> None:
        _drop_idle(optimizer)

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return self.rank * (m + n)

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * self.rank * (m + n)


class AltLoRAPlus(Method):
    """Algorithm 2: Algorithm 1 with Adam's element-wise second moment on the projected gradient.

    Options as in ``altlora``, and: ``beta2``, ``eps``: of the second moment. ``bias_correction``: none (paper), of the
    first moment (official code) or of both (as in Adam). ``momentum``: what is stored, the transported average (paper)
    or the untransported one (official code).
    """

    name: ClassVar[str] = "altlora_plus"
    version: ClassVar[int] = 2
    paper: ClassVar[str] = "AltLoRA+ (Yu et al. 2025, arXiv 2505.12455), Algorithm 2"
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
        first: Literal["A", "B"] = "A",
        mode: Literal["alternate", "joint"] = "alternate",
        flip_every: int = 1,
        bias_correction: Literal["none", "first", "both"] = "none",
        use_scale: bool = True,
        decay: Literal["before", "after"] = "before",
        momentum: Literal["transported", "untransported"] = "transported",
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_lowrank(rank, alpha, dropout)
        parts.check_beta("beta1", beta1)
        parts.check_beta("beta2", beta2)
        parts.check_eps(eps)
        parts.check_nonnegative("damping", damping)
        parts.require(flip_every >= 1, "flip_every", flip_every, "a factor's turn lasts at least 1 step")
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr
        self.rank, self.alpha, self.dropout, self.target_modules = rank, alpha, dropout, target_modules
        self.beta1, self.damping, self.first, self.mode, self.flip_every = beta1, damping, first, mode, flip_every
        self.bias_correction, self.use_scale, self.decay = bias_correction, use_scale, decay
        self.second = SecondMoment(
            beta2, eps, correct=bias_correction == "both", keep_transported=momentum == "transported"
        )

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
        factors = AltLoRAOptimizer(
            self.pairs(backbone),
            lr=self.lr,
            weight_decay=self.weight_decay,
            beta1=self.beta1,
            damping=self.damping,
            first=self.first,
            mode=self.mode,
            flip_every=self.flip_every,
            bias_correction=self.bias_correction != "none",
            use_scale=self.use_scale,
            decay_after=self.decay == "after",
            second=self.second,
        )
        return parts.with_head([factors], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def before_step(self, backbone: Backbone, optimizer: torch.optim.Optimizer, step: int) -> None:
        _drop_idle(optimizer)

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return self.rank * (m + n)

    def state_per_matrix(self, m: int, n: int) -> int:
        return 3 * self.rank * (m + n)
