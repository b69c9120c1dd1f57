"""What the desk (`python -m lrx list | info | status`) knows and how it shows it. Reads sources; imports no torch."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrx import paths, registry
from lrx.errors import UserError, did_you_mean
from lrx.results.sweep import COSTS, Sweep, load, load_yaml, sweep_names

if TYPE_CHECKING:
    from rich.console import Console

    from lrx.results.gather import Gathered

KINDS = {"methods": "method", "models": "model", "tasks": "task", "sweeps": "sweep"}
# The key of a config file that names the class behind it.
_CLASS_KEY = {"methods": "name", "models": "family", "tasks": "name"}
_FACTS = {
    "paper": "paper",
    "version": "version (part of a run's identity)",
    "exact_at_init": "outputs equal the backbone's before training",
    "mergeable": "the update folds into plain weights",
    "peft_form": "can be saved as a PEFT adapter of kind",
}


@dataclass(frozen=True)
class Choice:
    """Something one can ask for by name: its config file, and the class behind it unless it is a sweep."""

    kind: str
    name: str
    path: Path | None = None
    entry: registry.Entry | None = None

    @property
    def summary(self) -> str:
        """One line: of a method the first of its docstring, else of the comment above its config."""
        comment = leading_comment(self.path) if self.path else ""
        doc = self.entry.doc if self.entry else ""
        text = (doc or comment) if self.kind == "methods" else (comment or doc)
        return text.strip().split("\n")[0].replace("``", "")

    @property
    def paper(self) -> str:
        """Where it comes from, as far as it says so."""
        if self.kind == "sweeps":
            return load(self.name).paper
        return str(self.entry.attributes.get("paper", "")) if self.entry else ""


def choices(kind: str) -> dict[str, Choice]:
    """Everything of a kind by name: each config file, and each registered method or task that has none."""
    if kind == "sweeps":
        return {name: Choice(kind, name, paths.sweeps_dir() / f"{name}.yaml") for name in sweep_names()}
    found = {}
    for path in sorted((paths.conf_dir() / KINDS[kind]).glob("*.yaml")):
        key = load_yaml(path).get(_CLASS_KEY[kind])
        entry = registry.entries(kind).get(str(key))
        found[path.stem] = Choice(kind, path.stem, path, entry)
    if kind != "models":  # a model family alone is no choice: its config files say which weights
        for name, entry in registry.entries(kind).items():
            found.setdefault(name, Choice(kind, name, None, entry))
    return found


def show_list(kind: str | None, console: Console) -> None:
    """A line per choice of ``kind``, or of every kind."""
    from rich.table import Table

    if kind is not None and kind not in KINDS:
        raise UserError(f"list: no kind is called {kind!r}; {did_you_mean(kind, KINDS)}")
    for each in [kind] if kind else list(KINDS):
        table = Table(title=each, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for header in ("name", "what it is", "paper")[: 2 if each in ("models", "tasks") else 3]:
            table.add_column(header, header_style="dim", no_wrap=header == "name")
        for choice in choices(each).values():
            cells = [choice.name, choice.summary, choice.paper]
            table.add_row(*(_plain(cell) for cell in cells[: len(table.columns)]))
        console.print(table)
        console.print()
    console.print(_plain("python -m lrx info NAME says more about one of them"), style="dim")


def show_info(name: str, console: Console) -> None:
    """Everything the sources say about what is called ``name``."""
    found = [known[name] for kind in KINDS if name in (known := choices(kind))]
    if not found:
        everything = [key for kind in KINDS for key in choices(kind)]
        raise UserError(f"nothing is called {name!r}; {did_you_mean(name, everything)}")
    for choice in found:
        console.print(_plain(f"{choice.name} ({KINDS[choice.kind]})"), style="bold")
        if choice.path:
            console.print(_plain(f"config: {_shown(choice.path)}"), style="dim")
        if choice.kind == "sweeps":
            _show_sweep(load(choice.name), console)
            continue
        if choice.entry:
            _show_entry(choice.entry, console)
        elif choice.path:
            console.print(_plain(leading_comment(choice.path)))
        _show_options(choice, console)


def show_status(data: Gathered, overrides: Iterable[str], console: Console) -> None:
    """Done, failed and missing jobs of a sweep, with reasons, and the command that goes on."""
    from rich.table import Table

    table = Table(title=f"{data.sweep.name}: {data.sweep.title}", title_justify="left", title_style="bold", box=None)
    for header in ("row", "finished", "not finished", "seeds without a finished run"):
        table.add_column(header, header_style="dim", justify="left")
    done = total = 0
    reasons = []
    for line in data.table.lines:
        open_ = [slot for slot in line.slots if slot.status != "finished"]
        done, total = done + len(line.finished), total + len(line.slots)
        outcomes = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in line.outcomes().items())
        seeds = ", ".join(str(slot.job.seed) for slot in open_)
        table.add_row(*map(_plain, (line.row.label, f"{len(line.finished)} of {len(line.slots)}", outcomes, seeds)))
        for slot in open_:
            if slot.record:
                message = " ".join(slot.record.message.split()) or "no message"
                reasons.append(f"{slot.job.run_id}: {slot.status.replace('_', ' ')}: {message}")
    console.print(table)
    for reason in reasons:
        console.print(_plain(reason))
    console.print(_plain(f"{done} of {total} jobs finished"), style="bold")
    if done < total:
        command = shlex.join(["python", "run.py", f"+sweeps={data.sweep.name}", *overrides])
        console.print(_plain(f"go on with: {command}"))
    if data.table.strays:
        console.print(_plain(f"{data.table.strays} other records here belong to other settings and are not counted"))


def leading_comment(path: Path) -> str:
    """The comment at the top of a YAML file, without Hydra's package line."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line[1:].removeprefix(" ").rstrip())
    return "\n".join(lines).strip()


