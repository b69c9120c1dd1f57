"""Tuning with real runs: no reported split is touched, and a kill in mid-trial costs nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lrx.results.record import RunRecord, read_all
from lrx.tuning.journal import read
from tests.conftest import ROOT, command

WORDS = ["scale=smoke", "task.subset=[sentiment]", "method=lora", "trainer.max_steps=40"]
TRIALS = Path("tuning/altlora_glue")


def words(root: Path, *more: str) -> list[str]:
    return ["-m", "lrx", "tune", "altlora_glue", *WORDS, *more, "--root", str(root), "--to", str(root / "tuned")]


def records(root: Path) -> list[RunRecord]:
    found, problems = read_all(root / TRIALS)
    assert not problems
    return found


def test_a_trial_neither_reads_nor_scores_the_reported_splits(cli, smoke: list[str], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = cli("trial=true", "trainer.max_steps=4", *smoke)
    assert result.code == 0, result
    found, _ = read_all(tmp_path)
    (record,) = found
    part = record.parts["sentiment"]
    assert part.reported == []
    assert set(part.metrics) == set(part.last) == set(part.sizes) - {"train"} == {"select"}
    assert all(set(entry["splits"]) == {"select"} for entry in part.curve)
    assert part.predictions == {}
    assert not list(tmp_path.rglob("*predictions*"))
    assert not list(tmp_path.rglob("adapter.safetensors"))
    plain = cli("trainer.max_steps=4", *smoke)
    assert plain.code == 0
    assert len(read_all(tmp_path)[0]) == 2  # a run that is reported is another run


@pytest.mark.parametrize("extra", ["mode=eval", "callbacks.submission=true"])
def test_a_trial_cannot_be_scored_afterwards(cli, smoke: list[str], extra: str) -> None:  # type: ignore[no-untyped-def]
    result = cli("trial=true", extra, *smoke)
    assert result.code == 2
    assert "a trial never touches the reported splits" in result.err


def test_without_a_selection_split_of_its_own_there_is_no_trial(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "RTE"
    folder.mkdir()
    for name in ("train", "dev"):
        rows = [f"{i}\tA cat sat.\tA cat.\t{'entailment' if i % 2 else 'not_entailment'}" for i in range(20)]
        (folder / f"{name}.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *rows]) + "\n")
    result = cli("scale=smoke", "logger=none", f"paths.root={tmp_path}", "trial=true", "task.source=local",
                 f"task.data_dir={tmp_path}", "task.subset=rte", "task.holdout=0")  # fmt: skip
    assert result.code == 2
    assert "task rte selects on its reported split" in result.err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_in_mid_trial_and_the_same_command_finishes_it(tmp_path: Path) -> None:
    """Uninterrupted and killed tunings have the same trials, scores and winner."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert command(*words(whole, "budget=3"), timeout=280).code == 0
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *words(killed, "budget=3")], cwd=ROOT, env=env, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not list(killed.rglob("*.ckpt")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert list(killed.rglob("*.ckpt"))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    time.sleep(1)  # jobs notice that their parent is gone
    store = read(killed / TRIALS)
    assert store is not None
    (study,) = store.studies()
    assert any(trial.is_open for trial in study.trials())
    result = command(*words(killed, "budget=3"), timeout=280)
    assert result.code == 0, result
    scores = [{r.run_id: r.parts["sentiment"].last for r in records(root)} for root in (whole, killed)]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 3
    winners = [yaml.safe_load((root / "tuned/smoke/glue/lora.yaml").read_text()) for root in (whole, killed)]
    assert winners[0] == winners[1]
    again = command(*words(killed, "budget=3"), timeout=280)
    assert "jobs to run" not in again.out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_later_run_uses_the_winner_and_two_at_a_time_give_the_same(tmp_path: Path) -> None:
    for name, jobs in (("one", 1), ("two", 2)):
        result = command(*words(tmp_path / name, "budget=2", f"jobs={jobs}"), timeout=280)
        assert result.code == 0, result
    texts = [(tmp_path / name / "tuned/smoke/glue/lora.yaml").read_text() for name in ("one", "two")]
    assert texts[0] == texts[1]
    assert all(record.seed == 100 for record in records(tmp_path / "one"))
