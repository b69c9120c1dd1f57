"""GLUE and the embedded sub-tasks as data: what a configuration asks for, whether it can be had, and reading it.

``check`` and ``digest`` are what the command line calls before anything heavy is imported. They and ``load`` take the
``task`` section of a configuration (``source``, ``data_dir``, ``subset``, ...), with the defaults of
``lrx.tasks.glue.Glue`` for what it leaves out. Sources: ``embedded`` (``lrx.data.embedded``), ``local`` (original TSV
folders, ``lrx.data.glue_tsv``), ``hub`` (``lrx.data.hub``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrx.data import embedded, glue_tsv, hub
from lrx.data.glue_spec import AX, EMBEDDED, GLUE, Spec, spec
from lrx.data.glue_submission import write_submission
from lrx.data.splits import Split
from lrx.errors import UserError, did_you_mean

__all__ = ["AX", "EMBEDDED", "GLUE", "Spec", "check", "digest", "load", "resolve", "spec", "write_submission"]

SOURCES = ("embedded", "local", "hub")
AVERAGED = tuple(name for name in GLUE if name != "wnli")  # the eight that papers average
_AT_LEAST = {"batch_size": 1, "eval_batch_size": 1, "max_length": 4, "train_limit": 1, "eval_limit": 1, "workers": 0}


def check(task: Mapping[str, Any], mode: str = "train") -> None:
    """Look at the options and at the files' presence; no torch, well under a second (``hub`` without network: 3 s).

    ``mode="eval"`` needs no training file. Raises ``UserError`` for a wrong sub-task, source or value, a missing or
    empty file, an absent corpus, or an unreachable hub.
    """
    for key, least in _AT_LEAST.items():
        value = task.get(key)
        if value is not None and value < least:
            raise UserError(f"task.{key}={value}: must be at least {least}")
    if not 0 <= task.get("holdout", 0) < 1:
        raise UserError(f"task.holdout={task['holdout']}: a fraction of the training part, from 0 to below 1")
    subsets = resolve(task)
    source = _source(task)
    if source == "embedded":
        embedded.check()
    elif source == "local":
        for name in subsets:
            for split in (*GLUE[name].reported, *(("train",) if mode != "eval" else ())):
                _locate_for(task["data_dir"], GLUE[name], split)
    else:
        splits = ("train",) if mode != "eval" else ()
        needed = [(GLUE[name], split) for name in subsets for split in (*GLUE[name].reported, *splits)]
        hub.check(needed, task.get("revision"))


def describe() -> list[str]:
    """A line per sub-task for ``lrx info``: kind, metrics (the selecting one first), roles and sizes of its splits."""
    lines = []
    for each in [*EMBEDDED.values(), *GLUE.values()]:
        kind = f"{len(each.classes)} classes" if each.classes else "regression"
        sizes = dict(each.sizes)
        if each.name in EMBEDDED:
            try:
                sizes = {name: len(split) for name, split in embedded.load(each.name).items()}
            except UserError:
                sizes = {}  # not fetched yet
        splits = ", ".join(f"{name} {size:,}" for name, size in sizes.items()) or "sizes known once fetched"
        source = "embedded" if each.name in EMBEDDED else "local, hub"
        reported = f"reported {'+'.join(each.reported)}"
        lines.append(f"{each.name} ({source}): {kind}; {', '.join(each.metrics)}; {reported}; {splits}")
    return lines


def resolve(task: Mapping[str, Any]) -> list[str]:
    """The sub-tasks a configuration asks for, in order.

    None asks for all three embedded ones; for every GLUE task whose files are in ``task.data_dir``; for the eight that
    papers average (no WNLI) on the hub. Raises ``UserError`` for an unknown name or one of another source.
    """
    source = _source(task)
    known = EMBEDDED if source == "embedded" else GLUE
    asked = task.get("subset")
    if asked is None:
        return _available(task["data_dir"]) if source == "local" else list(known if source == "embedded" else AVERAGED)
    names = [asked] if isinstance(asked, str) else list(dict.fromkeys(asked))
    if not names:
        raise UserError(f"task.subset is an empty list; {did_you_mean('', known)}")
    for name in names:
        if name in known:
            continue
        if name in EMBEDDED:
            raise UserError(f"task.subset={name} needs task.source=embedded; {source} has: {', '.join(GLUE)}")
        if name in GLUE:
            raise UserError(
                f"task.subset={name} needs task.source=local task.data_dir=<GLUE folder> or task.source=hub; "
                f"embedded has: {', '.join(EMBEDDED)}"
            )
        raise UserError(f"task.subset={name}: no such sub-task; {did_you_mean(str(name), [*EMBEDDED, *GLUE])}")
    return names


def digest(task: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the content a run reads: part of the run's identity. Raises ``UserError`` as ``check`` does.

    Local files by their bytes, whatever folder they lie in; the embedded corpus by its known hashes; the hub's by
    repository and revision.
    """
    source = _source(task)
    total = hashlib.sha256(source.encode())
    if source == "embedded":
        total.update("".join(sha for _, sha, _, _ in embedded.SOURCES.values()).encode())
    elif source == "hub":
        total.update(f"{hub.REPOSITORY}@{task.get('revision') or hub.REVISION}".encode())
    else:
        for name in resolve(task):
            for split in ("train", *GLUE[name].reported):
                try:
                    path = glue_tsv.locate(task["data_dir"], GLUE[name], split)
                except UserError:
                    if split != "train":
                        raise
                    continue  # a folder to evaluate only; training on it fails elsewhere
                total.update(f"{name}/{split}/{glue_tsv.sha256(path)};".encode())
    return total.hexdigest()


