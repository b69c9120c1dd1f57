"""Held-out parts and fixed samples."""

from __future__ import annotations

import pytest

from lrx.data.splits import Split, hold_out, limit


def split(n: int) -> Split:
    return Split([(f"text {i}",) for i in range(n)], list(range(n)), [str(i) for i in range(n)])


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_parts_are_disjoint_complete_and_in_file_order(fraction):
    kept, held = hold_out(split(200), fraction)
    assert len(held) == 200 * fraction
    assert sorted(kept.labels + held.labels) == list(range(200))
    assert kept.labels == sorted(kept.labels)
    assert held.labels == sorted(held.labels)


def test_nothing_held_out():
    kept, held = hold_out(split(5), 0)
    assert (len(kept), len(held)) == (5, 0)


def test_equal_examples_stay_together():
    doubled = Split([("same",)] * 30 + [("other",)] * 30, [0] * 60, [str(i) for i in range(60)])
    kept, held = hold_out(doubled, 0.1)
    assert {len(kept), len(held)} == {30}
    assert not set(kept.texts) & set(held.texts)


def test_the_drawing_does_not_depend_on_the_files_order():
    forward, backward = split(100), split(100).take(list(range(99, -1, -1)))
    assert set(hold_out(forward, 0.2)[1].texts) == set(hold_out(backward, 0.2)[1].texts)


def test_the_held_out_part_is_capped():
    assert len(hold_out(split(100), 0.5, most=7)[1]) == 7


def test_limits_are_nested_samples_in_file_order():
    small, large = limit(split(100), 10), limit(split(100), 40)
    assert set(small.ids) < set(large.ids)
    assert small.labels == sorted(small.labels) != list(range(10))
    assert len(limit(split(5), 9)) == 5
    assert len(limit(split(5), None)) == 5
