"""Which values a method tries next: a pure function of what it has tried, equal for all methods.

The first trial is the present configuration's value where it lies inside the space, so that tuning cannot end worse
than it began. The next ones spread. Budgets are small (3 to 6), and random values would then leave decades of a
learning rate untried by chance; a fixed grid spreads, but fits one budget only, and a quasi-random sequence does not
know where the first value lies. So along one key each trial lies in the widest gap; from the middle that makes a grid:
a sixth, five sixths, a third, two thirds. Several keys follow an additive recurrence (Roberts' R sequence).

After ``SPREAD`` trials Optuna's TPE chooses, seeded anew for each trial; a failed trial counts for it as the worst one
seen. After fewer TPE would jump between the ends of the space.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lrx.seeds import derive
from lrx.tuning.space import Point, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SPREAD = 10  # first trials that depend on no outcome; TPE's own default (n_startup_trials)
_POINTS = 1024


def next_point(space: Space, tried: Sequence[tuple[Point, float | None]], present: Point, seed: int) -> Point | None:
    """The values of the next trial, or None when every combination has been tried.

    ``tried``: earlier trials in order, with their scores (higher is better) or None where one failed. ``present``: the
    configuration's own values. Depends on nothing else, so a resumed or parallel tuning proposes the same.
    """
    points = [point for point, _ in tried]
    if not points and all(dimension.contains(present.get(key)) for key, dimension in space.items()):
        return {key: present[key] for key in space}
    if len(points) >= SPREAD:
        point = _best_guess(space, tried, seed)
        if point not in points:
            return point
    return _spread(space, points)


def started_from(space: Space, first: Point) -> str:
    """The first trial in words: its values, and whether the configuration before had them or the space's middle is."""
    values = (f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in first.items())
    source = "the middle of the space" if first == _spread(space, []) else "the configuration before"
    return f"{', '.join(values)} ({source})"


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space in Optuna's terms. Choices are JSON texts: its storage takes no lists."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for key, dimension in space.items():
        if dimension.choices:
            found[key] = CategoricalDistribution([json.dumps(choice) for choice in dimension.choices])
            continue
        low, high = dimension.bounds()
        if dimension.integer:
            found[key] = IntDistribution(int(low), int(high), log=dimension.log, step=int(dimension.step or 1))
        else:
            found[key] = FloatDistribution(low, high, log=dimension.log, step=dimension.step)
    return found


def stored(space: Space, point: Point) -> dict[str, Any]:
    """A point as Optuna stores it."""
    return {key: json.dumps(value) if space[key].choices else value for key, value in point.items()}


def _spread(space: Space, points: Sequence[Point]) -> Point | None:
    """The next untried point of an even sequence; along a single numeric key the one in the widest gap."""
    fresh = [point for place in _sequence(len(space)) if (point := _at(space, place)) not in points]
    (key, dimension) = next(iter(space.items()))
    if len(space) > 1 or dimension.choices or not fresh:
        return fresh[0] if fresh else None
    seen = [dimension.place(point[key]) for point in points if dimension.contains(point.get(key))]

    def room(point: Point) -> float:
        """Distance from the nearest tried value, and from the own image in the mirror at either end."""
        place = dimension.place(point[key])
        return round(min(2 * place, 2 - 2 * place, *(abs(place - other) for other in seen)), 9)

    return max(fresh, key=room)


def _at(space: Space, place: Sequence[float]) -> Point:
    return {key: dimension.at(u) for (key, dimension), u in zip(space.items(), place, strict=True)}


def _sequence(dimensions: int) -> list[list[float]]:
    """Evenly spread points of the unit cube: the additive recurrence of the generalised golden ratio."""
    ratio = 2.0
    for _ in range(60):
        ratio = (1 + ratio) ** (1 / (dimensions + 1))
    steps = [ratio ** -(k + 1) for k in range(dimensions)]
    return [[(0.5 + i * step) % 1.0 for step in steps] for i in range(_POINTS)]


def _best_guess(space: Space, tried: Sequence[tuple[Point, float | None]], seed: int) -> Point:
    """What TPE proposes after these trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds = distributions(space)
    inside = [(p, v) for p, v in tried if set(p) == set(space) and all(d.contains(p[k]) for k, d in space.items())]
    worst = min((value for _, value in inside if value is not None), default=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=0, multivariate=len(space) > 1, seed=derive(seed, "tuning", len(tried)) % 2**32
        )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for point, value in inside:
        score = worst if value is None else value
        study.add_trial(optuna.create_trial(params=stored(space, point), distributions=kinds, value=score))
    found = study.ask(kinds).params
    return {key: space[key].at(space[key].place(json.loads(found[key]) if space[key].choices else found[key]))
            for key in space}  # fmt: skip
