"""Stacks of state-space layers: inputs of every kind, padding, single steps, rates, and what they refuse."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lrx.errors import UserError
from lrx.methods.full import Full
from lrx.models.base import Backbone, Inputs, Outputs
from lrx.models.sequence_stack import SequenceStack
from lrx.seeds import derive
from tests.models.building import SEQUENCES, arguments, same

TOKENS, VALUES = Inputs("sequence", max_length=20, vocabulary=7), Inputs("sequence", max_length=20, features=2)
PAIRS = Inputs("sequence", max_length=20, vocabulary=7, pairs=True)
TINY = [name for name in SEQUENCES if name.startswith("tiny_")]


def build(name: str, inputs: Inputs = TOKENS, size: int = 3, seed: int = 0, **changed: Any) -> Backbone:
    _, options = arguments(name)
    return SequenceStack(**{**options, **changed}).build(inputs, Outputs("classes", size), seed)


def batch_of(inputs: Inputs, lengths: list[int], longest: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(derive(0, *lengths))
    longest = longest or max(lengths)
    found: dict[str, Tensor] = {"labels": torch.arange(len(lengths)) % 3}
    for end in ("", "_b") if inputs.pairs else ("",):
        mask = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
        if inputs.vocabulary:
            ids = torch.randint(1, inputs.vocabulary, (len(lengths), longest), generator=generator)
            found[f"input_ids{end}"] = ids * mask
        else:
            found[f"values{end}"] = torch.randn(len(lengths), longest, inputs.features, generator=generator)
        found[f"lengths{end}"] = torch.tensor(lengths)
    return found


@pytest.mark.parametrize("name", TINY)
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = build(name).net.state_dict()
    assert torch.equal(torch.rand(1), expected)
    assert same(first, build(name).net.state_dict())
    other = build(name, seed=1).net.state_dict()
    assert not torch.equal(first["encoder.weight"], other["encoder.weight"])


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("inputs", [TOKENS, VALUES, PAIRS], ids=["tokens", "values", "pairs"])
def test_padding_changes_nothing(name: str, inputs: Inputs) -> None:
    for norm in ("layer", "batch"):
        backbone = build(name, inputs, norm=norm).eval()
        batch = batch_of(inputs, [1, 5, 13])
        together = backbone(batch)
        assert together.shape == (3, 3)
        assert together.dtype == torch.float32
        for i, length in enumerate((1, 5, 13)):
            alone = {k: v[i : i + 1, :length] if v.ndim > 1 else v[i : i + 1] for k, v in batch.items()}
            torch.testing.assert_close(backbone(alone)[0], together[i], rtol=1e-4, atol=1e-5)


def test_a_batch_norm_takes_its_statistics_of_real_steps() -> None:
    short, long = (
        build("tiny_s4d", norm="batch", bidirectional=False),
        build("tiny_s4d", norm="batch", bidirectional=False),
    )
    batch = batch_of(TOKENS, [4, 9])
    wider = {**batch, "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 6))}
    torch.testing.assert_close(short(batch), long(wider), rtol=1e-4, atol=1e-5)
    found, expected = long.statistics(), short.statistics()
    assert found
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("length", [1, 7, 20, 45])
def test_lengths_that_are_short_odd_or_longer_than_trained_on(name: str, length: int) -> None:
    backbone = build(name)
    scores = backbone(batch_of(TOKENS, [length, length]))
    scores.sum().backward()
    assert scores.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize("lengths", [[0, 4], [0]])
def test_an_empty_sequence_is_refused(lengths: list[int]) -> None:
    with pytest.raises(UserError, match="length 0"):
        build("tiny_s4d")(
            {"input_ids": torch.ones(len(lengths), max(lengths), dtype=torch.int64), "lengths": torch.tensor(lengths)}
        )


@pytest.mark.parametrize("name", [n for n in TINY if "transformer" not in n])
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_single_steps_give_the_scores_of_every_prefix(name: str, pool: str) -> None:
    for changed in ({}, {"prenorm": False, "norm": "batch"}):
        backbone = build(name, bidirectional=False, pool=pool, **changed).eval()
        ids = batch_of(TOKENS, [9, 9])["input_ids"]
        state = backbone.net.start(2)
        for t in range(9):
            scores, state = backbone.net.step(ids[:, t], state)
            prefix = backbone({"input_ids": ids[:, : t + 1], "lengths": torch.full((2,), t + 1)})
            torch.testing.assert_close(scores, prefix, rtol=1e-3, atol=1e-4)


def test_generation_step_by_step() -> None:
    """The ids with the greatest scores, fed back, are those that the whole sequences give."""
    backbone = build("tiny_s4", size=7, bidirectional=False, pool="last").eval()
    ids, state = torch.tensor([[1], [4]]), backbone.net.start(2)
    for _ in range(12):
        scores, state = backbone.net.step(ids[:, -1], state)
        whole = backbone({"input_ids": ids, "lengths": torch.full((2,), ids.shape[1])})
        assert torch.equal(scores.argmax(-1), whole.argmax(-1))
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)


@pytest.mark.parametrize(
    ("name", "inputs", "changed", "message"),
    [
        ("tiny_s4", TOKENS, {}, r"model\.bidirectional=true"),
        ("tiny_lra_transformer", TOKENS, {}, r"model\.layer=transformer"),
        ("tiny_s4d", PAIRS, {"bidirectional": False}, "pair"),
    ],
)
def test_what_has_no_recurrent_form(name: str, inputs: Inputs, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name, inputs, **changed).net.start(1)


def test_a_causal_transformer_does_not_look_ahead() -> None:
    backbone = build("tiny_lra_transformer", bidirectional=False, pool="last").eval()
    batch = batch_of(TOKENS, [5, 9])
    alone = backbone({"input_ids": batch["input_ids"][:1, :5], "lengths": torch.tensor([5])})
    torch.testing.assert_close(backbone(batch)[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"state": 7}, r"model\.state=7: .*even"),
        ({"layer": "s5", "state": 6, "blocks": 2}, r"model\.state/blocks=3"),
        ({"layer": "s5", "blocks": 3}, r"model\.blocks=3"),
        ({"layer": "s5", "init": "lin"}, r"model\.init=lin"),
        ({"layer": "s4", "discretization": "zoh"}, r"model\.discretization=zoh"),
        ({"copies": 3}, r"model\.copies=3"),
        ({"dt_min": 0.2}, r"model\.dt_min=0\.2"),
        ({"clamp": 0.0}, r"model\.clamp=0\.0"),
        ({"layer": "transformer", "heads": 3}, r"model\.heads=3"),
        ({"slow": ["A", "C"]}, r"model\.slow: 'C'"),
        ({"fixed": ["D"]}, r"model\.fixed: 'D'"),
        ({"slow_lr": -1.0}, r"model\.slow_lr=-1\.0"),
        ({"dropout": 1.0}, r"model\.dropout=1\.0"),
        ({"depth": 0}, r"model\.depth=0"),
        ({"norm_momentum": 0.0}, r"model\.norm_momentum=0\.0"),
    ],
)
def test_bad_options_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("tiny_s4d", **{"width": 16, "state": 8, **changed})


def test_other_tasks_are_refused() -> None:
    with pytest.raises(UserError, match="long sequences"):
        build("tiny_s4d", Inputs("image", (1, 8, 8)))
    _, options = arguments("tiny_s4d")
    with pytest.raises(UserError, match="writes no text"):
        SequenceStack(**options).build(TOKENS, Outputs("text"), 0)


def rates(backbone: Backbone, **options: Any) -> dict[str, tuple[float, float]]:
    Full(lr=0.01, weight_decay=0.05).adapt(backbone, torch.Generator())
    names = {id(p): name for name, p in backbone.net.named_parameters()}
    groups = Full(**{"lr": 0.01, "weight_decay": 0.05, **options}).optimizer(backbone).param_groups
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize("name", ["tiny_s4", "tiny_s4d", "tiny_s5", "tiny_s4_ptd", "tiny_s5_ptd"])
def test_rates_of_a_b_and_dt(name: str) -> None:
    backbone = build(name)
    found = rates(backbone)
    assert set(found) == {name for name, _ in backbone.net.named_parameters()}
    slow = {"log_decay", "decay", "frequency", "P", "B", "log_dt"}
    for parameter, rate in found.items():
        matrix = backbone.net.get_parameter(parameter).ndim >= 2
        own = parameter.rpartition(".")[2] in slow
        assert rate == ((0.001, 0.0) if own else (0.01, 0.05 if matrix else 0.0)), parameter
    assert set(rates(backbone, lr=1e-4).values()) == {(1e-4, 0.0), (1e-4, 0.05)}  # never above lr
    chosen = rates(build(name, slow=["A", "B"], undecayed=["A"], slow_lr=0.0))
    assert chosen["blocks.0.system.log_dt"] == (0.01, 0.0)
    assert chosen["blocks.0.system.B"] == (0.0, 0.05)
    still = rates(build(name, fixed=["dt"]))
    assert still["blocks.0.system.log_dt"] == (0.0, 0.0)
    assert still["blocks.0.system.B"] == (0.001, 0.0)


@pytest.mark.parametrize("name", ["tiny_s4d", "tiny_s4_ptd", "tiny_s5", "tiny_s5_ptd"])
def test_a_fixed_dt_is_the_same_in_every_channel_and_stays(name: str) -> None:
    backbone = build(name, dt_min=0.005, dt_max=0.005, fixed=["dt"])
    optimizer = Full(lr=0.1, weight_decay=0.1).optimizer(backbone)
    steps = {key: p for key, p in backbone.net.named_parameters() if key.endswith("log_dt")}
    before = {key: p.detach().clone() for key, p in backbone.net.named_parameters()}
    assert all(torch.allclose(p.exp(), torch.tensor(0.005)) for p in steps.values())
    backbone(batch_of(TOKENS, [5, 9])).square().sum().backward()
    optimizer.step()
    moved = {key for key, p in backbone.net.named_parameters() if not torch.equal(p, before[key])}
    assert moved
    assert not moved & set(steps)


@pytest.mark.parametrize("name", TINY)
def test_training_resumes_exactly(name: str) -> None:
    """Four steps, and two steps, a copy of all states in a new backbone, and two more."""

    def steps(backbone: Backbone, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for i in numbers:
            torch.manual_seed(i)
            batch = batch_of(TOKENS, [5, 9 + i, 20])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(backbone(batch), batch["labels"]).backward()
            optimizer.step()

    method = Full(lr=0.01, weight_decay=0.05)
    whole, first, second = (build(name, dropout=0.1, norm="batch", seed=seed) for seed in (0, 0, 1))
    steps(whole, method.optimizer(whole), range(4))
    optimizer = method.optimizer(first)
    steps(first, optimizer, range(2))
    later = method.optimizer(second)
    second.net.load_state_dict(copy.deepcopy(first.net.state_dict()))
    later.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(second, later, range(2, 4))
    assert same(whole.net.state_dict(), second.net.state_dict())


def test_parameter_counts() -> None:
    """The baseline has as many as S4D, PTD as many as what it starts instead of, and both as the formulas say."""

    def count(name: str) -> int:
        return sum(p.numel() for p in build(name, VALUES, 10).net.parameters())

    H, M = 64, 16
    block = 2 * M + 2 * M + 2 * 2 * H * M + 2 * H + 2 * H * (H + 1) + 2 * H
    assert count("s4d") == count("s4_ptd") == 4 * block + 3 * H + 2 * H + 10 * (H + 1)
    assert count("s4") == count("s4d") + 4 * 2 * M
    assert count("s5") == count("s5_ptd")
    for name in ("lra_transformer", "s5", "s4"):
        assert count(name) == pytest.approx(count("s4d"), rel=0.02)
