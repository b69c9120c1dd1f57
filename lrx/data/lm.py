"""Language modelling as data: what a configuration asks for, whether it can be had, and the documents of its splits.

``check`` and ``digest`` are what the command line calls before anything heavy is imported. All take the ``task``
section of a configuration with the defaults of ``lrx.tasks.lm.LanguageModelling`` for what it leaves out.

Sources:

- ``embedded``: the sentences of ``lrx.data.embedded`` put together to documents again: 15,603 film reviews (a sentence
  each), product reviews, editorials and tweets, 2.4 MB. The documents' splits are those of that corpus.
- ``local``: ``train.txt`` and, where they are there, ``validation.txt`` and ``test.txt`` in ``data_dir``, UTF-8.
  ``documents`` says what a document is. For a file that is missing a share of the training documents is held out, by a
  hash of their content (``holdout`` for selection, ``test_share`` for the test).
- ``hub``: ``corpus=c4`` (allenai/c4, English: the first ``shards`` files for training, the first file of its validation
  split is reported, the second selects) or ``wikitext2``, ``wikitext103`` (Salesforce/wikitext, raw: their own splits).

Splits are disjoint: a document of a reported split that occurs elsewhere is left out there and counted (``in_test``),
one of the selection split is left out of the training split (``in_select``).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrx.data import embedded
from lrx.data.hub import Repository, read_parquet
from lrx.data.lm_text import Documents, articles, identity, read_c4, read_text, share
from lrx.data.splits import rank
from lrx.errors import UserError, did_you_mean

SOURCES = ("embedded", "local", "hub")
VERSION = 1  # of how documents are read and divided: part of the key of cached tokens
C4, WIKITEXT = "allenai/c4", "Salesforce/wikitext"
REVISIONS = {C4: "1588ec454efa1a09f29cd18ddd04fe05fc8653a2", WIKITEXT: "b08601e04326c79dfdd32d625aee71d232d685c3"}
C4_SHARDS = 1024  # files of its English training split
FILES = {"train": "train.txt", "select": "validation.txt", "test": "test.txt"}
_OTHERWISE = "task.source=local task.data_dir=<folder of train.txt> or task.source=embedded"
_AT_LEAST = {
    "length": 2, "batch_size": 1, "eval_batch_size": 1, "shards": 1, "train_limit": 1, "select_limit": 1,
    "eval_limit": 1, "workers": 0, "vocab_size": 257,
}  # fmt: skip
_WHY = {
    "length": "a block has to hold a token and one that follows it",
    "vocab_size": "256 bytes and the end token",
}


@dataclass(frozen=True)
class Piece:
    """A part of a split that is tokenised at a time. ``key``: names its content, for the cache."""

    key: str
    load: Callable[[], Documents]


def check(task: Mapping[str, Any], mode: str = "train") -> None:
    """Look at the options and at the files' presence; no torch, well under a second (``hub`` without network: 3 s).

    ``mode="eval"`` needs the training file too: tokenizer and token frequencies come from it. Raises ``UserError``.
    """
    for key, least in _AT_LEAST.items():
        value = task.get(key)
        if value is not None and value < least:
            why = f": {_WHY[key]}" if key in _WHY else ""
            raise UserError(f"task.{key}={value}: must be at least {least}{why}")
    if task.get("shards", 1) > C4_SHARDS:
        raise UserError(f"task.shards={task['shards']}: C4 has {C4_SHARDS:,} files")
    for key in ("holdout", "test_share"):
        if not 0 < task.get(key, 0.05) < 1:
            raise UserError(f"task.{key}={task[key]}: a share of the documents between 0 and 1")
    if task.get("holdout", 0.05) + task.get("test_share", 0.1) >= 1:
        raise UserError("task.holdout and task.test_share leave nothing to train on: their sum must be below 1")
    source = _source(task)
    if source == "embedded":
        embedded.check()
    elif source == "local":
        for split in FILES:
            _locate(task, split)
    else:
        _repository(task).check([file for split in splits(task) for file in _hub_files(task, split)])


def digest(task: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the content a run reads: part of the run's identity. Raises ``UserError`` as ``check`` does.

    Local files by their bytes, the embedded corpus by its fixed hashes, the hub by repository, revision and files.
    """
    source = _source(task)
    total = hashlib.sha256(f"{VERSION};{source};".encode())
    if source == "embedded":
        total.update(_embedded_key().encode())
    elif source == "local":
        total.update(_local_key(task).encode())
    else:
        found = _repository(task)
        files = [file for split in splits(task) for file in _hub_files(task, split)]
        total.update(f"{found.name}@{found.revision}:{','.join(files)}".encode())
    return total.hexdigest()


