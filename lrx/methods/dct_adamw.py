"""DCT-AdamW and Trion: optimizers in a subspace that is chosen from the columns of one fixed cosine basis.

"FFT-based Dynamic Subspace Selection for Low-Rank Adaptive Optimization of Large Language Models", Modoranu et al.,
ICLR 2026, arXiv 2505.17967. Written for W (L, d) with L >= d; a wide matrix is transposed.

    Q (d, d): the orthonormal DCT basis as columns, one for all matrices of this size
    (1)  S = X Q,  I = the r columns of S with the largest l1 (or l2) norm,  x = S[:, I] (L, r),  Q_r = Q[:, I]

DCT-AdamW, step t:
    (2)  X = G + E;  I anew when t = 1 or t mod T = 0, otherwise x = X Q_r with the old I
    (3)  E = X - x Q_r^T                                     error feedback, if any
    (4)  M = M Q_old^T Q_r,  V = V Q_old^T Q_r               rotation, if any, when I is new
    (5)  M = beta1 M + (1 - beta1) x,  V = beta2 V + (1 - beta2) x * x
    (6)  W = (1 - lr weight_decay) W - lr c / (1 - beta1^t) (M / (sqrt(V) + eps c)) Q_r^T,  c = sqrt(1 - beta2^t)
Trion:
    (7)  M = M + G;  I and x from M by (1);  M = M - (1 - mu) x Q_r^T
    (8)  W = (1 - lr weight_decay) W - lr scale(m, n) NewtonSchulz(x) Q_r^T

Trained: everything; the target matrices as above, the rest with AdamW. Per step: one step of each.
(4) is a partial permutation, since Q is orthogonal: what belongs to vectors that stay moves to their new places, the
rest starts at 0. I is kept ascending, so that without rotation, too, results do not depend on the order of a search.

Departures from the official code (github.com/IST-DASLab/ISTA-DASLab-Optimizers, fft_low_rank): its
rotation writes a product over its own input, which gives 0 on a CPU, and it leaves I unsorted, so that without rotation
its numbers depend on topk. It multiplies by C (``basis: dct3``) where it does not use the FFT; Trion by C for
tall and C^T for wide matrices. With the FFT it scores by l1 whatever is asked, and Trion on a wide matrix then removes
rows of the wrong matrix; neither is reproduced. Its 8-bit error feedback has 16 levels and its 4-bit one returns
entries in another order; here they have 255 and 15 steps and keep the order. Its cosines are float32. Newton-Schulz
runs in bfloat16 there (``half: true``). Two shapes of Llama-3-8B and Qwen2.5-7B that it projects on the longer side are
treated as all others. Parameters that are no target are stepped by the usual AdamW.

Cost per matrix: m n parameters; state of DCT-AdamW 2 r max(m, n) and r integers, with error feedback m n more (8 bits:
m n bytes, 4 bits: m n / 2 bytes, and 2 m numbers), of Trion m n; O(m n log d + m n r) operations per step.
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
from lrx.nn import dct
from lrx.nn.matrix_optim import Matrices, MatrixOptimizer, adam, add_product, gradients
from lrx.nn.polar import Shape, polar, shape_factor
from lrx.nn.quantize import dequantize, quantize

ErrorFeedback = Literal["none", "full", "8bit", "4bit"]


class DCTAdamWOptimizer(MatrixOptimizer):
    """Equations (1)-(6). State per matrix: ``indices`` I (r,) int32, ``exp_avg`` and ``exp_avg_sq`` (L, r).

    With error feedback also ``error`` (m, n), or its ``codes`` and ``range``.
    """

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        *,
        lr: float,
        weight_decay: float = 0.0,
        rank: int,
        every: int = 1,
        rotate: bool = True,
        error_feedback: ErrorFeedback = "none",
        norm: dct.Norm = "l1",
        transform: dct.Transform = "fft",
        basis: dct.Basis = "dct2",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.rank, self.every, self.rotate, self.error_feedback = rank, every, rotate, error_feedback
        self.norm, self.transform, self.basis, self.betas, self.eps = norm, transform, basis, betas, eps

    def update(self, batch: Matrices, group: dict[str, Any]) -> None:
        X, t, d = gradients(batch), batch.count, batch.d
        if self.error_feedback != "none":
            X = X + batch.turn(self._error(batch))  # (2)
        indices = self.stacked("indices", batch, (self.rank,), torch.int32)
        if t == 1 or t % self.every == 0:
            chosen, x = dct.select(X, self.rank, norm=self.norm, basis=self.basis, transform=self.transform)  # (1)
            if self.rotate and t > 1:  # (4)
                old = indices.long()
                for key in ("exp_avg", "exp_avg_sq"):
                    moment = self.stacked(key, batch, (batch.L, self.rank))
                    moment.copy_(dct.carry(moment, old, chosen))
            indices.copy_(chosen)
            rows = dct.vectors(chosen, d, self.basis, X.dtype)
        else:
            rows = dct.vectors(indices.long(), d, self.basis, X.dtype)
            x = X @ rows.mT
        if self.error_feedback != "none":
            self._keep_error(batch, batch.turn(torch.baddbmm(X, x, rows, alpha=-1)))  # (3)
        corrected = math.sqrt(1 - self.betas[1] ** t)
        direction = adam(self, batch, x, self.betas, self.eps * corrected)  # (5)
        step = group["lr"] * corrected / (1 - self.betas[0] ** t)
        add_product(batch, direction, rows, step=step, keep=1 - group["lr"] * group["weight_decay"])  # (6)

    @property
    def _bits(self) -> int:
        return 8 if self.error_feedback == "8bit" else 4

    def _error(self, batch: Matrices) -> Tensor:
        """E (N, m, n)."""
        if self.error_feedback == "full":
            return self.stacked("error", batch, (batch.m, batch.n))
        return dequantize(*self._stored(batch), self._bits, batch.n)

    def _keep_error(self, batch: Matrices, E: Tensor) -> None:
        if self.error_feedback == "full":
            self.stacked("error", batch, (batch.m, batch.n)).copy_(E)
            return
        for stored, value in zip(self._stored(batch), quantize(E, self._bits), strict=True):
            stored.copy_(value)

    def _stored(self, batch: Matrices) -> tuple[Tensor, Tensor]:
        width = batch.n if self._bits == 8 else (batch.n + 1) // 2
        codes = self.stacked("codes", batch, (batch.m, width), torch.uint8)
        return codes, self.stacked("range", batch, (batch.m, 2))


class TrionOptimizer(MatrixOptimizer):
    """Equations (1), (7) and (8). State per matrix: ``momentum`` (m, n)."""

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        *,
        lr: float,
        weight_decay: float = 0.0,
        rank: int,
        mu: float = 0.95,
        steps: int = 5,
        scale: Shape = "kj",
        norm: dct.Norm = "l1",
        transform: dct.Transform = "fft",
        basis: dct.Basis = "dct2",
        half: bool = False,
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.rank, self.mu, self.steps, self.scale = rank, mu, steps, scale
        self.norm, self.transform, self.basis, self.half = norm, transform, basis, half

    def update(self, batch: Matrices, group: dict[str, Any]) -> None:
        M = batch.turn(self.stacked("momentum", batch, (batch.m, batch.n)))
        M += gradients(batch)  # (7)
        chosen, x = dct.select(M, self.rank, norm=self.norm, basis=self.basis, transform=self.transform)
        rows = dct.vectors(chosen, batch.d, self.basis, M.dtype)
        M.baddbmm_(x, rows, alpha=-(1 - self.mu))
        o = polar(x, "empirical", self.steps, half=self.half)
        step = group["lr"] * shape_factor(batch.m, batch.n, self.scale)
        add_product(batch, o, rows, step=step, keep=1 - group["lr"] * group["weight_decay"])  # (8)


def _check(rank: int, transform: str, basis: str) -> None:
    parts.require(rank >= 1, "rank", rank, "the rank must be at least 1")
    accepted = "the FFT gives coefficients in the DCT-II basis; use basis=dct2 or transform=matmul"
    parts.require(transform == "matmul" or basis == "dct2", "basis", basis, accepted)


class DCTAdamW(Method):
    """``rank``: r. ``every``: T, steps between choices of the subspace. ``rotate``: moments follow their vectors.

    ``error_feedback``: what the projection drops is added to the next gradient; kept in full or in 8 or 4 bits.
    ``norm``: of the columns, by which they are ranked. ``transform``, ``basis``: coefficients by FFT (DCT-II only) or
    by a product with the basis. ``head_lr``, ``rest_lr``: AdamW's rates for the task head and for all other parameters
    outside ``target_modules`` (null: ``lr``).
    """

    name: ClassVar[str] = "dct_adamw"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "DCT-AdamW (Modoranu et al. 2025, arXiv 2505.17967)"
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
        every: int = 1,
        rotate: bool = True,
        error_feedback: Literal["none", "full", "8bit", "4bit"] = "none",
        norm: Literal["l1", "l2"] = "l1",
        transform: Literal["fft", "matmul"] = "fft",
        basis: Literal["dct2", "dct3"] = "dct2",
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_rest(rest_lr)
        parts.check_beta("beta1", beta1)
        parts.check_beta("beta2", beta2)
        parts.check_eps(eps)
        parts.require(every >= 1, "every", every, "a subspace is kept for 1 step or more")
        _check(rank, transform, basis)
        self.lr, self.weight_decay, self.head_lr, self.rest_lr = lr, weight_decay, head_lr, rest_lr
        self.rank, self.target_modules, self.every, self.rotate = rank, target_modules, every, rotate
        self.error_feedback, self.norm, self.transform, self.basis = error_feedback, norm, transform, basis
        self.betas, self.eps = (beta1, beta2), eps

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        parts.train_all(backbone, self.target_modules, self.rank)

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        def matrices(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
            return DCTAdamWOptimizer(
                weights,
                lr=self.lr,
                weight_decay=self.weight_decay,
                rank=self.rank,
                every=self.every,
                rotate=self.rotate,
                error_feedback=self.error_feedback,
                norm=self.norm,
                transform=self.transform,
                basis=self.basis,
                betas=self.betas,
                eps=self.eps,
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
        """The indices count as r elements, quantised errors as bytes in which they are."""
        error = {"none": 0, "full": m * n, "8bit": m * n + 2 * m, "4bit": m * ((n + 1) // 2) + 2 * m}
        return 2 * self.rank * max(m, n) + self.rank + error[self.error_feedback]


class Trion(Method):
    """``rank``: r. ``mu``: momentum. ``steps``: Newton-Schulz iterations, in bfloat16 with ``half``.

    ``scale``: factor of a step by the matrix's shape: sqrt(max(1, m/n)) (``kj``), 0.2 sqrt(max(m, n)) (``kimi``),
    sqrt(m/n) (``dion``) or 1. Other options as in ``dct_adamw``.
    """

    name: ClassVar[str] = "trion"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Trion (Modoranu et al. 2025, arXiv 2505.17967)"
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
        steps: int = 5,
        scale: Literal["kj", "kimi", "dion", "none"] = "kj",
        norm: Literal["l1", "l2"] = "l1",
        transform: Literal["fft", "matmul"] = "fft",
        basis: Literal["dct2", "dct3"] = "dct2",
        half: bool = False,
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_rest(rest_lr)
        parts.check_beta("mu", mu)
        parts.require(steps >= 1, "steps", steps, "Newton-Schulz takes at least 1 step")
        _check(rank, transform, basis)
        self.lr, self.weight_decay, self.head_lr, self.rest_lr = lr, weight_decay, head_lr, rest_lr
        self.rank, self.target_modules, self.mu, self.steps, self.scale = rank, target_modules, mu, steps, scale
        self.norm, self.transform, self.basis, self.half = norm, transform, basis, half

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        parts.train_all(backbone, self.target_modules, self.rank)

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        def matrices(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
            return TrionOptimizer(
                weights,
                lr=self.lr,
                weight_decay=self.weight_decay,
                rank=self.rank,
                mu=self.mu,
                steps=self.steps,
                scale=self.scale,
                norm=self.norm,
                transform=self.transform,
                basis=self.basis,
                half=self.half,
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
        return m * n
