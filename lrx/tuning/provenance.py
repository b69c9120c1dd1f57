"""Where tuned values come from, as runs and tables say it: the section ``tuned`` of a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrx.results.record import RunRecord


def in_force(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tuned values that a configuration really uses: those that nothing has overridden since."""
    tuned = config.get("tuned") or {}
    return {key: value for key, value in (tuned.get("values") or {}).items() if _lookup(config, key) == value}


def mismatch(config: Mapping[str, Any]) -> str | None:
    """One line when a run uses values that were tuned for another model or other data, else None."""
    values = in_force(config)
    if not values:
        return None
    tuned, model = config["tuned"], _lookup(config, "model.name")
    source = str(_lookup(config, "task.source") or "")
    if model == tuned["model"] and source == tuned["source"]:
        return None
    shown = ", ".join(f"{key}={_short(value)}" for key, value in values.items())
    elsewhere = f"{tuned['model']} on {tuned['source']} data"
    here = str(model) if model != tuned["model"] else f"{source} data"
    return f"{shown} was tuned for {elsewhere}, not for {here} (python -m lrx tune {tuned['sweep']})"


def notes(records: Iterable[RunRecord]) -> list[str]:
    """What a table's notes say about values tuned for something else, each once."""
    found = dict.fromkeys((record.method, line) for record in records if (line := mismatch(record.config)))
    return [f"{method}: {line}" for method, line in found]


def caption(records: Iterable[RunRecord]) -> str:
    """How the values of a table's runs were found, with the budget: a sentence per tuning, and who had none.

    ``""`` when no record says anything about tuning.
    """
    rounds: dict[str, dict[str, None]] = {}
    plain: dict[str, None] = {}
    started: dict[str, str] = {}
    sizes, seeds = {0}, {0}
    listed = list(records)
    several = len({record.model for record in listed}) > 1 and len({record.method for record in listed}) == 1
    for record in listed:
        who = record.model if several else record.method  # what the rows are of
        if not in_force(record.config):
            if any(part.steps for part in record.parts.values()):  # what is not trained is not tuned
                plain[who] = None
            continue
        tuned = record.config["tuned"]
        rounds.setdefault(_round(tuned), {})[who] = None
        started[who] = tuned.get("started_from") or ""
        sizes |= {part.sizes.get("select", 0) for part in record.parts.values()}
        seeds.add(len(tuned["seed"]) if isinstance(tuned["seed"], list) else 1)
    if not rounds:
        return ""
    sentences = [f"{text}: {', '.join(methods)}." for text, methods in rounds.items()]
    shown = ", ".join(f"{method} {text}" for method, text in started.items() if text)
    first = "The first trial was of the value before the round, where that lay in the space"
    first += f": {shown}" if shown else ""
    items = f"{max(sizes):,} selection items or fewer" if max(sizes) else "the selection items"
    sentences.append(
        f"{first}. Trials score the last step; {_seeds(max(seeds))} and {items} do not tell neighbouring values apart."
    )
    if plain:
        sentences.append(f"Not tuned by trials of equal number: {', '.join(plain)}.")
    return " ".join(sentences)


def _round(tuned: Mapping[str, Any]) -> str:
    keys = ", ".join(tuned["values"])
    seeds = tuned["seed"] if isinstance(tuned["seed"], list) else [tuned["seed"]]
    trials = f"{tuned['trials']} trial{'s' if tuned['trials'] != 1 else ''}"
    return (
        f"{keys} tuned with {trials} for each method ({tuned['command']}; seed {', '.join(map(str, seeds))}; "
        f"{tuned['metric']}; {tuned['model']}, {tuned['source']} data)"
    )


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _lookup(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
