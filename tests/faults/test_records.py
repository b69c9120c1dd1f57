"""Records under kills, many writers, moved clocks and other versions: none is lost, none is half, none is fatal."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from lrx.results.record import SCHEMA, RunRecord, read, read_all
from tests.conftest import ROOT
from tests.faults.forked import exists, fork, leftovers, run, small, the_record
from tests.results.fakes import FakeJob, record_of

SAMPLES = sorted((ROOT / "tests" / "samples" / "records").glob("*.json"))


def started(work) -> multiprocessing.Process:  # type: ignore[valid-type]
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def test_eight_processes_write_records_at_once(tmp_path: Path) -> None:
    """Each its own twenty, all of them one in common, while a reader looks on."""

    def writer(number: int):
        def write() -> None:
            for seed in range(20):
                own = record_of(FakeJob("lora", seed))
                dataclasses.replace(own, run_id=f"{own.run_id}-{number}").save(tmp_path)
                common = dataclasses.replace(record_of(FakeJob("head", 0)), message=f"{number}" * 5000)
                common.save(tmp_path, overwrite=True)

        return write

    processes = [started(writer(number)) for number in range(8)]
    while any(process.is_alive() for process in processes):
        records, problems = read_all(tmp_path)
        assert problems == []
    for process in processes:
        process.join()
        assert process.exitcode == 0
    records, problems = read_all(tmp_path)
    assert problems == []
    assert len(records) == 8 * 20 + 1
    assert leftovers(tmp_path) == []


def test_killed_twenty_times_while_writing_a_record(tmp_path: Path) -> None:
    """The earlier one or the new one is there, whole, each time."""
    log, rng, torn = tmp_path / "log", random.Random(2), 0
    path = record_of(FakeJob("lora", 0), message="0").save(tmp_path)
    for attempt in range(100):
        if attempt >= 20 and torn >= 2:
            break
        first = int(read(path).message[:8])

        def write(first: int = first) -> None:
            with log.open("w", buffering=1) as stream:
                for number in range(first + 1, first + 100_000):
                    record = record_of(FakeJob("lora", 0), message=f"{number:08d}" * 20_000)
                    record.save(tmp_path, overwrite=True)
                    stream.write(f"{number}\n")

        moment = time.monotonic() + rng.uniform(0.03, 0.15)
        found = fork(write, tmp_path / "p", when=lambda m=moment: time.monotonic() > m)
        assert found.code == -signal.SIGKILL, found
        done = [int(line) for line in log.read_text().split()] if log.exists() else []
        records, problems = read_all(tmp_path)
        assert (len(records), problems) == (1, [])
        assert int(records[0].message[:8]) >= (done[-1] if done else first)
        torn += bool(leftovers(tmp_path))
    assert torn >= 2  # some did die in the middle
    record_of(FakeJob("lora", 0)).save(tmp_path, overwrite=True)
    assert leftovers(tmp_path) == []


def test_two_processes_start_the_same_run_at_once(tmp_path: Path) -> None:
    """One runs, the other says so and goes; afterwards the run is finished once."""
    root, marker, gate = tmp_path / "root", tmp_path / "marker", tmp_path / "gate"

    def slow() -> None:
        import lrx.training

        assemble = lrx.training.assemble

        def waiting(*arguments):
            marker.touch()
            while not gate.exists():
                time.sleep(0.01)
            return assemble(*arguments)

        lrx.training.assemble = waiting

    first = started(lambda: os._exit(run(small("head"), root, slow, output=tmp_path / "first").code))
    deadline = time.monotonic() + 60
    while not marker.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second = run(small("head"), root, output=tmp_path / "second")
    assert second.code == 2, second
    assert "already being run by another process" in second.err
    assert len(second.err.strip().splitlines()) == 1
    gate.touch()
    first.join(60)
    assert first.exitcode == 0
    assert the_record(root).status == "finished"
    again = run(small("head"), root)
    assert "already finished" in again.out


def test_a_lock_of_a_killed_run_is_free_at_once(tmp_path: Path) -> None:
    root, marker = tmp_path / "root", tmp_path / "marker"

    def hang() -> None:
        import lrx.training

        lrx.training.assemble = lambda *_: (marker.touch(), time.sleep(60))

    assert run(small("head"), root, hang, when=exists(marker)).code == -signal.SIGKILL
    assert run(small("head"), root).code == 0


# Clocks.


class Backwards(datetime):
    """A clock that is put back by an hour each time somebody looks, as at the end of summer time or by an NTP step."""

    moment = datetime.fromisoformat("2026-10-25T03:00:00+00:00")

    @classmethod
    def now(cls, tz=None):  # type: ignore[override]
        Backwards.moment -= timedelta(hours=1)
        return Backwards.moment


def test_a_clock_that_goes_backwards(tmp_path: Path) -> None:
    """Durations come from the monotonic clock; ids and folders hold no time."""

    def turn() -> None:
        from lrx import experiment

        experiment.datetime = Backwards
        begin = time.time()
        time.time = lambda: begin - 3600 * next(turns)
        turns = iter(range(10**9))

    assert run(small("lora", "callbacks.checkpoint.every_n_steps=5"), tmp_path / "root", turn).code == 0
    record = the_record(tmp_path / "root")
    assert datetime.fromisoformat(record.started).tzinfo is not None
    assert all(value >= 0 for value in record.cost.values()), record.cost
    assert record.cost["wall_seconds"] > 0
    assert record.cost["train_seconds"] > 0
    assert run(small("lora", "callbacks.checkpoint.every_n_steps=5"), tmp_path / "straight").code == 0
    assert the_record(tmp_path / "straight").run_id == record.run_id


def test_two_runs_in_the_same_second_have_their_own_ids_and_folders(tmp_path: Path) -> None:
    def stop_the_clock() -> None:
        from lrx import experiment

        experiment._now = lambda: "2026-10-25T03:00:00+00:00"

    for seed in (0, 1):
        assert run(small("head", f"seed={seed}"), tmp_path / "root", stop_the_clock).code == 0
    records, _ = read_all(tmp_path / "root")
    assert len({record.run_id for record in records}) == len(list((tmp_path / "root" / "runs").iterdir())) == 2
    assert len({record.started for record in records}) == 1


# Versions.


def test_there_is_a_sample_of_every_schema() -> None:
    """Whoever raises the schema adds a record of the new one, and keeps those of the earlier ones."""
    assert [json.loads(path.read_text())["schema"] for path in SAMPLES] == list(range(1, SCHEMA + 1))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_samples_of_every_schema_still_load_and_keep_their_numbers(path: Path, tmp_path: Path) -> None:
    from lrx.results.summary import render

    raw = json.loads(path.read_text())
    record = read(path)
    assert record.run_id == raw["run_id"]
    assert list(record.parts) == list(raw["parts"]) == ["sentiment", "intensity", "domain"]
    for name, part in record.parts.items():
        assert part.metrics == raw["parts"][name]["metrics"]
        assert part.last == raw["parts"][name]["last"]
    assert record.cost == raw["cost"]
    assert record.config == raw["config"]
    assert "lora · tiny_bert · glue" in render(record)
    (tmp_path / "records").mkdir()
    saved = record.save(tmp_path)
    assert read(saved) == record


def test_a_record_of_an_earlier_version_of_the_settings_still_validates() -> None:
    """``export`` builds the model from the configuration in the record; and the record still counts: it is that of
    the run of today, unless method, model or task have a new version.
    """
    from lrx.config import fingerprint, run_id, versions
    from lrx.schema import validate

    for path in SAMPLES:
        record = read(path)
        settings = validate(record.config)
        assert settings.method["name"] == "lora"
        if versions(settings) == record.versions:
            assert fingerprint(settings) == record.fingerprint
            assert run_id(settings) == record.run_id


def test_a_newer_record_in_the_way_of_a_run_is_named_and_not_overwritten(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert run(small("head"), root).code == 0
    (path,) = (root / "records").glob("*.json")
    text = path.read_text().replace(f'"schema": {SCHEMA}', '"schema": 99')
    path.write_text(text)
    found = run(small("head"), root)
    assert found.code in (1, 2), found
    assert "newer" in found.err
    assert path.name in found.err
    assert "Traceback" not in found.err
    assert path.read_text() == text


def test_a_table_with_broken_records_names_them_and_shows_the_rest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from lrx.__main__ import main

    root = tmp_path / "root"
    grid = ["method=head", "seed=0", "scale=smoke"]
    overrides = ["+sweeps=altlora_glue", *grid, "logger=none", "trainer.max_steps=1"]
    done = fork(lambda: _launch([*overrides, f"paths.root={root}"]), tmp_path / "p")
    assert done.code == 0, done
    whole = (root / "records" / next(iter(os.listdir(root / "records")))).read_text()
    broken = {
        "truncated.json": whole[:300], "garbage.json": "\x00\x01\x02", "empty.json": "",
        "foreign.json": '{"name": "package"}', "newer.json": whole.replace('"schema": 1', '"schema": 99', 1),
    }  # fmt: skip
    for name, text in broken.items():
        (root / "records" / name).write_text(text)
    capfd.readouterr()
    words = ["altlora_glue", *grid, "trainer.max_steps=1", "--root", str(root)]
    assert main(["table", *words, "--out", str(tmp_path / "out"), "--no-plots"]) == 0
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    assert all(name in out + err for name in broken), (out, err)
    assert "| Head" in out or "head" in out.lower()
    score = json.loads(whole)["parts"]["sentiment"]["metrics"]["test"]["accuracy"]
    assert f"{score:.3f}" in out or f"{100 * score:.2f}" in out, out
    assert main(["status", *words]) == 0
    out, err = capfd.readouterr()
    assert all(name in out + err for name in broken)


def _launch(arguments: list[str]) -> int:
    from lrx.launch import main

    return main(arguments)


def test_the_version_of_the_code_is_recorded(tmp_path: Path) -> None:
    from lrx import __version__

    assert run(small("head"), tmp_path / "root").code == 0
    record = the_record(tmp_path / "root")
    assert record.environment["lrx"] == __version__
    assert record.versions == {"method": 1, "model": 1, "task": 1}
    if (ROOT / ".git").exists():
        git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        head = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
        assert record.environment["commit"] == head
        assert isinstance(record.environment["dirty"], bool)


def test_an_unfinished_attempt_never_replaces_a_finished_record(tmp_path: Path) -> None:
    """``rerun=all`` that breaks off before it has removed the earlier run leaves it as it was."""
    root = tmp_path / "root"
    assert run(small("head"), root).code == 0
    before = the_record(root)

    def defect() -> None:
        import lrx.experiment

        def broken(*_):
            raise RuntimeError("broken here")

        lrx.experiment.start_over = broken

    found = run([*small("head"), "rerun=all"], root, defect)
    assert found.code == 1, found
    assert the_record(root) == before


def test_a_run_that_calls_sys_exit_is_a_failed_one(tmp_path: Path) -> None:
    def leaving() -> None:
        import lrx.training

        lrx.training.assemble = lambda *_: sys.exit(3)

    found = run(small("head"), tmp_path / "root", leaving)
    assert found.code == 1, found
    record = the_record(tmp_path / "root")
    assert record.status == "failed"
    assert "sys.exit(3)" in record.message


def test_nan_and_infinity_in_metrics_are_kept_and_counted_out(tmp_path: Path) -> None:
    """Stored as they are, left out of means, and the count of what is left is shown."""
    import math

    from lrx.results.collect import Cell

    record = record_of(FakeJob("lora", 0))
    record.parts["domain"].metrics["test"] = {"accuracy": math.nan, "gain": -math.inf}
    back = read(record.save(tmp_path))
    assert math.isnan(back.parts["domain"].metrics["test"]["accuracy"])
    assert back.parts["domain"].metrics["test"]["gain"] == -math.inf
    cell = Cell({0: 0.5, 1: math.nan, 2: 0.7, 3: math.inf})
    assert (cell.n, cell.not_finite) == (2, 2)
    assert cell.mean == pytest.approx(0.6)


def test_a_metric_that_is_nan_passes_through_a_whole_run(tmp_path: Path) -> None:
    import math

    def constant() -> None:
        from lrx.tasks.glue import GlueTask

        GlueTask.score = lambda self, predictions, references: {"accuracy": math.nan}

    assert run(small("head"), tmp_path / "root", constant).code == 0
    part = the_record(tmp_path / "root").parts["sentiment"]
    assert math.isnan(part.metrics["test"]["accuracy"])
    with contextlib.suppress(StopIteration):
        line = next(line for line in (tmp_path / "root").glob("runs/*/*/metrics.jsonl"))
        assert "NaN" in line.read_text()


def test_records_hold_what_dataclasses_say() -> None:
    """The sample of the newest schema lacks no field that a record must have to be useful."""
    raw = json.loads(SAMPLES[-1].read_text())
    required = {f.name for f in dataclasses.fields(RunRecord)} - {"message"}
    assert required <= set(raw)
