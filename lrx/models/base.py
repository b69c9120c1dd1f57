"""The contract of a model: ``Model(**options).build(inputs, outputs, seed)`` with a uniform ``forward(batch)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Inputs:
    """What a task feeds a model. ``kind="text"``: one or two sentences; ``"image"``: (channels, height, width).

    ``kind="sequence"``: long sequences of at most ``max_length`` steps, with their true ``lengths`` (batch,) int64.
    Their steps are ids below ``vocabulary``, ``input_ids`` (batch, length) int64, padded on the right with id 0; where
    ``vocabulary`` is 0 they are ``values`` (batch, length, ``features``) float32. ``pairs``: an example is two
    sequences, the second in ``input_ids_b`` or ``values_b`` and ``lengths_b``.
    ``kind="image_depth"``: an image of ``shape`` (3, H, W) and a depth map with ``factor`` times fewer rows and
    columns, ``image`` and ``depth_low`` (batch, 1, H/factor, W/factor) float32 in [0, 1].
    ``kind="state"``: what a policy sees of its environment, ``observations`` (batch, ``features``) float32.
    ``tokenizer``: the text of a ``tokenizer.json`` that the task has made of its own texts, for models that have none;
    empty where it has made none.
    """

    kind: Literal["text", "image", "sequence", "state", "image_depth"]
    shape: tuple[int, ...] = ()
    max_length: int = 128
    tokenizer: str = field(default="", repr=False)
    vocabulary: int = 0
    features: int = 0
    pairs: bool = False
    factor: int = 1


@dataclass(frozen=True)
class Outputs:
    """What a task asks of a model.

    ``classes``: scores over ``size`` classes; ``regression``: ``size`` real values; ``text``: the continuation of a
    prompt (``size`` is 0). ``actions``: what a policy does, ``size`` real values in [-1, 1].
    ``depth``: a depth map (batch, 1, H, W) with the image's rows and columns, in the measure of ``depth_low``.
    ``words``: a word for each class, for text-to-text models. ``instruction``: the prompt such a model reads first.
    """

    kind: Literal["classes", "regression", "text", "actions", "depth"]
    size: int = 0
    words: tuple[str, ...] = ()
    instruction: str = ""


@dataclass(frozen=True)
class Decoding:
    """How a text is generated: greedily, or with ``beams`` above 1 by beam search.

    ``max_new_tokens``: the longest answer. ``length_penalty``: exponent of the length by which a beam's
    log-probability is divided. ``no_repeat_ngram``: n-grams of this size occur once in an answer; 0 forbids none.
    ``repetition_penalty``: 1 is none. ``stop``: a row ends where one of these strings appears.
    """

    max_new_tokens: int
    beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()


class Backbone(nn.Module):
    """A built model. Methods adapt ``net``; tasks call ``forward(batch)``.

    ``net``: the wrapped network, pretrained or random. ``head``: name prefixes inside ``net`` of the task head, which
    every method trains and none adapts. ``roles``: role (``query``, ``value``, ...) -> a pattern for the end of the
    names of the layers that play it, for ``target_modules``. ``tokenizer``: for text inputs, else None. ``reads``: how
    a batch reaches it: ``"pair"`` (one or two sentences, to an encoder or decoder with a head), ``"text_to_text"``,
    ``"causal"`` (a prompt to be continued), ``"image"``, ``"sequence"``, ``"state"`` or ``"depth"``. ``image``: what
    the weights were trained with: ``mean`` and ``std`` of the channels for values in [0, 1], ``interpolation``
    (``bilinear``, ``bicubic``), ``size`` (height, width); None where nothing is known, as for random weights.

    ``forward(batch)``: a batch as the task collates it -> (batch, size) scores or values in float32; of a causal model
    (batch, length, vocabulary) scores of the next token.
    """

    rewritten: bool = False  # whether layers of ``net`` have other names than in its library; see ``stock``
    pretrained: bool = False  # whether its weights were trained before, which who builds it for a run says
    positions: int | None = None  # the most tokens that fit, where each position has an embedding of its own (GPT-2)
    rates: Mapping[str, Mapping[str, float]] = {}  # parameter of ``net`` -> its greatest ``lr``, its ``weight_decay``
    net: Any  # an nn.Module; its own attributes (config, get_encoder, ...) are not PyTorch's to know

    def __init__(
        self,
        net: nn.Module,
        *,
        head: Sequence[str],
        roles: Mapping[str, str],
        tokenizer: Any = None,
        reads: Literal["pair", "text_to_text", "causal", "image", "sequence", "state", "depth"] = "pair",
        image: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.head = tuple(head)
        self.roles = dict(roles)
        self.tokenizer = tokenizer
        self.reads = reads
        self.image: Mapping[str, Any] | None = image
        self.frozen = False
        self.train()  # from_pretrained hands over in evaluation mode, which would leave the network's dropout off

    def in_head(self, parameter_name: str) -> bool:
        """Whether a parameter of ``net`` belongs to the task head."""
        return any(parameter_name == h or parameter_name.startswith(h + ".") for h in self.head)

    def freeze(self) -> None:
        """Freeze everything but the task head, running statistics of batch normalisation included."""
        for name, p in self.net.named_parameters():
            p.requires_grad_(self.in_head(name))
        self.frozen = True
        self._still_norms()

    def train(self, mode: bool = True) -> Self:
        """As in PyTorch, but batch normalisation that is frozen stays in evaluation mode.

        Otherwise training an adapter would still move the running statistics of a frozen network.
        """
        super().train(mode)
        self._still_norms()
        return self

    def statistics(self) -> dict[str, Tensor]:
        """The running statistics that training moves, by name in ``net``: those of norms that are not frozen."""
        return {
            f"{name}.{key}" if name else key: buffer
            for name, norm in self._norms()
            if not self._is_still(name, norm)
            for key, buffer in norm.named_buffers(recurse=False)
        }

    def _norms(self) -> list[tuple[str, nn.Module]]:
        kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
        return [(name, module) for name, module in self.net.named_modules() if isinstance(module, kinds)]

    def _is_still(self, name: str, norm: nn.Module) -> bool:
        """A norm is frozen as its scale and shift are; one that has none, as the network is."""
        own = list(norm.parameters(recurse=False))
        return not any(p.requires_grad for p in own) if own else self.frozen and not self.in_head(name)

    def _still_norms(self) -> None:
        for name, norm in self._norms():
            if self._is_still(name, norm):
                norm.eval()

    def stock(self) -> nn.Module:
        """``net`` in its library's own layout, for writing; a model whose layers were rewritten overrides it."""
        return self.net

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def loss(self, batch: dict[str, Tensor]) -> Tensor | None:
        """A loss of the model's own (text-to-text models: token cross-entropy), or None for the task's."""
        return None

    def token_losses(self, batch: dict[str, Tensor], smoothing: float = 0.0) -> Tensor:
        """Of a causal model: cross-entropy (k,) in float32 of the k positions of ``batch["labels"]`` that are not -100.

        ``labels`` (batch, length) are aligned with ``input_ids``: position t is predicted from the positions before
        it. ``smoothing``: label smoothing. Row-major order.
        """
        raise NotImplementedError

    def generate(self, batch: dict[str, Tensor], decoding: Decoding) -> Tensor:
        """Of a causal model: the new tokens (batch, at most ``max_new_tokens``) int64 after the prompts of ``batch``.

        Prompts are padded on the left; behind the end of a row stands the padding token.
        """
        raise NotImplementedError

    def act(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Of a policy: actions (n, a) float32 in [-1, 1] for ``observations`` (n, o) float32 as the task gives them.

        Random numbers come from ``generator`` alone, which is on the CPU; an action depends on its own row and on the
        row's place among n, so that an episode's actions do not depend on what runs beside it.
        """
        raise NotImplementedError


class Model:
    """Base of all model families; ``name`` is the registry key that ``family:`` in ``conf/model/*.yaml`` gives."""

    name: ClassVar[str]
    version: ClassVar[int] = 1

    def build(self, inputs: Inputs, outputs: Outputs, seed: int) -> Backbone:
        """A backbone for this task. New weights (heads, random models) are a pure function of ``seed``.

        Raises ``UserError`` when the model cannot serve ``inputs`` or ``outputs``, or its weights cannot be had.
        """
        raise NotImplementedError