def load(task: Mapping[str, Any], name: str, split: str) -> Split:
    """A split of a sub-task: ``train``, one of ``spec.reported`` or ``spec.unlabelled``; embedded has ``select`` too.

    Raises ``UserError`` when it cannot be had or does not fit its format.
    """
    source = _source(task)
    if source == "embedded":
        return embedded.load(name)[split]
    described, part = (AX, "test") if split == "ax" else (GLUE[name], split)
    if source == "local":
        return glue_tsv.read(_locate_for(task["data_dir"], described, part), described, part)
    return hub.load(described, part, task.get("revision"))


def _source(task: Mapping[str, Any]) -> str:
    source = str(task.get("source", "embedded"))
    if source not in SOURCES:
        raise UserError(f"task.source={source}: no such source; {did_you_mean(source, SOURCES)}")
    if source == "local" and not task.get("data_dir"):
        raise UserError("task.source=local needs task.data_dir=<the folder that holds CoLA, SST-2, MRPC, ...>")
    if source != "local" and task.get("data_dir"):
        raise UserError(f"task.data_dir is read only with task.source=local (it is {source})")
    return source


def _locate_for(data_dir: str | Path, described: Spec, split: str) -> Path:
    try:
        return glue_tsv.locate(data_dir, described, split)
    except UserError as error:
        if split == "train" and described.reported and _has(data_dir, described, described.reported):
            raise UserError(f"{error}; without it {described.name} can only be evaluated (mode=eval)") from None
        raise


def _has(data_dir: str | Path, described: Spec, splits: Sequence[str]) -> bool:
    try:
        return all(glue_tsv.locate(data_dir, described, split) for split in splits)
    except UserError:
        return False


def _available(data_dir: str | Path) -> list[str]:
    names = [name for name, s in GLUE.items() if _has(data_dir, s, ("train", *s.reported))]
    if not names:
        glue_tsv.locate(data_dir, GLUE["rte"], "train")  # explains a folder that does not exist
        raise UserError(f"task.data_dir={data_dir} holds the train and dev files of no GLUE task")
    return names
