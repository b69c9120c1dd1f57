"""Records: they come back as they went, exactly one writer wins, and no broken file stops the reader."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lrx import files
from lrx.errors import UserError
from lrx.results.record import (
    AlreadyThere,
    Part,
    RecordError,
    RunRecord,
    read,
    read_all,
    read_bundle,
    record_path,
    write_bundle,
)
from tests.conftest import ROOT
from tests.results.fakes import FakeJob, all_records, record_of


def _record() -> RunRecord:
    return record_of(FakeJob("lora", 0))


def test_round_trip_with_nan_and_infinity(tmp_path: Path) -> None:
    record = _record()
    record.parts["domain"].metrics["test"] = {"accuracy": math.nan, "loss": math.inf, "gain": -math.inf}
    record.config["trainer"] = {"clip": math.inf, "name": "NaN", "betas": [0.9, math.nan]}
    record.message = 'größe "x"\n{"$float": "NaN"}'
    path = record.save(tmp_path)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    back = read(path)
    assert repr(back) == repr(record)  # NaN is not equal to itself, but prints alike
    assert back.to_json() == record.to_json()


def test_numpy_scalars_are_stored_as_numbers(tmp_path: Path) -> None:
    record = _record()
    record.cost["peak_memory_bytes"] = np.int64(5)
    record.parts["domain"].metrics["test"]["accuracy"] = np.float32(0.5)  # type: ignore[assignment]
    back = read(record.save(tmp_path))
    assert back.cost["peak_memory_bytes"] == 5
    assert back.parts["domain"].metrics["test"]["accuracy"] == 0.5


def test_what_no_record_can_hold_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    record = _record()
    record.environment["thing"] = object()
    with pytest.raises(TypeError, match="cannot hold"):
        record.save(tmp_path)
    assert not (tmp_path / "records").exists()


def test_nothing_is_overwritten_unless_told(tmp_path: Path) -> None:
    path = _record().save(tmp_path)
    other = dataclasses.replace(_record(), status="failed", message="later")
    with pytest.raises(AlreadyThere, match="exists already"):
        other.save(tmp_path)
    assert read(path).status == "finished"
    other.save(tmp_path, overwrite=True)
    assert read(path).message == "later"
    assert os.listdir(tmp_path / "records") == [path.name]


def test_of_many_writers_one_wins(tmp_path: Path) -> None:
    def attempt(number: int) -> int:
        try:
            dataclasses.replace(_record(), message=str(number)).save(tmp_path)
        except AlreadyThere:
            return 0
        return 1

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(attempt, range(48))) == 1
    assert read_all(tmp_path)[1] == []


@pytest.mark.parametrize("run_id", ["../x", "a/b", "", ".hidden", ".."])
def test_a_run_id_cannot_leave_its_folder(run_id: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run id"):
        record_path(tmp_path, run_id)


def _broken_files(folder: Path) -> dict[str, str]:
    whole = json.loads(_record().to_json())

    def with_metrics(metrics: object) -> str:
        return json.dumps(whole | {"parts": {"x": {"primary": "a", "higher_is_better": {}, "metrics": metrics}}})

    def with_part(**fields: object) -> str:
        return json.dumps(whole | {"parts": {"x": {"primary": "a", "higher_is_better": {}, **fields}}})

    def with_curve(curve: object) -> str:
        return with_part(curve=curve)

    return {
        "empty.json": "",
        "truncated.json": _record().to_json()[:200],
        "garbage.json": "\x00\x01",
        "array.json": "[1, 2]",
        "foreign.json": '{"name": "package", "version": "1.0"}',
        "newer.json": json.dumps(whole | {"schema": 99}),
        "status.json": json.dumps(whole | {"status": "great"}),
        "parts.json": json.dumps(whole | {"parts": {"x": 3}}),
        "listparts.json": json.dumps(whole | {"parts": []}),
        "metrics.json": with_metrics({"t": 1}),
        "nometric.json": with_metrics({"t": {"a": "high"}}),
        "curve.json": with_curve({"step": 1}),
        "reported.json": with_part(reported=3),
        "predictions.json": with_part(predictions={"test": 5}),
        "nostep.json": with_curve([{"splits": {}}]),
        "nosplits.json": with_curve([{"step": 1, "splits": {"test": {"accuracy": True}}}]),
        "cost.json": json.dumps(whole | {"cost": {"wall_seconds": "long"}}),
        "seed.json": json.dumps(whole | {"seed": "0"}),
        "float.json": '{"schema": 1, "run_id": "float", "seed": {"$float": "many"}}',
        "lacking.json": '{"schema": 1, "run_id": "lacking", "status": "finished"}',
        "renamed.json": _record().to_json(),
    }


def test_broken_files_are_named_and_skipped(tmp_path: Path) -> None:
    good = _record().save(tmp_path)
    broken = _broken_files(tmp_path)
    for name, text in broken.items():
        (good.parent / name).write_text(text)
    (good.parent / "latin.json").write_bytes(b"\xff\xfe")
    (good.parent / "notes.txt").write_text("not looked at")
    (good.parent / "folder.json").mkdir()
    records, problems = read_all(tmp_path)
    assert [record.run_id for record in records] == [good.stem]
    assert {problem.path.name for problem in problems} == {*broken, "latin.json", "folder.json"}
    assert all(problem.path.name in str(problem) and "\n" not in str(problem) for problem in problems)
    reasons = {problem.path.name: str(problem) for problem in problems}
    assert "newer" in reasons["newer.json"]
    assert "truncated" in reasons["truncated.json"]
    assert "not a record" in reasons["foreign.json"]


def test_unknown_keys_of_the_same_schema_are_no_obstacle() -> None:
    raw = json.loads(_record().to_json()) | {"mood": "good"}
    raw["parts"]["domain"]["colour"] = "blue"
    assert RunRecord.from_dict(raw) == _record()


def test_a_missing_folder_holds_no_records(tmp_path: Path) -> None:
    assert read_all(tmp_path / "nowhere") == ([], [])


def test_a_bundle_comes_back_and_its_broken_lines_are_named(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "records.jsonl", all_records(), {"sweep": "x"})
    header, records, problems = read_bundle(path)
    assert header["sweep"] == "x"
    assert records == sorted(all_records(), key=lambda record: record.run_id)
    assert problems == []
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:50], *lines[2:]]))
    _, records, problems = read_bundle(path)
    assert len(records) == len(all_records()) - 1
    assert "line 2" in str(problems[0])


def test_a_folder_that_cannot_be_written_is_one_line_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/records/.*"):
        _record().save(tmp_path)


_FULL_DISK = """
import resource, sys
from lrx.errors import UserError
from tests.results.fakes import FakeJob, record_of
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
try:
    record_of(FakeJob("lora", 0), "failed", message="second").save(sys.argv[1], overwrite=True)
