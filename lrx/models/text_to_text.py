"""T5: classification as text generation over one word per class (protocol of AltLoRA's Table 4, from LoRA-GA).

The encoder reads ``instruction + text``; the decoder scores each class's word. The class score is the word's
log-probability, sum over its tokens of log p(token | source, earlier tokens), end token included; training minimises
the mean token cross-entropy of the right word.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrx.errors import UserError
from lrx.models.base import Backbone, Inputs, Model, Outputs
from lrx.models.sequence_classifier import load_tokenizer
from lrx.models.weights import check_options, explained, load, resolve

ROLES = {"query": "q", "key": "k", "value": "v", "output": "o", "mlp_in": "wi(_[01])?", "mlp_out": "wo"}


class TextToText(Model):
    """An encoder-decoder without a head of its own: what is trained is the adapter alone.

    Arguments as for ``SequenceClassifier``. Serves tasks whose outputs are classes with words.
    """

    name: ClassVar[str] = "text_to_text"
    version: ClassVar[int] = 2  # 2: all-linear leaves out the output layer, which T5 ties to its embeddings

    def __init__(
        self,
        *,
        weights: Literal["package", "local", "hub", "random"],
        path: str | None = None,
        revision: str | None = None,
        tokenizer: str | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        if weights == "random":
            if config is None or tokenizer is None:
                raise UserError("model.weights=random needs model.config and model.tokenizer")
        elif path is None:
            raise UserError(f"model.weights={weights} needs model.path")
        self.weights, self.path, self.revision = weights, path, revision
        self.tokenizer, self.config = tokenizer, config

    def build(self, inputs: Inputs, outputs: Outputs, seed: int) -> Backbone:
        if inputs.kind != "text" or outputs.kind != "classes" or len(outputs.words) != outputs.size:
            raise UserError("model: a text-to-text model needs a text task with classes and a word for each of them")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net, tokenizer = self._random() if self.weights == "random" else self._pretrained()
        return TextToTextBackbone(net, tokenizer, outputs.words)

    def _random(self) -> tuple[nn.Module, Any]:
        from transformers import T5Config, T5ForConditionalGeneration

        tokenizer = load_tokenizer(str(self.tokenizer), None)
        pad = tokenizer.pad_token_id
        options = {"vocab_size": len(tokenizer), "pad_token_id": pad, "decoder_start_token_id": pad}
        check_options(T5Config, self.config or {})
        with explained("model.config"):
            return T5ForConditionalGeneration(T5Config(**{**options, **(self.config or {})})), tokenizer

    def _pretrained(self) -> tuple[nn.Module, Any]:
        from transformers import T5ForConditionalGeneration

        path = str(self.path)
        net = load(T5ForConditionalGeneration, self.weights, path, self.revision, {"t5": ()})
        where, local = resolve(self.weights, path, self.revision)
        return net, load_tokenizer(self.tokenizer or where, self.revision, local)


class TextToTextBackbone(Backbone):
    """``forward``: (batch, classes) log-probabilities of the class words in float32."""

    word_ids: Tensor

    def __init__(self, net: nn.Module, tokenizer: Any, words: tuple[str, ...]) -> None:
        super().__init__(net, head=(), roles=ROLES, tokenizer=tokenizer, reads="text_to_text")
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        ids = [[*tokenizer(word, add_special_tokens=False).input_ids, end] for word in words]
        longest = max(map(len, ids))
        # (classes, longest), padded with -100, which cross_entropy ignores
        padded = [row + [-100] * (longest - len(row)) for row in ids]
        self.register_buffer("word_ids", torch.tensor(padded), persistent=False)

    def _token_loss(self, encoded: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Token cross-entropies (batch, length) of ``target`` (batch, length); 0 where it is padding."""
        start = self.net.config.decoder_start_token_id
        shifted = torch.cat([torch.full_like(target[:, :1], start), target[:, :-1]], dim=1)
        shifted = shifted.masked_fill(shifted == -100, self.net.config.pad_token_id)
        logits = self.net(
            encoder_outputs=(encoded,), attention_mask=mask, decoder_input_ids=shifted, use_cache=False
        ).logits.float()
        return F.cross_entropy(logits.transpose(1, 2), target, reduction="none", ignore_index=-100)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"]
        encoded = self.net.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        count = len(mask)
        scores = [-self._token_loss(encoded, mask, word.expand(count, -1)).sum(1) for word in self.word_ids]
        return torch.stack(scores, dim=1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"]
        encoded = self.net.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        target = self.word_ids[batch["labels"]]
        return self._token_loss(encoded, mask, target).sum() / (target != -100).sum()
