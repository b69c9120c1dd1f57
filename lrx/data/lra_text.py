"""Byte-level texts of the Long Range Arena: reviews (``text``) and pairs of papers (``retrieval``).

A text is its UTF-8 bytes and an end token, cut to ``max_length`` tokens. S4's loader builds a vocabulary of characters
instead (135 for IMDB); bytes need no vocabulary and lose nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrx.data import embedded
from lrx.data.hub import Repository, read_parquet
from lrx.data.lra_sequences import END, SPECIALS, Sequences, packed
from lrx.errors import UserError

VOCABULARY = SPECIALS + 256
IMDB, REVISION = "stanfordnlp/imdb", "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"
AAN = {"train": "new_aan_pairs.train.tsv", "select": "new_aan_pairs.eval.tsv", "test": "new_aan_pairs.test.tsv"}
OTHERWISE = "task.source=local task.data_dir=<aclImdb> or task.source=embedded"
CLASSES = ("neg", "pos")


def encode(text: str, max_length: int) -> np.ndarray:
    """uint16 (length,): bytes behind the special ids, then the end token; at most ``max_length``."""
    data = np.frombuffer(text.encode("utf-8", "surrogatepass")[: max_length - 1], dtype=np.uint8)
    return np.append(data.astype(np.uint16) + SPECIALS, np.uint16(END))


def files(folder: Path, split: str) -> list[Path]:
    """Local files of ``train`` or ``test``: a TSV file, or IMDB's folders. Raises ``UserError`` when there are none."""
    table = folder / f"{split}.tsv"
    if table.is_file():
        return [table]
    for home in (folder, folder / "aclImdb"):
        if (home / split).is_dir():
            found = []
            for name in CLASSES:
                inside = sorted((home / split / name).glob("*.txt"))
                if not inside:
                    raise UserError(f"{home / split / name} has no reviews (*.txt)")
                found += inside
            return found
    raise UserError(f"{folder} has no {split} split: {split}.tsv (class, tab, text) or {split}/pos and {split}/neg")


def text(task: Mapping[str, Any], split: str) -> Sequences:
    """Reviews: of the embedded sentences all three splits, else ``train`` and ``test``. Raises ``UserError``."""
    if task.get("source", "embedded") == "embedded":
        found = embedded.load("sentiment")[split]
        rows = list(zip([texts[0] for texts in found.texts], map(int, found.labels or ()), strict=True))
    elif task["source"] == "hub":
        path = repository(task).get(hub_file(split))
        columns = read_parquet(path, ("text", "label"))
        rows = list(zip(columns["text"], columns["label"], strict=True))
        if wrong := next((label for _, label in rows if label not in (0, 1)), None):
            raise UserError(f"{path}: label {wrong} is neither 0 nor 1")
    else:
        rows = list(_local(files(Path(task["data_dir"]).expanduser(), split)))
    if not rows:
        raise UserError(f"task.dataset=text: the {split} split has no examples")
    longest = int(task["max_length"])
    cut = sum(len(each.encode("utf-8", "surrogatepass")) >= longest for each, _ in rows)
    return packed([encode(each, longest) for each, _ in rows], [label for _, label in rows], truncated=cut)


def repository(task: Mapping[str, Any]) -> Repository:
    """IMDB on the hub."""
    return Repository(IMDB, task.get("revision") or REVISION, OTHERWISE)


def hub_file(split: str) -> str:
    """The parquet file of a split."""
    return f"plain_text/{split}-00000-of-00001.parquet"


def _local(paths: list[Path]) -> Iterator[tuple[str, int]]:
    if paths[0].suffix == ".txt":
        for path in paths:
            yield _read(path), CLASSES.index(path.parent.name)
        return
    for number, line in enumerate(_lines(paths[0]), start=1):
        label, tab, content = line.partition("\t")
        if not tab or label not in ("0", "1"):
            raise UserError(f"{paths[0]}, line {number}: expected 0 or 1, a tab and a text")
        yield content, int(label)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _lines(path: Path) -> list[str]:
    """Lines that end with a line feed: texts hold other characters that Python would end a line at."""
    return _read(path).removesuffix("\n").split("\n")


def retrieval(task: Mapping[str, Any], split: str) -> Sequences:
    """AAN pairs: label, two ids, two texts, separated by tabs. Raises ``UserError`` with file and line."""
    path = Path(task["data_dir"]).expanduser() / AAN[split]
    first: list[np.ndarray] = []
    second: list[np.ndarray] = []
    labels: list[int] = []
    longest, cut = int(task["max_length"]), 0
    for number, line in enumerate(_lines(path), start=1):
        cells = line.split("\t")
        if len(cells) != 5 or cells[0] not in ("0", "1", "0.0", "1.0"):
            raise UserError(f"{path}, line {number}: expected 0 or 1, two ids and two texts, with tabs between them")
        labels.append(int(float(cells[0])))
        for rows, cell in ((first, cells[3]), (second, cells[4])):
            content = _unquoted(cell)
            cut += len(content.encode("utf-8", "surrogatepass")) >= longest
            rows.append(encode(content, longest))
    if not labels:
        raise UserError(f"{path} has no examples")
    return packed(first, labels, packed(second, labels), truncated=cut)


def _unquoted(cell: str) -> str:
    """The texts of the official files are printed Python bytes, ``b'...'``."""
    if cell[:2] in ("b'", 'b"') and cell[-1:] == cell[1]:
        try:
            return ast.literal_eval(cell).decode("utf-8", "replace")
        except (ValueError, SyntaxError):
            return cell
    return cell
