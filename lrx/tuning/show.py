"""Trials as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lrx.tuning.journal import Study
from lrx.tuning.judge import metric_text, preview
from lrx.tuning.winners import outcome_text, winner

if TYPE_CHECKING:
    from rich.console import Console


def trials(studies: Sequence[Study], folder: Path, console: Console) -> None:
    """Every trial of every study: values, score or outcome, and which one is best so far."""
    from rich.table import Table
    from rich.text import Text

    for study in studies:
        facts, found = study.facts, preview(study.trials(), folder)
        best = winner(found)
        title = f"{facts.label}: {facts.model} on {facts.source or facts.task} data, scale {facts.scale}, seed "
        table = Table(box=None, title_justify="left", title_style="bold", padding=(0, 2, 0, 0))
        table.title = Text(title + ", ".join(map(str, facts.seeds)))
        for header in ("trial", *facts.space, "score", "parts", "why"):
            table.add_column(header, header_style="dim", no_wrap=header != "why")
        for place, trial in enumerate(found, 1):
            values = [str(trial.point.get(key, "")) for key in facts.space]
            parts = "  ".join(f"{name} {value:.4f}" for name, value in trial.parts.items())
            mark = " best" if best and trial.number == best.number else ""
            cells = [str(place), *values, outcome_text(trial) + mark, parts, trial.message]
            table.add_row(*map(Text, cells))
        console.print(table)
        if best:
            console.print(Text(f"score: {metric_text(best)}"), style="dim")
        console.print()
