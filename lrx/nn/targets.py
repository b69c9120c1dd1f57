"""The one rule by which every method finds the matrices it adapts (as ``target_modules`` in PEFT, plus roles)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

from lrx.errors import UserError, did_you_mean

Targets = str | Sequence[str]


# What a keyword selects outside the task head. Convolutions: the ungrouped ones, which are one matrix each.
KEYWORDS: dict[str, tuple[type[nn.Module], ...]] = {
    "all-linear": (nn.Linear,), "all-conv": (nn.Conv2d,), "all": (nn.Linear, nn.Conv2d),
}  # fmt: skip


def find_targets(
    net: nn.Module,
    targets: Targets,
    *,
    roles: Mapping[str, str],
    head: Sequence[str] = (),
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d),
    grouped: bool = False,
) -> dict[str, nn.Module]:
    """Name -> module for each module of ``net`` that ``targets`` selects, in registration order.

    ``targets`` is a keyword, a list of names, or one string. ``"all-linear"``: every linear layer outside the task
    head; ``"all-conv"``: every convolution in one group; ``"all"``: both. A name in a list selects by role (``query``,
    ``key``, ``value``, ``output``, ``mlp_in``, ``mlp_out``, ...: the model's ``roles`` give a pattern for the end of
    those layers' names) or else by the last parts of a name, as PEFT does. A single string other than a role is a
    regular expression that must match a layer's whole name. ``head``: name prefixes of the task head, which no target
    selects. A language model's output layer over the vocabulary is left out by the keywords, as in PEFT, and by every
    target where its matrix is that of the embeddings too. ``kinds``: what names and patterns may select. ``grouped``:
    whether a grouped (depthwise) convolution may be among it.

    Raises ``UserError`` when an entry selects nothing, or a grouped convolution that may not be.
    """
    layers = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, kinds) and not any(name == h or name.startswith(h + ".") for h in head)
    }
    output, tied = _output_layer(net)
    if tied:  # an update of this matrix would be one of the embeddings too
        layers = {name: module for name, module in layers.items() if module is not output}
    if isinstance(targets, str) and targets in KEYWORDS and targets not in roles:
        chosen = {
            name
            for name, layer in layers.items()
            if isinstance(layer, KEYWORDS[targets]) and not is_grouped(layer) and layer is not output
        }
        if not chosen:
            others = ", ".join(k for k, found in KEYWORDS.items() if any(isinstance(x, found) for x in layers.values()))
            hint = f"; this model has {others}" if others else ""
            raise UserError(f"method.target_modules={targets} selects no layer of this model{hint}")
    elif isinstance(targets, str) and targets not in roles:
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise UserError(f"method.target_modules={targets!r} is no regular expression: {error}") from None
        chosen = {name for name in layers if pattern.fullmatch(name)}
        if not chosen:
            raise UserError(f"method.target_modules={targets!r} matches no layer; {_suggest(targets, layers, roles)}")
    else:
        chosen = set()
        for entry in [targets] if isinstance(targets, str) else targets:
            ending = re.compile(rf"(?:^|\.)(?:{roles.get(entry) or re.escape(entry)})$")
            found = {name for name in layers if ending.search(name)}
            if not found:
                raise UserError(f"method.target_modules: {entry!r} matches no layer; {_suggest(entry, layers, roles)}")
            chosen |= found
    if not chosen:
        raise UserError("method.target_modules selects no layer; give 'all-linear', a list of names or a pattern")
    selected = {name: module for name, module in layers.items() if name in chosen}
    for name, module in selected.items():
        if not grouped and is_grouped(module):
            raise UserError(
                f"method.target_modules selects {name!r}, a convolution in {module.groups} groups, which is no single "
                "m x n matrix; name other layers, or give 'all-conv' (the ungrouped convolutions) or 'all-linear'"
            )
    return selected


def is_grouped(layer: nn.Module) -> bool:
    """Whether ``layer`` is a convolution in several groups, such as a depthwise one."""
    return isinstance(layer, nn.Conv2d) and layer.groups > 1


def _output_layer(net: nn.Module) -> tuple[nn.Module | None, bool]:
    """A language model's layer over the vocabulary, if it has one, and whether its matrix is that of the embeddings."""
    getter = getattr(net, "get_output_embeddings", None)
    layer = getter() if callable(getter) else None
    if layer is None:
        return None, False
    return layer, layer.weight is net.get_input_embeddings().weight  # type: ignore[operator]


def _suggest(entry: str, layers: Mapping[str, nn.Module], roles: Mapping[str, str]) -> str:
    leaves = {name.rpartition(".")[2] for name in layers}
    return did_you_mean(entry, {*KEYWORDS, *roles, *leaves})
