"""Any tuner of the ``peft`` package by its name, trained with AdamW.

"PEFT: State-of-the-art Parameter-Efficient Fine-Tuning", Mangrulkar et al. 2022, github.com/huggingface/peft; each
tuner's own paper is named in peft's documentation.

``tuner`` is a tuner's name in peft (``lora``, ``adalora``, ``ia3``, ``vera``, ``boft``, ...) or a short name for a LoRA
variant (``dora``, ``rslora``, ``pissa``, ``olora``); ``options`` goes to the tuner's config class as it is.

Trained: what the tuner trains, and the task head, with AdamW; frozen: the rest.
Per step: one AdamW step. AdaLoRA (arXiv 2303.10512) adds its orthogonality penalty to the loss, and after each step
updates its importance scores and prunes to the budget; it needs the number of steps (``plan``). Its scores and its mask
are kept in the optimizer's state, so that a resumed run prunes as an uninterrupted one.
Departure from peft: layers are found by the rule that all methods share and handed to peft by their full names; the
head is trained in place instead of through ``modules_to_save``.
Cost per matrix: the tuner's; counted on one layer of that shape (what a tuner shares between layers counts in full).
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lrx.errors import UserError, did_you_mean
from lrx.methods import parts
from lrx.methods.base import Method, split_trainable
from lrx.models.base import Backbone
from lrx.nn.lowrank import replace_module
from lrx.nn.optim import adamw
from lrx.nn.targets import find_targets

ADAPTER = "default"
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("lora", {"use_dora": True}),
    "rslora": ("lora", {"use_rslora": True}),
    "pissa": ("lora", {"init_lora_weights": "pissa"}),
    "olora": ("lora", {"init_lora_weights": "olora"}),
}
# Tuners whose forward pass needs more than the model: prompts, a router over adapters, task ids.
NOT_LAYERED = ("adaption_prompt", "poly", "shadow", "xlora")
# Exceptions to the class's declared facts, with peft 0.21's default options.
NOT_EXACT = ("fourierft",)
NOT_MERGEABLE = ("lily",)
# Options that lrx decides itself, and where.
RESERVED = {
    "target_modules": "use method.target_modules",
    "modules_to_save": "the task head is always trained",
    "task_type": "the task decides",
    "peft_type": "use method.tuner",
    "inference_mode": "the run decides",
    "base_model_name_or_path": "the model decides",
    "total_step": "the trainer decides",
}


class Peft(Method):
    """``tuner``: a tuner of peft. ``options``: arguments of its config class (for ``lora``: ``r``, ``lora_alpha``,
    ...).

    ``target_modules``: roles, names, a pattern or ``all-linear``; null leaves the choice to peft's tuner.
    """

    name: ClassVar[str] = "peft"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "PEFT (Mangrulkar et al. 2022, github.com/huggingface/peft)"
    exact_at_init: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    peft_form: ClassVar[Literal["lora"] | None] = None

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float = 0.0,
        head_lr: float | None = None,
        tuner: str = "lora",
        options: dict[str, Any] | None = None,
        target_modules: str | list[str] | None = "all-linear",
    ) -> None:
        parts.check_training(lr, weight_decay, head_lr)
        self.lr, self.weight_decay, self.head_lr = lr, weight_decay, head_lr
        self.tuner, self.target_modules = tuner, target_modules
        self._kind, implied = ALIASES.get(tuner, (tuner, {}))
        self._config_class, self._tuner_class = _classes(self._kind, tuner)
        self.options = copy.deepcopy({**implied, **(options or {})})
        _check_options(self.options, self._config_class, tuner)
        if self._kind == "adalora":
            # peft fails with an unreadable error when there is nothing to prune.
            fields = {f.name: f.default for f in dataclasses.fields(self._config_class)}
            start, target = (self.options.get(key, fields[key]) for key in ("init_r", "target_r"))
            parts.require(
                start > target, "options.init_r", start, f"must exceed target_r={target}, which AdaLoRA prunes to"
            )
        self.exact_at_init = self._kind not in NOT_EXACT  # type: ignore[misc]
        self.mergeable = self._kind not in NOT_MERGEABLE  # type: ignore[misc]
        self._total_steps: int | None = None
        self._tuner: Any = None  # kept alive: VeRA and its kin hold the projections that all layers share
        self._allocator: Any = None
        self._added: set[str] = set()

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        net = backbone.net
        backbone.freeze()
        names = None
        if self.target_modules is not None:
            rule: dict[str, Any] = {
                "roles": backbone.roles,
                "head": backbone.head,
                "kinds": (nn.Module,),
                "grouped": True,
            }
            names = list(find_targets(net, self.target_modules, **rule))
        before = {name for name, _ in net.named_parameters()} | {name for name, _ in net.named_buffers()}
        seed = int(torch.randint(2**62, (1,), generator=generator))
        with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
            torch.manual_seed(seed)
            self._tuner = self._inject(net, names, self._feedforward(backbone, names))
        self._allocator = self._tuner if self._kind == "adalora" else None
        for name, p in net.named_parameters():  # the tuner froze the head too
            if backbone.in_head(name):
                p.requires_grad_(True)
        after = {name for name, _ in net.named_parameters()} | {name for name, _ in net.named_buffers()}
        self._added = {name for name in after - before if ".base_layer." not in name and not backbone.in_head(name)}

    def plan(self, backbone: Backbone, total_steps: int) -> None:
        self._total_steps = total_steps
        if self._allocator is not None:
            config = self._allocator.peft_config[ADAPTER]
            warm = config.tinit + config.tfinal
            accepted = f"must be less than the {total_steps} steps of this run, so that AdaLoRA has steps to prune in"
            parts.require(warm < total_steps, "options.tinit + tfinal", warm, accepted)
            config.total_step = total_steps
            self._allocator.rankallocator.set_total_step(total_steps)

    def optimizer(self, backbone: Backbone) -> torch.optim.Optimizer:
        adapter, _ = split_trainable(backbone)
        if not adapter:
            raise UserError(f"method.tuner={self.tuner}: this tuner trains nothing on this model")
        part = adamw(adapter, lr=self.lr, weight_decay=self.weight_decay)
        return parts.with_head([part], backbone, lr=self.head_lr or self.lr, weight_decay=self.weight_decay)

    def penalty(self, backbone: Backbone) -> Tensor | None:
        """AdaLoRA: weight times the mean over factors of ``||P^T P - I||_F`` and ``||Q Q^T - I||_F``."""
        if self._allocator is None:
            return None
        norms = []
        for name, p in backbone.net.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                gram = p @ p.mT if "lora_A" in name else p.mT @ p
                norms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), dtype=p.dtype, device=p.device)))
        return self._allocator.peft_config[ADAPTER].orth_reg_weight * torch.stack(norms).mean()

    def after_step(self, backbone: Backbone, optimizer: torch.optim.Optimizer, step: int) -> None:
        if self._allocator is not None:
            if self._total_steps is None:
                raise RuntimeError("AdaLoRA needs the number of steps: the training module must call Method.plan first")
            self._prune(backbone, optimizer, step + 1)

    def _prune(self, backbone: Backbone, optimizer: torch.optim.Optimizer, step: int) -> None:
        ranks = self._allocator.rankallocator
        adapter = {n: p for n, p in backbone.net.named_parameters() if "lora_" in n and p.requires_grad}
        for name, p in adapter.items():  # the optimizer's state is the truth: it survives a checkpoint
            state = optimizer.state[p]
            for key, store in (("ipt_average", ranks.exp_avg_ipt), ("ipt_uncertainty", ranks.exp_avg_unc)):
                if key in state:
                    store[name] = state[key]
                    ranks.ipt.setdefault(name, torch.zeros_like(p))
        # After the last pruning step peft re-applies the mask that it kept in its config; here it is kept as state.
        masks = {n: optimizer.state[p]["kept"] for n, p in adapter.items() if "kept" in optimizer.state[p]}
        config = self._allocator.peft_config[ADAPTER]
        if masks:
            config.rank_pattern = {name: mask.bool().view(-1).tolist() for name, mask in masks.items()}
        if any(p.grad is None for p in adapter.values()):
            raise RuntimeError("AdaLoRA scores importance by gradients: they must not be cleared before after_step")
        self._allocator.update_and_allocate(step)
        last = config.total_step - config.tfinal
        for name, p in adapter.items():
            state = optimizer.state[p]
            if step < last:
                state["ipt_average"], state["ipt_uncertainty"] = ranks.exp_avg_ipt[name], ranks.exp_avg_unc[name]
            elif step == last:
                state.pop("ipt_average", None), state.pop("ipt_uncertainty", None)
                if name in config.rank_pattern:
                    state["kept"] = torch.tensor(config.rank_pattern[name], dtype=p.dtype, device=p.device).view(-1, 1)

    def merge(self, backbone: Backbone) -> None:
        if not self.mergeable:
            raise UserError(f"method.tuner={self.tuner}: peft cannot merge this tuner into plain weights")
        merge_peft_layers(backbone.net)

    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        tensors = dict(backbone.net.named_parameters()) | dict(backbone.net.named_buffers())
        trained = {name for name, p in backbone.net.named_parameters() if p.requires_grad}
        kept = trained | self._added | set(backbone.statistics())
        return {name: value.detach() for name, value in tensors.items() if name in kept}

    def trainable_per_matrix(self, m: int, n: int) -> int:
        """Counted on a linear layer without bias; IA3's second MLP layers scale their input: n instead of m."""
        with torch.random.fork_rng(devices=[]):
            one = nn.Sequential()
            one.add_module("layer", nn.Linear(n, m, bias=False))
            one.requires_grad_(False)
            self._inject(one, ["layer"], [])
        return sum(p.numel() for p in one.parameters() if p.requires_grad)

    def state_per_matrix(self, m: int, n: int) -> int:
        """AdamW's two moments; AdaLoRA's two scores per element besides, until its last pruning."""
        return (4 if self._kind == "adalora" else 2) * self.trainable_per_matrix(m, n)

    def _feedforward(self, backbone: Backbone, names: list[str] | None) -> list[str]:
        """For IA3: which targets scale their input, as that paper does in the second layer of an MLP."""
        if "mlp_out" not in backbone.roles:
            return []
        second = find_targets(backbone.net, ["mlp_out"], roles=backbone.roles, head=backbone.head)
        return [name for name in names or [] if name in second]

    def _inject(self, net: nn.Module, names: list[str] | None, feedforward: list[str]) -> Any:
        """Put the tuner's layers into ``net`` and return peft's tuner; ``UserError`` for what peft refuses."""
        options = copy.deepcopy(self.options)  # config classes keep and change what they are given
        if names is not None:
            options["target_modules"] = names
        if self._kind == "ia3":
            options.setdefault("feedforward_modules", feedforward)
        if self._kind == "adalora":  # a placeholder until ``plan``: peft demands tinit < total_step - tfinal at once
            options["total_step"] = 1 + options.get("tinit", 0) + options.get("tfinal", 0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # "pass r and not init_r", "no model config", ...
                return self._tuner_class(net, self._config_class(**options), adapter_name=ADAPTER)
        except (ValueError, TypeError, NotImplementedError, AttributeError, KeyError, ImportError) as error:
            raise UserError(f"method.tuner={self.tuner}: peft refuses these options or this model: {error}") from error


def _classes(kind: str, given: str) -> tuple[type, type]:
    """Config and tuner class of a peft tuner. Raises ``UserError`` for names that peft lacks or cannot inject."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as configs
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as tuners

    names = {key.value.lower(): key for key in tuners}
    layered = {
        name for name, key in names.items() if hasattr(tuners[key], "_create_and_replace") and name not in NOT_LAYERED
    }
    if kind not in layered:
        known = "is no tuner that works layer by layer" if kind in names else "is no tuner of the installed peft"
        raise UserError(f"method.tuner={given}: {known}; {did_you_mean(given, layered | set(ALIASES))}")
    return configs[names[kind]], tuners[names[kind]]


def _check_options(options: dict[str, Any], config_class: type, tuner: str) -> None:
    allowed = {f.name for f in dataclasses.fields(config_class) if f.init} - set(RESERVED)
    for key in options:
        if key in RESERVED:
            raise UserError(f"method.options.{key}: not an option here, {RESERVED[key]}")
        if key not in allowed:
            raise UserError(f"method.options.{key}: {tuner} has no such option; {did_you_mean(key, allowed)}")


def merge_peft_layers(net: nn.Module) -> None:
    """Fold every peft layer below ``net`` into the layer it wraps and put that in its place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(name, module) for name, module in net.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, layer in layers:
        if any(name.startswith(outer + ".") for outer, _ in layers):
            continue  # a part of another peft layer
        if hasattr(layer, "unload_and_optionally_merge_module"):
            replace_module(net, name, layer.unload_and_optionally_merge_module(True, False, None))
        else:
            layer.merge()
            replace_module(net, name, layer.get_base_layer())
    if hasattr(net, "peft_config"):
        del net.peft_config
