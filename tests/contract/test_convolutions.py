"""Every method on a network of convolutions with batch normalisation: fit, checkpoint, resume, merge, save and load."""

from __future__ import annotations

import copy
import functools
import io
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save
from torch import nn

from lrx import registry
from lrx.callbacks.lens import look_at
from lrx.errors import UserError
from lrx.methods.base import Method, split_trainable
from lrx.methods.export import to_merged, to_peft
from lrx.models.base import Backbone, Inputs, Outputs
from lrx.nn.lowrank import matrix
from lrx.nn.optim import state_bytes
from lrx.nn.targets import find_targets
from tests.contract.test_methods import NAMES, options_of
from tests.models.building import build, one_batch

torch.set_num_threads(1)
LOW_RANK = ["lora", "altlora", "altlora_plus", "lora_pro", "scaled_adamw", "rslora", "lora_plus", "pissa", "lora_ga"]
LOW_RANK += ["adaprelora", "lora_rite", "lora_xs", "lora_sb"]
WHOLE = ["galore", "dct_adamw", "trion", "dion", "muon_nesterov"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {"target_modules": "all", "rank": 4}) for name in LOW_RANK},
    **{name: (name, {}) for name in ("full", "head")},
    **{name: (name, {"target_modules": "all", "rank": 4}) for name in WHOLE},
    "dora": ("dora", {"target_modules": "all", "rank": 4}),
    "switchlora": ("switchlora", {"target_modules": "all", "rank": 4, "interval": 2, "freeze_steps": 1}),
    "relora": ("relora", {"target_modules": "all", "rank": 4, "cycle": 3, "restart_warmup": 2, "prune": 1.0}),
    "peft": ("peft", {"target_modules": "all", "options": {"r": 4}}),
    "peft-dora": ("peft", {"tuner": "dora", "target_modules": "all-conv", "options": {"r": 4}}),
}
LINEAR_ONLY = {"lost", "noble"}  # which refuse a convolution, see the last test
RATES = {
    "full": 1e-3,
    "head": 0.1,
    "altlora": 5.0,
    "altlora_plus": 1e-3,
    "lora_plus": 1e-3,
    "adaprelora": 1e-3,
    "lora_rite": 1e-4,
}
SIZE = Inputs("image", (3, 8, 8))
# Those that share the code of another case are tried when there is time.
SLOW = ("altlora_plus", "lora_pro", "rslora", "lora_plus", "peft-dora", "trion", "dion", "lora_rite", "lora_xs")
every = pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in CASES],
)


@functools.cache
def original() -> Backbone:
    return build("tiny_conv", inputs=SIZE)


def backbone_() -> Backbone:
    return copy.deepcopy(original())


def test_every_method_is_here() -> None:
    assert {name for name, _ in CASES.values()} == set(NAMES) - {"none"} - LINEAR_ONLY  # which trains nothing


def adapted(case: str, seed: int = 0, **overrides: Any) -> tuple[Backbone, Method]:
    name, own = CASES[case]
    _, options = options_of(name, **{**own, **overrides})
    backbone, method = backbone_(), registry.load("methods", name)(**options)
    method.adapt(backbone, torch.Generator().manual_seed(seed))
    method.plan(backbone, 20)
    method.warm_start(backbone, ({**data(i)[0], "labels": data(i)[1]} for i in range(500, 508)), loss_of)
    return backbone, method


def loss_of(backbone: Backbone, batch: dict[str, Any]) -> torch.Tensor:
    return nn.functional.cross_entropy(backbone({"pixel_values": batch["pixel_values"]}), batch["labels"])


