"""Sweep files: what they say is checked where it is written, and a mistake is named by its key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lrx import paths
from lrx.errors import UserError
from lrx.results import sweep

REAL = paths.sweeps_dir() / "altlora_glue.yaml"


@pytest.mark.parametrize("name", sweep.sweep_names())
def test_every_sweep_file_is_sound(name: str) -> None:
    loaded = sweep.load(name)
    text = (paths.sweeps_dir() / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    assert loaded.name == name
    assert loaded.grid
    assert loaded.tuning
    for table in loaded.published:
        assert table.rows
        assert table.source.table


def test_published_table_4_is_complete_and_its_average_is_the_mean_of_the_five() -> None:
    table = sweep.load("altlora_glue").published[0]
    assert len(table.rows) == 11
    assert table.value("altlora_plus", "avg") == 88.3
    assert table.value("lora", "avg") == 87.88
    assert table.value("altlora", "avg") == 87.55
    for row in table.rows:
        *five, average = [float(str(value).split(" ± ")[0]) for value in row.values]
        assert sum(five) / 5 == pytest.approx(average, abs=0.0051), row.label


def _edited(folder: Path, old: str, new: str) -> Path:
    text = REAL.read_text()
    assert old in text
    (folder / "altlora_glue.yaml").write_text(text.replace(old, new, 1))
    return folder


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("headline: avg\n  costs", "headlin: avg\n  costs", r"sweep\.headlin: Extra inputs"),
        ("a: altlora_plus\n      b: lora\n", "a: altlora_plus\n      b: lorra\n", "did you mean 'lora'"),
        ("metric: accuracy}", "metrik: accuracy}", "columns.0"),
        ("mean_of: [sentiment_accuracy,", "mean_of: [sentiment_accurcy,", "did you mean 'sentiment_accuracy'"),
        ('"86.29±0.01", ', "", "row 'Full' has 5 values, 6 expected"),
        ('"86.29±0.01"', '"86.29+-0.01"', "no number of a paper"),
        ("cost: trainable_parameters", "cost: trainable_parameter", "did you mean 'trainable_parameters'"),
        ("kind: close", "kind: near", r"claims\.1\.kind"),
        ("within: 0.5", "within: 0", "needs within"),
        ("key: head, label: Head only", "key: full, label: Head only", "row 'full' stands twice"),
        ("published: {table: table4, column: avg}", "published: {table: table5, column: avg}", "did you mean 'table4'"),
        ("sweep:\n", "swep:\n", "has no section 'sweep'"),
        ("  rows:\n", "  rows: [\n", "line"),
    ],
)
def test_a_mistake_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        sweep.load("altlora_glue", _edited(tmp_path, old, new))
    assert "\n" not in str(caught.value)
    assert "altlora_glue.yaml" in str(caught.value)


def test_wrong_name_gets_the_right_one() -> None:
    with pytest.raises(UserError, match="did you mean 'altlora_glue'"):
        sweep.load("altlora_glu")


def test_a_row_takes_runs_by_method_and_settings() -> None:
    row = sweep.Row(key="r32", label="rank 32", method="lora", where={"method.rank": 32})
    assert row.matches("lora", {"method": {"rank": 32}})
    assert not row.matches("lora", {"method": {"rank": 8}})
    assert not row.matches("altlora", {"method": {"rank": 32}})
    assert not row.matches("lora", {})


def test_the_file_is_also_a_hydra_config() -> None:
    raw = yaml.safe_load(REAL.read_text())
    assert raw["hydra"]["mode"] == "MULTIRUN"
    assert raw["hydra"]["sweeper"]["params"] == {"method": "full,head,lora,altlora,altlora_plus", "seed": "0,1,2"}
