"""What the desk (`python -m lrx list | info | status`) knows and how it shows it. Reads sources; imports no torch."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrx import paths, registry
from lrx.errors import UserError, did_you_mean
from lrx.results.sweep import load, load_yaml, sweep_names

if TYPE_CHECKING:
    from rich.console import Console


KINDS = {"methods": "method", "models": "model", "tasks": "task", "sweeps": "sweep"}
# The key of a config file that names the class behind it.
_CLASS_KEY = {"methods": "name", "models": "family", "tasks": "name"}


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
    folder = paths.conf_dir() / KINDS[kind]
    for path in sorted(folder.glob("**/*.yaml" if kind == "tasks" else "*.yaml")):  # a suite's data sets: lra/listops
        key = load_yaml(path).get(_CLASS_KEY[kind])
        entry = registry.entries(kind).get(str(key))
        name = path.relative_to(folder).with_suffix("").as_posix()
        found[name] = Choice(kind, name, path, entry)
    if kind != "models":  # a model family alone is no choice: its config files say which weights
        known = {choice.entry.name for choice in found.values() if choice.entry}
        for name, entry in registry.entries(kind).items():
            if name not in known:
                found[name] = Choice(kind, name, None, entry)
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
            table.add_row(*(plain(cell) for cell in cells[: len(table.columns)]))
        console.print(table)
        console.print()
    console.print(plain("python -m lrx info NAME says more about one of them"), style="dim")


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


def shown(path: Path) -> str:
    """A path as the reader can use it: relative to where they are, if it is below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def plain(text: Any) -> Any:
    """Text that rich prints as it is: square brackets in papers and lists are no markup."""
    from rich.text import Text

    return Text(str(text))


class Trimmed(io.TextIOBase):
    """Standard output without the spaces that pad a line to the width of its table; for pipes and files."""

    def write(self, text: str) -> int:
        sys.stdout.write(re.sub(r"[ \t]+(?=\n)", "", text))
        return len(text)

    def flush(self) -> None:
        sys.stdout.flush()
