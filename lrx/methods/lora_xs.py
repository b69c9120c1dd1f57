"""LoRA-XS: a trained r x r matrix between two fixed bases, the leading singular vectors of the pretrained matrix.

"LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters", Bałazy et al. 2024, arXiv 2405.17604.

    y = W0 x + s B R A x,  W0 (m, n) frozen,  s = alpha / r
    W0 = U S V^T:  B = U_r (m, r),  A = S_r V_r^T (r, n)       fixed
    R (r, r) ~ N(0, init_std^2) at first, trained;  dL/dR = s B^T G A^T with G = dL/dW (m, n), never formed

Trained: R and the task head, with AdamW; frozen: the rest. The start is the backbone's function but for R's noise of
1e-5. A and B belong to the adapter's state; the product is a plain LoRA with B R in the place of B.
Per step: one AdamW step.
Departures from the official code (github.com/MohammadrezaBanaei/LoRA-XS): its singular vectors come from scikit-learn's
randomised solver (10 iterations, 10 more columns than the rank), which ``svd: randomized`` stands for, and are rounded
to the weight's precision; here they are exact and in float32. Its rule for signs (the largest entry of each column of B
is positive) is kept.
Cost per matrix: r^2 parameters, 2 r^2 state, O(r (m + n) + r^2) operations per token; the decomposition once.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from lrx.methods import parts
from lrx.methods.base import Method, split_trainable
from lrx.models.base import Backbone
from lrx.nn.core import CoreConv2d, CoreLinear, bases, core_layers, core_pairs
from lrx.nn.lowrank import Pair, matrix
from lrx.nn.optim import adamw
from lrx.nn.svd import truncated_svd


class LoRAXS(Method):
    """``rank``, ``alpha``, ``dropout``, ``target_modules``: as in ``lora``.

    ``init_std``: standard deviation of R at first. ``svd``: the full decomposition of each matrix, or subspace
    iteration, for large ones.
    """

    name: ClassVar[str] = "lora_xs"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "LoRA-XS (Bałazy et al. 2024, arXiv 2405.17604)"
    exact_at_init: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    peft_form: ClassVar[Literal["lora"] | None] = "lora"

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float = 0.0,
        head_lr: float | None = None,
        rank: int = 16,
        alpha: float = 16.0,
        dropout: float = 0.0,
        target_modules: str | list[str] = "all-linear",
        init_std: float = 1e-5,
        svd: Literal["exact", "randomized"] = "exact",
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_lowrank(rank, alpha, dropout)
        parts.check_nonnegative("init_std", init_std)
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr
        self.rank, self.alpha, self.dropout, self.target_modules = rank, alpha, dropout, target_modules
        self.init_std, self.svd = init_std, svd

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        parts.attach_lowrank(
            backbone,
            generator,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            target_modules=self.target_modules,
            linear=CoreLinear,
            conv=CoreConv2d,
        )
        iterations, oversample = (None, 0) if self.svd == "exact" else (10, 10)
        for _, layer in core_layers(backbone.net):
            U, S, V = truncated_svd(
                matrix(layer.base), self.rank, iterations=iterations, oversample=oversample, generator=generator
            )
            noise = torch.randn(self.rank, self.rank, generator=generator)
            layer.start(U, self.init_std * noise, S.unsqueeze(1) * V.mT)

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        cores, _ = split_trainable(backbone)
        part = adamw(cores, lr=self.lr, weight_decay=self.weight_decay)
        return parts.with_head([part], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        return super().adapter_state(backbone) | bases(backbone.net)

    def pairs(self, backbone: Backbone) -> list[Pair]:
        return list(core_pairs(backbone.net))

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return self.rank**2

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * self.rank**2
