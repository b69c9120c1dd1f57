"""ReLoRA: LoRA that is merged into the frozen matrix and started again every few thousand steps.

"ReLoRA: High-Rank Training Through Low-Rank Updates", Lialin et al., ICLR 2024, arXiv 2307.05695 (first titled "Stack
More Layers Differently").

    W_eff = W + s B A,  W (m, n) not trained,  B (m, r) = 0 and A (r, n) random at first,  s = alpha / r

Trained: A, B and the task head, with AdamW; frozen: the rest. During the first ``full_steps`` steps (the paper's warm
start) W and the head are trained and the factors wait.
Per step t, counted from the end of the warm start:
    (1)  all rates are multiplied by (t mod cycle) / restart_warmup where that is below 1, from the first restart on
    (2)  AdamW
    (3)  where t is a multiple of cycle (t > 0):  W <- W + s B A,  A <- U(-1/sqrt(n), 1/sqrt(n)),  B <- 0,  and both
         moments of A and B are pruned each on its own: ``random`` keeps an entry with probability 1 - prune,
         ``magnitude`` where its size exceeds the tensor's quantile ``prune``.  AdamW's step count stays
The update at t = k cycle is made at rate 0, then follows (3), as in the official code.
An entry of A that keeps its first moment M and loses its second moves by rate M / eps in the next step, because its
gradient is 0 while B is: harmless at the paper's rates and sizes of M, not in short runs of small models, for which
``prune=1`` resets both.

Departures from the official code (github.com/Guitaricet/relora): (1) multiplies the run's own schedule, where the code
warms up to the value that its cosine has at the end of the warm-up; the cosine falls to a share of the rate that the
run's schedule decides; after a warm start the factors are warmed up too, as in a new run. The warm start trains W of
the adapted layers and the head in the same run (in the code it is a run of its own, of the whole network); its rate is
``full_lr``. Random draws are a function of the seed and the step. ``start=zero``: the code, when it starts from given
weights, leaves A and B both zero, so that neither has a gradient before the first restart. A trainable scaling (which
in the code gets no gradient any more after the first merge) and quantized weights are not here.

In half precision every merge rounds W once.
Cost per matrix: r (m + n) parameters, 2 r (m + n) state, during the warm start m n and 2 m n instead; checkpoints hold
W. A merge costs O(r m n).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lrx.methods import parts
from lrx.methods.base import Method, split_trainable
from lrx.models.base import Backbone
from lrx.nn.absorb import absorb
from lrx.nn.lowrank import LowRank, lowrank_layers
from lrx.nn.optim import adamw
from lrx.seeds import derive


@torch.no_grad()
def merge_and_restart(layer: LowRank, generator: torch.Generator) -> None:
    """(3) for the matrices: ``W <- W + s B A``, A drawn anew as a low-rank layer starts, ``B <- 0``."""
    absorb(layer, layer.B, layer.A)
    draw = torch.rand(layer.A.shape, generator=generator)
    layer.A.copy_((2 * draw - 1) / math.sqrt(layer.A.shape[1]))
    layer.B.zero_()


def quantile(values: Tensor, q: float) -> Tensor:
    """The ``q`` quantile of all entries with linear interpolation, as ``torch.quantile`` but of any number of them."""
    position = q * (values.numel() - 1)
    below = math.floor(position)
    ordered = values.flatten().sort().values
    return torch.lerp(ordered[below], ordered[min(below + 1, len(ordered) - 1)], position - below)


@torch.no_grad()
def prune_(moment: Tensor, reset: str, share: float, generator: torch.Generator) -> None:
    """Set about ``share`` of the entries to zero: chosen by chance, or the smallest ones. In place."""
    if reset == "random":
        kept = torch.rand(moment.shape, generator=generator).to(moment.device) > share
    else:
        size = moment.abs()
        kept = size > quantile(size, share)
    moment.mul_(kept)


class ReLoRA(Method):
    """Options as in ``lora``. ``cycle``: steps between two merges. ``restart_warmup``: steps in which the rates come
    back after one.

    ``reset`` and ``prune``: how, and for which share of their entries, the moments are reset. ``full_steps``: steps of
    full training before the factors; ``full_lr``: the matrices' rate in it (null: ``lr``). ``start``: A random as in
    LoRA, or zero as in the official code.
    """

    name: ClassVar[str] = "relora"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "ReLoRA (Lialin et al. 2024, arXiv 2307.05695)"
    exact_at_init: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    moves_base: ClassVar[bool] = True
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
        cycle: int = 5000,
        restart_warmup: int = 100,
        reset: Literal["random", "magnitude"] = "random",
        prune: float = 0.999,
        full_steps: int = 0,
        full_lr: float | None = None,
        start: Literal["lora", "zero"] = "lora",
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_lowrank(rank, alpha, dropout)
        parts.require(cycle >= 1, "cycle", cycle, "at least one step lies between two merges")
        fits = 0 <= restart_warmup < cycle
        parts.require(fits, "restart_warmup", restart_warmup, f"lies in 0..{cycle - 1}, below method.cycle={cycle}")
        parts.require(0 <= prune <= 1, "prune", prune, "a share lies in [0, 1]")
        parts.check_nonnegative("full_steps", full_steps)
        if full_lr is not None:
            parts.require(0 < full_lr < math.inf, "full_lr", full_lr, "must be positive and finite (null: lr)")
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr
        self.rank, self.alpha, self.dropout, self.target_modules = rank, alpha, dropout, target_modules
        self.cycle, self.restart_warmup, self.reset, self.prune = cycle, restart_warmup, reset, prune
        self.full_steps, self.full_lr, self.start = full_steps, full_lr, start
        self._seed = 0

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
            layer.base.weight.requires_grad_(self.full_steps > 0)
            if self.start == "zero":
                nn.init.zeros_(layer.A)
        self._seed = int(torch.randint(2**62, (1,), generator=generator))

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        matrices = {id(layer.base.weight) for _, layer in lowrank_layers(backbone.net)}
        trained, _ = split_trainable(backbone)
        factors = adamw(
            [(n, p) for n, p in trained if id(p) not in matrices], lr=self.lr, weight_decay=self.weight_decay
        )
        for group in factors.param_groups:
            group["seed"] = self._seed  # here, so that checkpoints hold it
        members: list[torch.optim.Optimizer] = [factors]
        if whole := [(name, p) for name, p in trained if id(p) in matrices]:
            members.append(adamw(whole, lr=self.full_lr or self.lr, weight_decay=self.weight_decay))
        return parts.with_head(members, backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def before_step(self, backbone: Backbone, optimizer: torch.optim.Optimizer, step: int) -> None:
        local = step - self.full_steps
        for _, layer in lowrank_layers(backbone.net):
            if local < 0:
                layer.A.grad = layer.B.grad = None
            elif layer.base.weight.requires_grad:  # the warm start is over; a resumed run finds out here too
                layer.base.weight.requires_grad_(False).grad = None
                optimizer.state.pop(layer.base.weight, None)
        if (factor := self.warm_up(local)) != 1:  # (1)
            for group in optimizer.param_groups:
                group["scheduled_lr"] = group["lr"]
                group["lr"] = group["lr"] * factor

    def after_step(self, backbone: Backbone, optimizer: torch.optim.Optimizer, step: int) -> None:
        for group in optimizer.param_groups:
            if "scheduled_lr" in group:
                group["lr"] = group.pop("scheduled_lr")
        local = step - self.full_steps
        if local > 0 and local % self.cycle == 0:
            self._restart(backbone, optimizer, step)

    def warm_up(self, local: int) -> float:
        """The factor of all rates at the step ``local`` after the warm start (negative: in it)."""
        restarted = local >= self.cycle or (self.full_steps > 0 and local >= 0)
        place = local % self.cycle
        return place / self.restart_warmup if restarted and place < self.restart_warmup else 1.0

    def _restart(self, backbone: Backbone, optimizer: torch.optim.Optimizer, step: int) -> None:
        """(3). Random numbers are a function of the seed in the optimizer's group and of ``step``."""
        seed: Any = next(group["seed"] for group in optimizer.param_groups if "seed" in group)
        generator = torch.Generator().manual_seed(derive(seed, "restart", step))
        for _, layer in lowrank_layers(backbone.net):
            merge_and_restart(layer, generator)
            for factor in (layer.A, layer.B):
                for key, value in optimizer.state.get(factor, {}).items():
                    if key in ("exp_avg", "exp_avg_sq"):
                        prune_(value, self.reset, self.prune, generator)

    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        """What is trained, and the matrices that merges have changed."""
        layers = lowrank_layers(backbone.net)
        return super().adapter_state(backbone) | {f"{n}.base.weight": x.base.weight.detach() for n, x in layers}

    def trainable_per_matrix(self, m: int, n: int) -> int:
        """After the warm start."""
        return self.rank * (m + n)

    def state_per_matrix(self, m: int, n: int) -> int:
        """After the warm start."""
        return 2 * self.rank * (m + n)