def data(step: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.arange(12) % 3
    pixels = torch.randn(12, *SIZE.shape, generator=generator) + labels.view(-1, 1, 1, 1)
    return {"pixel_values": pixels}, labels


def train(
    backbone: Backbone, method: Method, optimizer: torch.optim.Optimizer, steps: int, first: int = 0, same: bool = False
) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        torch.manual_seed(step)  # dropout
        batch, labels = data(0 if same else step)
        loss = nn.functional.cross_entropy(backbone(batch), labels)
        losses.append(loss.item())
        penalty = method.penalty(backbone)
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        method.before_step(backbone, optimizer, step)
        optimizer.step()
        method.after_step(backbone, optimizer, step)
    return losses


def logits(backbone: Backbone) -> torch.Tensor:
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        found = backbone(data(99)[0])
    backbone.train(training)
    return found


def statistics(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: b.clone() for name, b in backbone.net.named_buffers() if "running_" in name or "num_batches" in name}


@every
def test_it_starts_as_the_network_and_learns(case: str) -> None:
    name = CASES[case][0]
    lr = RATES.get(name, 1e-2)
    backbone, method = adapted(case, lr=lr, head_lr=lr if name == "head" else 1e-12, weight_decay=0.0)
    if method.exact_at_init:
        atol = 1e-5 if name == "peft" else method.init_tolerance
        torch.testing.assert_close(logits(backbone), logits(backbone_()), rtol=0, atol=atol)
    losses = train(backbone, method, method.optimizer(backbone), 15, same=True)
    assert losses[-1] < 0.99 * losses[0], losses


@every
def test_merging_leaves_outputs_and_layers_as_they_are(case: str) -> None:
    plain = {name: type(module) for name, module in backbone_().net.named_modules()}
    backbone, method = adapted(case, lr=1e-2)
    train(backbone, method, method.optimizer(backbone), 3)
    expected = logits(backbone)
    method.merge(backbone)
    torch.testing.assert_close(logits(backbone), expected, rtol=1e-4, atol=1e-4)
    assert {name: type(module) for name, module in backbone.net.named_modules()} == plain


@every
def test_a_saved_state_restores_a_trained_network_exactly(case: str) -> None:
    backbone, method = adapted(case, lr=1e-2)
    train(backbone, method, method.optimizer(backbone), 3)
    stored = load(save({name: tensor.contiguous() for name, tensor in method.adapter_state(backbone).items()}))
    other, fresh = adapted(case, lr=1e-2)
    assert not torch.equal(logits(other), logits(backbone))
    fresh.load_adapter(other, stored)
    assert torch.equal(logits(other), logits(backbone))
    moved = {name for name in stored if "running_" in name}
    assert bool(moved) == method.trains_base


@every
def test_a_resumed_run_continues_bit_for_bit(case: str) -> None:
    backbone, method = adapted(case, lr=1e-3)
    optimizer = method.optimizer(backbone)
    train(backbone, method, optimizer, 3)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "adapter": method.adapter_state(backbone)}, file)
    expected = train(backbone, method, optimizer, 4, first=3)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, again = adapted(case, lr=1e-3, seed=9)
    again.load_adapter(other, saved["adapter"])
    resumed = again.optimizer(other)
    resumed.load_state_dict(saved["optimizer"])
    assert train(other, again, resumed, 4, first=3) == expected
    assert torch.equal(logits(other), logits(backbone))


@every
def test_running_statistics_move_with_the_network_and_stand_still_with_a_frozen_one(case: str) -> None:
    backbone, method = adapted(case)
    before = statistics(backbone)
    assert before
    backbone.eval()
    backbone.train()  # as after an evaluation
    train(backbone, method, method.optimizer(backbone), 2)
    after = statistics(backbone)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == (set(before) if method.trains_base else set())


