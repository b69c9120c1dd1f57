"""The leaderboard's files."""

from __future__ import annotations

import math

import pytest

from lrx.data.glue import write_submission
from lrx.errors import UserError


def test_the_leaderboards_files(tmp_path):
    one = {"test": [0, 1, 1]}
    everything = dict.fromkeys(("cola", "sst2", "mrpc", "qqp", "qnli", "rte", "wnli"), one) | {
        "stsb": {"test": [-0.5, 2.25, 7.0]},
        "mnli": {"test_matched": [0, 1, 2], "test_mismatched": [2, 2, 2], "ax": [0, 0, 0]},
    }
    written, lacking = write_submission(tmp_path / "out", everything)
    names = {"CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX"}
    assert {path.name for path in written} == {f"{name}.tsv" for name in names}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in written}
    assert lacking == []

    def text(name):
        return (tmp_path / "out" / f"{name}.tsv").read_text()

    assert text("CoLA") == "index\tprediction\n0\t0\n1\t1\n2\t1\n"
    assert text("RTE") == "index\tprediction\n0\tentailment\n1\tnot_entailment\n2\tnot_entailment\n"
    assert text("MNLI-m") == "index\tprediction\n0\tentailment\n1\tneutral\n2\tcontradiction\n"
    assert text("STS-B") == "index\tprediction\n0\t0.000000\n1\t2.250000\n2\t5.000000\n"
    assert text("WNLI") == "index\tprediction\n0\t0\n1\t1\n2\t1\n"
    assert text("AX").endswith("2\tentailment\n")


def test_what_is_lacking_is_named(tmp_path):
    _, lacking = write_submission(tmp_path, {"rte": {"test": [0]}})
    assert "MNLI-mm.tsv" in lacking
    assert "RTE.tsv" not in lacking


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ({"rte": {"test": [0, -1]}}, "rte, test, index 1: -1 is no prediction"),
        ({"rte": {"test": [2]}}, "index 0: 2 is no prediction"),
        ({"stsb": {"test": [math.nan]}}, "stsb, test, index 0"),
        ({"rte": {"validation": [0]}}, "no test split 'validation'"),
        ({"sentiment": {"test": [0]}}, "sentiment has no leaderboard"),
    ],
)
def test_what_cannot_be_submitted(tmp_path, predictions, message):
    with pytest.raises(UserError, match=message):
        write_submission(tmp_path, predictions)
    assert not list(tmp_path.glob("*.tsv"))
