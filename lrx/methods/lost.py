"""LOST: each linear layer becomes a low-rank path and a dense path over a few input channels, both from one SVD.

"LOST: Low-rank and Sparse Pre-training for Large Language Models", Li et al. 2025, arXiv 2508.02668.

    W = sum_i s_i u_i v_i^T (m, n), the layer's initial weight, s descending; x (n,)
    B0 = U_r S_r^(1/2) (m, r),  A0 = S_r^(1/2) V_r^T (r, n)
    W_comp = sum of s_i u_i v_i^T, i = r+1 .. r+k,  k = min(band, min(m, n) - r)
    I = the K channels j with the largest ||W_comp[:, j]||_2,  K = max(1, floor(sparsity n)),  W_s = W[:, I] (m, K)
    pre-training  y = gamma B act(A x) + (1 - gamma) W_s x[I] + bias
    fine-tuning   y = W0 x + bias + (alpha / r) (gamma B act(A x) + (1 - gamma) W_s x[I]),  W0 = W frozen

Trained: A, B, W_s with AdamW; in the pre-training form also everything that is not a target (biases and norms without
decay), in the fine-tuning form only the task head besides. I is chosen once, stays, and belongs to the stored state.
Per step: one AdamW step. The fine-tuning form subtracts nothing from W0, so it does not start as the backbone.

Departures: not known, since the text of the paper was not at hand. The layer, its start and the choice of channels
are those of the first author's fine-tuning code (github.com/JiaxiLi1/elsa_finetuning,
hybrid_lowrank_sparse_adapter.py); that the paper's own runs do the same is an assumption, and gamma, K, r and the
rates of those runs are not known. Open choices are options: ``gamma``, ``sparsity`` or ``channels``, ``band``,
``band_from``, ``channel_choice``, ``sparse_from`` (the code takes W, a review asks why not W_comp), ``activation``
(SiLU; the code can leave it out). Here the signs of the singular vectors are fixed (the largest entry of u_i is
positive): with an activation that is not odd the function depends on them, and LAPACK leaves them open. Without a
sparse path (``sparse: false``) gamma is 1, which with SiLU and random factors is CoLA's layer. The code trains no
bias; in the pre-training form it is trained here.
Merged: only without activation; the pre-training form then becomes one dense matrix per layer.
Cost per matrix: r (m + n) + m K parameters, twice that of state, 2 (r (m + n) + m K) operations per token.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lrx.errors import UserError
from lrx.methods import parts
from lrx.methods.base import Method, split_trainable
from lrx.models.base import Backbone
from lrx.nn.lost import LostLinear, start_of
from lrx.nn.lowrank import replace_module
from lrx.nn.optim import adamw


class Lost(Method):
    """``rank``: r. ``target_modules``: roles, names, a pattern or ``all-linear``; linear layers only.

    ``form``: ``pretrain`` (nothing of size m x n is stored), ``finetune`` (beside the frozen matrix), or ``auto``:
    ``finetune`` on pretrained weights, ``pretrain`` on random ones. ``gamma``: weight of the low-rank path; the sparse
    path has 1 - gamma. ``sparsity``: K / n. ``channels``: K itself (null: from ``sparsity``). ``sparse``: false leaves
    the sparse path out. ``init``: of A and B, from the SVD, or normal with std r^(-1/4) (m + n)^(-1/4) as in CoLA.
    ``channel_choice``: by l2 or l1 norm of W_comp's columns, or random. ``band``: k (null: all that is left).
    ``band_from``: the triplets after the first r, or the smallest ones. ``sparse_from``: W_s from W or W_comp.
    ``activation``: between A and B. ``alpha``: of the fine-tuning form, its update is scaled by alpha / r.
    ``head_lr``: the task head's rate (null: ``lr``).
    """

    name: ClassVar[str] = "lost"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "LOST (Li et al. 2025, arXiv 2508.02668)"
    exact_at_init: ClassVar[bool] = False
    mergeable: ClassVar[bool] = False
    trains_base: ClassVar[bool] = True
    peft_form: ClassVar[Literal["lora"] | None] = None

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float = 0.0,
        head_lr: float | None = None,
        rank: int = 8,
        target_modules: str | list[str] = "all-linear",
        form: Literal["auto", "pretrain", "finetune"] = "auto",
        gamma: float = 0.7,
        sparsity: float = 0.05,
        channels: int | None = None,
        sparse: bool = True,
        init: Literal["svd", "random"] = "svd",
        channel_choice: Literal["l2", "l1", "random"] = "l2",
        band: int | None = 256,
        band_from: Literal["leading", "trailing"] = "leading",
        sparse_from: Literal["W", "W_comp"] = "W",
        activation: Literal["silu", "gelu", "tanh", "relu2", "none"] = "silu",
        alpha: float = 1.0,
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_lowrank(rank, alpha, 0.0)
        parts.require(0 <= gamma <= 1, "gamma", gamma, "the weight of the low-rank path lies in [0, 1]")
        parts.require(0 < sparsity <= 1, "sparsity", sparsity, "the share of kept channels lies in (0, 1]")
        accepted = "at least 1 channel is kept; method.sparse=false leaves the sparse path out"
        parts.require(channels is None or channels >= 1, "channels", channels, accepted)
        parts.require(band is None or band >= 1, "band", band, "at least 1 singular triplet (null: all that are left)")
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr
        self.rank, self.alpha, self.target_modules = rank, alpha, target_modules
        self.form, self.gamma, self.sparsity, self.channels, self.sparse = form, gamma, sparsity, channels, sparse
        self.init, self.channel_choice, self.band, self.band_from = init, channel_choice, band, band_from
        self.sparse_from, self.activation = sparse_from, activation
        self.mergeable = activation == "none"  # type: ignore[misc]
        self.trains_base = form != "finetune"  # type: ignore[misc]

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        finetune = self.form == "finetune" or (self.form == "auto" and backbone.pretrained)
        self.trains_base = not finetune  # type: ignore[misc]
        targets = parts.linear_targets(backbone, self.target_modules, "lost")
        for name, layer in targets.items():
            m, n = layer.weight.shape
            accepted = f"layer {name!r} is {m} x {n}, so the rank must lie in 1..{min(m, n)}"
            parts.require(self.rank <= min(m, n), "rank", self.rank, accepted)
            accepted = f"layer {name!r} has {n} input channels"
            parts.require(not self.sparse or self.kept(n) <= n, "channels", self.channels, accepted)
        if finetune:
            backbone.freeze()
        else:
            backbone.net.requires_grad_(True)
        for name, layer in targets.items():
            try:
                start = start_of(
                    layer.weight,
                    self.rank,
                    self.kept(layer.in_features),
                    svd=self.init == "svd",
                    choice=self.channel_choice,
                    band=self.band,
                    trailing=self.band_from == "trailing",
                    from_complement=self.sparse_from == "W_comp",
                    generator=generator,
                )
            except torch.linalg.LinAlgError:
                raise UserError(f"method=lost: the weight of layer {name!r} is not finite and has no SVD") from None
            new = LostLinear(
                layer,
                start,
                gamma=self.gamma,
                activation=self.activation,
                keep=finetune,
                scaling=self.alpha / self.rank if finetune else 1.0,
            )
            replace_module(backbone.net, name, new)

    def kept(self, n: int) -> int:
        """K of a layer with n input channels, 0 without a sparse path."""
        if not self.sparse:
            return 0
        return self.channels if self.channels is not None else max(1, int(self.sparsity * n))

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        body, _ = split_trainable(backbone)
        part = adamw(body, lr=self.lr, weight_decay=self.weight_decay)
        return parts.with_head([part], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        """The trained parameters, and which channels were kept."""
        kept = {f"{name}.channels": layer.channels for name, layer in lost_layers(backbone.net).items()}
        return super().adapter_state(backbone) | {
            name: indices for name, indices in kept.items() if indices is not None
        }

    def merge(self, backbone: Backbone) -> None:
        if not self.mergeable:
            raise UserError(
                f"method=lost cannot be merged into plain weights: an activation ({self.activation}) stands between "
                "its factors (method.activation=none can be merged)"
            )
        for name, layer in lost_layers(backbone.net).items():
            replace_module(backbone.net, name, layer.merged())

    def trainable_per_matrix(self, m: int, n: int) -> int:
        return self.rank * (m + n) + m * self.kept(n)

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * self.trainable_per_matrix(m, n)


def lost_layers(net: nn.Module) -> dict[str, LostLinear]:
    """Every LOST layer below ``net`` by name, in registration order."""
    return {name: module for name, module in net.named_modules() if isinstance(module, LostLinear)}