@pytest.mark.parametrize("case", [*LOW_RANK, "peft", "peft-dora"])
def test_cost_formulas_equal_the_counts(case: str) -> None:
    backbone, method = adapted(case, head_lr=1e-3)
    optimizer = method.optimizer(backbone)
    train(backbone, method, optimizer, 4)
    layers = find_targets(backbone_().net, CASES[case][1]["target_modules"], roles={}, head=backbone.head)
    adapter, head = split_trainable(backbone)
    if case == "peft-dora":  # its formula is that of a linear layer; a convolution's magnitudes are as many
        layers = {name: layer for name, layer in layers.items() if layer.kernel_size == (1, 1)}
        adapter = [(name, p) for name, p in adapter if any(name.startswith(layer + ".") for layer in layers)]
    shapes = [matrix(layer).shape for layer in layers.values()]
    assert sum(p.numel() for _, p in adapter) == sum(method.trainable_per_matrix(*shape) for shape in shapes)
    if case in LOW_RANK:
        state = sum(method.state_per_matrix(*shape) for shape in shapes) + sum(2 * p.numel() for _, p in head)
        assert state_bytes(optimizer) == 4 * state
        assert [tuple(pair.weight.shape) for pair in method.pairs(backbone)] == [tuple(shape) for shape in shapes]


@pytest.mark.parametrize("case", WHOLE)
def test_whole_matrices_have_the_state_of_their_formula(case: str) -> None:
    backbone, method = adapted(case, head_lr=1e-3)
    optimizer = method.optimizer(backbone)
    train(backbone, method, optimizer, 2)
    layers = find_targets(backbone_().net, "all", roles={}, head=backbone.head)
    targets = [backbone.net.get_submodule(name).weight for name in layers]
    state = sum(method.state_per_matrix(*w.flatten(1).shape) for w in targets)
    rest = sum(p.numel() for p in backbone.net.parameters()) - sum(w.numel() for w in targets)
    assert state_bytes(optimizer) == 4 * (state + 2 * rest)


@pytest.mark.parametrize("case", LOW_RANK)
def test_peft_loads_the_adapter(case: str, tmp_path) -> None:
    from peft import PeftModel

    backbone, method = adapted(case, lr=1e-2)
    train(backbone, method, method.optimizer(backbone), 3)
    to_peft(method, backbone, tmp_path, base_model_name="somewhere/tiny")
    stored = load_file(tmp_path / "adapter_model.safetensors")
    rank = 8 if method.pairs(backbone)[0].B0 is not None else 4  # an anchored layer's
    assert stored["base_model.model.blocks.1.0.conv_exp.lora_A.weight"].shape == (rank, 16, 3, 3)
    assert stored["base_model.model.blocks.1.0.conv_exp.lora_B.weight"].shape == (64, rank, 1, 1)
    model = PeftModel.from_pretrained(backbone_().net, str(tmp_path)).eval()
    with torch.no_grad():
        found = model(data(99)[0]["pixel_values"])
        torch.testing.assert_close(found, logits(backbone), rtol=1e-4, atol=1e-5)
        merged = model.merge_and_unload()(data(99)[0]["pixel_values"])
    torch.testing.assert_close(merged, found, rtol=1e-4, atol=1e-4)


def test_peft_would_lose_the_dilation_so_it_is_not_exported(tmp_path) -> None:
    class Plain(Backbone):
        def forward(self, batch):
            return self.net(batch["pixel_values"]).mean((2, 3))

    backbone = Plain(nn.Sequential(nn.Conv2d(3, 6, 3, dilation=2)), head=[], roles={})
    method = registry.load("methods", "lora")(lr=0.1, rank=2, target_modules="all-conv")
    method.adapt(backbone, torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=r"layer '0': .*dilated"):
        to_peft(method, backbone, tmp_path, None)


