"""What a sweep tunes: the section ``sweep.tune`` of its file. Read with every sweep, so nothing heavy is imported."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Point = dict[str, Any]  # dotted key -> value, e.g. {"method.lr": 0.003}


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Dimension(_Node):
    """The values of one key: from ``low`` to ``high`` (``log``: by ratios; ``step``; ``integer``), or ``choices``."""

    low: float | None = Field(None, allow_inf_nan=False)
    high: float | None = Field(None, allow_inf_nan=False)
    log: bool = False
    step: float | None = Field(None, gt=0)
    integer: bool = False
    choices: list[Any] = []

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        if self.choices:
            if self.low is not None or self.high is not None or self.log or self.step or self.integer:
                raise ValueError("give either choices or low and high")
            if len(self.choices) != len({repr(choice) for choice in self.choices}):
                raise ValueError("a choice stands twice")
            return self
        if self.low is None or self.high is None:
            raise ValueError("needs low and high, or choices")
        if self.low >= self.high:
            raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
        if self.log and (self.low <= 0 or self.step):
            raise ValueError("log needs low above 0, and no step")
        if self.integer and not (self.low.is_integer() and self.high.is_integer() and (self.step or 1.0).is_integer()):
            raise ValueError("integer needs whole numbers as low, high and step")
        return self

    def bounds(self) -> tuple[float, float]:
        """``low`` and ``high``; only for a dimension without choices."""
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high

    def contains(self, value: Any) -> bool:
        """Whether a configuration's value lies inside."""
        if self.choices:
            return value in self.choices
        low, high = self.bounds()
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            return False
        return not (self.integer or self.step) or math.isclose(self.at(self.place(value)), value, rel_tol=1e-9)

    def place(self, value: Any) -> float:
        """Where a value lies between the ends, from 0 to 1. Each of n choices or steps has the middle of an n-th."""
        if self.choices:
            return (self.choices.index(value) + 0.5) / len(self.choices)
        low, high = self._ends()
        if self.log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    def at(self, place: float) -> Any:
        """The value at a place; a free number is rounded to two digits, since finer ones make no difference."""
        if self.choices:
            return self.choices[min(int(place * len(self.choices)), len(self.choices) - 1)]
        left, right = self._ends()
        value = left * (right / left) ** place if self.log else left + (right - left) * place
        low, high = self.bounds()
        if step := self._step():
            last = math.floor((high - low) / step + 1e-9)
            value = float(f"{low + step * min(max(round((value - low) / step), 0), last):.12g}")
        else:
            value = min(max(float(f"{value:.2g}"), low), high)
        return int(value) if self.integer else value

    def _step(self) -> float | None:
        return self.step or (1.0 if self.integer else None)

    def _ends(self) -> tuple[float, float]:
        """``bounds``, half a step wider on both sides where there are steps, so that each has an equal share."""
        low, high = self.bounds()
        step = self._step()
        if step is None:
            return low, high
        return low - step / 2, low + step * (math.floor((high - low) / step + 1e-9) + 0.5)

    def describe(self) -> str:
        """``0.0001 to 0.1``, or the choices."""
        if self.choices:
            return ", ".join(map(str, self.choices))
        low, high = self.bounds()
        return f"{low:g} to {high:g}"


Space = dict[str, Dimension]


class Tune(_Node):
    """How a sweep is tuned.

    ``seed``: of the trials, none of the table's. ``overrides``: of every trial, e.g. the sub-tasks to tune on.
    ``default``: the space of every method; ``rows``: what is different for a row, ``null`` where a key has no meaning;
    a row in which every key is ``null`` is not tuned.
    """

    seed: int | list[int]
    default: Space = {}
    overrides: list[str] = []
    rows: dict[str, dict[str, Dimension | None]] = {}

    @model_validator(mode="after")
    def _complete(self) -> Tune:
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seed: one seed or several different ones, none below 0")
        return self

    @property
    def seeds(self) -> list[int]:
        return [self.seed] if isinstance(self.seed, int) else self.seed

    def space(self, row: str) -> Space:
        """The space of a row."""
        merged = {**self.default, **self.rows.get(row, {})}
        return {key: dimension for key, dimension in merged.items() if dimension is not None}
