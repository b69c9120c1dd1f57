"""A problem of GSM8K and lists of them; reading the original JSON lines and MetaMathQA.

Files are read forgivingly and nothing is dropped silently: what cannot be used is counted in ``notes``. When more than
half of a file cannot be used it is taken for another kind of file, which is an error.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrx.data.gsm8k_extract import gold_number
from lrx.data.splits import rank
from lrx.errors import UserError

MOST_UNUSABLE = 0.5
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which JSON can spell and no tokenizer can read


@dataclass(frozen=True)
class Problem:
    """``solution``: the worked solution, which ends in ``#### N``; ``number``: that N as it is written.

    ``origin``: what it was made from, for rephrased problems; they stay on one side of a division.
    """

    question: str
    solution: str
    number: str
    id: str
    origin: str = ""

    @property
    def key(self) -> str:
        """Questions that differ only in case and spacing are equal."""
        return plain(self.question)


@dataclass(frozen=True)
class Problems:
    """Problems in file order. ``notes``: how many rows could not be used, by reason."""

    rows: list[Problem]
    notes: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def without(self, others: Problems, reason: str) -> Problems:
        """Those that neither are among ``others`` nor were rephrased from one; the rest is counted as ``reason``."""
        known = {problem.key for problem in others.rows}
        kept = [problem for problem in self.rows if not {problem.key, plain(problem.origin)} & known]
        dropped = len(self) - len(kept)
        return Problems(kept, self.notes | ({reason: dropped} if dropped else {}))

    def hold_out(self, fraction: float, most: int) -> tuple[Problems, Problems]:
        """(kept, held out), about ``fraction`` and at most ``most`` held out, by a hash of each one's ``origin``."""
        if fraction == 0 or not self.rows:
            return self, Problems([])
        ranks = [rank("gsm8k hold-out", plain(problem.origin) or problem.key) for problem in self.rows]
        border = sorted(ranks)[min(max(1, round(fraction * len(ranks))), most, len(ranks)) - 1]
        pairs = list(zip(self.rows, ranks, strict=True))
        kept, held = [row for row, r in pairs if r > border], [row for row, r in pairs if r <= border]
        return Problems(kept, self.notes), Problems(held)  # the file's irregularities count once


def plain(text: str) -> str:
    """Lower case, single blanks."""
    return " ".join(text.lower().split())


def read_jsonl(path: Path) -> Problems:
    """GSM8K's own file: ``question`` and ``answer`` in each line. Blank lines are no examples.

    Counted: ``broken_line`` (no JSON object, not Unicode), ``missing_field`` (no text there), ``empty_question``,
    ``no_number`` (an answer without ``#### N``). Raises ``UserError`` for a file that cannot be read, holds no example
    or is unusable for more than half of it.
    """
    return collect(path, (_json_line(line) for line in _lines(path)), question="question", answer="answer")


def _lines(path: Path) -> list[bytes]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")  # other line separators occur inside texts
    return [line for line in lines if line.strip()]


def _json_line(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):  # not UTF-8 and not JSON are both ValueErrors
        return None


def read_metamath(path: Path, types: str) -> Problems:
    """MetaMathQA's one JSON file: a list of ``query``, ``response``, ``type``, ``original_question``.

    ``types``: ``gsm`` keeps the rows made from GSM8K (``type`` begins with GSM), as LoRA-GA's scripts do; the others
    are counted as ``other_type``. Raises ``UserError`` as ``read_jsonl`` does.
    """
    try:
        rows = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file ({str(error)[:80]}); fetch it again") from None
    if not isinstance(rows, list):
        raise UserError(f"{path} holds no list of examples; is it MetaMathQA-395K.json?")
    other = 0
    if types == "gsm":
        chosen = [row for row in rows if not isinstance(row, dict) or str(row.get("type", "")).startswith("GSM")]
        rows, other = chosen, len(rows) - len(chosen)
    found = collect(path, rows, question="query", answer="response", origin="original_question")
    return Problems(found.rows, found.notes | ({"other_type": other} if other else {}))


def collect(path: Path, rows: Iterable[Any], *, question: str, answer: str, origin: str = "") -> Problems:
    """Problems of ``rows`` (dicts with the named fields; anything else is a broken line), counting what is unusable."""
    notes: Counter[str] = Counter()
    problems: list[Problem] = []
    total = 0
    for total, row in enumerate(rows, start=1):
        problem = _problem(row, str(total - 1), question, answer, origin)
        if isinstance(problem, str):
            notes[problem] += 1
        else:
            problems.append(problem)
    if not total:
        raise UserError(f"{path} holds no examples")
    unusable = sum(notes.values())
    if unusable > MOST_UNUSABLE * total:
        reasons = ", ".join(f"{name} {count}" for name, count in notes.most_common())
        raise UserError(
            f"{path}: {unusable} of {total} examples cannot be used ({reasons}); each needs the texts {question!r} and "
            f"{answer!r}, the latter ending in '#### N'"
        )
    return Problems(problems, dict(notes))


def _problem(row: Any, id: str, question: str, answer: str, origin: str) -> Problem | str:
    """The problem of a row, or why there is none."""
    if not isinstance(row, Mapping):
        return "broken_line"
    asked, solution = row.get(question), row.get(answer)
    if not isinstance(asked, str) or not isinstance(solution, str):
        return "missing_field"
    if _SURROGATE.search(asked + solution):
        return "broken_line"
    if not asked.strip():
        return "empty_question"
    number = gold_number(solution.partition("\nThe answer is:")[0]) or _stated(solution)
    if number is None:
        return "no_number"
    return Problem(asked, solution, number, id, str(row.get(origin) or ""))


def _stated(solution: str) -> str | None:
    """MetaMathQA's problems made from MATH end in ``The answer is: X`` alone, and X need not be a number."""
    _, mark, stated = solution.rpartition("\nThe answer is:")
    return (stated.strip() or None) if mark else None


def columns(found: Mapping[str, list[Any]], names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows of a table given by columns."""
    chosen = list(names)
    for values in zip(*(found[name] for name in chosen), strict=True):
        yield dict(zip(chosen, values, strict=True))
