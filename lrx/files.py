"""Writing files so that a kill, a full disk or a second process never leaves a half or a lost one."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import time
from pathlib import Path

from lrx.errors import UserError

# A temporary file names the process that writes it, so that whoever comes next can tell a live one from a dead one.
_TEMPORARY = re.compile(r"^\..+\.(?P<host>[\w-]*)@(?P<pid>\d+)\.[0-9a-f]{8}\.tmp$")
_ANOTHER_HOST_IS_DEAD_AFTER = 24 * 3600.0


class AlreadyThere(UserError):
    """The file exists and the caller did not ask to replace it."""


def write_atomic(path: Path | str, content: str | bytes, *, overwrite: bool = True) -> Path:
    """Write ``content`` to ``path``: afterwards the file is either the old one or the whole new one, and on disk.

    Without ``overwrite`` exactly one of several writers wins and the others get ``AlreadyThere``. Whatever the system
    refuses (read-only folder, full disk) becomes a ``UserError`` with the path.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.parent / f".{path.name[:80]}.{_host()}@{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_temporary(path.parent)
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            _link(temporary, path)
        _sync_folder(path.parent)
    except AlreadyThere:
        raise
    except OSError as error:
        raise cannot("write", path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()  # already gone after a successful replace
    return path


def read_text(path: Path | str) -> str:
    """The file's text; what the system refuses, and bytes that are no UTF-8, become a ``UserError`` with the path."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise cannot("read", path, error) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file ({error.reason} at byte {error.start})") from error


def sweep_temporary(folder: Path) -> None:
    """Remove temporary files whose writer was killed. Files of live processes, and all others, stay."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        left_over = [(entry, match) for entry in entries if (match := _TEMPORARY.match(entry.name))]
    for entry, match in left_over:
        with contextlib.suppress(OSError):  # another process may sweep at the same time
            if match["host"] == _host():
                dead = not _alive(int(match["pid"]))
            else:
                dead = time.time() - entry.stat().st_mtime > _ANOTHER_HOST_IS_DEAD_AFTER
            if dead:
                os.unlink(entry.path)


def cannot(verb: str, path: Path | str, error: OSError) -> UserError:
    """The one-line form of an ``OSError``: ``cannot write results/records/x.json: Read-only file system``."""
    return UserError(f"cannot {verb} {path}: {error.strerror or error}")


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname())[:60]


def _link(temporary: Path, path: Path) -> None:
    """Give ``temporary`` its final name unless the name is taken. A hard link fails if it is, in one step."""
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise AlreadyThere(f"{path} exists already; nothing was overwritten") from error
    except OSError:  # a file system without hard links: the check and the rename are then two steps
        if path.exists():
            raise AlreadyThere(f"{path} exists already; nothing was overwritten") from None
        os.replace(temporary, path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable; not every system lets a folder be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
