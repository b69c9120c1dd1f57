"""Human-rated sentences from the source archive of the PyPI package vaderSentiment 0.5 (MIT licence).

Hutto and Gilbert 2014 (ICWSM): 23,703 sentences of film reviews, product reviews, newspaper editorials and tweets, each
with the mean of about 20 ratings from -4 to 4. ``fetch`` brings them once, through pip, checked by hash; ``load`` reads
the cache and never touches the network.

Three sub-tasks, one per kind of GLUE metric (they are not GLUE, and tables name them as they are):

- ``sentiment``: sign of a film review's mean rating; reviews with |mean| < 0.5 are dropped as ambiguous.
- ``intensity``: the mean rating itself, all four sources.
- ``domain``: which of the four sources a sentence comes from.

One assignment of the whole corpus to train / select / test serves all three, so no text trained on in one is tested on
in another. It is a hash of a group: sentences of one document, and equal texts wherever they stand (case, spacing and
punctuation apart), stay together. Texts are used as published, HTML entities included. Bytes are UTF-8.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lrx.data.packages import download
from lrx.data.splits import Split, rank
from lrx.errors import UserError

REQUIREMENT = "vaderSentiment==0.5"
ARCHIVE = "vaderSentiment-0.5.zip"
ARCHIVE_SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
INNER_SHA256 = "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"

# source -> (file, sha256, bytes, whether ids are "document_sentence")
SOURCES: dict[str, tuple[str, str, int, bool]] = {
    "film": (
        "movieReviewSnippets_GroundTruth.txt",
        "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
        1383098,
        False,
    ),
    "product": (
        "amazonReviewSnippets_GroundTruth.txt",
        "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2",
        373157,
        True,
    ),
    "editorial": (
        "nytEditorialSnippets_GroundTruth.txt",
        "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e",
        607629,
        True,
    ),
    "tweet": (
        "tweets_GroundTruth.txt",
        "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f",
        389886,
        False,
    ),
}
SUBTASKS = ("sentiment", "intensity", "domain")
AMBIGUOUS_BELOW = 0.5  # leaves 10,072 of 10,605 film reviews, 49.6 % positive
TEST, SELECT = 0.10, 0.05  # fractions of the groups
CAPS = {"test": 1000, "select": 500}  # per sub-task; what is above a cap is not used at all
COMMAND = "python -m lrx fetch"


@dataclass(frozen=True)
class Sentence:
    """A rated sentence. ``split``: train, select or test, the same in all sub-tasks."""

    source: str
    id: str
    rating: float
    text: str
    split: str


def cache_dir() -> Path:
    """``$LRX_CACHE``, else ``$XDG_CACHE_HOME/lrx``, else ``~/.cache/lrx``."""
    if own := os.environ.get("LRX_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lrx"


def folder(root: Path | None = None) -> Path:
    """Where the four files lie."""
    return (root or cache_dir()) / "vader-0.5"


def check(root: Path | None = None) -> None:
    """Whether the files are there and whole, by their sizes: quick. Raises ``UserError`` with what to do."""
    for file, _, size, _ in SOURCES.values():
        path = folder(root) / file
        if not path.is_file():
            raise UserError(f"the embedded corpus is not in {folder(root)}; fetch it once with: {COMMAND}")
        if path.stat().st_size != size:
            raise UserError(f"{path} is damaged ({path.stat().st_size} bytes, not {size}); repair it with: {COMMAND}")


def load(subtask: str, root: Path | None = None) -> dict[str, Split]:
    """``train``, ``select`` and ``test`` of a sub-task, each in a fixed random order. No network.

    The latest are remembered as long as the files are not touched; nothing may be changed in them. Raises ``UserError``
    when the corpus is absent or damaged.
    """
    check(root)
    files = [(folder(root) / file).stat() for file, *_ in SOURCES.values()]
    return dict(_load(subtask, root or cache_dir(), tuple((f.st_mtime_ns, f.st_size) for f in files)))


@functools.lru_cache(maxsize=8)
def _load(subtask: str, root: Path, _touched: tuple[tuple[int, int], ...]) -> dict[str, Split]:
    rows = sorted(sentences(root), key=lambda s: rank("embedded row", s.source, s.id))
    if subtask == "sentiment":
        rows = [s for s in rows if s.source == "film" and abs(s.rating) >= AMBIGUOUS_BELOW]
    classes = list(SOURCES)
    splits = {}
    for name in ("train", "select", "test"):
        chosen = [s for s in rows if s.split == name][: CAPS.get(name)]
        labels: list[int] | list[float]
        if subtask == "sentiment":
            labels = [int(s.rating > 0) for s in chosen]
        elif subtask == "domain":
            labels = [classes.index(s.source) for s in chosen]
        else:
            labels = [s.rating for s in chosen]
        splits[name] = Split([(s.text,) for s in chosen], labels, [f"{s.source}/{s.id}" for s in chosen])
    return splits


def documents(ids: Sequence[str]) -> list[int] | None:
    """For each of a split's ids the number of its document, in order of appearance; None where no two share one."""
    names = [id.rpartition("_")[0] if SOURCES[id.partition("/")[0]][3] else id for id in ids]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names] if len(numbers) < len(names) else None


