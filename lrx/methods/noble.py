"""NOBLE: every linear layer gets a small nonlinear low-rank branch that is trained with it and stays.

"NOBLE: Accelerating Transformers with Nonlinear Low-Rank Branches", Smith 2026, arXiv 2603.06492.

    y = W x + b + U CosNet(D x + d),  W (m, n),  D (r, n),  d (r,),  U (m, r);  f = min(m, n)
    CosNet(h) = cos(w2 * h2 + p2),  h2 = F cos(w1 * h + p1) + f0;  w, p (r,) elementwise,  F (r, r)
    start: W ~ N(0, (main_scale / sqrt n)^2), b = 0;  D ~ N(0, 1 / n), d = 0;  U ~ N(0, (up_scale / sqrt r)^2);
           F ~ N(0, (0.5 / sqrt r)^2), f0 ~ U(-1, 1) / sqrt r;  w ~ U(0.8, 1.2);  p ~ N(0, 0.1^2)
    rates: lr times (f / r)^0.4 for U, (f / r)^0.5 for F and f0, 2 for w, 4 for p, 1 for all else

Trained: everything, with AdamW; vectors (w, p, biases, norms) are not decayed: decay would pull frequencies to 0.
Per step: one AdamW step. The task head has its own rate.

Sources: the text of the paper was not at hand. ``preset: repo`` is the official code (ethansmith2000/noble,
noble_simple.py: "settings from the paper"), ``paper_port`` what a port that cites the paper's appendix does
(alint77/nanoplm): exponents 0.6 and 0.45, factors 3 and 5, no d and f0, F Xavier uniform, D and W uniform. Its f is the
model's width instead of the layer's min(m, n), and its output projections start at 0; neither is reproduced.
Departures: the official code sets F's multiplier on a module where its README's helper does not find it, which leaves F
at lr (``inner_power: 0`` here). ``swiglu`` and ``swiglu_net`` fail on shapes there; here D (and F) have 2 r rows.
The branch is computed in float32. ``main_init: auto`` draws W anew only where the weights are random: pretrained ones
are kept, a use that the paper does not have. Not an adapter: with a nonlinear branch nothing can be merged.
Cost per matrix: m n + r (m + n) + r^2 + 6 r parameters (CosNet), twice that of state.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lrx.errors import UserError
from lrx.methods import parts
from lrx.methods.base import Method, split_trainable
from lrx.models.base import Backbone
from lrx.nn.lowrank import replace_module
from lrx.nn.noble import PRESETS, Branch, NobleLinear, Waves, is_net, redraw
from lrx.nn.optim import adamw


class Noble(Method):
    """``rank``: r. ``target_modules``: roles, names, a pattern or ``all-linear``; linear layers only.

    ``activation``: of the branch; ``identity`` is a linear branch (``linear``: with d). ``branch``: false leaves only
    what ``main_init`` does to W (a control). ``preset``: official code or port; ``up_power``, ``inner_power``,
    ``frequency_rate``, ``phase_rate`` replace its values (null: the preset's). ``two_sided``: half of ``up_power`` for
    U and half for D. ``up_scale``: of U's start. ``main_init``: W is drawn anew with ``main_scale`` / sqrt n
    (``redraw``), multiplied by ``main_scale`` (``scale``), or left (``keep``); ``auto``: ``keep`` for pretrained
    weights, else ``redraw``. ``frequencies``: how w starts, within ``frequency_range``, or at ``frequency``
    (``uniform``); ``train_frequencies``: whether it moves. ``phase_std``: of p. ``residual_matrix``,
    ``residual_after``: of the net activations, h added after each inner matrix, or to the result. ``head_lr``: the
    task head's rate (null: ``lr``).
    """

    name: ClassVar[str] = "noble"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "NOBLE (Smith 2026, arXiv 2603.06492)"
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
        rank: int = 32,
        target_modules: str | list[str] = "all-linear",
        activation: Literal[
            "cos_net", "cos", "cos_net_double", "gelu", "silu", "tanh", "leakyrelu", "gelu_net", "silu_net", "tanh_net",
            "leakyrelu_net", "gelu_scale", "silu_scale", "tanh_scale", "leakyrelu_scale", "silu_shift", "neg_silu",
            "flip_silu", "neg_gelu", "flip_gelu", "swiglu", "swiglu_net", "identity", "linear",
        ] = "cos_net",
        branch: bool = True,
        preset: Literal["repo", "paper_port"] = "repo",
        up_power: float | None = None,
        inner_power: float | None = None,
        frequency_rate: float | None = None,
        phase_rate: float | None = None,
        two_sided: bool = False,
        up_scale: float = 0.01,
        main_init: Literal["auto", "redraw", "scale", "keep"] = "auto",
        main_scale: float = 0.5,
        frequencies: Literal[
            "uniform", "harmonic", "geometric", "harmonic_random", "geometric_random"
        ] = "harmonic_random",
        frequency: float = 1.0,
        frequency_range: tuple[float, float] = (0.8, 1.2),
        train_frequencies: bool = True,
        phase_std: float = 0.1,
        residual_matrix: bool = False,
        residual_after: bool = False,
    ) -> None:  # fmt: skip
        parts.check_training(lr, weight_decay, head_lr)
        parts.check_lowrank(rank, 1.0, 0.0)
        for key, value in (("up_scale", up_scale), ("phase_std", phase_std)):
            parts.check_nonnegative(key, value)
        for key, rate in (("frequency_rate", frequency_rate), ("phase_rate", phase_rate)):
            parts.require(rate is None or rate > 0, key, rate, "a factor of the learning rate must be positive")
        parts.require(main_scale > 0, "main_scale", main_scale, "the scale of the main weight must be positive")
        low, high = frequency_range
        accepted = "[low, high] with 0 < low <= high"
        parts.require(0 < low <= high, "frequency_range", list(frequency_range), accepted)
        for key, wanted in (("residual_matrix", residual_matrix), ("residual_after", residual_after)):
            parts.require(not wanted or is_net(activation), key, "true", f"activation {activation!r} is no net")
        accepted = "swiglu_net gives r numbers for 2 r, to which nothing can be added"
        parts.require(not (residual_after and activation == "swiglu_net"), "residual_after", "true", accepted)
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr
        self.rank, self.target_modules = rank, target_modules
        self.activation, self.branch, self.up_scale = activation, branch, up_scale
        self.main_init, self.main_scale = main_init, main_scale
        own = {
            "up_power": up_power,
            "inner_power": inner_power,
            "frequency_rate": frequency_rate,
            "phase_rate": phase_rate,
        }
        given: dict[str, Any] = {key: value for key, value in own.items() if value is not None}
        self.preset = dataclasses.replace(PRESETS[preset], two_sided=two_sided, **given)
        self.waves = Waves(frequencies, low, high, frequency, phase_std, train_frequencies)
        self.residual_matrix, self.residual_after = residual_matrix, residual_after
        self.mergeable = not branch or activation == "identity"  # type: ignore[misc]

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        targets = parts.linear_targets(backbone, self.target_modules, "noble")
        for name, layer in targets.items():
            m, n = layer.weight.shape
            accepted = f"layer {name!r} is {m} x {n}, so the rank must lie in 1..{min(m, n)}"
            parts.require(self.rank <= min(m, n), "rank", self.rank, accepted)
        backbone.net.requires_grad_(True)
        init = self.main_init if self.main_init != "auto" else "keep" if backbone.pretrained else "redraw"
        for name, layer in targets.items():
            if init == "redraw":
                redraw(layer, self.main_scale, self.preset, generator)
            elif init == "scale":
                layer.weight.data.mul_(self.main_scale)
            replace_module(backbone.net, name, NobleLinear(layer, self._branch(layer, generator)))

    def _branch(self, layer: nn.Linear, generator: torch.Generator) -> Branch | None:
        if not self.branch:
            return None
        return Branch(
            layer.out_features,
            layer.in_features,
            self.rank,
            self.activation,
            preset=self.preset,
            waves=self.waves,
            up_scale=self.up_scale,
            residual_matrix=self.residual_matrix,
            residual_after=self.residual_after,
            generator=generator,
        )

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        body, _ = split_trainable(backbone)
        factors = self.rate_factors(backbone)
        groups: dict[float, list[tuple[str, nn.Parameter]]] = defaultdict(list)
        for name, p in body:
            groups[factors.get(name, 1.0)].append((name, p))
        members = [adamw(group, lr=self.lr * k, weight_decay=self.weight_decay) for k, group in groups.items()]
        return parts.with_head(members, backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def rate_factors(self, backbone: Backbone) -> dict[str, float]:
        """Name -> factor of the learning rate, for every parameter of a branch; all others have 1."""
        names = {id(p): name for name, p in backbone.net.named_parameters()}
        branches = (layer.branch for layer in noble_layers(backbone.net).values() if layer.branch is not None)
        return {names[id(p)]: factor for branch in branches for p, factor in branch.rates()}

    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        """Everything trained, and frequencies that are not."""
        state = super().adapter_state(backbone)
        for name, layer in noble_layers(backbone.net).items():
            buffers = layer.named_buffers(prefix=name)
            state |= {key: value.detach() for key, value in buffers}
        return state

    def merge(self, backbone: Backbone) -> None:
        if not self.mergeable:
            raise UserError(
                f"method=noble cannot be merged into plain weights: its {self.activation} branch is part of the "
                "network (only method.activation=identity can be merged)"
            )
        for name, layer in noble_layers(backbone.net).items():
            replace_module(backbone.net, name, layer.merged())

    def trainable_per_matrix(self, m: int, n: int) -> int:
        if not self.branch:
            return m * n
        r, bias, act = self.rank, self.preset.bias, self.activation
        width = 2 * r if act.startswith("swiglu") else r
        cosine = 2 * r if self.waves.trained else r
        counts = {"cos": cosine, "cos_net": 2 * cosine, "cos_net_double": 3 * cosine, "silu_shift": r}
        own = counts.get(act, 2 * r if act.endswith("_scale") else 0)
        inner = 0 if not is_net(act) else (width * r + bias * width) * (2 if act.endswith("_double") else 1)
        return m * n + m * r + width * n + (width if bias and act != "identity" else 0) + inner + own

    def state_per_matrix(self, m: int, n: int) -> int:
        return 2 * self.trainable_per_matrix(m, n)


def noble_layers(net: nn.Module) -> dict[str, NobleLinear]:
    """Every NOBLE layer below ``net`` by name, in registration order."""
    return {name: module for name, module in net.named_modules() if isinstance(module, NobleLinear)}
