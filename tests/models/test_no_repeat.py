"""No repeated n-gram inside an answer; what the prompt says may be said again, as in LoRA's script."""

from __future__ import annotations

import itertools

import pytest
import torch

from lrx.models.base import Decoding, Inputs, Outputs
from lrx.models.causal_lm import CausalLM
from lrx.models.stopping import NoRepeat

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def test_only_the_answers_own_tokens_count():
    rows = torch.tensor([[7, 8, 9, 1, 2, 1], [1, 2, 3, 7, 8, 4]])  # 3 of the prompt, 3 of the answer
    found = NoRepeat(2, 3)(rows, torch.zeros(2, 10))
    ruled_out = [row.isinf().nonzero().flatten().tolist() for row in found]
    assert ruled_out == [[2], []]  # "1 2" is in the first answer; "8 9" and "1 2" are in the prompts only


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation(beams, use_cache):
    model = CausalLM(weights="random", tokenizer="bytes", config=TINY)
    backbone = model.build(Inputs("text", max_length=64), Outputs("text"), seed=0)
    prompt = torch.arange(40, 60)[None].repeat(2, 1)
    batch = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    free = backbone.generate(batch, Decoding(40, beams=beams), use_cache=use_cache)
    found = backbone.generate(batch, Decoding(40, beams=beams, no_repeat_ngram=2), use_cache=use_cache)

    def repeats(row: list[int]) -> int:
        pairs = list(itertools.pairwise(row))
        return len(pairs) - len(set(pairs))

    assert any(repeats(row) for row in free.tolist())  # a random model falls into loops
    end = backbone.tokenizer.pad_token_id
    assert not any(repeats([token for token in row if token != end]) for row in found.tolist())
