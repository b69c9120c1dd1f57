"""Images in parquet files as the hub has them: a column of ``{bytes, path}`` or of bytes, and one of class ids.

Small splits are read whole. Large ones are opened through the ``datasets`` library, which converts them once to Arrow
files in the cache and maps those into memory, so that any image can be read alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrx.data import images_store
from lrx.data.embedded import cache_dir
from lrx.data.images_decode import Unreadable
from lrx.data.images_files import check_labels
from lrx.data.images_spec import ImageSet
from lrx.errors import UserError


class Parquet:
    """The rows of ``paths``, one file after the other. ``key``: what identifies their content.

    Raises ``UserError`` for a file that is not readable, lacks a column or has a label that is no class.
    """

    def __init__(self, paths: Sequence[Path], chosen: ImageSet, key: str) -> None:
        import pyarrow

        self.paths = [str(path) for path in paths]
        self.key = hashlib.sha256(key.encode()).hexdigest()
        self.stored_bytes = sum(path.stat().st_size for path in paths)
        self.labels: list[int] = []
        self.starts = [0]
        for path in paths:
            try:
                file = _open(path)
                names = file.schema_arrow.names
                self.image = _column(chosen.image, names, path)
                label = _column(chosen.label, names, path)
                labels = file.read(columns=[label]).column(label)
            except (pyarrow.ArrowException, OSError) as error:
                raise _unreadable(path, error) from None
            if labels.null_count or not pyarrow.types.is_integer(labels.type):
                raise UserError(f"{path}: column {label} has to hold a class id in every row")
            values = labels.to_numpy()
            check_labels(values, chosen.classes, str(path))
            self.labels += values.tolist()
            self.starts.append(len(self.labels))
        if not self.labels:
            raise UserError(f"{self.paths[0]} holds no images")
        # A small split is opened when its first image is read: the cache may have them all.
        large = self.stored_bytes > images_store.DECODE_AT_ONCE_BYTES
        self._rows: Any = _large(self.paths, self.image) if large else None

    def __len__(self) -> int:
        return len(self.labels)

    def _place(self, position: int) -> tuple[int, int]:
        file = int(np.searchsorted(self.starts, position, side="right")) - 1
        return file, position - self.starts[file]

    def read(self, position: int) -> bytes:
        """Raises ``Unreadable`` for a row without an image."""
        if self._rows is None:
            self._rows = [_small(path, self.image) for path in self.paths]
        if isinstance(self._rows, list):
            file, row = self._place(position)
            value = self._rows[file][row].as_py()
        else:
            value = self._rows[position][self.image]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise Unreadable("no image in the row")
        return data

    def name(self, position: int) -> str:
        file, row = self._place(position)
        return f"{self.paths[file]}, row {row}"


def _open(path: Path | str) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path, memory_map=True)


def _small(path: str, column: str) -> Any:
    """The column in memory."""
    import pyarrow

    try:
        return _open(path).read(columns=[column]).column(column)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _large(paths: list[str], column: str) -> Any:
    """Rows with the column, as the ``datasets`` library maps them."""
    import datasets  # slow to import: only where it is needed

    datasets.disable_progress_bars()
    folder = cache_dir() / "images" / "arrow"
    try:
        table = datasets.Dataset.from_parquet(paths, cache_dir=str(folder), columns=[column])
    except OSError as error:
        problem = f"cannot write the cache folder {folder}: {error.strerror}"
        raise UserError(f"{problem}; set LRX_CACHE to another") from None
    except datasets.exceptions.DatasetGenerationError as error:
        raise _unreadable(paths[0] if len(paths) == 1 else f"{paths[0]} or a file beside it", error) from None
    if isinstance(table.features[column], datasets.Image):
        table = table.cast_column(column, datasets.Image(decode=False))
    return table


def _unreadable(path: Path | str, error: Exception) -> UserError:
    return UserError(f"{path} is not readable as parquet ({type(error).__name__}); replace the file")


def _column(wanted: Sequence[str], names: Sequence[str], path: Path) -> str:
    for name in wanted:
        if name in names:
            return name
    raise UserError(f"{path} has no column {' or '.join(wanted)}; it has {', '.join(names)}")
