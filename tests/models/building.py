"""Building every model of ``conf/model``, batches for it, and the checks that several test files make."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from lrx import registry
from lrx.config import compose, settings_of
from lrx.data.splits import Split
from lrx.experiment import quiet_libraries
from lrx.models.base import Backbone, Inputs, Outputs
from lrx.nn.targets import find_targets
from lrx.tasks.text import encode
from tests.conftest import ROOT

quiet_libraries()
NAMES = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
HUB = ["bert_base", "deberta_v3_base", "roberta_base", "roberta_large", "t5_base"]
TEXT = ["minilm", "tiny_bert", "tiny_llama", "tiny_t5"]
OFFLINE = [*TEXT, "tiny_vit", "tiny_conv"]
HUB_IMAGES = ["convnext", "dinov2_b14", "vit_b16"]
HUB_CAUSAL = ["gemma2_9b", "gpt2_large", "gpt2_medium", "gpt2_small", "llama3_8b", "mistral_7b", "qwen2_7b"]
CAUSAL = [*HUB_CAUSAL, "smollm2_135m", "tiny_gpt2", "tiny_lm"]  # tested on their own: they write texts
SEQUENCES = [  # tested on their own: they read long sequences
    *(f"{size}{name}" for name in ("lra_transformer", "s4", "s4_ptd", "s4d", "s5", "s5_ptd") for size in ("", "tiny_")),
    *("s4d_inv", "s4d_lin"),
]
DEPTH = [  # test_depth_models.py
    *("bicubic", "depth_unet", "joint_bilateral", "tiny_gdnet", "gdnet", "gdnet_base", "gdnet_depth", "gdnet_image"),
    *("gdnet_no_detail", "gdnet_no_low_rank", "gdnet_rank16", "gdnet_rank4"),
]
POLICIES = [  # tests/oracles/test_diffusion.py, tests/tasks/test_d4rl.py
    *("diffusion_policy", "mini_diffusion_policy", "mini_diffusion_policy_scratch", "tiny_diffusion_policy"),
    "mlp_policy",
]
SCRATCH = [f"llama_{size}" for size in ("130m", "1b3", "20m", "250m", "350m", "60m", "9m", "tiny")]  # test_llama.py
KEPT = ["efficientnet_lite0", "mini_vit"]  # weights that the cache holds, fetched or made once

IMAGE, SENTENCES = Inputs("image", (3, 8, 12)), Inputs("text", max_length=48)
CLASSES = Outputs("classes", 3, ("good", "bad film", "no opinion at all"), "say what it is: ")
TEXTS = [
    ("A film.",),
    ("It is a long, long film about the people of a very small town.",),
    ("Well made, and yet it never says what it is about.",),
    ("No!",),
]
PAIRS = [(a, b) for (a,), (b,) in itertools.pairwise(TEXTS)]


@functools.cache
def _composed(name: str) -> dict[str, Any]:
    return settings_of(compose([f"model={name}", "scale=smoke"])).model


def arguments(name: str) -> tuple[str, dict[str, Any]]:
    """(family, constructor arguments) of ``conf/model/<name>.yaml``, as a run would get them."""
    model = copy.deepcopy(_composed(name))
    assert model.pop("name") == name
    return model.pop("family"), model


def build(
    name: str, seed: int = 0, outputs: Outputs = CLASSES, inputs: Inputs | None = None, **changed: Any
) -> Backbone:
    family, options = arguments(name)
    inputs = inputs or (IMAGE if family in {"image_classifier", "timm"} else SENTENCES)
    return registry.load("models", family)(**{**options, **changed}).build(inputs, outputs, seed)


def batches(
    backbone: Backbone, texts: list[tuple[str, ...]], outputs: Outputs = CLASSES, size: int | None = None
) -> list[dict[str, Tensor]]:
    """``texts`` as the tasks collate them, ``size`` to a batch (None: all in one)."""
    split = Split(texts, [i % outputs.size for i in range(len(texts))], [str(i) for i in range(len(texts))])
    instruction = outputs.instruction if backbone.reads == "text_to_text" else None
    encoded, _ = encode(split, backbone.tokenizer, 48, instruction=instruction)
    size = size or len(texts)
    return [encoded.collate(list(range(i, min(i + size, len(texts))))) for i in range(0, len(texts), size)]


def one_batch(backbone: Backbone) -> dict[str, Tensor]:
    if backbone.reads == "image":
        pixels = torch.randn(4, *IMAGE.shape, generator=torch.Generator().manual_seed(1))
        return {"pixel_values": pixels, "labels": torch.tensor([0, 1, 2, 0])}
    return batches(backbone, TEXTS)[0]


def head_and_rest(backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    head, rest = {}, {}
    for name, tensor in backbone.net.state_dict().items():
        (head if backbone.in_head(name) else rest)[name] = tensor
    return head, rest


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Layers by role: T5 attends in the encoder, in the decoder and across; the others once per layer.
COUNTS = dict.fromkeys(("query", "key", "value", "output", "mlp_in", "mlp_out"), 2)
ROLE_COUNTS = {
    "minilm": dict.fromkeys(COUNTS, 6),
    "tiny_bert": COUNTS,
    "tiny_llama": {**COUNTS, "mlp_gate": 2},
    "tiny_t5": {**dict.fromkeys(("query", "key", "value", "output"), 6), "mlp_in": 4, "mlp_out": 4},
    "tiny_vit": COUNTS,
    "tiny_conv": {"expand": 4, "project": 4},
    "roberta_base": COUNTS,
    "deberta_v3_base": COUNTS,
    "t5_base": {**dict.fromkeys(("query", "key", "value", "output"), 6), "mlp_in": 4, "mlp_out": 4},
}


def check_roles(name: str, backbone: Backbone) -> None:
    by_role = {
        role: find_targets(backbone.net, [role], roles=backbone.roles, head=backbone.head) for role in backbone.roles
    }
    assert {role: len(found) for role, found in by_role.items()} == ROLE_COUNTS[name]
    every = [layer for found in by_role.values() for layer in found]
    assert len(set(every)) == len(every)  # roles do not overlap
    assert not [layer for layer in every if backbone.in_head(layer)]
    matrices = find_targets(backbone.net, "all", roles=backbone.roles, head=backbone.head)
    assert set(every) <= set(matrices)
    assert not [layer for layer in matrices if backbone.in_head(layer)]
    for head in backbone.head:
        assert isinstance(backbone.net.get_submodule(head), nn.Module)


def slow_scores(backbone: Backbone, text: tuple[str, ...]) -> Tensor:
    """log p(word | text) token by token, the end token included, one text alone without padding."""
    tokenizer, net = backbone.tokenizer, backbone.net
    (batch,) = batches(backbone, [text])
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    scores = []
    for word in CLASSES.words:
        written, total = [net.config.decoder_start_token_id], torch.zeros(())
        for token in [*tokenizer(word, add_special_tokens=False).input_ids, end]:
            logits = net(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                decoder_input_ids=torch.tensor([written]),
            ).logits  # fmt: skip
            total = total + logits[0, -1].log_softmax(-1)[token]
            written.append(token)
        scores.append(total)
    return torch.stack(scores)


def check_text_to_text(backbone: Backbone) -> None:
    backbone.eval()
    lengths = {len(backbone.tokenizer(word, add_special_tokens=False).input_ids) for word in CLASSES.words}
    assert len(lengths) == 3  # the padding of the words is put to the test
    (batch,) = batches(backbone, TEXTS)
    with torch.no_grad():
        scores = backbone(batch)
        for row, text in zip(scores, TEXTS, strict=True):
            torch.testing.assert_close(row, slow_scores(backbone, text), rtol=1e-5, atol=1e-4)
        labels = backbone.word_ids[batch["labels"]]
        own = backbone.net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        torch.testing.assert_close(backbone.loss(batch), own, rtol=1e-5, atol=1e-5)
    ends = [row[row != -100][-1].item() for row in backbone.word_ids]
    assert set(ends) == {backbone.tokenizer.eos_token_id or backbone.tokenizer.sep_token_id}
