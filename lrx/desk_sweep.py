"""The desk's answers about a sweep: how far it is (``status``), and what the rest of it will cost (``plan``)."""

from __future__ import annotations

import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lrx.desk import plain
from lrx.engine.state import is_running
from lrx.results import protocol
from lrx.results.bill import Estimate, estimator
from lrx.results.collect import Slot
from lrx.results.gather import Gathered
from lrx.results.record import read_all

if TYPE_CHECKING:
    from rich.console import Console

WORDS = {"out_of_memory": "out of memory"}


def state(slot: Slot, root: Path | str) -> str:
    """``finished``, ``running``, ``missing`` or what became of the job."""
    if slot.status != "finished" and is_running(root, slot.job.run_id):
        return "running"
    return WORDS.get(slot.status, slot.status)


def show_status(data: Gathered, root: Path | str, overrides: Sequence[str], console: Console) -> None:
    """Finished, running, failed and missing jobs of a sweep, with reasons, and the command that goes on."""
    from rich.table import Table

    table = Table(title=f"{data.sweep.name}: {data.sweep.title}", title_justify="left", title_style="bold", box=None)
    for header in ("row", "finished", "not finished", "seeds without a finished run"):
        table.add_column(header, header_style="dim", justify="left")
    total: Counter[str] = Counter()
    reasons = []
    for line in data.table.lines:
        states = [(slot, state(slot, root)) for slot in line.slots]
        counts = Counter(word for _, word in states)
        total += counts
        others = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()) if word != "finished")
        seeds = ", ".join(str(slot.job.seed) for slot, word in states if word != "finished")
        table.add_row(*map(plain, (line.row.label, f"{counts['finished']} of {len(line.slots)}", others, seeds)))
        for slot, word in states:
            if slot.record and word not in ("finished", "running"):
                message = " ".join(slot.record.message.split()) or "no message"
                reasons.append(f"{slot.job.run_id}: {word}: {message}")
    console.print(table)
    for reason in reasons:
        console.print(plain(reason))
    counted = ", ".join(f"{count} {word}" for word, count in sorted(total.items()) if word != "finished")
    summary = f"{total['finished']} of {sum(total.values())} jobs finished"
    console.print(plain(f"{summary}; {counted}" if counted else summary), style="bold")
    if set(total) - {"finished", "running"}:
        console.print(plain(f"go on with: {_command(data, overrides)}"))
        if set(total) & {"failed", "diverged", "out of memory"}:
            console.print(plain("what failed is tried again with rerun=failed"))
    if data.table.strays:
        console.print(plain(f"{data.table.strays} other records here belong to other settings and are not counted"))


def show_plan(data: Gathered, root: Path | str, overrides: Sequence[str], console: Console) -> None:
    """The dry run with its bill: which jobs would run, how long each took before, and how much it would write."""
    from rich.table import Table

    rerun = next((text.partition("=")[2] for text in overrides if text.startswith("rerun=")), "none")
    records, _ = read_all(root)
    estimate = estimator(records, root)
    table = Table(title=f"{data.sweep.name}: {data.sweep.title}", title_justify="left", title_style="bold", box=None)
    for header in ("row", "to run", "cached", "left alone", "seeds to run", "minutes each", "estimated from"):
        table.add_column(header, header_style="dim", justify="left")
    estimates: list[Estimate] = []
    cached = left = 0
    for line in data.table.lines:
        open_ = [slot for slot in line.slots if _to_run(slot, rerun, root)]
        done = 0 if rerun == "all" else len(line.finished)
        own = [estimate(slot.job) for slot in open_]
        estimates += own
        cached, left = cached + done, left + len(line.slots) - done - len(open_)
        known = [each.seconds for each in own if each.seconds is not None]
        minutes = f"{sum(known) / len(known) / 60:.1f}" if known else "unknown" if own else ""
        seeds = ", ".join(str(slot.job.seed) for slot in open_)
        counts = (len(open_), done, len(line.slots) - done - len(open_))
        table.add_row(*map(plain, (line.row.label, *counts, seeds, minutes, own[0].basis if own else "")))
    console.print(table)
    console.print(plain(_bill(estimates, cached, left, root)), style="bold")
    if estimates:
        console.print(plain(f"run it: {_command(data, overrides)}"))


def _to_run(slot: Slot, rerun: str, root: Path | str) -> bool:
    if rerun == "all":
        return True
    if slot.status == "finished" or is_running(root, slot.job.run_id):
        return False
    return slot.status in ("missing", "interrupted") or rerun == "failed"


def _bill(estimates: list[Estimate], cached: int, left: int, root: Path | str) -> str:
    parts = [f"{len(estimates)} jobs to run, {cached} cached"]
    if left:
        parts.append(f"{left} left alone (running elsewhere, or failed: rerun=failed tries again)")
    seconds = [each.seconds for each in estimates if each.seconds is not None]
    sizes = [each.bytes for each in estimates if each.bytes is not None]
    if estimates:
        missing = len(estimates) - len(seconds)
        unknown = f", and {missing} jobs of unknown length" if missing else ""
        known = f"about {sum(seconds) / 60:.0f} minutes one after another" if seconds else "time unknown"
        parts.append(known + (unknown if seconds else ""))
        free = shutil.disk_usage(_existing(Path(root))).free
        disk = f"about {_megabytes(sum(sizes) * len(estimates) / len(sizes))}" if sizes else "unknown"
        parts.append(f"disk {disk}, {_megabytes(free)} free")
    return "; ".join(parts)


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _megabytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _command(data: Gathered, overrides: Sequence[str]) -> str:
    grid, _ = protocol.take(overrides)  # how results are reported is nothing to a run
    return shlex.join(["python", "run.py", f"+sweeps={data.sweep.name}", *grid])
