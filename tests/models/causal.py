"""Small causal networks as transformers makes them, their backbones, and batches for them."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers as t
from torch import Tensor

from lrx import registry
from lrx.models.base import Backbone, Inputs, Outputs
from lrx.models.causal_lm import ROLES, prepared
from lrx.models.tokenizers import bytes_tokenizer

TEXT, WRITTEN = Inputs("text", max_length=64), Outputs("text")
PROMPTS = ["What is two and two?", "Hm", "A very much longer prompt, of which there is a lot to say: "]
KINDS = sorted(ROLES)
LLAMA = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 48,
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "gemma2": LLAMA | {"head_dim": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 2.0},
}


def plain(kind: str, seed: int = 0, **changed: Any) -> Any:
    """A small network as transformers makes it, whose scores are spread widely enough to be ranked."""
    torch.manual_seed(seed)
    tokenizer = bytes_tokenizer()
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = t.AutoConfig.for_model(kind, vocab_size=len(tokenizer), **ids, **SMALL[kind], **changed)
    net = t.AutoModelForCausalLM.from_config(config, attn_implementation="eager" if kind == "gemma2" else "sdpa")
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 2:
                p.mul_(6)
    return net.eval()


def backbone_of(kind: str, **changed: Any) -> Backbone:
    return prepared(copy.deepcopy(plain(kind, **changed)), bytes_tokenizer())


def adapted(backbone: Backbone, name: str = "lora", **options: Any) -> Backbone:
    """``backbone`` with a method's layers, the update of which is not zero."""
    options = {"target_modules": ["query", "value"], "rank": 4, "alpha": 8.0} | options if name == "lora" else options
    registry.load("methods", name)(lr=1e-3, **options).adapt(backbone, torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    with torch.no_grad():
        for p in backbone.net.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    return backbone.train()


def left(tokenizer: Any, prompts: list[str]) -> dict[str, Tensor]:
    tokenizer.padding_side = "left"
    encoded = tokenizer(prompts, return_tensors="pt", padding=True)
    return {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}


def labelled(side: str = "right") -> dict[str, Tensor]:
    """Two rows of unequal length with labels here and there."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 256, (2, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    if side == "left":
        mask = mask.flip(1)
    labels = ids.masked_fill(mask == 0, -100)
    labels[1, mask[1].argmax()] = -100  # nothing stands before a row's first token
    labels[0, 1:5] = -100
    labels[1, 6] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
