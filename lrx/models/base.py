"""The contract of a model: ``Model(**options).build(inputs, outputs, seed)`` with a uniform ``forward(batch)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class Inputs:
    """What a task feeds a model. ``kind="text"``: one or two sentences; ``"image"``: (channels, height, width)."""

    kind: Literal["text", "image"]
    shape: tuple[int, ...] = ()
    max_length: int = 128


@dataclass(frozen=True)
class Outputs:
    """What a task asks of a model. ``classes``: scores over ``size`` classes; ``regression``: ``size`` real values.

    ``words``: a word for each class, for text-to-text models. ``instruction``: the prompt such a model reads first.
    """

    kind: Literal["classes", "regression"]
    size: int
    words: tuple[str, ...] = ()
    instruction: str = ""


class Backbone(nn.Module):
    """A built model. Methods adapt ``net``; tasks call ``forward(batch)``.

    ``net``: the wrapped network, pretrained or random. ``head``: name prefixes inside ``net`` of the task head, which
    every method trains and none adapts. ``roles``: role (``query``, ``value``, ...) -> a pattern for the end of the
    names of the layers that play it, for ``target_modules``. ``tokenizer``: for text inputs, else None. ``reads``: how
    a batch reaches it: ``"pair"`` (one or two sentences, to an encoder or decoder with a head), ``"text_to_text"`` or
    ``"image"``.

    ``forward(batch)``: a batch as the task collates it -> (batch, size) scores or values in float32.
    """

    net: Any  # an nn.Module; its own attributes (config, get_encoder, ...) are not PyTorch's to know

    def __init__(
        self,
        net: nn.Module,
        *,
        head: Sequence[str],
        roles: Mapping[str, str],
        tokenizer: Any = None,
        reads: Literal["pair", "text_to_text", "image"] = "pair",
    ) -> None:
        super().__init__()
        self.net = net
        self.head = tuple(head)
        self.roles = dict(roles)
        self.tokenizer = tokenizer
        self.reads = reads
        self.train()  # from_pretrained hands over in evaluation mode, which would leave the network's dropout off

    def in_head(self, parameter_name: str) -> bool:
        """Whether a parameter of ``net`` belongs to the task head."""
        return any(parameter_name == h or parameter_name.startswith(h + ".") for h in self.head)

    def freeze(self) -> None:
        """Freeze everything but the task head."""
        for name, p in self.net.named_parameters():
            p.requires_grad_(self.in_head(name))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def loss(self, batch: dict[str, Tensor]) -> Tensor | None:
        """A loss of the model's own (text-to-text models: token cross-entropy), or None for the task's."""
        return None


class Model:
    """Base of all model families; ``name`` is the registry key that ``family:`` in ``conf/model/*.yaml`` gives."""

    name: ClassVar[str]
    version: ClassVar[int] = 1

    def build(self, inputs: Inputs, outputs: Outputs, seed: int) -> Backbone:
        """A backbone for this task. New weights (heads, random models) are a pure function of ``seed``.

        Raises ``UserError`` when the model cannot serve ``inputs`` or ``outputs``, or its weights cannot be had.
        """
        raise NotImplementedError
