"""Power consumption of household appliances (ACSF1): 200 real series of 1,460 steps, ten kinds of appliance.

Gisler et al. 2013, in the UCR archive; taken out of the package aeon (BSD licence). ``fetch`` brings the two files
once, through pip, checked by hash; ``load`` reads the cache and never touches the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from lrx.data.embedded import cache_dir
from lrx.data.lra_sequences import Sequences, regular
from lrx.data.packages import download
from lrx.errors import UserError

REQUIREMENT = "aeon==1.6.0"
ARCHIVE = "aeon-1.6.0-py3-none-any.whl"
ARCHIVE_SHA256 = "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409"
FILES = {  # split -> (file, sha256)
    "train": ("ACSF1_TRAIN.ts", "0646b90dc4843e02baed6b2ba345c5601a4991b6796565489cef1b2d92a7537b"),
    "test": ("ACSF1_TEST.ts", "93e8aaeb44a10af181d24a156e60da7021193cd990ca28f263fccf3b905bfebf"),
}
INSIDE = "aeon/datasets/data/ACSF1/"
LENGTH, CLASSES = 1460, 10
COMMAND = "python -m lrx fetch series"


def folder(root: Path | None = None) -> Path:
    """Where the two files lie."""
    return (root or cache_dir()) / "acsf1-aeon-1.6.0"


def check(root: Path | None = None) -> None:
    """Raise ``UserError`` with what to do unless both files are there."""
    for name, _ in FILES.values():
        if not (folder(root) / name).is_file():
            raise UserError(f"task.dataset=acsf1: {name} is not in {folder(root)}; fetch it once with: {COMMAND}")


def load(split: str, root: Path | None = None) -> Sequences:
    """``train`` or ``test``: values (100, 1460, 1) float32 as published. Raises ``UserError``, absent or damaged."""
    check(root)
    name, digest = FILES[split]
    data = (folder(root) / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise UserError(f"{folder(root) / name} is damaged (its hash is wrong); repair it with: {COMMAND}")
    rows = data.decode().partition("@data")[2].split()
    values = np.asarray([row.rpartition(":")[0].split(",") for row in rows], dtype=np.float32)
    return regular(values[:, :, None], np.asarray([int(row.rpartition(":")[2]) for row in rows]))


def fetch(root: Path | None = None) -> Path:
    """Bring both files into the cache unless they are there; their folder. Safe for several processes at once.

    Raises ``UserError`` when pip fails, a hash is wrong or the cache cannot be written.
    """
    where = folder(root)
    with contextlib.suppress(UserError):  # absent or damaged: bring them
        for split in FILES:
            load(split, root)
        return where
    from filelock import FileLock

    try:
        where.mkdir(parents=True, exist_ok=True)
        with FileLock(where / ".lock"), tempfile.TemporaryDirectory(dir=where, prefix=".fetch-") as temporary:
            archive = zipfile.ZipFile(download(REQUIREMENT, ARCHIVE, ARCHIVE_SHA256, Path(temporary)))
            for name, digest in FILES.values():
                data = archive.read(INSIDE + name) if INSIDE + name in archive.namelist() else b""
                if hashlib.sha256(data).hexdigest() != digest:
                    raise UserError(f"{ARCHIVE} does not hold the expected {name}; nothing was kept")
                part = Path(temporary) / name
                part.write_bytes(data)
                os.replace(part, where / name)
    except OSError as error:
        raise UserError(f"cannot write the cache folder {where}: {error.strerror}; set LRX_CACHE to another") from None
    return where
