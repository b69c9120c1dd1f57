"""Composing the sweep's grid takes longer than all else in these tests: it is done once for each question."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lrx import launch
from lrx.tuning import targets


def _remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    answers: dict[str, Any] = {}

    def call(*arguments: Any) -> Any:
        # Only the folder of results differs from test to test, and neither function looks at it.
        question = repr([[w for w in each if not w.startswith("paths.root=")] for each in arguments])
        if question not in answers:
            answers[question] = function(*arguments)
        return answers[question]

    return call


@pytest.fixture(scope="package", autouse=True)
def _composed_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "sweep_jobs", _remembered(launch.sweep_jobs))
        patch.setattr(targets, "_choices", _remembered(targets._choices))
        yield
