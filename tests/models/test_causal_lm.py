"""Causal language models: losses and generations equal to plain transformers, adapted or not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor

from lrx.models.base import Decoding
from lrx.models.causal_lm import prepared
from lrx.models.stopping import StopTexts
from lrx.models.tokenizers import bytes_tokenizer
from tests.models.causal import KINDS, PROMPTS, adapted, backbone_of, labelled, left, plain


def expected_losses(net: Any, batch: dict[str, Tensor], smoothing: float = 0.0) -> Tensor:
    """Row by row without padding, by the definition."""
    losses = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        there = mask.bool()
        scores = net(input_ids=ids[there][None]).logits[0].float().log_softmax(-1)
        wanted = labels[there]
        for place in range(1, len(wanted)):
            if wanted[place] != -100:
                row = scores[place - 1]
                losses.append(-(1 - smoothing) * row[wanted[place]] - smoothing * row.mean())
    return torch.stack(losses)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_scores_are_those_of_transformers(kind: str) -> None:
    net, backbone = plain(kind), backbone_of(kind)
    backbone.eval()
    with torch.no_grad():
        for side in ("right", "left"):
            batch = labelled(side)
            for smoothing in (0.0, 0.1):
                found = backbone.token_losses(batch, smoothing)
                torch.testing.assert_close(found, expected_losses(net, batch, smoothing), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(backbone.loss(batch), found.new_tensor(0) + backbone.token_losses(batch).mean())
        batch = {"input_ids": labelled()["input_ids"]}
        torch.testing.assert_close(backbone(batch), net(**batch).logits.float(), rtol=1e-4, atol=1e-4)
    own = net(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
    mine = backbone.loss({**batch, "labels": batch["input_ids"]})
    torch.testing.assert_close(mine, own, rtol=1e-5, atol=1e-5)


def test_only_labelled_positions_reach_the_output_layer() -> None:
    backbone = backbone_of("llama")
    seen = []
    backbone.net.lm_head.register_forward_hook(lambda module, given, made: seen.append(tuple(made.shape)))
    batch = labelled()
    losses = backbone.token_losses(batch)
    assert seen == [(len(losses), 258)]
    assert len(losses) == (batch["labels"][:, 1:] != -100).sum() < batch["labels"].numel() - 6
    assert losses.dtype == torch.float32


@pytest.mark.parametrize(("kind", "beams"), [*((kind, 1) for kind in KINDS), ("gpt2", 3), ("llama", 3)])
def test_generation_is_that_of_transformers(kind: str, beams: int) -> None:
    net, backbone = plain(kind), adapted(backbone_of(kind))
    batch = left(backbone.tokenizer, PROMPTS)
    decoding = Decoding(12, beams=beams, length_penalty=0.8, repetition_penalty=1.1)
    options = {
        "max_new_tokens": 12, "num_beams": beams, "length_penalty": 0.8,
        "repetition_penalty": 1.1, "do_sample": False,
    }  # fmt: skip
    fresh = prepared(copy.deepcopy(net), bytes_tokenizer())
    expected = net.generate(**batch, **options, pad_token_id=backbone.tokenizer.pad_token_id)
    assert torch.equal(fresh.generate(batch, decoding), expected[:, batch["input_ids"].shape[1] :])
    changed = backbone.generate(batch, decoding)
    assert not torch.equal(changed, fresh.generate(batch, decoding))  # the adapter has its part in it
    assert torch.equal(backbone.generate(batch, decoding, use_cache=False), changed)
    for prompt, row in zip(PROMPTS, changed, strict=True):  # alone, without padding
        alone = backbone.generate(left(backbone.tokenizer, [prompt]), decoding)[0]
        assert torch.equal(alone, row[: len(alone)])
        assert set(row[len(alone) :].tolist()) <= {backbone.tokenizer.pad_token_id}


def test_rows_end_at_stop_texts_and_end_tokens() -> None:
    backbone = backbone_of("llama")
    tokenizer = backbone.tokenizer
    batch = left(tokenizer, PROMPTS)
    free = backbone.generate(batch, Decoding(24))
    texts = tokenizer.batch_decode(free)
    stop = texts[0][5:7]
    assert texts[0].index(stop) == 5
    found = tokenizer.batch_decode(backbone.generate(batch, Decoding(24, stop=(stop, "never seen"))))
    pad = tokenizer.pad_token
    for text, full in zip(found, texts, strict=True):
        ended = full.find(stop)
        assert text.replace(pad, "") == (full if ended < 0 else full[: ended + len(stop)])
    only = backbone.generate(left(tokenizer, PROMPTS[:1]), Decoding(24, stop=(stop,)))
    assert only.shape == (1, 7)  # when all have ended, nothing more is computed
    inside = PROMPTS[0][:4]  # a stop text in the prompt ends nothing
    assert torch.equal(backbone.generate(batch, Decoding(6, stop=(inside,))), free[:, :6])
    tokenizer.eos_token = tokenizer.decode([int(free[0, 3])])
    assert tokenizer.eos_token_id == free[0, 3]
    ended = backbone.generate(left(tokenizer, PROMPTS[:1]), Decoding(24))
    assert ended[0].tolist() == free[0, :4].tolist()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_rows_that_have_ended_are_not_computed_any_further(kind: str) -> None:
    """Eight rows that end at eight lengths: the tokens of one plain call, from fewer rows."""
    net = plain(kind)
    backbone = prepared(copy.deepcopy(net), bytes_tokenizer())
    batch = left(backbone.tokenizer, [f"{'x' * (3 * n + 1)} {n}" for n in range(8)])
    prompt = batch["input_ids"].shape[1]
    pad = backbone.tokenizer.pad_token_id
    options = {"do_sample": False, "max_new_tokens": 20, "pad_token_id": pad, "repetition_penalty": 1.2}
    free = net.generate(**batch, **options)[:, prompt:]
    ends = sorted({int(free[row, 2 * row]) for row in range(7)} - {pad})
    expected = net.generate(**batch, **options, eos_token_id=[256, *ends])[:, prompt:]
    lengths = (expected != pad).sum(1)
    assert lengths.unique().numel() >= 3
    backbone.net.generation_config.eos_token_id = ends
    sizes: list[int] = []
    backbone.net.base_model.register_forward_hook(lambda module, given, made: sizes.append(len(made[0])))
    found = backbone.generate(batch, Decoding(20, repetition_penalty=1.2))
    assert torch.equal(found, expected)
    assert torch.equal(backbone.generate(batch, Decoding(20, repetition_penalty=1.2), use_cache=False), expected)
    assert sizes[0] == 8
    assert min(sizes) < 6
    assert sum(sizes[: found.shape[1]]) < 8 * found.shape[1]


def test_stop_texts_of_several_tokens_and_of_parts_of_tokens() -> None:
    """``batch_decode`` of the last tokens alone finds what the whole text has."""
    tokenizer = bytes_tokenizer()
    text = "Jürgen said: €5.\n\nQuestion: why? — because"
    ids = tokenizer(text, return_tensors="pt").input_ids
    for stop in ("\n\nQ", "Question:", "€5", "—", "why? — because"):
        criteria = StopTexts(tokenizer, ("not there", stop), 0)
        ended = [bool(criteria(ids[:, :length], None)[0]) for length in range(1, ids.shape[1] + 1)]
        whole = [stop in tokenizer.decode(ids[0, :length]) for length in range(1, ids.shape[1] + 1)]
        assert ended.index(True) == whole.index(True) == len(text[: text.index(stop) + len(stop)].encode()) - 1


def test_generation_settings_of_the_weights_do_not_leak_in() -> None:
    backbone = backbone_of("llama")
    batch = left(backbone.tokenizer, PROMPTS)
    expected = backbone.generate(batch, Decoding(10))
    own = t.GenerationConfig(
        do_sample=True, temperature=3.0, top_k=5, repetition_penalty=5.0, bad_words_ids=[[int(expected[0, 0])]],
        max_length=3, begin_suppress_tokens=[int(expected[1, 0])], eos_token_id=[256, 400],
    )  # fmt: skip
    backbone.net.generation_config = own
    assert torch.equal(backbone.generate(batch, Decoding(10)), expected)
    assert backbone.net.generation_config is own
    assert backbone.end_tokens() == [256, 400]


def test_modes_are_restored_and_dropout_is_off_while_it_writes() -> None:
    backbone = adapted(backbone_of("gpt2"), dropout=0.5)
    backbone.net.transformer.drop.eval()
    modes = {name: module.training for name, module in backbone.named_modules()}
    assert len(set(modes.values())) == 2
    batch = left(backbone.tokenizer, PROMPTS)
    first = backbone.generate(batch, Decoding(8))
    assert torch.equal(backbone.generate(batch, Decoding(8)), first)
    assert {name: module.training for name, module in backbone.named_modules()} == modes
    with pytest.raises(ValueError, match="penalty"):
        backbone.generate(batch, Decoding(8, repetition_penalty=-1.0))
    assert {name: module.training for name, module in backbone.named_modules()} == modes


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_gradient_checkpointing_changes_neither_gradients_nor_generation(kind: str) -> None:
    results = []
    for checkpointing in (False, True):
        net = copy.deepcopy(plain(kind))
        backbone = adapted(prepared(net, bytes_tokenizer(), dropout=0.0, gradient_checkpointing=checkpointing))
        assert backbone.net.is_gradient_checkpointing is checkpointing
        backbone.loss(labelled()).backward()
        grads = {name: p.grad for name, p in backbone.net.named_parameters() if p.requires_grad}
        assert all(grad is not None and grad.any() for grad in grads.values())
        results.append((grads, backbone.generate(left(backbone.tokenizer, PROMPTS), Decoding(8))))
    for name, grad in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], grad, rtol=1e-5, atol=1e-6)
    assert torch.equal(results[0][1], results[1][1])


def test_generation_of_a_network_that_peft_has_wrapped() -> None:
    ours, theirs = (backbone_of("llama") for _ in range(2))
    adapted(ours)
    adapted(theirs, "peft", tuner="lora", target_modules=["query", "value"], options={"r": 4, "lora_alpha": 8})
    layers = {name: module for name, module in theirs.net.named_modules() if hasattr(module, "lora_A")}
    with torch.no_grad():
        for name, layer in layers.items():
            mine = ours.net.get_submodule(name)
            layer.lora_A["default"].weight.copy_(mine.A)
            layer.lora_B["default"].weight.copy_(mine.B)
    assert len(layers) == 4
    batch = left(ours.tokenizer, PROMPTS)
    assert torch.equal(theirs.generate(batch, Decoding(12)), ours.generate(batch, Decoding(12)))
    torch.testing.assert_close(theirs.token_losses(labelled()), ours.token_losses(labelled()), rtol=1e-4, atol=1e-4)
