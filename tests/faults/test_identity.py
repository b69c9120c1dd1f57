"""What makes another run and what does not; seeds that are given, zero, drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lrx.config import compose, fingerprint, run_id, settings_of
from tests.conftest import ROOT
from tests.faults.forked import numbers, run, small

BASE = ["method=lora", "scale=smoke", "task.subset=sentiment"]


def print_of(*overrides: str) -> str:
    return fingerprint(settings_of(compose([*BASE, *overrides])))


@pytest.mark.parametrize(
    "override",
    [
        "method=altlora", "method.lr=1e-3", "method.rank=4", "method.dropout=0.1", "method.target_modules=[query]",
        "seed=1", "scale=mini", "model=tiny_llama", "task.subset=domain", "task.batch_size=4", "task.max_length=16",
        "task.train_limit=32", "task.eval_limit=32", "task.holdout=0.2", "trainer.max_steps=9", "trainer.clip=null",
        "trainer.schedule=cosine", "trainer.warmup_ratio=0", "trainer.evaluations=3", "trainer.select=last",
        "trainer.precision=bf16-mixed", "trainer.accumulate=2", "trainer.patience=2", "trial=true",
    ],
)  # fmt: skip
def test_what_changes_the_numbers_is_another_run(override: str) -> None:
    assert print_of(override) != print_of()


@pytest.mark.parametrize(
    "override",
    [
        "paths.root=elsewhere", "logger=none", "logger=csv", "logger.every_n_steps=1", "logger.group=x",
        "callbacks.progress=none", "callbacks.checkpoint.every_n_steps=7", "callbacks.submission=true", "mode=eval",
        "rerun=all", "trainer.threads=3", "task.workers=2", "jobs=2", "fail_fast=true",
        "time_limit=60", "callbacks=lens", "hydra.verbose=true",
    ],
)  # fmt: skip
def test_what_cannot_change_them_is_the_same_run(override: str) -> None:
    assert print_of(override) == print_of()


def test_every_key_of_a_configuration_is_in_one_of_the_two_lists() -> None:
    """A key that is added later has to be thought about: whoever adds it finds it missing here."""
    from lrx.config import COSMETIC
    from lrx.schema import Settings

    identity = {"seed", "scale", "trainer", "method", "model", "task", "trial"}
    assert set(Settings.model_fields) == identity | set(COSMETIC)


def test_a_raised_version_is_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from lrx import config

    before = print_of()
    now = config.versions(settings_of(compose(BASE)))
    for key in now:
        monkeypatch.setattr(config, "versions", lambda _, key=key: {**now, key: now[key] + 1})
        assert print_of() != before


def test_a_record_of_an_earlier_version_is_said_to_be_stale(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not counted, and does not look as if nothing had ever run."""
    import dataclasses

    from lrx.launch import sweep_jobs
    from lrx.results import stale
    from lrx.results.record import read_all
    from tests.results.fakes import FakeJob, record_of

    (job,) = sweep_jobs("altlora_glue", ["method=head", "seed=0", "scale=smoke"])
    record = record_of(FakeJob("head", 0, "smoke"))
    record = dataclasses.replace(
        record, run_id=job.run_id, fingerprint="0" * 64, config=job.config, model="tiny_bert", task="glue"
    )
    record.save(tmp_path)
    records, _ = read_all(tmp_path)
    assert stale.stale(tmp_path, [job], records) == []  # of other settings, but of today's versions
    stale._version.cache_clear()
    monkeypatch.setattr(stale, "_version", lambda kind, name: 2 if kind == "methods" else 1)
    (problem,) = stale.stale(tmp_path, [job], records)
    assert str(problem).endswith(f"{job.run_id}.json: stale, not counted: made by version 1 of method head, now 2")
    from lrx.__main__ import main

    words = ["altlora_glue", "method=head", "seed=0", "scale=smoke", "--root", str(tmp_path)]
    for verb in ("status", "table"):
        assert main([verb, *words, *(["--no-plots"] if verb == "table" else [])]) == 0
        out, err = capfd.readouterr()
        assert "made by version 1 of method head, now 2" in " ".join((out + err).split()), verb
    current = dataclasses.replace(record, fingerprint=job.fingerprint)
    assert stale.stale(tmp_path, [job], [record, current]) == []  # the run has been repeated


def test_a_cosmetic_change_finds_the_finished_run_and_another_seed_does_not(tmp_path: Path) -> None:
    assert run(small("head"), tmp_path / "root").code == 0
    again = run(small("head", "trainer.threads=1", "logger.every_n_steps=5", "task.workers=1"), tmp_path / "root")
    assert "already finished" in again.out
    other = run(small("head", "seed=1"), tmp_path / "root")
    assert "already finished" not in other.out
    assert len(list((tmp_path / "root" / "records").iterdir())) == 2


# Seeds.


def test_seed_zero_is_a_seed(tmp_path: Path) -> None:
    """In many projects it counts as none."""
    for name in ("a", "b"):
        assert run(small("lora", "seed=0", "trainer.max_steps=2"), tmp_path / name).code == 0
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")


def test_a_missing_seed_is_drawn_printed_and_recorded(tmp_path: Path) -> None:
    root = tmp_path / "root"
    choice = small("head", "trainer.max_steps=1")
    for _ in range(2):
        found = run([*choice, "seed=null"], root)
        assert found.code == 0
        assert "drew seed=" in found.out
    records = [json.loads(path.read_text()) for path in (root / "records").iterdir()]
    assert len({record["seed"] for record in records}) == 2
    for record in records:
        seed = record["seed"]
        assert record["config"]["seed"] == seed
        assert f"-s{seed}-" in record["run_id"]
    again = run([*choice, f"seed={seed}"], root)
    assert "already finished" in again.out  # the drawn seed names the run like one that was given


def test_a_seed_that_is_not_there_at_all_is_drawn_too() -> None:
    drawn = {settings_of(compose([*BASE, missing])).seed for missing in ("~seed", "~seed", "seed=null")}
    assert len(drawn) == 3


def test_a_table_of_runs_that_draw_their_seeds_is_refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from lrx.__main__ import main

    assert main(["status", "altlora_glue", "seed=null", "--root", str(tmp_path)]) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "seed is null" in line


def test_run_ids_are_plain_file_names() -> None:
    for method in (ROOT / "conf" / "method").glob("*.yaml"):
        name = run_id(settings_of(compose([f"method={method.stem}", "scale=smoke"])))
        assert Path(name).name == name
        assert len(name) < 200
