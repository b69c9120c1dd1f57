"""The E2E NLG Challenge as data: what a configuration asks for, whether it can be had, prompts, answers, references.

``check`` and ``digest`` are what the command line calls before anything heavy is imported. All take the ``task``
section of a configuration with the defaults of ``lrx.tasks.e2e.E2e`` for what it leaves out.

Sources: ``embedded`` (made-up sentences, ``lrx.data.e2e_grammar``), ``local`` (the official trainset.csv, devset.csv
and testset_w_refs.csv, each also as .csv.gz), ``hub`` (``tuetschek/e2e_nlg``). Trained on is ``train`` with one example
per reference; ``select`` is the official development set; of ``test`` one text is written per meaning representation
and held against all of its references.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrx.data import e2e_grammar as grammar
from lrx.data.completions import Completions
from lrx.data.e2e_csv import Rows, collect, locate, read_csv
from lrx.data.e2e_mr import FORMATS, prompt, tokenised
from lrx.data.hub import Repository, read_parquet
from lrx.errors import UserError, did_you_mean

SOURCES = ("embedded", "local", "hub")
SPLITS = ("train", "select", "test")
SIZES = {"train": (42061, 4862), "select": (4672, 547), "test": (4693, 630)}  # rows, meaning representations
REPOSITORY = "tuetschek/e2e_nlg"
REVISION = "refs/convert/parquet"  # the hub's own conversion: the repository itself holds a loading script
HUB_SPLITS = {"train": "train", "select": "validation", "test": "test"}
COLUMNS = ("meaning_representation", "human_reference")
_AT_LEAST = {
    "batch_size": 1, "eval_batch_size": 1, "max_length": 8, "max_new_tokens": 1, "beams": 1, "no_repeat_ngram": 0,
    "train_limit": 1, "select_limit": 1, "eval_limit": 1, "workers": 0,
}  # fmt: skip


def check(task: Mapping[str, Any], mode: str = "train") -> None:
    """Look at the options and at the files' presence; no torch, well under a second (``hub`` without network: 3 s).

    ``mode="eval"`` needs the test file only. Raises ``UserError``.
    """
    for key, least in _AT_LEAST.items():
        value = task.get(key)
        if value is not None and value < least:
            raise UserError(f"task.{key}={value}: must be at least {least}")
    if not 0 <= task.get("label_smoothing", 0) < 1:
        raise UserError(f"task.label_smoothing={task['label_smoothing']}: from 0 to below 1")
    if not 0 < task.get("repetition_penalty", 1) < math.inf:
        raise UserError(f"task.repetition_penalty={task['repetition_penalty']}: must be positive and finite (1: none)")
    if not math.isfinite(task.get("length_penalty", 1)):
        raise UserError(f"task.length_penalty={task['length_penalty']}: must be finite")
    form = task.get("mr_format", "lora")
    if form not in FORMATS:
        raise UserError(f"task.mr_format={form}: no such format; {did_you_mean(str(form), FORMATS)}")
    source = _source(task)
    needed = ("test",) if mode == "eval" else SPLITS
    if source == "local":
        for split in needed:
            locate(task["data_dir"], split)
    elif source == "hub":
        _repository(task).check([_parquet(split) for split in needed])


def digest(task: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the content a run reads: part of the run's identity. Raises ``UserError`` as ``check`` does.

    Local files by their bytes, the made-up sentences by the grammar's version, the hub by repository and revision.
    """
    source = _source(task)
    total = hashlib.sha256(source.encode())
    if source == "embedded":
        total.update(f"grammar {grammar.VERSION}".encode())
    elif source == "hub":
        total.update(f"{REPOSITORY}@{task.get('revision') or REVISION}".encode())
    else:
        for split in SPLITS:
            try:
                path = locate(task["data_dir"], split)
            except UserError:
                if split == "test":
                    raise
                continue  # a folder to evaluate only; training on it fails elsewhere
            total.update(f"{split}/{_sha256(path)};".encode())
    return total.hexdigest()


