"""A disk that is full or read-only at every single write: one clear line, no half record, earlier results intact."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lrx.results.record import read_all
from tests.faults.forked import Process, fork, leftovers, numbers, run, small, the_record

# Everything that writes is on: checkpoints, best weights of an earlier step, two loggers' worth of files, the lens.
CHOICE = small(
    "lora", "logger=csv", "callbacks=lens", "callbacks.checkpoint.every_n_steps=2", "trainer.evaluations=4",
    "trainer.max_steps=4", "task.train_limit=16", "task.eval_limit=16",
)  # fmt: skip


EXISTS = ("root", "records")  # folders that are there already


class Disk:
    """Python's own audit events tell of every file that this process opens for writing or renames, and of every folder.

    ``seen``: the names written below ``root``, a temporary file by the name it will get. ``full``: the name at which
    the system answers that no space is left.
    """

    def __init__(self, root: Path, full: str | None = None) -> None:
        self.root, self.full = str(root), full
        self.seen: dict[str, None] = {}
        sys.addaudithook(self.event)

    def event(self, event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(flags, int) else 0
            if not writes and not (isinstance(mode, str) and set(mode) & set("wax+")):
                return
        elif event in ("os.rename", "os.mkdir", "os.link"):
            path = arguments[0] if event == "os.mkdir" else arguments[1]
        else:
            return
        path = os.fspath(path)
        if not isinstance(path, str) or not path.startswith(self.root):
            return
        name = plain(Path(path).name)
        self.seen[name] = None
        if name == self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def plain(name: str) -> str:
    """The name a temporary file will get, without the digits that tell runs and steps apart."""
    if name.startswith(".") and name.endswith(".tmp"):
        name = name[1:].rsplit(".", 3)[0]
    return "RECORD" if name.endswith(".json") and "-s0-" in name else "RUN" if "-s0-" in name else name


def starved(root: Path, full: str | None = None) -> tuple[Process, list[str]]:
    """A run whose disk is full at the file called ``full``, and the names of the files that it wrote."""
    listing = root.parent / f"{root.name}.names"

    def prepare() -> None:
        disk = Disk(root, full)
        prepare.keep = disk  # type: ignore[attr-defined]
        exit_ = os._exit
        os._exit = lambda code: (listing.write_text("\n".join(disk.seen)), exit_(code))  # type: ignore[assignment]

    found = run(CHOICE, root, prepare)
    return found, listing.read_text().splitlines()


OURS = {
    ".lock", "metrics.jsonl", "best.safetensors", "step-2.ckpt", "adapter.safetensors", "predictions.test.csv",
    "part.json", "RECORD", "lens.jsonl",
}  # fmt: skip


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["ours", "all"])
def test_a_disk_that_is_full_at_each_write_in_turn(all_of_them: bool, tmp_path: Path) -> None:
    """``all``: also the folders and what the libraries write; and when there is space again, the same command goes on
    to the same numbers.
    """
    done, names = starved(tmp_path / "whole" / "root")
    assert done.code == 0, done
    expected = OURS | {"RUN", "records", "sentiment", "checkpoints", "step-4.ckpt", "metrics.csv"}
    assert expected <= set(names), expected - set(names)
    (record,) = (tmp_path / "whole" / "root" / "records").glob("*.json")
    for number, name in enumerate(names if all_of_them else sorted(OURS)):
        root = tmp_path / str(number) / "root"
        (root / "records").mkdir(parents=True)
        earlier = root / "records" / f"{record.stem}x.json"
        earlier.write_text(record.read_text().replace(record.stem, earlier.stem))
        before = earlier.read_bytes()
        found, _ = starved(root, name)
        assert "Traceback" not in found.err, (name, found)
        assert earlier.read_bytes() == before
        assert leftovers(root) == [], name
        if found.code == 0:  # it was not needed after all, or a logger that is given up with a warning
            assert "warning" in found.err or name in EXISTS, (name, found)
        else:
            assert found.code in (1, 2), (name, found)
            assert "No space left on device" in found.err, (name, found)
            assert len(found.err.strip().splitlines()) <= 2, (name, found)
        assert read_all(root)[1] == [], name
        if all_of_them:
            earlier.unlink()
            rerun = run(CHOICE, root)
            assert rerun.code == 0, (name, rerun)
            assert numbers(root) == numbers(tmp_path / "whole" / "root"), name


def test_what_else_writes_says_so_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Tables and bundles: the earlier ones stay as they are."""
    from lrx.__main__ import main

    assert run(small("lora", "seed=0"), tmp_path / "root").code == 0
    (record,) = (tmp_path / "root" / "records").glob("*.json")
    table = ["table", "altlora_glue", "scale=smoke", "--root", str(tmp_path / "root"), "--out", str(tmp_path / "out")]
    table += ["--save-records", "--quiet", "--no-plots"]
    assert main(table) == 0
    written = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert len(written) == 4
    capfd.readouterr()

    for victim in sorted(written):

        def work(victim: Path = victim) -> int:
            Disk(tmp_path / "out", plain(victim.name))
            return main(table)

        found = fork(work, tmp_path / "process")
        assert found.code == 2, (victim, found)
        assert "Traceback" not in found.err, (victim, found)
        assert "No space left on device" in found.err, (victim, found)
        assert victim.name in found.err, (victim, found)
        assert {path: path.read_bytes() for path in written} == written, victim
        assert leftovers(tmp_path / "out") == []
    assert record.exists()


@pytest.fixture
def disk(tmp_path: Path):
    """``disk(options)`` mounts a file system in memory and gives its folder."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root to mount a file system")
    where = tmp_path / "disk"
    where.mkdir()
    mounted = []

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("this container does not allow mounting")
        mounted.append(where)
        return where

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    "size", ["92k", *(pytest.param(size, marks=pytest.mark.slow) for size in ("28k", "60k", "140k", "200k"))]
)
def test_a_disk_that_runs_full_and_then_has_space_again(size: str, disk, tmp_path: Path) -> None:
    """A real file system, in the middle of one file or another: all writes, also those that are not Python's."""
    choice = small("lora", "method.rank=32", "callbacks.checkpoint.every_n_steps=2", "logger=tensorboard")
    assert run(choice, tmp_path / "whole").code == 0
    where = disk(f"size={size}")
    found = run(choice, where / "root", output=tmp_path / "output")
    assert found.code in (1, 2), found
    assert "Traceback" not in found.err, found
    assert "space" in found.err, found
    assert read_all(where / "root")[1] == []
    subprocess.run(["mount", "-o", "remount,size=50m", str(where)], check=True)
    again = run([*choice, "rerun=failed"], where / "root", output=tmp_path / "output")
    assert again.code == 0, again
    assert numbers(where / "root") == numbers(tmp_path / "whole")
    assert leftovers(where / "root") == []


def test_a_read_only_disk(disk, tmp_path: Path) -> None:
    where = disk("ro")
    found = run(small("lora"), where / "root", output=tmp_path / "output")
    assert found.code == 2, found
    assert "Read-only file system" in found.err
    assert len(found.err.strip().splitlines()) == 1
    assert list(where.iterdir()) == []


def test_the_record_alone_does_not_fit(tmp_path: Path) -> None:
    """All was computed and only the record cannot be written: it is said, and the next start has only that to do."""
    root = tmp_path / "root"
    found, _ = starved(root, "RECORD")
    assert found.code == 2, found
    again = run(CHOICE, root)
    assert again.code == 0
    assert "sentiment: step" not in again.out  # nothing is trained again
    assert the_record(root).status == "finished"
