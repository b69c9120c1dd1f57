"""Where ``--records`` reads from: a folder of records, a file of lines, an archive, or wandb's files."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrx.errors import UserError
from lrx.files import cannot
from lrx.results import bundle, wandb_files
from lrx.results.record import Problem, RunRecord, read_bundle, read_folder

_unpacked: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends; files are read until then


@dataclass(frozen=True)
class Source:
    """Records and what came with them.

    ``files``: the folder below which predictions lie, None if the source has none. ``header``: sweep and jobs of a
    bundle. ``sweeps``: the folder of the sweep file that an archive brings along.
    """

    records: list[RunRecord]
    problems: list[Problem]
    files: Path | None = None
    header: dict[str, Any] = field(default_factory=dict)
    sweeps: Path | None = None


def open_source(path: Path | str) -> Source:
    """What ``--records PATH`` names. Raises ``UserError`` when there is nothing, or an archive that is not safe."""
    path = Path(path)
    if path.is_dir():
        if wandb_files.wandb_files(path) and not any(path.glob("*.json")):
            files = _temporary()
            records, problems = wandb_files.read_wandb(path, files)
            return Source(records, problems, files)
        records, problems = read_folder(path)
        return Source(records, problems, path.parent)  # predictions lie beside the folder of records
    if not path.exists():
        raise UserError(f"--records {path}: no such file or folder")
    if bundle.is_archive(path):
        files = _temporary()
        header, records, problems = bundle.read_archive(path, files)
        return Source(records, problems, files, header, files / "sweeps")
    header, records, problems = read_bundle(path)
    return Source(records, problems, header=header)


def _temporary() -> Path:
    try:
        folder = tempfile.TemporaryDirectory(prefix="lrx-")
    except OSError as error:
        raise cannot("write", tempfile.gettempdir(), error) from error
    _unpacked.append(folder)
    return Path(folder.name)
