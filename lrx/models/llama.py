"""Llama decoders with random weights, for pretraining; the sizes from 9M to 1.3B of ReLoRA, GaLore and SwitchLoRA.

The network is that of transformers, initialised as there: N(0, ``initializer_range``^2) for all matrices, norms at 1.
Embeddings and output layer are two matrices (untied). They and the norms are the backbone's head: every method trains
them, none adapts them; what a method adapts are the matrices of attention and MLP.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lrx.data import hub
from lrx.errors import UserError
from lrx.models.base import Backbone, Inputs, Model, Outputs
from lrx.models.causal_lm import ROLES, CausalBackbone, CausalLM
from lrx.models.sequence_classifier import load_tokenizer
from lrx.models.tokenizers import bytes_tokenizer, tokenizer_from
from lrx.models.weights import explained

# Scores that are held at a time, in numbers: 256 MB in float32. More tokens than fit pass the output layer in parts.
MOST_SCORES = 2**26


class Llama(Model):
    """A Llama to be trained from scratch.

    ``hidden_size``, ``intermediate_size``, ``num_hidden_layers``, ``num_attention_heads``, ``initializer_range``: as
    transformers calls them. ``max_positions``: tokens of a text, of which the rotary embedding has no parameters.
    ``tokenizer``: of tasks that bring none: a folder, a hub id (at ``revision``), ``package:<package/folder>``, or
    ``bytes``. ``attention``: transformers' attention implementation. ``gradient_checkpointing``: the layers are
    computed again in the backward pass instead of being kept. ``weights``: there are only ``random`` ones.
    """

    name: ClassVar[str] = "llama"
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        hidden_size: int,
        intermediate_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        initializer_range: float = 0.02,
        max_positions: int = 1024,
        tokenizer: str = "bytes",
        revision: str | None = None,
        attention: str = "sdpa",
        gradient_checkpointing: bool = False,
        weights: Literal["random"] = "random",
    ) -> None:
        sizes = {
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "max_positions": max_positions,
        }
        for key, value in sizes.items():
            if value < 1:
                raise UserError(f"model.{key}={value}: must be at least 1")
        if hidden_size % num_attention_heads or hidden_size // num_attention_heads % 2:
            raise UserError(
                f"model.hidden_size={hidden_size}: must be an even multiple of the {num_attention_heads} heads"
            )
        if not initializer_range > 0:
            raise UserError(f"model.initializer_range={initializer_range}: a standard deviation is above 0")
        self.max_positions = sizes.pop("max_positions")
        self.sizes: dict[str, Any] = {**sizes, "initializer_range": initializer_range}
        self.tokenizer, self.revision, self.attention = tokenizer, revision, attention
        self.gradient_checkpointing, self.weights = gradient_checkpointing, weights

    def build(self, inputs: Inputs, outputs: Outputs, seed: int) -> Backbone:
        """Raises ``UserError`` for a task that asks for no text, and when the tokenizer cannot be had."""
        from transformers import LlamaConfig, LlamaForCausalLM

        CausalLM.check_task(inputs, outputs)
        tokenizer = self._tokenizer(inputs)
        config = LlamaConfig(
            **self.sizes,
            vocab_size=len(tokenizer),
            max_position_embeddings=self.max_positions,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,  # its row would stay at 0, and it may be the end token, which is read
        )
        with torch.random.fork_rng(devices=[]), explained("model"):
            torch.manual_seed(seed)
            net = LlamaForCausalLM._from_config(config, attn_implementation=self.attention)
        if self.gradient_checkpointing:
            net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        backbone = LlamaBackbone(net, head=head_of(net), roles=ROLES["llama"], tokenizer=tokenizer, reads="causal")
        backbone.positions = self.max_positions
        return backbone

    def _tokenizer(self, inputs: Inputs) -> Any:
        if inputs.tokenizer:
            return tokenizer_from(inputs.tokenizer)
        if self.tokenizer == "bytes":
            return bytes_tokenizer()
        tokenizer = load_tokenizer(self.tokenizer, self.revision, local=hub.unreachable() is not None)
        if tokenizer.eos_token is None:
            raise UserError(f"model.tokenizer={self.tokenizer}: it has no end token, and a text would have no end")
        return tokenizer


def head_of(net: nn.Module) -> list[str]:
    """Names in a Llama of what every method trains: embeddings, norms, output layer."""
    norms = [name for name, module in net.named_modules() if name.endswith("norm")]
    return ["model.embed_tokens", *norms, "lm_head"]


class LlamaBackbone(CausalBackbone):
    """``token_losses`` in parts of the batch, so that the scores of a large vocabulary need not be held at once."""

    def token_losses(self, batch: dict[str, Tensor], smoothing: float = 0.0) -> Tensor:
        targets = batch["labels"][:, 1:]
        labelled = targets != -100
        hidden, wanted = self._hidden(batch)[:, :-1][labelled], targets[labelled]

        def losses(some: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(self._scores(some), labels, reduction="none", label_smoothing=smoothing)

        rows = max(1, MOST_SCORES // self.net.config.vocab_size)
        if len(hidden) <= rows:
            return losses(hidden, wanted)
        parts = zip(hidden.split(rows), wanted.split(rows), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([losses(*part) for part in parts])
        # The backward pass computes the scores of each part again.
        return torch.cat([checkpoint(losses, *part, use_reentrant=False) for part in parts])