def describe() -> list[str]:
    """Lines for ``lrx info``: metrics, sources and the sizes of their splits, formats."""
    made = "; ".join(f"{split} {plan[0]:,} meaning representations" for split, plan in grammar.PLAN.items())
    sizes = "; ".join(
        f"{split} {rows:,} texts of {mrs:,} meaning representations" for split, (rows, mrs) in SIZES.items()
    )
    return [
        f"embedded: made-up sentences of a small grammar, no E2E scores; reported test; {made}",
        f"local, hub: reported test; {sizes}",
        "bleu, nist, rouge_l, cider by the official definitions; meteor where java and pycocoevalcap are there",
    ]


def rows(task: Mapping[str, Any], split: str) -> Rows:
    """The rows of ``train``, ``select`` or ``test``; a meaning representation of a later one is in no earlier one.

    Raises ``UserError`` when it cannot be had or does not fit its format.
    """
    if split not in SPLITS:
        raise KeyError(f"e2e has no split {split!r}")
    found = _read(task, split)
    for later in SPLITS[SPLITS.index(split) + 1 :]:
        if task.get("source", "embedded") == "embedded":
            break  # divided by construction
        found = found.without(_read(task, later), f"in_{later}")
    if not len(found):
        raise UserError(f"e2e: no example of {split} is left once those of the other splits are out")
    return found


def completions(task: Mapping[str, Any], split: str) -> Completions:
    """Prompts and answers of a split; of ``test`` one per meaning representation, its references as a JSON list."""
    found = rows(task, split)
    form = str(task.get("mr_format", "lora"))
    write = tokenised if task.get("tokenised", False) else str
    if split != "test":
        texts = [write(text) for _, text in found.pairs]
        return Completions(
            prompts=[prompt(mr, form) for mr, _ in found.pairs],
            answers=[f" {text}" for text in texts],
            references=[json.dumps([text], ensure_ascii=False) for text in texts],
            ids=[str(i) for i in range(len(texts))],
            notes=found.notes,
        )
    grouped = found.grouped()
    return Completions(
        prompts=[prompt(mr, form) for mr in grouped],
        answers=[""] * len(grouped),
        references=[json.dumps([write(text) for text in texts], ensure_ascii=False) for texts in grouped.values()],
        ids=[str(i) for i in range(len(grouped))],
        notes=found.notes,
    )


def _read(task: Mapping[str, Any], split: str) -> Rows:
    source = _source(task)
    if source == "embedded":
        return Rows([(mr, text) for mr, texts in grammar.rows(split) for text in texts])
    if source == "local":
        return read_csv(locate(task["data_dir"], split))
    path = _repository(task).get(_parquet(split))
    columns = read_parquet(path, COLUMNS)
    return collect(path, zip(*(columns[name] for name in COLUMNS), strict=True))


def _repository(task: Mapping[str, Any]) -> Repository:
    otherwise = "task.source=local task.data_dir=<folder of trainset.csv, devset.csv, testset_w_refs.csv>"
    return Repository(REPOSITORY, task.get("revision") or REVISION, f"{otherwise} or task.source=embedded")


def _parquet(split: str) -> str:
    return f"default/{HUB_SPLITS[split]}/0000.parquet"


def _source(task: Mapping[str, Any]) -> str:
    source = str(task.get("source", "embedded"))
    if source not in SOURCES:
        raise UserError(f"task.source={source}: no such source; {did_you_mean(source, SOURCES)}")
    if source == "local" and not task.get("data_dir"):
        raise UserError(
            "task.source=local needs task.data_dir=<folder of trainset.csv, devset.csv, testset_w_refs.csv>"
        )
    if source != "local" and task.get("data_dir"):
        raise UserError(f"task.data_dir is read only with task.source=local (it is {source})")
    if source != "hub" and task.get("revision"):
        raise UserError(f"task.revision is read only with task.source=hub (it is {source})")
    return source


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
