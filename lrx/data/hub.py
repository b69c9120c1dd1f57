"""Data sets on the Hugging Face hub, and GLUE from there (``nyu-mll/glue``, one parquet file per task and split).

``Repository`` is what every data set uses. Files already in the hub's local cache are used without any request.
Otherwise the endpoint (``HF_ENDPOINT``, or a proxy on the way) is tried with a short time-out first, because the client
itself retries for minutes.
"""

from __future__ import annotations

import os
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrx.data.glue_spec import Spec
from lrx.data.splits import Split
from lrx.errors import UserError

REPOSITORY = "nyu-mll/glue"
REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
PROBE_SECONDS = 3.0


@dataclass(frozen=True)
class Repository:
    """A data set's repository ``name`` at ``revision``. ``otherwise``: what else the user can do without the hub."""

    name: str
    revision: str
    otherwise: str

    def check(self, files: Iterable[str]) -> None:
        """Raise ``UserError`` in at most about 3 s unless every file is cached or the hub can be reached."""
        missing = [file for file in files if self.cached(file) is None]
        if missing and (problem := unreachable()):
            raise UserError(self._advice(missing[0], problem))

    def cached(self, file: str) -> Path | None:
        """The file in the hub's local cache, or None. No request is made and no library imported."""
        return _cached("datasets", self.name, self.revision, file)

    def get(self, file: str) -> Path:
        """The file, downloaded when it is not cached. Raises ``UserError`` when the hub cannot deliver it."""
        if path := self.cached(file):
            return path
        if problem := unreachable():
            raise UserError(self._advice(file, problem))
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.name, file, repo_type="dataset", revision=self.revision))
        except Exception as error:  # HTTP, SSL and cache errors of several libraries
            first = (str(error).strip().splitlines() or [""])[0]
            raise UserError(self._advice(file, f"{type(error).__name__}: {first}"[:200])) from None

    def _advice(self, file: str, problem: str) -> str:
        return (
            f"task.source=hub: cannot get {file} of {self.name} ({problem}); connect, set HF_ENDPOINT to a mirror, "
            f"or use {self.otherwise}"
        )


def read_parquet(path: Path, needed: Iterable[str]) -> dict[str, list[Any]]:
    """The columns of a parquet file. Raises ``UserError`` when it is not readable or lacks a ``needed`` column."""
    import datasets  # slow to import: only where it is needed

    datasets.disable_progress_bars()
    try:
        columns: dict[str, Any] = datasets.Dataset.from_parquet(str(path), keep_in_memory=True).to_dict()
    except Exception as error:  # the reader's errors have no common base
        raise UserError(f"{path} is not readable as parquet ({type(error).__name__}); delete it and repeat") from None
    if missing := [column for column in needed if column not in columns]:
        raise UserError(f"{path} has no column {', '.join(missing)}; it has {', '.join(columns)}")
    return columns


def glue(revision: str | None = None) -> Repository:
    """GLUE's repository, at the fixed revision unless another is given."""
    return Repository(
        REPOSITORY, revision or REVISION, "task.source=local task.data_dir=<GLUE folder> or task.source=embedded"
    )


def file_name(spec: Spec, split: str) -> str:
    """The parquet file of a split inside the repository."""
    return f"{spec.name}/{split}-00000-of-00001.parquet"


def check(needed: Iterable[tuple[Spec, str]], revision: str | None = None) -> None:
    """Raise ``UserError`` in at most about 3 s unless every file is cached or the hub can be reached."""
    glue(revision).check([file_name(spec, split) for spec, split in needed])


def load(spec: Spec, split: str, revision: str | None = None) -> Split:
    """Read a split, downloading it when it is not cached. A label of -1 means hidden.

    Raises ``UserError`` when the hub cannot deliver the file or the file is not what it should be.
    """
    path = glue(revision).get(file_name(spec, split))
    columns = read_parquet(path, (*spec.hub_columns, "label", "idx"))
    labels = columns["label"]
    allowed = range(-1, len(spec.classes)) if spec.bounds is None else None
    for row, label in enumerate(labels):
        if label is None or (allowed is not None and label not in allowed):
            raise UserError(f"{path}, row {row}: label {label!r} is not one of: {', '.join(spec.classes)}")
    hidden = spec.name == "ax" or split in spec.unlabelled
    if not hidden and any(label == -1 for label in labels):
        raise UserError(f"{path}: the {split} split of {spec.name} has hidden labels")
    texts = list(zip(*(columns[column] for column in spec.hub_columns), strict=True))
    return Split(texts, None if hidden else labels, [str(i) for i in columns["idx"]])


def has_model(name: str, revision: str | None) -> bool:
    """Whether the local cache has a model's repository at ``revision`` (None: its main branch). No request is made."""
    return _cached("models", name, revision or "main", "config.json") is not None


def no_weights(name: str, problem: str) -> UserError:
    """What to say when a model can be had neither from the hub nor from its local cache."""
    return UserError(
        f"model weights {name!r}: the hub cannot be reached ({problem}) and the local cache lacks them; "
        "connect, set HF_ENDPOINT to a mirror, or give model.weights=local model.path=FOLDER, or use scale=mini"
    )


def _cached(kind: str, name: str, commit: str, file: str) -> Path | None:
    root = _cache_root() / f"{kind}--{name.replace('/', '--')}"
    reference = root / "refs" / commit
    if reference.is_file():
        commit = reference.read_text(encoding="utf-8").strip()
    path = root / "snapshots" / commit / file
    return path if path.is_file() else None


def _cache_root() -> Path:
    environment = os.environ
    if own := environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE"):
        return Path(own).expanduser()
    home = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def unreachable(seconds: float = PROBE_SECONDS) -> str | None:
    """Why the hub cannot be reached, or None when its host takes connections."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set"
    endpoint = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    host, scheme = endpoint.hostname or "", endpoint.scheme
    port = endpoint.port or (80 if scheme == "http" else 443)
    proxy = urllib.request.getproxies().get(scheme)
    if proxy and not urllib.request.proxy_bypass(host):
        via = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
        host, port = via.hostname or "", via.port or 80
    outcome: list[str | None] = [f"no answer from {host}:{port} within {seconds:g} s"]

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
            outcome[0] = None
        except OSError as error:
            outcome[0] = f"{host}:{port}: {error.strerror or error}"

    thread = threading.Thread(target=connect, daemon=True)  # a name look-up has no time-out of its own
    thread.start()
    thread.join(seconds)
    return outcome[0]
