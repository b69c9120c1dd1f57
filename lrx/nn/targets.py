"""The one rule by which every method finds the matrices it adapts (as ``target_modules`` in PEFT, plus roles)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

from lrx.errors import UserError, did_you_mean

Targets = str | Sequence[str]


def find_targets(
    net: nn.Module,
    targets: Targets,
    *,
    roles: Mapping[str, str],
    head: Sequence[str] = (),
    kinds: tuple[type[nn.Module], ...] = (nn.Linear,),
) -> dict[str, nn.Module]:
    """Name -> module for each module of ``net`` that ``targets`` selects, in registration order.

    ``targets`` is ``"all-linear"`` (every module of ``kinds`` outside the task head), a list of names, or one string.
    A name in a list selects by role (``query``, ``key``, ``value``, ``output``, ``mlp_in``, ``mlp_out``: the model's
    ``roles`` give a pattern for the end of those layers' names) or else by the last parts of a name, as PEFT does. A
    single string other than a role is a regular expression that must match a layer's whole name. ``head``: name
    prefixes of the task head, which no target selects.

    Raises ``UserError`` when an entry selects nothing.
    """
    layers = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, kinds) and not any(name == h or name.startswith(h + ".") for h in head)
    }
    if targets == "all-linear":
        chosen = set(layers)
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
    return {name: module for name, module in layers.items() if name in chosen}


def _suggest(entry: str, layers: Mapping[str, nn.Module], roles: Mapping[str, str]) -> str:
    leaves = {name.rpartition(".")[2] for name in layers}
    return did_you_mean(entry, {"all-linear", *roles, *leaves})