def sentences(root: Path | None = None) -> list[Sentence]:
    """All sentences in the files' order, with their split. Raises ``UserError`` when absent or damaged."""
    check(root)
    for file, digest, _, _ in SOURCES.values():
        path = folder(root) / file
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise UserError(f"{path} is damaged (its hash is wrong); repair it with: {COMMAND}")
    return _sentences(folder(root))


@cache
def _sentences(where: Path) -> list[Sentence]:
    rows = []
    for source, (file, _, _, documents) in SOURCES.items():
        for line in (where / file).read_bytes().decode("utf-8").split("\r\n"):
            identifier, rating, text = line.split("\t")
            document = identifier.rpartition("_")[0] if documents else identifier
            rows.append((source, identifier, float(rating), text.strip(), f"{source}/{document}"))
    groups = _groups([(document, _normal(text)) for *_, text, document in rows])
    return [Sentence(*row[:4], _split(group)) for row, group in zip(rows, groups, strict=True)]


def _normal(text: str) -> str:
    """Texts that differ only in case, spacing or punctuation are equal."""
    return " ".join(re.findall(r"\w+", text.lower())) or text.strip()


def _groups(keys: list[tuple[str, str]]) -> list[str]:
    """Connected components over (document, text) links: the smallest document name of each row's component."""
    parent: dict[str, str] = {}

    def find(x: str) -> str:
        parent.setdefault(x, x)
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for document, text in keys:
        a, b = sorted((find("d" + document), find("t" + text)))  # documents sort before texts
        parent[b] = a
    return [find("d" + document) for document, _ in keys]


def _split(group: str) -> str:
    share = rank("embedded group", group) / 2**64
    return "test" if share < TEST else "select" if share < TEST + SELECT else "train"


def fetch(root: Path | None = None) -> Path:
    """Bring the corpus into the cache unless it is there, and return its folder. Safe for several processes at once.

    Needs the package index (pip), about a second. Raises ``UserError`` when pip fails, a hash is wrong or the cache
    cannot be written.
    """
    where = folder(root)
    try:
        sentences(root)
        return where
    except UserError:
        pass  # absent or damaged: bring it
    from filelock import FileLock

    try:
        where.mkdir(parents=True, exist_ok=True)
        with FileLock(where / ".lock"), tempfile.TemporaryDirectory(dir=where, prefix=".fetch-") as temporary:
            try:
                sentences(root)  # another process may have brought it meanwhile
            except UserError:
                archive = download(REQUIREMENT, ARCHIVE, ARCHIVE_SHA256, Path(temporary))
                for file, data in _unpack(archive):
                    part = Path(temporary) / file
                    part.write_bytes(data)
                    os.replace(part, where / file)
    except OSError as error:
        raise UserError(f"cannot write the cache folder {where}: {error.strerror}; set LRX_CACHE to another") from None
    return where


def _unpack(archive: Path) -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of the four rating files: read into memory by exact name, nothing else is extracted."""
    wanted = {file: digest for file, digest, _, _ in SOURCES.values()}
    with zipfile.ZipFile(archive) as outer:
        names = [name for name in outer.namelist() if name.endswith("/" + INNER)]
        data = outer.read(names[0]) if names else b""
    if hashlib.sha256(data).hexdigest() != INNER_SHA256:
        raise UserError(f"{ARCHIVE} does not hold the expected {INNER}; nothing was kept")
    inner = archive.with_name("inner.tar.gz")
    inner.write_bytes(data)
    with tarfile.open(inner, "r:gz") as tar:
        for member in tar:
            name = Path(member.name).name
            if name in wanted and member.isfile():
                handle = tar.extractfile(member)
                content = handle.read() if handle else b""
                if hashlib.sha256(content).hexdigest() != wanted.pop(name):
                    raise UserError(f"{ARCHIVE}: {name} has a wrong hash; nothing was kept")
                yield name, content
    if wanted:
        raise UserError(f"{ARCHIVE} lacks {', '.join(sorted(wanted))}")
