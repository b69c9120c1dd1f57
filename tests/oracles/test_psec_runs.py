"""PSEC and IQL as methods of a run: resumed, merged, refused, and what wrong options are told."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from lrx import registry
from lrx.errors import UserError
from lrx.methods.base import Method
from lrx.methods.psec import PSEC
from lrx.models.diffusion_policy import PolicyBackbone
from tests.contract.test_methods import tiny_bert
from tests.oracles.test_psec import adapted, batch_of, inputs, policy, train

torch.set_num_threads(1)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "iql": ("iql", {}),
    **{compose: ("psec", {"compose": compose}) for compose in ("parameter", "noise", "action", "fixed")},
    "guided": ("psec", {"guide": "reward", "penalty": 1.0}),
    "costs": ("psec", {"new": ["cost", "reward"]}),
}


def method_of(case: str) -> tuple[PolicyBackbone, Method]:
    name, own = CASES[case]
    backbone = policy()
    options = {"lr": 1e-2, "hidden": 16} | ({"rank": 4, "expand": 0.5} if name == "psec" else {}) | own
    method = registry.load("methods", name)(**options)
    method.adapt(backbone, torch.Generator().manual_seed(0))
    method.plan(backbone, 8)
    return backbone, method


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("broken_off", [2, 4, 6])
def test_resumed_in_any_stage_bit_for_bit(case: str, broken_off: int) -> None:
    backbone, method = method_of(case)
    optimizer = train(backbone, method, broken_off)
    saved = copy.deepcopy((method.adapter_state(backbone), optimizer.state_dict()))
    train(backbone, method, 8 - broken_off, first=broken_off, optimizer=optimizer)
    other, again = method_of(case)
    again.load_adapter(other, saved[0])
    resumed = again.optimizer(other)
    resumed.load_state_dict(saved[1])
    train(other, again, 8 - broken_off, first=broken_off, optimizer=resumed)
    expected, found = backbone.net.state_dict(), other.net.state_dict()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    states = {"observations": inputs()[0]}
    assert torch.equal(backbone.eval()(states), other.eval()(states))
    assert not torch.equal(backbone(states), policy()(states)), "nothing was learned"


@pytest.mark.parametrize("case", ["iql", "fixed"])
def test_merged_into_plain_weights(case: str) -> None:
    backbone, method = method_of(case)
    train(backbone, method, 8)
    states = {"observations": inputs()[0]}
    expected = backbone.eval()(states)
    method.merge(backbone)
    torch.testing.assert_close(backbone(states), expected, rtol=1e-4, atol=1e-4)
    assert backbone.net.state_dict().keys() == policy().net.state_dict().keys()


@pytest.mark.parametrize("compose", ["parameter", "noise", "action"])
def test_what_depends_on_the_state_cannot_be_merged(compose: str) -> None:
    backbone, method = method_of(compose)
    with pytest.raises(UserError, match=f"cannot be merged into plain weights: with compose={compose}"):
        method.merge(backbone)


@pytest.mark.parametrize("name", ["psec", "iql"])
def test_other_models_are_refused(name: str) -> None:
    method = registry.load("methods", name)(lr=1e-3)
    with pytest.raises(UserError, match=f"method={name} is for policies") as told:
        method.adapt(tiny_bert(), torch.Generator())
    assert "\n" not in str(told.value)


def test_the_global_generator_is_left_alone() -> None:
    for case in CASES:
        torch.manual_seed(5)
        expected = torch.get_rng_state()
        method_of(case)
        assert torch.equal(torch.get_rng_state(), expected), case


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rank": 0}, "method.rank=0"),
    ({"scale": 0.0}, "method.alpha=0.0|method.scale=0.0"),
    ({"new": (), "skills": ()}, "method.skills=\\[\\]: nothing to compose"),
    ({"new": ("reward", "reward")}, "method.new"),
    ({"weights": [1.0]}, "method.weights=\\[1.0\\]: one weight for each of the 2 skills"),
    ({"weights": [1.0, 2.0]}, "method.compose=fixed only"),
    ({"expand": 1.0}, "method.expand=1.0"),
    ({"guide": "cost"}, "method.guide=cost: needs a new skill of this kind"),
    ({"head_lr": 1e-3}, "method.head_lr=0.001: .*no head to train"),
    ({"ema": 0.0}, "method.ema=0.0"),
    ({"expectile": 1.0}, "method.expectile=1.0"),
    ({"discount": 1.0}, "method.discount=1.0"),
    ({"save": "a/b"}, "method.save='a/b'"),
    ({"new": (), "skills": ("x",), "compose": "fixed"}, "method.new=\\[\\]"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[next(iter(options)) for options, _ in WRONG])
def test_wrong_options_are_told_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PSEC(lr=1e-3, **options)


def test_cost_skills_need_costs() -> None:
    backbone = policy()
    method = adapted(backbone, new=["cost"])
    with pytest.raises(UserError, match="needs a task whose batches have costs"):
        method.objective(backbone, batch_of(0))
