"""Documents of a corpus: read from files, told apart by their content, divided into splits.

A document is a text between two end tokens. Equal documents, that is documents of the same words in the same order
(case, spacing and punctuation apart), are never on both sides of a division.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lrx.data.splits import rank
from lrx.errors import UserError


@dataclass(frozen=True)
class Documents:
    """Texts in order. ``notes``: irregularities that were met and are not errors."""

    texts: list[str]
    notes: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, wanted: Callable[[str], bool], note: str = "") -> Documents:
        """The documents that are ``wanted``; under ``note``, if given, how many were not."""
        kept = [text for text in self.texts if wanted(text)]
        left_out = len(self.texts) - len(kept)
        return Documents(kept, self.notes | ({note: left_out} if note and left_out else {}))

    def limit(self, size: int | None) -> Documents:
        """A fixed random sample of at most ``size`` in file order; a larger one contains a smaller one."""
        if size is None or size >= len(self):
            return self
        drawn = sorted(range(len(self)), key=lambda i: rank("limit", i))[:size]
        return Documents([self.texts[i] for i in sorted(drawn)], self.notes)

    def counted(self) -> Documents:
        """The same documents, with a note of how many are equal to an earlier one."""
        repeated = len(self) - len({identity(text) for text in self.texts})
        return Documents(self.texts, self.notes | ({"duplicates": repeated} if repeated else {}))


def identity(text: str) -> int:
    """64 bits that equal documents have in common."""
    return rank("document", " ".join(re.findall(r"\w+", text.lower())) or text.strip())


def share(text: str) -> float:
    """A document's place in [0, 1), by which it falls into a split; a function of its content alone."""
    return rank("lm split", identity(text)) / 2**64


def read_text(path: Path, documents: str) -> Documents:
    """The documents of a text file in UTF-8: ``paragraphs`` are separated by blank lines, or ``lines`` are documents.

    Raises ``UserError`` for a file that cannot be read, is binary, is not UTF-8 or holds no word.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if (place := data.find(b"\0")) >= 0:
        raise UserError(f"{path} is no text file: byte {place} is zero")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: byte {data[error.start]:#04x} is not UTF-8") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if documents == "lines":
        found = [line.strip() for line in lines if line.strip()]
    else:
        found = ["\n".join(part) for part in _paragraphs(lines)]
    if not found:
        raise UserError(f"{path} holds no text, only blanks")
    return Documents(found)


def _paragraphs(lines: Iterable[str]) -> Iterable[list[str]]:
    part: list[str] = []
    for line in lines:
        if line.strip():
            part.append(line.rstrip())
        elif part:
            yield part
            part = []
    if part:
        yield part


def read_c4(path: Path) -> Documents:
    """The texts of a file of C4: gzip of lines of JSON. Raises ``UserError`` with the line that does not fit."""
    texts: list[str] = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            for line in stream:
                texts.append(json.loads(line)["text"])
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable as gzip ({type(error).__name__}); delete it and repeat") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}, line {len(texts) + 1}: expected JSON with a text") from None
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{path}: a text is no string")
    return Documents(texts).where(lambda text: bool(text.strip()), "empty")


def articles(rows: Iterable[str]) -> Documents:
    """WikiText's rows (one line each, with its line end) joined to articles, each beginning with its title.

    A title is a line `` = Title = `` behind a blank one; sections have more than one sign on each side.
    """
    found: list[list[str]] = [[]]
    blank = True
    for row in rows:
        if blank and re.fullmatch(r" = [^=].*[^=] = \n?", row) and any(line.strip() for line in found[-1]):
            found.append([])
        found[-1].append(row)
        blank = not row.strip()
    texts = ["".join(lines).strip() for lines in found]
    return Documents([text for text in texts if text])