def option_comments(path: Path) -> dict[str, str]:
    """Top-level key -> the comment beside it, with its continuation lines."""
    found: dict[str, str] = {}
    key = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"(\w+):(?:[^#\"']|(?<!\s)#|\"[^\"]*\"|'[^']*')*?(?:\s#\s*(.*))?$", line):
            key = match[1]
            found[key] = (match[2] or "").strip()
        elif key and (match := re.match(r"\s+#\s*(.*)$", line)):
            found[key] = f"{found[key]} {match[1].strip()}".strip()
        else:
            key = ""
    return found


def _show_entry(entry: registry.Entry, console: Console) -> None:
    console.print(_plain(f"class:  {entry.class_name} in {_shown(entry.path)}"), style="dim")
    console.print()
    console.print(_plain(entry.doc))
    if entry.class_doc:
        console.print()
        console.print(_plain(f"{entry.class_name}: {entry.class_doc}"))
    facts = {text: entry.attributes[key] for key, text in _FACTS.items() if key in entry.attributes}
    if facts:
        console.print()
        for text, value in facts.items():
            shown = "yes" if value is True else "no" if value is False else "none" if value is None else value
            console.print(_plain(f"{text}: {shown}"))


def _show_options(choice: Choice, console: Console) -> None:
    """The options with their values in the config file, their types from the constructor, and the file's comments."""
    from rich.table import Table

    values = load_yaml(choice.path) if choice.path else {}
    comments = option_comments(choice.path) if choice.path else {}
    signature = choice.entry.signature if choice.entry else {}
    labels = {"name", "family", "defaults"}
    names = [key for key in dict.fromkeys([*values, *signature]) if key not in labels]
    if not names:
        return
    section = KINDS[choice.kind]
    table = Table(box=None, padding=(0, 2, 0, 0), title="options", title_justify="left", title_style="bold")
    for header in ("option", "value", "type", "why"):
        table.add_column(header, header_style="dim", no_wrap=header == "option")
    for key in names:
        annotation, default = signature.get(key, ("", None))
        value = values.get(key, "required" if default is registry.REQUIRED else default)
        shown = value if isinstance(value, str) else json.dumps(value)
        table.add_row(*map(_plain, (f"{section}.{key}", shown, annotation, comments.get(key, ""))))
    console.print()
    console.print(table)


def _show_sweep(sweep: Sweep, console: Console) -> None:
    console.print(_plain(f"{sweep.title}. {sweep.paper}."))
    console.print(_plain(sweep.setting))
    console.print(_plain("grid: " + "; ".join(f"{key} = {values}" for key, values in sweep.grid.items())))
    console.print(_plain("columns: " + ", ".join(column.label for column in sweep.columns)))
    for published in sweep.published:
        console.print(_plain(f"published: {published.title}, {len(published.rows)} rows, scale {published.scale}"))
    for claim in sweep.claims:
        subject = claim.column or COSTS.get(claim.cost, "")
        console.print(_plain(f"claim: {claim.kind}({claim.a}, {claim.b}, {subject}): {claim.origin}"))
    console.print(_plain(f"run it: python run.py +sweeps={sweep.name}; its table: python -m lrx table {sweep.name}"))


def _shown(path: Path) -> str:
    """A path as the reader can use it: relative to where they are, if it is below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _plain(text: Any) -> Any:
    """Text that rich prints as it is: square brackets in papers and lists are no markup."""
    from rich.text import Text

    return Text(str(text))