except UserError as error:
    print(error)
    sys.exit(2)
"""


def test_a_full_disk_leaves_the_old_record_and_no_litter(tmp_path: Path) -> None:
    path = _record().save(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stdout
    assert read(path).status == "finished"
    assert os.listdir(path.parent) == [path.name]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 300


_WRITE_FOR_EVER = """
import itertools, sys
from tests.results.fakes import FakeJob, record_of
for number in itertools.count():
    record = record_of(FakeJob("lora", 0), message=str(number) * 20000)
    record.save(sys.argv[1], overwrite=True)
    print(number, flush=True)
"""


def test_killed_while_writing_every_record_is_whole(tmp_path: Path) -> None:
    for round_ in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITE_FOR_EVER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout
        for _ in range(3 + 5 * round_):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        records, problems = read_all(tmp_path)
        assert (len(records), problems) == (1, [])
    _record().save(tmp_path, overwrite=True)
    assert os.listdir(tmp_path / "records") == [f"{_record().run_id}.json"]  # what the dead left is swept


def test_temporary_files_of_the_living_and_of_strangers_stay(tmp_path: Path) -> None:
    mine = tmp_path / f".x.json.{files._host()}@{os.getpid()}.00000000.tmp"
    theirs = tmp_path / ".x.json.elsewhere@1.00000000.tmp"
    unrelated = tmp_path / ".something.tmp"
    for path in (mine, theirs, unrelated):
        path.write_text("")
    files.sweep_temporary(tmp_path)
    assert mine.exists()
    assert theirs.exists()
    assert unrelated.exists()
    os.utime(theirs, (0, 0))
    files.sweep_temporary(tmp_path)
    assert not theirs.exists()


def test_schema_1_of_the_first_release_still_loads() -> None:
    text = (Path(__file__).parent / "samples" / "record_schema_1.json").read_text()
    record = RunRecord.from_json(text)
    assert record.schema == 1
    assert isinstance(record.parts["sentiment"], Part)
    assert math.isnan(record.parts["domain"].metrics["test"]["accuracy"])


def test_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{")
    with pytest.raises(RecordError, match=r"x\.json"):
        read(path)
    with pytest.raises(UserError, match=r"cannot read .*y\.json"):
        read(tmp_path / "y.json")
