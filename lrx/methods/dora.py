"""DoRA: LoRA moves the direction of each row of a matrix, a trained magnitude gives it its length.

"DoRA: Weight-Decomposed Low-Rank Adaptation", Liu et al., ICML 2024, arXiv 2402.09353 (section 4).

    V = W0 + s B A,  W0 (m, n) frozen,  B (m, r) = 0 at first,  A (r, n) random at first,  s = alpha / r
    (5)  W = diag(p / ||V||) V,  p (m,) = ||W0|| at first                     norms of the rows, one for each output
    (6)  dL/dp = rowsum(G * V) / ||V||,  G = dL/dW (m, n)
         dL/dV = diag(p / ||V||) (G - (V / ||V||) (dL/dp))                    exact
    (11) dL/dV = diag(p / ||V||) G                                            the norm as a constant (section 4.3)

Trained: p, A, B and the task head, with AdamW; frozen: the rest, biases included. A starts as in ``method=lora``. A row
of V is what the paper calls a column, the weights of one output.
Per step: one AdamW step.
Departures from the official code (github.com/NVlabs/DoRA) and peft's ``use_dora``: none in the numbers but rounding;
``norm_gradient: constant`` is the official (11), ``exact`` the full gradient. Both form V at every step to take its
norms (peft and B A from an n x n identity too, one more copy of each for the backward pass); here they come from
||w_i + s b_i A||^2 = ||w_i||^2 + 2 s b_i (A w_i) + s^2 b_i (A A^T) b_i^T, with no m x n temporary. Weight decay, 0 in
the official script, falls on A and B, not on p. Dropout acts on (W - W0) x, as there; with it W0 is applied twice.
Cost per matrix: r (m + n) + m parameters, twice that state, O(m n r) operations per step for the norms.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from lrx.methods import parts
from lrx.methods.base import Method, split_trainable
from lrx.models.base import Backbone
from lrx.nn.dora import DoRAConv2d, DoRALinear, dora_layers
from lrx.nn.lowrank import Pair
from lrx.nn.optim import adamw


class DoRA(Method):
    """Options as in ``lora``, and: ``norm_gradient``: whether the rows' norms count as constants in the gradient."""

    name: ClassVar[str] = "dora"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "DoRA (Liu et al. 2024, arXiv 2402.09353)"
    exact_at_init: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    peft_form: ClassVar[Literal["lora"] | None] = None

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
        norm_gradient: Literal["constant", "exact"] = "constant",
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_lowrank(rank, alpha, dropout)
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr
        self.rank, self.alpha, self.dropout, self.target_modules = rank, alpha, dropout, target_modules
        self.norm_gradient = norm_gradient

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        parts.attach_lowrank(
            backbone,
            generator,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            target_modules=self.target_modules,
            linear=DoRALinear,
            conv=DoRAConv2d,
        )
        for layer in dora_layers(backbone.net):
            layer.detach_norm = self.norm_gradient == "constant"

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        adapter, _ = split_trainable(backbone)
        part = adamw(adapter, lr=self.lr, weight_decay=self.weight_decay)
        return parts.with_head([part], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def pairs(self, backbone: Backbone) -> list[Pair]:
        """None: the change of a matrix is not the product of its factors."""
        return []

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return self.rank * (m + n) + m

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * (self.rank * (m + n) + m)