@pytest.mark.parametrize("case", ["lora", "full", "peft"])
def test_the_merged_network_is_plain_weights(case: str, tmp_path) -> None:
    backbone, method = adapted(case, lr=1e-2)
    train(backbone, method, method.optimizer(backbone), 3)
    to_merged(method, backbone, tmp_path)
    other = backbone_()
    other.net.load_state_dict(load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(logits(other), logits(backbone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "count"),
    [("lora", 15), ("lora_sb", 15), ("pissa", 15), ("dora", 15), ("full", 15), ("peft", 15), ("peft-dora", 15)],
)
def test_the_lens_sees_the_update_of_each_matrix(case: str, count: int) -> None:
    backbone, method = adapted(case, lr=1e-2)
    start = {
        name: layer.weight.detach().clone()
        for name, layer in backbone_().net.named_modules()
        if hasattr(layer, "weight")
    }
    found = look_at(method, backbone, None)
    assert len(found) == count
    train(backbone, method, method.optimizer(backbone), 3)
    seen = {looking.name: (looking.update()[0], looking.weight()) for looking in found}
    method.merge(backbone)
    for name, (values, weight) in seen.items():
        now = backbone.net.get_submodule(name).weight.flatten(1)
        torch.testing.assert_close(weight.float(), now, rtol=1e-4, atol=1e-5)
        expected = torch.linalg.svdvals((now - start[name].flatten(1)).double())
        assert expected[0] > 0
        torch.testing.assert_close(values, expected[: len(values)], rtol=1e-3, atol=1e-4)


def test_keywords_of_the_lens() -> None:
    backbone, method = adapted("full")
    assert len(look_at(method, backbone, "all-conv")) == 15
    backbone, method = adapted("lora")
    assert len(look_at(method, backbone, "all-conv")) == 15
    assert len(look_at(method, backbone, ["expand"])) == 4
    with pytest.raises(UserError, match="changes no matrix"):
        look_at(method, backbone, "all-linear")


def test_a_norm_that_a_method_trains_is_not_still() -> None:
    backbone = backbone_()
    backbone.freeze()
    assert not any(module.training for module in backbone.net.modules() if isinstance(module, nn.BatchNorm2d))
    for p in backbone.net.bn1.parameters():
        p.requires_grad_(True)
    backbone.train()
    assert backbone.net.bn1.training
    assert set(backbone.statistics()) == {"bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"}
    assert not backbone.net.blocks[0][0].bn1.training
    backbone.eval()
    assert not backbone.net.bn1.training


def test_a_norm_without_parameters_is_frozen_with_the_network_and_trains_in_a_head() -> None:
    class Plain(Backbone):
        def forward(self, batch):
            return self.net(batch["pixel_values"])

    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.BatchNorm1d(16, affine=False)
    )
    backbone = Plain(net, head=["3"], roles={})
    assert len(backbone.statistics()) == 6
    backbone.freeze()
    assert (net[1].training, net[3].training) == (False, True)
    assert set(backbone.statistics()) == {"3.running_mean", "3.running_var", "3.num_batches_tracked"}


def test_the_batch_is_one_that_a_task_gives() -> None:
    assert logits(backbone_()).shape == (12, 3)
    assert one_batch(backbone_())["pixel_values"].ndim == 4
    assert backbone_().in_head("classifier.weight")


def test_outputs_for_classes_of_another_number() -> None:
    assert build("tiny_conv", inputs=SIZE, outputs=Outputs("classes", 7))(data(0)[0]).shape == (12, 7)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lora", {"target_modules": ["conv_dw"]}, "'blocks.3.0.conv_dw', a convolution in 128 groups"),
        (
            "lora",
            {"target_modules": "all-linear"},
            "all-linear selects no layer of this model; this model has all-conv",
        ),
        ("lora", {"target_modules": "all-conv", "rank": 9}, "'blocks.3.0.se.conv_reduce' is 8 x 128, so the rank"),
        ("lost", {"target_modules": "all-conv"}, "method=lost adapts linear layers, and 'conv_stem' is"),
        ("noble", {"target_modules": ["expand"]}, "method=noble adapts linear layers, and 'blocks.1.0.conv_exp' is"),
        ("peft", {"target_modules": ["conv_dw"]}, "peft refuses these options or this model"),
        ("peft", {"target_modules": "all-linear"}, "this model has all-conv"),
    ],
)
def test_what_cannot_be_adapted_is_one_clear_line(name: str, options: dict[str, Any], words: str) -> None:
    method = registry.load("methods", name)(lr=0.1, **options)
    with pytest.raises(UserError) as caught:
        method.adapt(backbone_(), torch.Generator().manual_seed(0))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
