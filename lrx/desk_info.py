"""``python -m lrx info``: the passport of what is called by a name. Imports torch only to count parameters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrx import passport, registry
from lrx.desk import KINDS, Choice, choices, leading_comment, option_comments, plain, shown
from lrx.errors import UserError, did_you_mean
from lrx.results.record import read_all
from lrx.results.sweep import COSTS, Sweep, load, load_yaml

if TYPE_CHECKING:
    from rich.console import Console

_FACTS = {
    "paper": "paper",
    "version": "version (part of a run's identity)",
    "exact_at_init": "outputs equal the backbone's before training",
    "mergeable": "the update folds into plain weights",
    "peft_form": "can be saved as a PEFT adapter of kind",
}


def show_info(name: str, overrides: Sequence[str], root: Path, console: Console, *, counts: bool = False) -> None:
    """Everything that sources, configs and the records below ``root`` say about what is called ``name``.

    ``overrides`` (``model=NAME``, ``task=NAME``, ``method.rank=4``) say for which run parameters are counted; without
    them and without ``counts`` none are, because that takes seconds.
    """
    if bad := [word for word in overrides if "=" not in word]:
        raise UserError(f"{bad[0]!r}: after the name come KEY=VALUE, such as model=minilm")
    found = [known[name] for kind in KINDS if name in (known := choices(kind))]
    if not found:
        everything = [key for kind in KINDS for key in choices(kind)]
        raise UserError(f"nothing is called {name!r}; {did_you_mean(name, everything)}")
    for choice in found:
        console.print(plain(f"{choice.name} ({KINDS[choice.kind]})"), style="bold")
        if choice.path:
            console.print(plain(f"config: {shown(choice.path)}"), style="dim")
        if choice.kind == "sweeps":
            _show_sweep(load(choice.name), console)
            continue
        if choice.entry:
            console.print(plain(f"class: {choice.entry.class_name} in {shown(choice.entry.path)}"), style="dim")
        for section in _sections(choice, overrides, root, counts):
            _show(section, console)


def _sections(choice: Choice, overrides: Sequence[str], root: Path, counts: bool) -> list[passport.Section]:
    records, problems = read_all(root)
    entry, name, method = choice.entry, choice.name, choice.kind == "methods"
    if choice.kind == "tasks" and entry:
        name = entry.name  # lra of lra/listops: what a record says
    sections = [] if method or not choice.path else [passport.Section("", leading_comment(choice.path).splitlines())]
    if entry:
        sections += passport.doc_sections(entry.doc) if method else [passport.Section("", entry.doc.splitlines())]
        if entry.class_doc:
            sections.append(passport.Section(entry.class_name, entry.class_doc.splitlines()))
        sections.append(passport.Section("declared", _facts(entry)))
    sections.append(passport.Section("options", _options(choice)))
    if choice.kind == "tasks":
        sections.append(passport.task_parts(name))
    else:
        sections.append(_counted(choice, overrides, asked=counts or bool(overrides)))
    if method:
        sections.append(passport.tuned_values(name))
    sections.append(passport.where_it_ran(choice.kind, name, records, problems, root))
    if method:
        sections.append(passport.claims_about(name, records, problems, root))
    return [section for section in sections if section.lines]


def _counted(choice: Choice, overrides: Sequence[str], *, asked: bool) -> passport.Section:
    key = KINDS[choice.kind]
    again = f"python -m lrx info {choice.name} --counts"
    if not asked:
        return passport.Section("shapes and exact counts", [f"{again} counts them (model=NAME: for another model)"])
    from lrx import config as lrx_config

    # A model's passport lists all its linear layers: those that full fine-tuning trains.
    usual = ["method=full"] if choice.kind == "models" and not any(w.startswith("method=") for w in overrides) else []
    words = [f"{key}={choice.name}", *usual, *overrides]
    settings = lrx_config.settings_of(lrx_config.compose(words))
    from lrx.counts import count

    made = f"{settings.method['name']}, {settings.model['name']}, {settings.task['name']}, {settings.scale.name}"
    return passport.shapes_and_counts(count(settings), f"{made} ({' '.join(words)})", method=choice.kind == "methods")


def _facts(entry: registry.Entry) -> list[str]:
    words = {True: "yes", False: "no", None: "none"}
    found = {text: entry.attributes[key] for key, text in _FACTS.items() if key in entry.attributes}
    return [f"{text}: {words[v] if v is None or isinstance(v, bool) else v}" for text, v in found.items()]


def _options(choice: Choice) -> list[str]:
    """A line per option: value in the config file, type from the constructor, the file's comment."""
    values = load_yaml(choice.path) if choice.path else {}
    comments = option_comments(choice.path) if choice.path else {}
    signature = choice.entry.signature if choice.entry else {}
    names = [key for key in dict.fromkeys([*values, *signature]) if key not in {"name", "family", "defaults"}]
    rows = []
    for key in names:
        annotation, default = signature.get(key, ("", None))
        value: Any = values.get(key, "required" if default is registry.REQUIRED else default)
        text = value if isinstance(value, str) else json.dumps(value)
        rows.append((f"{KINDS[choice.kind]}.{key} = {text}", annotation, comments.get(key, "")))
    widest = min(56, max((len(row[0]) for row in rows), default=0))
    return [f"{first:<{widest}}  {kind}{'   # ' + why if why else ''}".rstrip() for first, kind, why in rows]


def _show(section: passport.Section, console: Console) -> None:
    console.print()
    if section.title:
        console.print(plain(section.title), style="bold")
    for line in section.lines:
        console.print(plain(f"  {line}" if section.title and line else line), soft_wrap=True)


def _show_sweep(sweep: Sweep, console: Console) -> None:
    console.print(plain(f"{sweep.title}. {sweep.paper}."))
    console.print(plain(sweep.setting))
    console.print(plain("grid: " + "; ".join(f"{key} = {values}" for key, values in sweep.grid.items())))
    console.print(plain("columns: " + ", ".join(column.label for column in sweep.columns)))
    for published in sweep.published:
        console.print(plain(f"published: {published.title}, {len(published.rows)} rows, scale {published.scale}"))
    for claim in sweep.claims:
        subject = claim.column or COSTS.get(claim.cost, "")
        console.print(plain(f"claim: {claim.kind}({claim.a}, {claim.b}, {subject}): {claim.origin}"))
    console.print(plain(f"run it: python run.py +sweeps={sweep.name}; its table: python -m lrx table {sweep.name}; "
                        f"its claims judged: python -m lrx verify {sweep.name}"))  # fmt: skip
