"""Arrays that are made once from given content and memory-mapped from the cache afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from lrx.data.embedded import cache_dir

Arrays = dict[str, np.ndarray]
VERSION = 1  # of what the callers store; raise it when the same key would be filled otherwise


def stored(kind: str, key: object, build: Callable[[], Arrays], root: Path | None = None) -> Arrays:
    """The arrays that ``build()`` makes, read-only and memory-mapped from ``<cache>/<kind>/<digest of key>``.

    Several processes may ask at once: one builds, the others wait for it. What a killed process left is not used, a
    damaged file is made again. Where the cache cannot be written, the arrays stay in memory and one line says so.
    """
    digest = hashlib.sha256(repr((VERSION, key)).encode()).hexdigest()
    place = (root or cache_dir()) / kind / digest[:32]
    if (found := _read(place)) is not None:
        return found
    from filelock import FileLock

    arrays: Arrays | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.parent / f".{place.name}.lock"):
            if (found := _read(place)) is not None:
                return found
            arrays = build()
            _write(place, arrays)
    except OSError as error:
        print(f"note: {kind} are kept in memory: {place.parent}: {error.strerror or error}", flush=True)
        return build() if arrays is None else arrays
    return _read(place) or arrays


def _write(place: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """All files or none: they are written beside and moved to their place as one folder."""
    beside = Path(tempfile.mkdtemp(dir=place.parent, prefix=".making-"))
    try:
        for name, array in arrays.items():
            with (beside / f"{name}.npy").open("wb") as stream:
                np.save(stream, array, allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())
        (beside / "complete").write_text("\n".join(arrays))
        shutil.rmtree(place, ignore_errors=True)  # a damaged one
        os.replace(beside, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _read(place: Path) -> Arrays | None:
    with contextlib.suppress(OSError, ValueError, EOFError):
        names = (place / "complete").read_text().split()
        return {name: np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    return None
