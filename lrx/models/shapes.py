"""Shapes of the hub's models, so that their parameters can be counted without their weights and without a network.

From ``config.json`` of each repository; only what decides a shape.
"""

from __future__ import annotations

from typing import Any

_BERT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}

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
}  # fmt: skip
