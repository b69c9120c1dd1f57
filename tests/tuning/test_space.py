"""The space that a sweep file gives, and the values that are proposed from it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml

from lrx import paths
from lrx.errors import UserError
from lrx.results import sweep
from lrx.tuning.proposal import SPREAD, distributions, next_point, stored
from lrx.tuning.space import Dimension, Point, Space

LR = Dimension(low=1e-4, high=1e-1, log=True)
SPACE: Space = {"method.lr": LR}


def proposals(space: Space, present: Point, count: int, seed: int = 100) -> list[Point]:
    """The first ``count`` trials when the best score is at the middle of every dimension."""
    tried: list[tuple[Point, float | None]] = []
    for _ in range(count):
        point = next_point(space, tried, present, seed)
        if point is None:
            break
        tried.append((point, -sum(abs(space[key].place(value) - 0.5) for key, value in point.items())))
    return [point for point, _ in tried]


def test_the_first_trial_is_the_present_value_when_it_lies_inside() -> None:
    assert proposals(SPACE, {"method.lr": 0.004}, 1) == [{"method.lr": 0.004}]
    (outside,) = proposals(SPACE, {"method.lr": 1.0}, 1)
    assert outside["method.lr"] == pytest.approx(math.sqrt(1e-4 * 1e-1), rel=0.02)  # the middle instead


def test_few_trials_spread_evenly_over_the_decades() -> None:
    places = sorted(LR.place(point["method.lr"]) for point in proposals(SPACE, {"method.lr": 3.2e-3}, 5))
    assert places == pytest.approx([1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6], abs=0.01)
    for count in range(2, 9):
        places = sorted(LR.place(point["method.lr"]) for point in proposals(SPACE, {"method.lr": 1e-3}, count))
        gaps = [b - a for a, b in zip([-places[0], *places], [*places, 2 - places[-1]], strict=True)]
        assert max(gaps) < 2.5 / count


def test_a_larger_budget_begins_with_the_smaller_one_s_trials() -> None:
    long = proposals(SPACE, {"method.lr": 1e-3}, SPREAD + 3)
    assert proposals(SPACE, {"method.lr": 1e-3}, 4) == long[:4]
    assert len({point["method.lr"] for point in long}) == len(long)


def test_the_last_trials_depend_on_scores_and_seed_alone() -> None:
    tried = [(point, -float(i)) for i, point in enumerate(proposals(SPACE, {}, SPREAD))]
    first = next_point(SPACE, tried, {}, 100)
    assert first == next_point(SPACE, tried, {}, 100)
    other = [(point, float(i)) for i, (point, _) in enumerate(tried)]
    assert first != next_point(SPACE, other, {}, 100)
    assert next_point(SPACE, [(point, None) for point, _ in tried], {}, 100) is not None  # all failed


def test_several_dimensions_and_choices() -> None:
    space: Space = {
        "method.lr": LR,
        "method.rank": Dimension(choices=[4, 8]),
        "method.dropout": Dimension(low=0, high=0.2, step=0.1),
        "method.target_modules": Dimension(choices=[["query"], ["query", "value"]]),
        "task.batch_size": Dimension(low=8, high=64, log=True, integer=True),
    }
    points = proposals(space, {}, SPREAD + 2)
    assert all(space[key].contains(value) for point in points for key, value in point.items())
    for key, dimension in space.items():
        values = {repr(point[key]) for point in points}
        assert len(values) >= (2 if dimension.choices else 3)
    assert all(isinstance(point["task.batch_size"], int) for point in points)
    kinds = distributions(space)
    for point in points:
        for key, value in stored(space, point).items():
            assert kinds[key]._contains(kinds[key].to_internal_repr(value))


def test_a_finite_space_ends() -> None:
    space: Space = {"method.rank": Dimension(choices=[4, 8, 16])}
    assert [point["method.rank"] for point in proposals(space, {"method.rank": 8}, 5)] == [8, 4, 16]


@pytest.mark.parametrize(
    ("tune", "complaint"),
    [
        ({"default": {"method.lr": {"low": 1.0, "high": 0.1}}}, "low=1 must be below high=0.1"),
        ({"default": {"method.lr": {"low": 0.0, "high": 0.1, "log": True}}}, "log needs low above 0"),
        ({"default": {"method.lr": {"low": ".nan", "high": 0.1}}}, "valid number"),
        ({"default": {"method.lr": {"low": 0.1}}}, "needs low and high, or choices"),
        ({"default": {"method.lr": {"choices": [1, 1]}}}, "a choice stands twice"),
        ({"default": {"method.lr": {"choices": [1], "low": 0.1}}}, "either choices or low and high"),
        ({"default": {"method.lr": {"low": 0.1, "high": 1, "lgo": True}}}, "lgo"),
        ({"default": {"method.rank": {"low": 1.5, "high": 3, "integer": True}}}, "whole numbers"),
        ({"rows": {"lorra": {}}}, "did you mean 'lora'?"),
        ({"seed": [7, 7]}, "different"),
        ({"seed": None}, "seed"),
    ],
)
def test_a_mistake_in_the_sweep_file_is_one_line(tmp_path: Path, tune: dict[str, object], complaint: str) -> None:
    raw = yaml.safe_load((paths.sweeps_dir() / "altlora_glue.yaml").read_text())
    raw["sweep"]["tune"] = {"seed": 100, **tune}
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError) as caught:
        sweep.load("broken", tmp_path)
    assert complaint in str(caught.value)
    assert re.search(r"broken\.yaml: sweep(\.tune|: tune\.rows)", str(caught.value))
    assert "\n" not in str(caught.value)


def test_rows_may_have_another_space_or_none_of_a_key() -> None:
    tune = sweep.load("altlora_glue").tune
    assert tune is not None
    assert tune.space("lora") == tune.default
    assert tune.space("altlora")["method.lr"].bounds() == (0.1, 100)
    widths = {row: math.log10(tune.space(row)["method.lr"].high / tune.space(row)["method.lr"].low)  # type: ignore
              for row in ("full", "head", "lora", "altlora", "altlora_plus")}  # fmt: skip
    assert set(map(round, widths.values())) == {3}  # equal budgets mean little over unequal widths
