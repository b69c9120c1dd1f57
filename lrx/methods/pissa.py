"""PiSSA: LoRA that starts from the principal singular triplets of the matrix, which are taken out of what is frozen.

"PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models", Meng, Wang and Zhang,
NeurIPS 2024, arXiv 2404.02948 (section 3).

    W0 = U S V^T (m, n),  s = alpha / r
    (2) (3)  B0 = U_r sqrt(S_r / s) (m, r),  A0 = sqrt(S_r / s) V_r^T (r, n)       the r largest triplets
    (4)      W_res = W0 - s B0 A0                                                  frozen
    (5)      y = (W_res + s B A) x,  B = B0 and A = A0 at first                     the backbone's function

Trained: A, B and the task head, with AdamW; frozen: the rest.
Per step: one AdamW step.
Departures from the official code (github.com/GraphPKU/PiSSA, peft's ``init_lora_weights=pissa``): the residual is not
written into W0, which would round it (badly in half precision): the frozen factors B0, A0 are kept beside the trained
ones and y = W0 x + s (B A - B0 A0) x, in float32. This starts as the backbone to the last digit, leaves the backbone as
it was, and is a plain LoRA of rank 2 r for PEFT, to which the official code converts as well. Dropout, 0 in the
official scripts, acts on the input of B A - B0 A0, there on that of B A alone. The fast SVD (``niter``) is the official
one; ``niter: null`` is the exact decomposition.
Cost per matrix: r (m + n) parameters and as many frozen numbers, 2 r (m + n) state, twice LoRA's operations per token;
one decomposition at the start, O(m n min(m, n)), or O(m n r niter) with the fast SVD.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from lrx.methods import parts
from lrx.methods.base import Method, split_trainable
from lrx.models.base import Backbone
from lrx.nn.lowrank import anchors, lowrank_layers, matrix
from lrx.nn.optim import adamw
from lrx.nn.svd import truncated_svd


class PiSSA(Method):
    """Options as in ``lora``, and: ``niter``: subspace iterations of the fast SVD (null: exact)."""

    name: ClassVar[str] = "pissa"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "PiSSA (Meng et al. 2024, arXiv 2404.02948)"
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
        niter: int | None = None,
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_lowrank(rank, alpha, dropout)
        parts.require(niter is None or niter >= 0, "niter", niter, "iterations of the fast SVD, 0 or more; null: exact")
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr
        self.rank, self.alpha, self.dropout, self.target_modules = rank, alpha, dropout, target_modules
        self.niter = niter

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        parts.attach_lowrank(
            backbone,
            generator,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            target_modules=self.target_modules,
        )
        for _, layer in lowrank_layers(backbone.net):
            U, S, V = truncated_svd(matrix(layer.base), self.rank, iterations=self.niter, generator=generator)
            root = (S / layer.scaling).sqrt()
            layer.anchor(U * root, (V * root).mT)  # (2) (3)

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        factors, _ = split_trainable(backbone)
        part = adamw(factors, lr=self.lr, weight_decay=self.weight_decay)
        return parts.with_head([part], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        return super().adapter_state(backbone) | anchors(backbone.net)

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return self.rank * (m + n)

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * self.rank * (m + n)
