"""An archive of results: the table comes out of it byte for byte, its runs run again, a stranger's does no harm."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import warnings
import zipfile
from pathlib import Path

import pytest

from lrx.__main__ import main
from lrx.errors import UserError
from lrx.results import bundle
from lrx.results.bundle import MANIFEST, read_archive, unpack, write_archive
from lrx.results.record import read, read_all
from tests.conftest import ROOT, command
from tests.results.grid import SWEEP, pages, table_of, write_grid


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_grid(tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def archive(root: Path, tmp_path: Path) -> Path:
    return write_archive(table_of(root), root, tmp_path / "bundle.zip")


def rewritten(archive: Path, out: Path, **changes: bytes | None) -> Path:
    """A copy with members replaced, added or (None) left out, and a manifest that agrees."""
    with zipfile.ZipFile(archive) as old:
        contents: dict[str, bytes | None] = {name: old.read(name) for name in old.namelist()}
    contents |= changes
    manifest = json.loads(contents.pop(MANIFEST) or b"{}")
    kept = {name: content for name, content in contents.items() if content is not None}
    manifest["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in kept.items()}
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in {**kept, MANIFEST: json.dumps(manifest).encode()}.items():
            new.writestr(name, content)
    return out


def refused(path: Path, tmp_path: Path, *words: str) -> None:
    """Reading and unpacking both say why not, in one line, and leave nothing behind."""
    for action in (lambda: read_archive(path, tmp_path / "read"), lambda: unpack(path, tmp_path / "unpacked")):
        with pytest.raises(UserError) as caught:
            action()
        text = str(caught.value)
        assert len(text.splitlines()) == 1
        assert all(word in text for word in (str(path), *words)), text
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "unpacked").exists()


def test_the_table_comes_out_of_the_archive_without_the_results(root: Path, archive: Path, tmp_path: Path) -> None:
    local = pages(table_of(root), tmp_path / "local")
    shutil.rmtree(root)
    assert pages(table_of(tmp_path / "nowhere", archive), tmp_path / "again") == local
    unpack(archive, tmp_path / "unpacked")
    assert pages(table_of(tmp_path / "unpacked"), tmp_path / "unpacked again") == local
    stored = {path.name: path.read_bytes() for path in (tmp_path / "unpacked" / "tables").iterdir()}
    assert stored == local


def test_the_archive_needs_neither_the_grid_nor_the_sweep_file(archive: Path, tmp_path: Path) -> None:
    """Its jobs and its sweep file are taken from it, so that it outlives changes of both."""
    from lrx.results.gather import gather

    def never(*_: object) -> list[object]:
        raise AssertionError("the grid was composed")

    with zipfile.ZipFile(archive) as old:
        title = old.read(f"sweeps/{SWEEP}.yaml").replace(b"AltLoRA on GLUE", b"Another title")
    changed = rewritten(archive, tmp_path / "changed.zip", **{f"sweeps/{SWEEP}.yaml": title})
    assert gather(SWEEP, tmp_path, records_from=changed, jobs_of=never).sweep.title == "Another title"  # type: ignore[arg-type]


def test_the_same_inputs_give_the_same_bytes(root: Path, archive: Path, tmp_path: Path) -> None:
    for path in root.rglob("*"):
        os.utime(path, (1, 1))
    again = write_archive(table_of(root), root, tmp_path / "other" / "name.zip")
    assert again.read_bytes() == archive.read_bytes()
    assert [path.name for path in again.parent.iterdir()] == ["name.zip"]


def test_everything_is_in_it(root: Path, archive: Path) -> None:
    records, _ = read_all(root)
    names = set(zipfile.ZipFile(archive).namelist())
    finished = [record for record in records if record.parts]
    assert {f"records/{record.run_id}.json" for record in records} <= names
    assert {f"configs/{record.run_id}.yaml" for record in records} <= names
    for record in finished:
        for part in record.parts:
            folder = f"runs/{record.run_id}/{part}"
            assert {f"{folder}/metrics.jsonl", f"{folder}/predictions.test.csv"} <= names
    assert {"jobs.json", "README.md", "environment.json", "requirements.lock", f"sweeps/{SWEEP}.yaml"} <= names
    assert {f"conf/{p.relative_to(ROOT / 'conf').as_posix()}" for p in (ROOT / "conf/tuned").rglob("*.yaml")} <= names
    assert {f"tables/table.{kind}" for kind in ("md", "tex", "csv")} <= names
    assert not any("safetensors" in name for name in names)


def test_weights_lens_and_logs_of_failed_runs(root: Path, tmp_path: Path) -> None:
    (run,) = [record for record in read_all(root)[0] if record.status == "diverged"]
    folder = root / "runs" / run.run_id / "sentiment"
    folder.mkdir(parents=True)
    for name in ("metrics.jsonl", "lens.jsonl", "adapter.safetensors"):
        (folder / name).write_text("x")
    (folder / "predictions.test.csv").symlink_to("/etc/hostname")
    (folder / "checkpoints").mkdir()
    (folder.parent / "traceback.txt").write_text("here")
    archive = write_archive(table_of(root), root, tmp_path / "all.zip", weights=True)
    inside = {name for name in zipfile.ZipFile(archive).namelist() if name.startswith(f"runs/{run.run_id}/")}
    wanted = {"sentiment/metrics.jsonl", "sentiment/lens.jsonl", "sentiment/adapter.safetensors", "traceback.txt"}
    assert inside == {f"runs/{run.run_id}/{name}" for name in wanted}


@pytest.mark.parametrize(
    "name",
    ["../outside", "/outside", "records/../../outside", "C:outside", "runs\\..\\outside", "a//b", "a\x01b", "./a"],
)
def test_names_that_lead_out_are_refused(archive: Path, tmp_path: Path, name: str) -> None:
    refused(rewritten(archive, tmp_path / "bad.zip", **{name: b"x"}), tmp_path, "refused", "lead out")
    assert not (tmp_path / "read").exists()


def test_links_and_twins_are_refused(archive: Path, tmp_path: Path) -> None:
    for number, (name, mode, word) in enumerate(
        [("link", stat.S_IFLNK, "no plain file"), ("records", stat.S_IFDIR, "no plain file"), ("README.md", 0, "twice")]
    ):
        bad = shutil.copy(archive, tmp_path / f"bad{number}.zip")
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        with zipfile.ZipFile(bad, "a") as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile warns of the twin that is wanted here
            opened.writestr(entry, "/etc/passwd")
        refused(bad, tmp_path, "refused", word)


def test_bombs_are_refused(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "FREE_BYTES", 2**20)
    refused(rewritten(archive, tmp_path / "bomb.zip", zeros=bytes(150 * 2**20)), tmp_path, "refused", "MiB")
    # One that lies about its size is found out while it is read.
    honest = rewritten(archive, tmp_path / "liar.zip", zeros=bytes(2**20))
    data = bytearray(honest.read_bytes())
    with zipfile.ZipFile(honest) as opened:
        size = opened.getinfo("zeros").file_size.to_bytes(4, "little")
    assert data.count(size) >= 2
    honest.write_bytes(bytes(data).replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(UserError, match="truncated or no zip"):
        unpack(honest, tmp_path / "unpacked")
    monkeypatch.setattr(bundle, "MOST_FILES", 5)
    refused(archive, tmp_path, "refused", "more than any sweep leaves")


@pytest.mark.parametrize("keep", [0.999, 0.5, 0.01])
def test_a_truncated_archive_is_one_line(archive: Path, tmp_path: Path, keep: float, capfd) -> None:
    cut = tmp_path / "cut.zip"
    cut.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * keep)])
    refused(cut, tmp_path, "truncated")
    assert main(["table", SWEEP, "--records", str(cut), "--out", str(tmp_path / "out")]) == 2
    err = capfd.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")


def test_damage_and_foreign_archives_are_named(archive: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.zip"
    with zipfile.ZipFile(foreign, "w") as opened:
        opened.writestr("a.txt", "a")
    refused(foreign, tmp_path, "no bundle of lrx")
    (tmp_path / "text.zip").write_text("no archive at all")
    with pytest.raises(UserError, match="truncated or no zip"):
        unpack(tmp_path / "text.zip", tmp_path / "unpacked")
    changed = tmp_path / "changed.zip"
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"{}" if name == "jobs.json" else old.read(name))
    refused(changed, tmp_path, "damaged", "jobs.json")
    newer = rewritten(archive, tmp_path / "newer.zip", **{MANIFEST: b'{"lrx_bundle": 99}'})
    refused(newer, tmp_path, "newer")
    broken = rewritten(archive, tmp_path / "jobs.zip", **{"jobs.json": b'{"sweep": "altlora_glue", "jobs": [1]}'})
    with pytest.raises(UserError, match="broken list of jobs"):
        table_of(tmp_path, broken)


def test_a_broken_record_inside_is_reported_and_skipped(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as old:
        names = sorted(name for name in old.namelist() if name.startswith("records/"))
        other = old.read(names[1])
    bad = rewritten(archive, tmp_path / "bad.zip", **{names[0]: other, names[2]: b'{"schema": 1'})
    data = table_of(tmp_path, bad)
    assert sorted(str(problem).split(": ")[1] for problem in data.problems) == [names[0], names[2]]
    assert len(data.table.records()) == len(names) - 2


def test_unpacking_never_writes_over_anything(archive: Path, tmp_path: Path) -> None:
    target = tmp_path / "full"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        unpack(archive, target)
    assert [path.name for path in target.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="no such file"):
        unpack(tmp_path / "absent.zip", tmp_path / "unpacked")


def test_a_failed_write_leaves_the_earlier_archive(root: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = archive.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_archive(table_of(root), root, archive)
    assert archive.read_bytes() == before
    assert not list(archive.parent.glob(".*.tmp"))


def test_a_sweep_that_was_not_run_has_nothing_to_archive(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run it first"):
        write_archive(table_of(tmp_path), tmp_path, tmp_path / "bundle.zip")


@pytest.mark.slow
def test_a_run_of_the_archive_runs_again_to_equal_metrics(tmp_path: Path) -> None:
    """The commands that its README gives, from an empty folder."""
    grid = ["scale=smoke", "method=lora", "seed=0", "task.subset=[sentiment,domain]"]
    root, unpacked, again = tmp_path / "results", tmp_path / "unpacked", tmp_path / "again"
    first = command("run.py", f"+sweeps={SWEEP}", *grid, "logger=none", f"paths.root={root}")
    assert first.code == 0, first
    made = command("-m", "lrx", "bundle", SWEEP, *grid, "--root", str(root), "--out", str(tmp_path / "b.zip"))
    assert made.code == 0, made
    options = ["--no-plots", "-q", "--out"]
    assert command("-m", "lrx", "table", SWEEP, *grid, "--root", str(root), *options, str(tmp_path / "t1")).code == 0
    shutil.move(root, tmp_path / "gone")
    from_zip = command(
        "-m", "lrx", "table", SWEEP, "--records", str(tmp_path / "b.zip"), *options, str(tmp_path / "t2")
    )
    assert from_zip.code == 0, from_zip
    for name in ("table.md", "table.tex", "table.csv"):
        assert (tmp_path / "t2" / name).read_bytes() == (tmp_path / "t1" / name).read_bytes()
    assert command("-m", "lrx", "unbundle", str(tmp_path / "b.zip"), "--to", str(unpacked)).code == 0
    (record,) = read_all(unpacked)[0]
    readme = (unpacked / "README.md").read_text()
    assert f"--config-dir unpacked/configs --config-name {record.run_id} paths.root=again" in readme
    rerun = command(
        "run.py", "--config-dir", str(unpacked / "configs"), "--config-name", record.run_id, f"paths.root={again}"
    )
    assert rerun.code == 0, rerun
    (found,) = read_all(again)[0]
    assert (found.run_id, found.fingerprint) == (record.run_id, record.fingerprint)
    assert found.parts == read(unpacked / "records" / f"{record.run_id}.json").parts
