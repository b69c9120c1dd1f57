"""All claims of all sweeps on one page: what ``python -m lrx verify`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lrx.errors import UserError, did_you_mean
from lrx.results import claims
from lrx.results.blocks import MARK, claims_block
from lrx.results.cells import scale_of
from lrx.results.claims import Judged
from lrx.results.gather import JobsOf, gather
from lrx.results.record import Problem, read_all
from lrx.results.render import Block, Document
from lrx.results.sweep import sweep_names


@dataclass(frozen=True)
class Verified:
    """The page, the claims on it, and what could not be read: records, and sweeps with the reason."""

    page: Document
    judged: list[Judged]
    problems: list[Problem] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def fails(self) -> bool:
        """Whether some claim fails."""
        return any(item.verdict == "fails" for item in self.judged)


def verify(
    names: Sequence[str],
    root: Path | str,
    overrides: Sequence[str] = (),
    *,
    jobs_of: JobsOf | None = None,
    folder: Path | None = None,
) -> Verified:
    """Judge the claims of the sweeps called ``names``, or of all, by the records below ``root``.

    A sweep that cannot be read is named in ``broken`` when all were asked for; one that was asked for by name raises
    ``UserError``, as does a name that is none.
    """
    known = sweep_names(folder)
    for name in names:
        if name not in known:
            raise UserError(f"no sweep is called {name!r}; {did_you_mean(name, known)}")
    records, problems = read_all(root)
    found: list[Judged] = []
    blocks: list[Block] = []
    broken: dict[str, str] = {}
    marked = False
    for name in dict.fromkeys(names or known):
        try:
            data = gather(
                name,
                root,
                overrides=overrides,
                jobs_of=jobs_of,
                folder=folder,
                read=(records, problems),
                published=False,
            )
        except UserError as error:
            if names:
                raise
            broken[name] = str(error)
            blocks.append(Block(name, name, f"Cannot be judged: {error}", [], []))
            continue
        judged = claims.judge(data.sweep, data.table)
        found += judged
        marked |= data.table.on_reported
        mark = f" ({MARK})" if data.table.on_reported else ""
        title = f"{data.sweep.title} ({name}), scale {scale_of(data.table)}{mark}"
        if not judged:
            blocks.append(Block(name, title, "This sweep makes no claims.", [], []))
            continue
        block = claims_block(data.sweep, data.table, judged)
        blocks.append(Block(name, title, block.caption, block.header, block.rows, block.notes, block.widths))
    mark = f" (of some sweeps {MARK})" if marked else ""
    intro = [
        f"{_count(len(found), 'claim')} of {_count(len(blocks), 'sweep')}: {claims.summary(found)}{mark}.",
        *([f"Counted apart: {claims.by_origin(found)}."] if found else []),
        "Each claim is judged by itself, at 95%; claims are not adjusted for each other, so that of many some hold or "
        "fail by chance.",
        "What each word and number means: docs/statistics.md.",
    ]
    return Verified(Document("claims", f"Claims{mark}", intro, blocks), found, problems, broken)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
