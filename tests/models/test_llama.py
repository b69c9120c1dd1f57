"""The family for pretraining: sizes, initialisation, head, roles, and the loss in parts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import yaml

from lrx import registry
from lrx.errors import UserError
from lrx.models import llama
from lrx.models.base import Inputs, Outputs
from lrx.models.llama import Llama
from lrx.nn.targets import find_targets
from tests.conftest import ROOT

TEXT, WRITTEN = Inputs("text", max_length=33), Outputs("text")
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
ROLES = ("query", "key", "value", "output", "mlp_gate", "mlp_in", "mlp_out")


def built(seed: int = 0, **changed):
    return Llama(**(SIZES | changed)).build(TEXT, WRITTEN, seed)


def batch(rows: int = 3, length: int = 17, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, 0] = -100
    labels[-1, 9:] = -100  # a short block
    return {"input_ids": ids, "labels": labels}


def test_weights_are_a_function_of_the_seed_and_leave_the_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = built(3).net, built(3).net, built(4).net
    assert torch.equal(before, torch.get_rng_state())
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_initialisation_and_untied_embeddings():
    net = built(hidden_size=128, intermediate_size=352, initializer_range=0.03).net
    for name, p in net.named_parameters():
        if p.ndim == 2:
            assert p.std().item() == pytest.approx(0.03, rel=0.05), name
            assert abs(p.mean().item()) < 0.001, name
            assert not (p == 0).all(dim=1).any(), name  # no row is that of a padding token
        else:
            assert name.endswith("norm.weight")
            assert (p == 1).all()
    assert net.lm_head.weight is not net.model.embed_tokens.weight
    assert net.config.rms_norm_eps == 1e-6


def test_the_head_is_all_but_the_matrices_of_attention_and_mlp():
    backbone = built()
    backbone.freeze()
    trained = {name for name, p in backbone.net.named_parameters() if p.requires_grad}
    others = {name for name, _ in backbone.net.named_parameters()} - trained
    assert trained == {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} | {
        f"model.layers.{i}.{kind}_layernorm.weight" for i in range(2) for kind in ("input", "post_attention")
    }
    everywhere = {"roles": backbone.roles, "head": backbone.head}
    targets = find_targets(backbone.net, "all-linear", **everywhere)
    assert {f"{name}.weight" for name in targets} == others
    assert len(targets) == 7 * 2
    by_role = [find_targets(backbone.net, [role], **everywhere) for role in ROLES]
    assert [len(found) for found in by_role] == [2] * 7
    assert set().union(*by_role) == set(targets)


@pytest.mark.parametrize("method", ["lora", "head", "none"])
def test_methods_train_the_head_and_leave_the_matrices(method):
    options = {"lora": {"lr": 1e-2, "rank": 2, "alpha": 2.0, "target_modules": list(ROLES)}, "head": {"lr": 1e-2}}
    backbone = built()
    made = registry.load("methods", method)(**options.get(method, {}))
    made.adapt(backbone, torch.Generator().manual_seed(0))
    trained = {name for name, p in backbone.net.named_parameters() if p.requires_grad}
    heads = {name for name in trained if backbone.in_head(name)}
    assert len(heads) == (0 if method == "none" else 7)
    assert len(trained - heads) == (28 if method == "lora" else 0)


def test_token_losses_are_those_of_all_scores():
    backbone, some = built(), batch()
    with torch.no_grad():
        scores = backbone.net(input_ids=some["input_ids"]).logits[:, :-1].double()
        every = F.cross_entropy(scores.flatten(0, 1), some["labels"][:, 1:].flatten(), reduction="none")
        known = some["labels"][:, 1:].flatten() != -100
        torch.testing.assert_close(backbone.token_losses(some).double(), every[known], rtol=1e-5, atol=1e-5)


def test_scores_in_parts_give_the_same_losses_and_gradients(monkeypatch):
    some, found = batch(), []
    for most in (2**26, 258 * 7):
        monkeypatch.setattr(llama, "MOST_SCORES", most)
        backbone = built()
        losses = backbone.token_losses(some, smoothing=0.1)
        losses.mean().backward()
        with torch.no_grad():
            assert torch.allclose(backbone.token_losses(some, smoothing=0.1), losses, atol=1e-6)
        found.append([losses.detach(), *(p.grad for p in backbone.net.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_scores_in_parts_are_never_held_at_once(monkeypatch):
    rows = []
    backbone = built()
    backbone.net.lm_head.register_forward_hook(lambda _, __, out: rows.append(out.shape[0]))
    monkeypatch.setattr(llama, "MOST_SCORES", 258 * 7)
    backbone.token_losses(batch()).mean().backward()
    assert max(rows) == 7
    assert sum(rows) == 2 * 40


def test_checkpointing_gives_the_same_gradients():
    found = []
    for wanted in (False, True):
        backbone = built(gradient_checkpointing=wanted)
        backbone.token_losses(batch()).mean().backward()
        found.append([p.grad for p in backbone.net.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["9m", "20m", "60m", "130m", "250m", "350m", "1b3"])
def test_sizes_of_the_papers(name, monkeypatch):
    """1339.5M is in SwitchLoRA's table of trainable parameters of full-rank training; the others are the formula."""
    options = yaml.safe_load((ROOT / f"conf/model/llama_{name}.yaml").read_text())
    assert options.pop("family") == "llama"
    assert options.pop("name") == f"llama_{name}"

    class Tokens:
        eos_token_id, pad_token_id, eos_token = 1, 0, "</s>"

        def __len__(self) -> int:
            return 32100

    monkeypatch.setattr(Llama, "_tokenizer", lambda *_: Tokens())
    with torch.device("meta"):
        net = Llama(**options).build(TEXT, WRITTEN, 0).net
    h, i, layers = options["hidden_size"], options["intermediate_size"], options["num_hidden_layers"]
    total = sum(p.numel() for p in net.parameters())
    assert total == 2 * 32100 * h + layers * (4 * h * h + 3 * h * i + 2 * h) + h
    if name == "1b3":
        assert round(total / 1e6, 1) == 1339.5


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"hidden_size": 30}, "even multiple"),
        ({"num_hidden_layers": 0}, "model.num_hidden_layers=0"),
        ({"initializer_range": 0.0}, "model.initializer_range"),
        ({"attention": "nonsense"}, "model:"),
        ({"tokenizer": "/no/such/folder"}, "tokenizer '/no/such/folder'"),
    ],
)
def test_bad_options(changed, words):
    with pytest.raises(UserError) as caught:
        built(**changed)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "outputs"), [(Inputs("image"), Outputs("classes", 2)), (TEXT, Outputs("classes", 2))]
)
def test_other_tasks_are_refused(inputs, outputs):
    with pytest.raises(UserError, match="choose another"):
        Llama(**SIZES).build(inputs, outputs, 0)