def describe() -> list[str]:
    """Lines for ``lrx info``: metrics, sources, what is reported."""
    return [
        "metrics: perplexity (lower is better), bits_per_byte; notes: the perplexity of the unigram model",
        "embedded: 15,603 documents of reviews, editorials and tweets, 2.4 MB; reported test (10%), select 5%",
        "local: train.txt, validation.txt, test.txt; reported test",
        "hub: c4 (reported: validation), wikitext2, wikitext103 (reported: test)",
    ]


def reported(task: Mapping[str, Any]) -> str:
    """Name of the reported split: C4 has no test split."""
    return "validation" if task.get("source") == "hub" and task.get("corpus", "c4") == "c4" else "test"


def splits(task: Mapping[str, Any]) -> tuple[str, str, str]:
    """Names of the splits."""
    return ("train", "select", reported(task))


def pieces(task: Mapping[str, Any], split: str) -> list[Piece]:
    """The parts of ``train``, ``select`` or the reported split; nothing is read yet.

    A limit is spread evenly over the parts. Raises ``UserError`` when the data cannot be had.
    """
    if split not in splits(task):
        raise KeyError(f"lm has no split {split!r}")
    source = _source(task)
    limits = {"train": "train_limit", "select": "select_limit"}
    limit = task.get(limits.get(split, "eval_limit"))
    if source == "hub":
        found = _repository(task)
        files = _hub_files(task, split)
        base = f"{found.name}@{found.revision}"
        loads = {f"{base}:{file}": functools.partial(_hub_documents, task, split, file) for file in files}
    elif source == "local":
        loads = {_local_key(task): functools.partial(_local_documents, task, split)}
    else:
        loads = {_embedded_key(): functools.partial(_embedded_documents, split)}
    most = None if limit is None else -(-limit // len(loads))
    return [
        Piece(f"{VERSION};{source};{split};{key};{most}", functools.partial(_load, task, split, load, most))
        for key, load in loads.items()
    ]


def _load(task: Mapping[str, Any], split: str, load: Callable[[], Documents], most: int | None) -> Documents:
    documents = load().limit(most).counted()
    if not len(documents):
        hint = ""
        if task.get("source") == "local":
            hint = f"; give {FILES['select' if split == 'select' else 'test']}, or other task.documents or shares"
        raise UserError(f"task lm: no document is left for the split {split}{hint}")
    return documents


def _source(task: Mapping[str, Any]) -> str:
    source = str(task.get("source", "embedded"))
    if source not in SOURCES:
        raise UserError(f"task.source={source}: no such source; {did_you_mean(source, SOURCES)}")
    if source == "local" and not task.get("data_dir"):
        raise UserError("task.source=local needs task.data_dir=<the folder that holds train.txt>")
    if source != "local" and task.get("data_dir"):
        raise UserError(f"task.data_dir is read only with task.source=local (it is {source})")
    if source != "hub" and task.get("revision"):
        raise UserError(f"task.revision is read only with task.source=hub (it is {source})")
    return source


# --- embedded


def _embedded_key() -> str:
    return ",".join(digest for _, digest, *_ in embedded.SOURCES.values())


def _embedded_documents(split: str) -> Documents:
    """The documents of a split in a fixed random order, sentences in theirs, a blank between them."""
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for sentence in embedded.sentences():
        if sentence.split == split:
            document, _, number = sentence.id.rpartition("_")  # of sources without documents the first part is empty
            key = (sentence.source, document or sentence.id)
            found.setdefault(key, []).append((int(number) if document else 0, sentence.text))
    order = sorted(found, key=lambda key: rank("lm", *key))
    return Documents([" ".join(text for _, text in sorted(found[key])) for key in order])


# --- local


def _locate(task: Mapping[str, Any], split: str) -> Path | None:
    """The file of a split; None where it is not there and a share of ``train.txt`` takes its place."""
    root = Path(task["data_dir"]).expanduser()
    if not root.is_dir():
        raise UserError(f"task.data_dir={task['data_dir']}: {'not a folder' if root.exists() else 'no such folder'}")
    path = root / FILES[split]
    if not path.is_file():
        if split != "train":
            return None
        try:
            there = ", ".join(sorted(child.name for child in root.iterdir())[:8]) or "nothing"
        except OSError as error:
            raise UserError(f"{root} cannot be read: {error.strerror}") from None
        raise UserError(f"{path} is missing: the training text (in the folder: {there})")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty")
    return path


def _local_key(task: Mapping[str, Any]) -> str:
    hashes = []
    for split in FILES:
        path = _locate(task, split)
        try:
            hashes.append("" if path is None else _sha256(path, path.stat().st_mtime_ns))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
    shares = (task.get("holdout", 0.05), task.get("test_share", 0.1))
    return f"{','.join(hashes)};{task.get('documents', 'paragraphs')};{shares}"


@functools.lru_cache(maxsize=8)
def _sha256(path: Path, _touched: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _local_documents(task: Mapping[str, Any], split: str) -> Documents:
    kind = str(task.get("documents", "paragraphs"))
    holdout, test_share = task.get("holdout", 0.05), task.get("test_share", 0.1)
    path, train_path = _locate(task, split), _locate(task, "train")
    assert train_path is not None
    own_test, own_select = _locate(task, "test"), _locate(task, "select")
    # Shares of [0, 1) that are held out of train.txt: the test's first, so that a new holdout leaves the test as it is.
    test = (0.0, 0.0 if own_test else test_share)
    select = (test[1], test[1] + (0.0 if own_select else holdout))
    if split == "test":
        if path is not None:
            return read_text(path, kind)
        return read_text(train_path, kind).where(lambda text: share(text) < test[1])
    if split == "select":
        if path is not None:
            found = read_text(path, kind)
        else:
            found = read_text(train_path, kind).where(lambda text: select[0] <= share(text) < select[1])
    else:
        found = read_text(train_path, kind).where(lambda text: share(text) >= select[1])
    if own_test or (split == "select" and own_select):
        known = _identities(_local_documents(task, "test"))
        found = found.where(lambda text: identity(text) not in known, "in_test")
    if split == "train" and own_select:
        chosen = _identities(_local_documents(task, "select"))
        found = found.where(lambda text: identity(text) not in chosen, "in_select")
    return found


# --- hub


def _repository(task: Mapping[str, Any]) -> Repository:
    name = C4 if task.get("corpus", "c4") == "c4" else WIKITEXT
    return Repository(name, task.get("revision") or REVISIONS[name], _OTHERWISE)


def _hub_files(task: Mapping[str, Any], split: str) -> list[str]:
    corpus = task.get("corpus", "c4")
    if corpus == "c4":
        if split == "train":
            return [f"en/c4-train.{number:05d}-of-{C4_SHARDS:05d}.json.gz" for number in range(task.get("shards", 1))]
        return [f"en/c4-validation.{int(split == 'select'):05d}-of-00008.json.gz"]
    parts = 2 if corpus == "wikitext103" and split == "train" else 1
    folder = "wikitext-103-raw-v1" if corpus == "wikitext103" else "wikitext-2-raw-v1"
    name = "validation" if split == "select" else split
    return [f"{folder}/{name}-{number:05d}-of-{parts:05d}.parquet" for number in range(parts)]


def _hub_documents(task: Mapping[str, Any], split: str, file: str) -> Documents:
    found = _hub_file(task, file)
    held = {"select": splits(task)[2:], "train": splits(task)[:0:-1]}.get(split, ())
    for other in held:
        known = _hub_identities(_repository(task), tuple(_hub_files(task, other)))
        note = "in_select" if other == "select" else "in_test"
        found = found.where(lambda text, known=known: identity(text) not in known, note)  # type: ignore[misc]
    return found


def _hub_file(task: Mapping[str, Any], file: str) -> Documents:
    return _read(_repository(task).get(file))


def _read(path: Path) -> Documents:
    if path.suffix == ".gz":
        return read_c4(path)
    rows = read_parquet(path, ("text",))["text"]
    if not all(isinstance(row, str) for row in rows):
        raise UserError(f"{path}: a text is no string")
    return articles(rows)


@functools.lru_cache(maxsize=4)
def _hub_identities(repository: Repository, files: tuple[str, ...]) -> frozenset[int]:
    return frozenset().union(*(_identities(_read(repository.get(file))) for file in files))


def _identities(documents: Documents) -> frozenset[int]:
    return frozenset(identity(text) for text in documents.texts)
