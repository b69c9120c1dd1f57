"""The protocol switch on real runs: a table follows each protocol from the stored curve, without running again."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path
from typing import Any

import pytest

from lrx.__main__ import main
from lrx.results.record import read_all

GRID = ["scale=smoke", "task.subset=[sentiment,intensity]", "trainer.max_steps=8", "trainer.evaluations=4"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lrx.launch import main as run

    root = tmp_path_factory.mktemp("runs")
    common = ["logger=none", "callbacks.progress=none", f"paths.root={root}"]
    for method in ("lora", "head"):
        for seed in (0, 1):
            assert run([f"method={method}", f"seed={seed}", *GRID, *common]) == 0
    return root


def _cells(root: Path, folder: Path, *overrides: str) -> dict[tuple[str, str, str], dict[str, str]]:
    assert main(["table", "altlora_glue", *GRID, *overrides, "--root", str(root), "--out", str(folder), "-q",
                 "--no-plots"]) == 0  # fmt: skip
    rows = csv.DictReader(io.StringIO((folder / "table.csv").read_text()))
    return {(row["kind"], row["method"], row["column"]): row for row in rows}


def _tests(root: Path, of: Any) -> float:
    """Mean over the LoRA runs of a function of the sentiment part, in percent."""
    parts = [record.parts["sentiment"] for record in read_all(root)[0] if record.method == "lora"]
    assert len(parts) == 2
    return 100 * statistics.fmean(of(part) for part in parts)


def _curve(part: Any) -> list[float]:
    return [entry["splits"]["test"]["accuracy"] for entry in part.curve]


@pytest.mark.parametrize(
    ("overrides", "of"),
    [
        ([], lambda part: part.metrics["test"]["accuracy"]),
        (["protocol.checkpoint=best"], lambda part: part.metrics["test"]["accuracy"]),
        (["protocol.checkpoint=last"], lambda part: part.last["test"]["accuracy"]),
        (
            ["protocol.checkpoint=mean_last_k", "protocol.k=3"],
            lambda part: statistics.fmean(_curve(part)[-3:]),
        ),
        (["protocol.unsafe=best_on_test"], lambda part: max(_curve(part))),
    ],
)
def test_each_protocol(overrides: list[str], of: Any, root: Path, tmp_path: Path) -> None:
    records = {path.name: path.read_bytes() for path in (root / "records").iterdir()}
    cell = _cells(root, tmp_path, *overrides)["ours", "lora", "sentiment_accuracy"]
    assert float(cell["mean"]) == pytest.approx(_tests(root, of))
    assert cell["n"] == "2"
    assert {path.name: path.read_bytes() for path in (root / "records").iterdir()} == records


def test_items_are_those_of_the_stored_predictions(root: Path, tmp_path: Path) -> None:
    cells = _cells(root, tmp_path, "protocol.std=items")
    for column in ("sentiment_accuracy", "intensity_pearson", "intensity_spearman"):
        assert 0 < float(cells["ours", "lora", column]["std"]) < 30
    for protocol in ("selected", "last"):
        pair = next(row for key, row in _cells(root, tmp_path, f"protocol.checkpoint={protocol}").items()
                    if key[0] == "pair" and key[2] == "intensity_spearman")  # fmt: skip
        assert float(pair["both_low"]) < float(pair["mean"]) < float(pair["both_high"])
    last = [record.parts["intensity"] for record in read_all(root)[0]]
    assert all((root / part.last_predictions["test"]).exists() for part in last)


def test_choosing_on_the_test_split_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "altlora_glue", *GRID, "protocol.checkpoint=best_on_test", "--root", str(root)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: protocol.checkpoint=best_on_test")
    assert "refused; protocol.unsafe=best_on_test allows it" in error
