"""Arrays in the cache: built once, by one process, whole or not at all."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from lrx.data.store import Arrays, stored


def build() -> Arrays:
    return {"ids": np.arange(5, dtype=np.int32), "offsets": np.array([0, 5])}


def never() -> Arrays:
    raise AssertionError("built again")


def test_built_once_and_mapped_afterwards(tmp_path: Path) -> None:
    stored("tokens", ("a", 1), build, tmp_path)
    found = stored("tokens", ("a", 1), never, tmp_path)
    assert {name: array.tolist() for name, array in found.items()} == {"ids": [0, 1, 2, 3, 4], "offsets": [0, 5]}
    assert isinstance(found["ids"], np.memmap)
    assert not found["ids"].flags.writeable
    with pytest.raises(AssertionError, match="built again"):
        stored("tokens", ("a", 2), never, tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "remove", "foreign", "no end"])
def test_damaged_files_are_made_again(tmp_path: Path, damage: str) -> None:
    stored("tokens", "a", build, tmp_path)
    (path,) = tmp_path.glob("tokens/*/ids.npy")
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "remove":
        path.unlink()
    elif damage == "foreign":
        path.write_bytes(b"\x80\x04K\x01.")  # a pickle, which is not read
    else:
        (path.parent / "complete").unlink()
    assert stored("tokens", "a", build, tmp_path)["ids"].tolist() == [0, 1, 2, 3, 4]
    assert stored("tokens", "a", never, tmp_path)["ids"].tolist() == [0, 1, 2, 3, 4]


def test_what_fails_while_it_is_built_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="built again"):
        stored("tokens", "a", never, tmp_path)
    assert [path.name for path in tmp_path.glob("tokens/*") if not path.name.endswith(".lock")] == []


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tokens").write_text("a file where the folder should be")
    assert stored("tokens", "a", build, tmp_path)["ids"].tolist() == [0, 1, 2, 3, 4]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("note: tokens are kept in memory: ")


def _slowly(root: Path, log: Path) -> None:
    def slow() -> Arrays:
        with log.open("a") as stream:
            stream.write("built\n")
        time.sleep(0.3)
        return build()

    stored("tokens", "a", slow, root)


def test_of_several_processes_one_builds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    workers = [context.Process(target=_slowly, args=(tmp_path, log)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert log.read_text() == "built\n"
