"""Reader of GLUE's original TSV folders: tab separated, no quoting (the texts hold unbalanced quotes), UTF-8.

The files are irregular: CoLA's train and dev have no header, MRPC and STS-B order their columns in their own ways, test
files have no label. A line that does not fit is an error with its number: a shifted column would be a silent wrong
label. Lines end at a line feed only, since other Unicode line separators occur inside texts.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

from lrx.data.glue_spec import AX, GLUE, Spec
from lrx.data.splits import Split
from lrx.errors import UserError, did_you_mean


def locate(data_dir: str | Path, spec: Spec, split: str) -> Path:
    """The file of a split below ``data_dir``, which is the folder of all tasks or the task's own.

    Folders and files are found whatever their case and punctuation (``SST-2``, ``sst2``). Raises ``UserError`` saying
    which names were expected and what is there.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"task.data_dir={data_dir}: {'not a folder' if root.exists() else 'no such folder'}")
    home = _folder(root, spec)
    wanted = spec.files[split]
    found = {path.name.lower(): path for path in _children(home) if path.is_file()}
    if wanted.lower() not in found:
        there = ", ".join(sorted(path.name for path in found.values() if path.suffix == ".tsv")) or "no .tsv file"
        raise UserError(f"{home / wanted} is missing: the {split} split of {spec.name} (in the folder: {there})")
    path = found[wanted.lower()]
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return path


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None


def _folder(root: Path, spec: Spec) -> Path:
    names = {_plain(spec.folder), spec.name}
    children = [path for path in _children(root) if path.is_dir()]
    for path in children:
        if _plain(path.name) in names:
            return path
    others = {_plain(s.folder) for s in (*GLUE.values(), AX)} | set(GLUE)
    own = {path.name.lower() for path in _children(root) if path.is_file()} & set(spec.files.values())
    if _plain(root.name) in names or (own and _plain(root.name) not in others):
        return root
    hint = did_you_mean(spec.folder, [path.name for path in children]).replace("choices", "folders there")
    raise UserError(f"task.data_dir={root}: no folder {spec.folder} for {spec.name}; {hint}")


def sha256(path: Path) -> str:
    """Hex digest of a file. Raises ``UserError`` when it cannot be read."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read(path: Path, spec: Spec, split: str) -> Split:
    """The examples of a file.

    Raises ``UserError`` with file and line number for a line with too few or too many fields, a label outside the
    set, or a header without the columns of the task.
    """
    labelled = split not in spec.unlabelled
    lines = _lines(path)
    header = spec.headerless.get(split)
    first = 1
    if header is None:
        header, first = tuple(lines[0].split("\t")), 2
        lines = lines[1:]
    needed = (*spec.columns, spec.label) if labelled else spec.columns
    if missing := [name for name in needed if name not in header]:
        found = ", ".join(header)
        raise UserError(
            f"{path}:1: no column {', '.join(missing)} in the header ({found[:120]}); is it {spec.name}'s {split} file?"
        )
    places = [header.index(name) for name in spec.columns]
    label_place = header.index(spec.label) if labelled else None
    id_place = header.index("index") if "index" in header else header.index("id") if "id" in header else None

    texts: list[tuple[str, ...]] = []
    labels: list[int | float] = []
    ids: list[str] = []
    skipped: list[tuple[int, str]] = []
    for number, line in enumerate(lines, start=first):
        fields = line.split("\t")
        while len(fields) > len(header) and not fields[-1]:
            fields.pop()  # trailing tabs carry nothing
        if len(fields) != len(header):
            problem = f"{len(fields)} fields where {len(header)} are expected ({', '.join(header)})"
            if not spec.short_lines:
                raise UserError(f"{path}:{number}: broken line: {problem}")
            skipped.append((number, problem))
            continue
        if label_place is not None:
            labels.append(_label(fields[label_place], spec, path, number))
        texts.append(tuple(fields[i] for i in places))
        ids.append(fields[id_place] if id_place is not None else str(len(ids)))
    if len(skipped) > spec.short_lines * len(lines):
        number, problem = skipped[0]
        raise UserError(f"{path}:{number}: broken line: {problem}" + _more(len(skipped)))
    if not texts:
        raise UserError(f"{path} holds no examples")
    notes = {"broken_lines_skipped": len(skipped)} if skipped else {}
    return Split(texts, labels if labelled else None, ids, notes)  # type: ignore[arg-type]


def _more(count: int) -> str:
    return f" (and {count - 1} more)" if count > 1 else ""


def _lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")  # a byte-order mark at the start is no part of the first column's name
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{number}: not UTF-8 text (byte {error.start})") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"{path} is empty")
    return lines


def _label(text: str, spec: Spec, path: Path, number: int) -> int | float:
    text = text.strip()
    if spec.bounds is None:
        try:
            return spec.labels.index(text)
        except ValueError:
            allowed = ", ".join(spec.labels)
            raise UserError(f"{path}:{number}: label {text[:40]!r} is not one of: {allowed}") from None
    low, high = spec.bounds
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise UserError(f"{path}:{number}: label {text[:40]!r} is not a number from {low:g} to {high:g}")
    return value
