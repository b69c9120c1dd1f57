"""AdaPreLoRA: the pair of factor steps nearest to Adafactor's full step, and of those the best balanced one.

"AdaPreLoRA: Adafactor Preconditioned Low-Rank Adaptation", Liu, Bian, Cai 2026, arXiv 2605.08734.

    W = W0 + s B A,  W0 (m, n) frozen,  B (m, r),  A (r, n),  s = alpha / r
    gA = (1/s) dL/dA = B^T G (r, n),  gB = (1/s) dL/dB = G A^T (m, r),  G = dL/dW (m, n)
    (1)  L = beta2 L + (1 - beta2) row means of (G~^2 + eps),  R likewise of the columns   (m,), (n,)
    (2)  P = diag(L / mean(L))^(1/2),  Q = diag(R / (1 - beta2^t))^(1/2)
         H(Y) = P Y Q is Adafactor's preconditioner, D = H^-1 G the full step, ||Y||_H^2 = tr(Y^T P Y Q)
    (3)  (dA, dB) minimises ||B dA + dB A - D||_H and, among the minimisers, ||dB A - B dA||_H:
         S_B = B^T P B,  S_A = A Q A^T                                                     (r, r)
         dA = S_B^-1 gA (Q^-1 - 1/2 A^T S_A^-1 A),   dB = (P^-1 - 1/2 B S_B^-1 B^T) gB S_A^-1
    (4)  A = (1 - lr weight_decay) A - (lr/s) dA,  B likewise, both from the same gradients
    ``form: adamw``:  in (3) the bias-corrected averages (beta1) of gA and gB in the place of gA and gB

The weight changes by -lr times the H-projection of D, independent of s:  B dA + dB A = D - (I - Pi_B) D (I - Pi_A).
Trained: A, B and the task head (AdamW); frozen: the rest.
G~ in (1): ``statistics: full`` takes G, gathered by hooks on the adapted layers: one more m x n product per layer and
backward pass, and one m x n buffer per layer until the step. It sees gradients before clipping and does not undo
float16's loss scaling. ``statistics: surrogate`` takes gB A + B gA, which the factors' gradients determine; its row and
column sums come from r x r Gram matrices and no m x n matrix is formed. The paper's Algorithm 1 names both. G is the
default: its row and column scales are what the preconditioner is for, while those of the surrogate follow A and B, so
that it neither keeps the advantage on badly scaled problems nor bounds the step when a factor grows.

Departures: not known, since neither the paper's full text nor official code was to be had. Reconstructed: Adafactor's
convention in (1) with a constant beta2 and its bias correction; the division by mean(L) in (2), which makes L R^T an
estimate of G^2; the damping of S_A, S_B relative to their mean eigenvalue; where the first moment enters. S_B = 0
(the first step) has the inverse 0: A stands still, B moves.
Cost per matrix: r (m + n) parameters; state m + n (``sgd``), (r + 1) (m + n) (``adamw``); O((m + n) r^2 + r^3)
operations per step, with ``full`` O(m n) more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lrx.methods import parts
from lrx.methods.base import Method
from lrx.models.base import Backbone
from lrx.nn.full_gradient import full_gradients, watch_full_gradients
from lrx.nn.lowrank import Pair
from lrx.nn.pair_optim import Batch, PairOptimizer, stack
from lrx.nn.solve import gram_inverse


class AdaPreLoRAOptimizer(PairOptimizer):
    """Equations (1)-(4) over pairs of equal shapes at a time.

    State of a pair, kept with A: ``row_mean`` (m,) and ``column_mean`` (n,), which are L and R; unless ``beta1`` is
    None, for no momentum, ``momentum_A`` (r, n) and ``momentum_B`` (r, m), the averages of dL/dA and (dL/dB)^T.
    ``full_gradient``: from a pair's A to G (m, n), called once per step; None for the surrogate.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        lr: float,
        weight_decay: float = 0.0,
        beta1: float | None = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-30,
        damping: float = 1e-6,
        full_gradient: Callable[[nn.Parameter], Tensor] | None = None,
    ) -> None:
        super().__init__(pairs, lr=lr, weight_decay=weight_decay)
        self.beta1, self.beta2, self.eps, self.damping = beta1, beta2, eps, damping
        self.full_gradient = full_gradient

    def update(self, group: dict[str, Any]) -> None:
        for batch in self.batches("A"):
            if any(B.grad is None for B in batch.fixed):
                raise RuntimeError("AdaPreLoRA needs the gradients of both factors of a pair, and a B has none")
            self._step(batch, group["lr"], group["weight_decay"])

    def _step(self, batch: Batch, lr: float, weight_decay: float) -> None:
        r, s = len(batch.moving[0]), batch.scaling
        X, Y = with_gradients(batch.moving, turned=False), with_gradients(batch.fixed, turned=True)
        p, q = self._preconditioner(batch, X, Y)
        A, gA, B, gB = X[:, :r], X[:, r:], Y[:, :r], Y[:, r:]
        correction = 1.0
        if self.beta1 is not None:
            gA, gB = self._averaged("momentum_A", batch, gA), self._averaged("momentum_B", batch, gB)
            correction = 1 - self.beta1**batch.count
        inverses = relative_inverse(torch.cat([(B * p) @ B.mT, (A * q) @ A.mT]), self.damping)
        inverse_B, inverse_A = inverses.chunk(2)
        # (3) as one product: [-1/2 S_B^-1 gA A^T S_A^-1, S_B^-1] [A; gA Q^-1], and its mirror image
        left_A = torch.cat([-0.5 * inverse_B @ (gA @ A.mT) @ inverse_A, inverse_B], 2)
        left_B = torch.cat([-0.5 * inverse_A @ (gB @ B.mT) @ inverse_B, inverse_A], 2)
        torch.div(gA, q, out=X[:, r:])
        torch.div(gB, p, out=Y[:, r:])
        dA, dB = left_A @ X, (left_B @ Y).mT.contiguous()
        factors = [*batch.moving, *batch.fixed]
        if weight_decay:
            torch._foreach_mul_(factors, 1 - lr * weight_decay)
        steps = [d.to(f.dtype) for d, f in zip([*dA.unbind(0), *dB.unbind(0)], factors, strict=True)]
        torch._foreach_add_(factors, steps, alpha=-lr / (s * s * correction))  # (4): X and Y hold s gA and s gB

    def _preconditioner(self, batch: Batch, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
        """The diagonals of P (N, 1, m) and Q (N, 1, n), after L and R have taken in this gradient."""
        n, m = X.shape[2], Y.shape[2]
        if self.full_gradient is None:
            rows, columns = surrogate_squares(X, Y)
            rows, columns = rows / batch.scaling**2, columns / batch.scaling**2
        else:
            full = [self.full_gradient(A).to(X.dtype).square_() for A in batch.moving]  # type: ignore[arg-type]
            rows = torch.stack([square.sum(1) for square in full])
            columns = torch.stack([square.sum(0) for square in full])
        L, R = self.stacked("row_mean", batch, (m,)), self.stacked("column_mean", batch, (n,))
        L.copy_(L.to(rows.dtype).lerp(rows / n + self.eps, 1 - self.beta2))  # (1)
        R.copy_(R.to(rows.dtype).lerp(columns / m + self.eps, 1 - self.beta2))
        P = (L / L.mean(1, keepdim=True)).sqrt_()  # (2): the bias of L cancels
        Q = (R / (1 - self.beta2**batch.count)).sqrt_()
        return P.unsqueeze(1).to(rows.dtype), Q.unsqueeze(1).to(rows.dtype)

    def _averaged(self, key: str, batch: Batch, g: Tensor) -> Tensor:
        """The average of ``g`` (N, r, width) so far, not corrected for its bias."""
        assert self.beta1 is not None
        momentum = self.stacked(key, batch, g.shape[1:])
        averaged = momentum.to(g.dtype).lerp_(g, 1 - self.beta1)
        return momentum.copy_(averaged).to(g.dtype)


def with_gradients(factors: Sequence[Tensor], *, turned: bool) -> Tensor:
    """Every factor above its gradient as (N, 2 r, width), a copy in at least float32. ``turned``: B (m, r), transposed.

    Rows of one layout, because products of narrow matrices (m, r) take two to three times as long.
    """
    both = stack([part for p in factors for part in (p, p.grad) if part is not None])
    if turned:
        both = both.mT.contiguous()
    return both.view(len(factors), 2 * both.shape[1], -1)


def surrogate_squares(X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """Row sums (N, m) and column sums (N, n) of the squares of gB A + B gA, without that (m, n) matrix.

    X = [A; gA] (N, 2 r, n) and Y = [B^T; gB^T] (N, 2 r, m). With Y' = [gB^T; B^T] the matrix is Y'^T X, and its column
    sums are the diagonal of X^T (Y' Y'^T) X; its row sums likewise.
    """

    def sums(X: Tensor, Y: Tensor) -> Tensor:
        gram = (Y @ Y.mT).unflatten(1, (2, -1)).unflatten(3, (2, -1)).flip(1, 3).flatten(3).flatten(1, 2)
        return torch.mul(gram @ X, X).sum(1).clamp_min_(0)  # rounding may leave less than nothing

    return sums(Y, X), sums(X, Y)


def relative_inverse(gram: Tensor, damping: float) -> Tensor:
    """``(gram + damping t I)^-1`` (N, r, r) with t = trace / r; 0 where the trace is 0."""
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    empty = mean == 0
    unit = torch.where(empty, 1.0, mean)
    return torch.where(empty, 0.0, gram_inverse(gram / unit, damping) / unit)


class AdaPreLoRA(Method):
    """``form``: with momentum (``adamw``) or without (``sgd``). ``beta1``: of the momentum.

    ``beta2``, ``eps``: of the row and column means of squared gradients. ``statistics``: from the full gradient or from
    the factors' gradients. ``damping``: added to the Gram matrices' diagonals, relative to their mean.
    """

    name: ClassVar[str] = "adaprelora"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "AdaPreLoRA (Liu et al. 2026, arXiv 2605.08734)"
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
        form: Literal["adamw", "sgd"] = "adamw",
        statistics: Literal["full", "surrogate"] = "full",
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-30,
        damping: float = 1e-6,
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_lowrank(rank, alpha, dropout)
        parts.check_beta("beta1", beta1)
        parts.check_beta("beta2", beta2)
        parts.check_eps(eps)
        parts.check_nonnegative("damping", damping)
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr
        self.rank, self.alpha, self.dropout, self.target_modules = rank, alpha, dropout, target_modules
        self.form, self.statistics = form, statistics
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
        if self.statistics == "full":
            watch_full_gradients(backbone.net)

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        factors = AdaPreLoRAOptimizer(
            self.pairs(backbone),
            lr=self.lr,
            weight_decay=self.weight_decay,
            beta1=self.beta1 if self.form == "adamw" else None,
            beta2=self.beta2,
            eps=self.eps,
            damping=self.damping,
            full_gradient=full_gradients(backbone.net) if self.statistics == "full" else None,
        )
        return parts.with_head([factors], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return self.rank * (m + n)

    def state_per_matrix(self, m: int, n: int) -> int:
        return (m + n) * (self.rank + 1 if self.form == "adamw" else 1)
