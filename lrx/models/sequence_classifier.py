"""Encoders and decoders with a classification or regression head, from Hugging Face transformers.

``AutoModelForSequenceClassification`` unchanged: the head is the family's own (BERT: dropout + linear on the pooled
[CLS]; RoBERTa: dense + tanh + dropout + linear; DeBERTa: pooler + linear; Llama: linear on the last token).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lrx.errors import UserError, did_you_mean
from lrx.models.base import Backbone, Inputs, Model, Outputs
from lrx.models.weights import check_options, explained, load, resolve

# Roles of linear layers by architecture (`model_type`): patterns for the end of their names, for target_modules.
ROLES = {
    "bert": {
        "query": r"self\.query", "key": r"self\.key", "value": r"self\.value",
        "output": r"attention\.output\.dense", "mlp_in": r"intermediate\.dense", "mlp_out": r"\d+\.output\.dense",
    },
    "deberta-v2": {
        "query": r"self\.query_proj", "key": r"self\.key_proj", "value": r"self\.value_proj",
        "output": r"attention\.output\.dense", "mlp_in": r"intermediate\.dense", "mlp_out": r"\d+\.output\.dense",
    },
    "llama": {
        "query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "mlp_in": "up_proj",
        "mlp_out": "down_proj", "mlp_gate": "gate_proj",
    },
}  # fmt: skip
ROLES["roberta"] = ROLES["bert"]

# Newly initialised modules that every method trains. DeBERTa's pooler is not in its pretrained weights.
HEADS = {"bert": ["classifier"], "roberta": ["classifier"], "deberta-v2": ["pooler", "classifier"], "llama": ["score"]}


class SequenceClassifier(Model):
    """A transformer with a sequence-level head.

    ``weights``: ``package``, ``local`` or ``hub`` (pretrained, at ``path``), or ``random``: the architecture in
    ``config`` with seeded random weights, for smoke runs. ``tokenizer``: where the tokenizer lies when not at ``path``
    (``package:<package/folder>``). ``attention``: transformers' attention implementation. ``dropout``: probability of
    the network's own dropout layers; None leaves them as the architecture has them.
    """

    name: ClassVar[str] = "sequence_classifier"
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        weights: Literal["package", "local", "hub", "random"],
        path: str | None = None,
        revision: str | None = None,
        tokenizer: str | None = None,
        attention: str = "sdpa",
        dropout: float | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        if weights == "random":
            if config is None or tokenizer is None:
                raise UserError("model.weights=random needs model.config and model.tokenizer")
        elif path is None:
            raise UserError(f"model.weights={weights} needs model.path")
        self.weights, self.path, self.revision = weights, path, revision
        if dropout is not None and not 0 <= dropout < 1:
            raise UserError(f"model.dropout={dropout}: a probability lies in [0, 1)")
        self.tokenizer, self.attention, self.dropout, self.config = tokenizer, attention, dropout, config

    def build(self, inputs: Inputs, outputs: Outputs, seed: int) -> Backbone:
        if inputs.kind != "text":
            raise UserError(f"model: a sequence classifier reads text, this task gives {inputs.kind}s; choose another")
        if outputs.kind == "text":
            raise UserError("model: a sequence classifier writes no text; this task needs a causal language model")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the head (and random weights) are a function of the seed alone
            net, tokenizer = self._random(outputs) if self.weights == "random" else self._pretrained(outputs)
        if net.config.pad_token_id is None:
            net.config.pad_token_id = tokenizer.pad_token_id
        if self.dropout is not None:
            for module in net.modules():
                if isinstance(module, nn.Dropout):  # attention reads its probability from such a layer too
                    module.p = self.dropout
        kind = net.config.model_type
        return TransformerBackbone(net, head=HEADS[kind], roles=ROLES[kind], tokenizer=tokenizer)

    def _random(self, outputs: Outputs) -> tuple[Any, Any]:
        from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForSequenceClassification

        tokenizer = load_tokenizer(str(self.tokenizer), None)
        options = {"pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)} | dict(self.config or {})
        kind = options.get("model_type")
        if kind not in ROLES:
            raise UserError(f"model.config.model_type={kind!r}: not known here; {did_you_mean(str(kind), ROLES)}")
        check_options(CONFIG_MAPPING[kind], options)
        with explained("model.config"):
            config = AutoConfig.for_model(**options, num_labels=outputs.size)
            net = AutoModelForSequenceClassification.from_config(config, attn_implementation=self.attention)
        return net, tokenizer

    def _pretrained(self, outputs: Outputs) -> tuple[Any, Any]:
        from transformers import AutoModelForSequenceClassification

        path = str(self.path)
        net = load(
            AutoModelForSequenceClassification, self.weights, path, self.revision, HEADS,
            num_labels=outputs.size, attn_implementation=self.attention,
        )  # fmt: skip
        where, local = resolve(self.weights, path, self.revision)
        return net, load_tokenizer(self.tokenizer or where, self.revision, local)


class TransformerBackbone(Backbone):
    """A Hugging Face model with a head: token ids -> (batch, size) in float32."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        keys = ("input_ids", "attention_mask", "token_type_ids")
        return self.net(**{key: batch[key] for key in keys if key in batch}).logits.float()


def load_tokenizer(where: str, revision: str | None, local: bool = True) -> Any:
    """The tokenizer at ``where`` (``package:<package/folder>``, a folder, or a hub id)."""
    from transformers import AutoTokenizer

    if where.startswith("package:"):
        where, local = resolve("package", where.removeprefix("package:"))
    with explained(f"tokenizer {where!r}"):
        which = {"revision": revision or "main", "local_files_only": local, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(where, **which)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
