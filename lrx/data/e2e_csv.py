"""Rows of E2E: pairs of a meaning representation and a text. Reading of the official CSV files.

Nothing is dropped silently: what cannot be used is counted in ``notes``. When more than half of a file cannot be used
it is taken for another kind of file, which is an error.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lrx.data.e2e_mr import parse
from lrx.errors import UserError

FILES = {"train": "trainset.csv", "select": "devset.csv", "test": "testset_w_refs.csv"}
MOST_UNUSABLE = 0.5
_END = "\x03"  # a last line, which a quotation mark that is not closed swallows
MOST_BREAKS = 5  # line breaks in a field; more come of a quotation mark that is not closed
# Wrongly encoded letters, which the official scorer repairs when it reads a CSV file.
_REPAIRS = {"Ł": "£", "Â£": "£", "Ã©": "é", "ã©": "é"}


@dataclass(frozen=True)
class Rows:
    """``pairs``: (meaning representation, text) in file order. ``notes``: rows that could not be used, by reason."""

    pairs: list[tuple[str, str]]
    notes: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pairs)

    def grouped(self) -> dict[str, list[str]]:
        """Meaning representation -> its texts, in the order of first appearance."""
        found: dict[str, list[str]] = {}
        for mr, text in self.pairs:
            found.setdefault(mr, []).append(text)
        return found

    def without(self, others: Rows, reason: str) -> Rows:
        """Those whose meaning representation is not among ``others``; how many are left out is counted."""
        known = {mr for mr, _ in others.pairs}
        kept = [pair for pair in self.pairs if pair[0] not in known]
        dropped = len(self) - len(kept)
        return Rows(kept, self.notes | ({reason: dropped} if dropped else {}))


def locate(data_dir: str | Path, split: str) -> Path:
    """The file of a split in ``data_dir``, plain or gzipped. Raises ``UserError`` saying what is there instead."""
    root, name = Path(data_dir).expanduser(), FILES[split]
    if not root.is_dir():
        raise UserError(f"task.data_dir={data_dir}: {'not a folder' if root.exists() else 'no such folder'}")
    for path in (root / name, root / f"{name}.gz"):
        if path.is_file():
            if path.stat().st_size == 0:
                raise UserError(f"{path} is empty")
            return path
    there = ", ".join(sorted(path.name for path in root.glob("*.csv*"))) or "no .csv file"
    only = "; without it e2e can only be evaluated (mode=eval)" if split != "test" else ""
    raise UserError(f"{root / name} is missing, the {split} split of e2e (in the folder: {there}){only}")


def read_csv(path: Path) -> Rows:
    """The columns ``mr`` and ``ref`` of a file.

    Raises ``UserError`` for a file that cannot be read, is no such table, has a quotation mark that is not closed, or
    is unusable for more than half of it.
    """
    return collect(path, _fields(path))


def _fields(path: Path) -> Iterator[tuple[str, str] | None]:
    reader = csv.reader(io.StringIO(f"{_text(path)}\n{_END}", newline=""))
    try:
        header = [name.strip().lower() for name in next(reader, [])]
    except csv.Error as error:
        raise UserError(f"{path}:1: no CSV ({error})") from None
    if header.count("mr") != 1 or header.count("ref") != 1:
        shown = ",".join(header)[:80]
        raise UserError(f"{path}:1: no columns mr and ref in the header ({shown}); is it a file of the E2E challenge?")
    mr, ref = header.index("mr"), header.index("ref")
    line = reader.line_num + 1
    try:
        for fields in reader:
            if fields == [_END]:
                return
            long = len(fields) > max(mr, ref) and max(text.count("\n") for text in fields) > MOST_BREAKS
            if long or (fields and fields[-1].endswith(f"\n{_END}")):
                raise UserError(f"{path}:{line}: a quotation mark is not closed; mend the line")
            line = reader.line_num + 1
            if fields:
                yield (fields[mr], fields[ref]) if len(fields) == len(header) else None
    except csv.Error as error:
        raise UserError(f"{path}:{line}: no CSV ({error}); is a quotation mark not closed?") from None


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{number}: not UTF-8 text (byte {error.start})") from None


def collect(path: Path, found: Iterable[tuple[object, object] | None]) -> Rows:
    """Usable rows. ``found``: (meaning representation, text), None for a line of another number of fields.

    Counted: ``broken_line``, ``broken_mr`` (no list of slot[value]), ``empty_text``, ``repaired`` (wrongly encoded
    letters put right, as the official scorer does). Line breaks inside become blanks.
    """
    pairs, notes, total = [], Counter[str](), 0
    for row in found:
        total += 1
        if row is None or not all(isinstance(value, str) for value in row):
            notes["broken_line"] += 1
            continue
        mr, text = (" ".join(str(value).splitlines()).strip() for value in row)
        mended = _repaired(mr), _repaired(text)
        notes["repaired"] += mended != (mr, text)
        try:
            parse(mended[0])
        except ValueError:
            notes["broken_mr"] += 1
            continue
        if not mended[1]:
            notes["empty_text"] += 1
            continue
        pairs.append(mended)
    unusable = total - len(pairs)
    if not total:
        raise UserError(f"{path} holds no examples")
    if unusable > MOST_UNUSABLE * total:
        reasons = ", ".join(f"{reason} {count}" for reason, count in notes.items() if count)
        raise UserError(
            f"{path}: {unusable} of {total} rows cannot be used ({reasons}); is it a file of the E2E challenge?"
        )
    return Rows(pairs, {reason: count for reason, count in notes.items() if count})


def _repaired(text: str) -> str:
    for wrong, right in _REPAIRS.items():
        text = text.replace(wrong, right)
    return text
