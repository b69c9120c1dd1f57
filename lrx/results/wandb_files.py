"""Records out of wandb's own files: ``run-<id>.wandb`` of an offline run holds what an online one sends.

The file is LevelDB's log format behind a header of seven bytes: blocks of 32 KiB with pieces (checksum, size, kind,
data), one protobuf message in one or more pieces. ``python -m lrx sync`` puts a run's record into the configuration of
the wandb run, whole and as text, so that it comes out as it went in.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from lrx.errors import UserError
from lrx.files import cannot, write_atomic
from lrx.results.record import Problem, RecordError, RunRecord

RECORD_KEY = "lrx_record"  # of the wandb run's configuration
_HEADER, _BLOCK, _PIECE = 7, 32768, 7
_FULL, _FIRST, _LAST = 1, 2, 4  # kinds of pieces


def wandb_files(folder: Path | str) -> list[Path]:
    """The ``run-*.wandb`` files at any depth below ``folder``, by name."""
    return sorted(Path(folder).rglob("run-*.wandb"))


def read_wandb(folder: Path | str, files: Path) -> tuple[list[RunRecord], list[Problem]]:
    """The records in a folder of wandb's offline runs, and the files that hold none.

    Predictions, which are files of the wandb runs, are copied below ``files``, where the records say they are.
    """
    records, problems = [], []
    for path in wandb_files(folder):
        try:
            text = read_run(path)["config"].get(RECORD_KEY)
            if not isinstance(text, str):
                raise RecordError(f"{path}: holds no record; `python -m lrx sync --offline` writes runs that do")
            record = RunRecord.from_json(text, str(path))
            for part in record.parts.values():
                for name in {*part.predictions.values(), *part.last_predictions.values()}:
                    _copy(path.parent / "files" / name, files, name)
            records.append(record)
        except UserError as error:
            problems.append(Problem(path, str(error)))
    return records, problems


def read_run(path: Path) -> dict[str, Any]:
    """``config``, ``summary`` (dotted keys as they are), ``history`` (rows in order) and ``exit`` code of one file.

    A torn end is passed over: wandb loses its last block when it is killed. Raises ``UserError`` for a foreign file.
    """
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    found: dict[str, Any] = {"config": config, "summary": summary, "history": history, "exit": None}
    for data in _messages(path):
        try:
            message = _parse(data)
        except Exception as error:  # protobuf's own class differs between its implementations
            raise RecordError(f"{path}: broken wandb file ({' '.join(str(error).split())})") from None
        kind = message.WhichOneof("record_type")
        if kind == "run":
            found["run"] = message.run
            config.update(_values(message.run.config.update))
        elif kind == "config":
            config.update(_values(message.config.update))
        elif kind == "summary":
            summary.update(_values(message.summary.update))
        elif kind == "history":
            history.append(_values(message.history.item))
        elif kind == "exit":
            found["exit"] = message.exit.exit_code
    return found


def has_end(path: Path) -> bool:
    """Whether the run's exit is in the file, looked for in its last 64 KiB."""
    try:
        with path.open("rb") as stream:
            begin = max(0, (path.stat().st_size // _BLOCK - 1) * _BLOCK)
            stream.seek(begin)
            data = stream.read()
    except FileNotFoundError:
        return False
    for message in _pieces(data, 0 if begin else _HEADER):
        with contextlib.suppress(Exception):  # protobuf's own class differs between its implementations
            if _parse(message).WhichOneof("record_type") == "exit":
                return True
    return False


def _parse(data: bytes) -> Any:
    return import_module("wandb.proto.wandb_internal_pb2").Record.FromString(data)


def _copy(source: Path, folder: Path, name: str) -> None:
    """Copy one file of a wandb run, unless it is not there or its name leads out of the folder."""
    if source.is_file() and not Path(name).is_absolute() and ".." not in Path(name).parts:
        write_atomic(folder / name, source.read_bytes())


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _messages(path: Path) -> Iterator[bytes]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise cannot("read", path, error) from error
    if data[:4] != b":W&B":
        raise RecordError(f"{path}: not a file of wandb")
    yield from _pieces(data, _HEADER)


def _pieces(data: bytes, position: int) -> Iterator[bytes]:
    """The messages in ``data`` from ``position`` on: the header's end, or where a block begins."""
    whole: bytes | None = None
    while position + _PIECE <= len(data):
        if (left := _BLOCK - position % _BLOCK) < _PIECE:
            position += left
            continue
        size, kind = struct.unpack_from("<HB", data, position + 4)  # behind the checksum
        end = position + _PIECE + size
        if end > len(data) or kind == 0:
            return
        piece = data[position + _PIECE : end]
        position = end
        whole = piece if kind in (_FULL, _FIRST) else whole + piece if whole is not None else None
        if kind in (_FULL, _LAST) and whole is not None:
            yield whole
            whole = None
