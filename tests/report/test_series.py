"""Curves, spectra and plots as data."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lrx.report import figures, series
from lrx.report.content import SweepPage, collect, read
from lrx.report.runs import Pool, details, plain
from lrx.results.record import RunRecord
from lrx.results.sweep import COSTS
from tests.report import invented
from tests.report.conftest import jobs_of
from tests.results.fakes import FakeJob, record_of


@pytest.fixture
def record() -> RunRecord:
    return record_of(FakeJob("lora", 0))


def curves(root: Path, record: RunRecord) -> dict[str, dict[str, series.Series]]:
    return series.curves(root, record, series.listing(root, record))


def log(root: Path, record: RunRecord, *lines: str, name: str = "metrics.jsonl") -> None:
    folder = root / "runs" / record.run_id / "sentiment"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(lines))


def test_a_log_becomes_series(tmp_path: Path, record: RunRecord) -> None:
    log(tmp_path, record, '{"step": 1, "train/loss": 3.5, "lr": 0.1}', '{"step": 1, "select/accuracy": 0.25}',
        '{"step": 2, "train/loss": 2.5, "lr": 0.05}')  # fmt: skip
    assert curves(tmp_path, record)["sentiment"] == {
        "train/loss": {"x": [1, 2], "y": [3.5, 2.5]},
        "lr": {"x": [1, 2], "y": [0.1, 0.05]},
        "select/accuracy": {"x": [1], "y": [0.25]},
    }


def test_what_a_kill_cut_short_and_what_is_foreign_is_passed_over(tmp_path: Path, record: RunRecord) -> None:
    log(tmp_path, record, '{"step": 1, "train/loss": NaN}', "[1]", '{"step": "x", "a": 1}', '{"a": 1, "b": true}',
        "[" * 100_000, '{"step": 2, "train/lo')  # fmt: skip
    (loss,) = curves(tmp_path, record)["sentiment"].values()
    assert loss["x"] == [1]
    assert math.isnan(loss["y"][0])
    assert series.text(loss["y"]) == "nan"
    assert series.rounded(loss["y"][0]) is None


def test_steps_are_kept_whole_and_in_order(tmp_path: Path, record: RunRecord) -> None:
    log(tmp_path, record, '{"step": 1234567, "train/loss": 1.0}', '{"step": 1234569, "train/loss": 3.0}',
        '{"step": 1234568, "train/loss": 2.0, "lr": 0.1}', f'{{"step": 1, "huge": {10**400}}}')  # fmt: skip
    assert curves(tmp_path, record)["sentiment"]["train/loss"] == {"x": [1234567, 1234568, 1234569], "y": [1, 2, 3]}
    assert "huge" not in curves(tmp_path, record)["sentiment"]
    invented.write(tmp_path, [record], logs=False)
    found = details(read(tmp_path).stored, tmp_path)
    place = found["runs"][0]["curves"]["sentiment"]["train/loss"]["x"]
    assert found["pool"][place] == "1234567,1234568,1234569"


def test_the_record_s_own_history_counts_before_the_log(tmp_path: Path, record: RunRecord) -> None:
    log(tmp_path, record, '{"step": 5, "select/accuracy": 0.5}')
    record.parts["sentiment"].curve = [{"step": 4, "splits": {"select": {"accuracy": 0.75}, "test": {"accuracy": 0.5}}}]
    assert curves(tmp_path, record)["sentiment"] == {
        "select/accuracy": {"x": [4], "y": [0.75]},
        "test/accuracy": {"x": [4], "y": [0.5]},
    }


def test_long_series_keep_their_ends() -> None:
    points = list(range(10_001))
    kept = series.chosen(points)
    assert len(kept) == series.POINTS
    assert (kept[0], kept[-1]) == (0, 10_000)
    assert kept == sorted(set(kept))
    assert series.chosen(points[:7]) == points[:7]


@pytest.mark.parametrize("run_id", ["..", ".", "", "a/b", "../other", "a\0b"])
def test_a_run_id_leads_nowhere_else(tmp_path: Path, record: RunRecord, run_id: str) -> None:
    log(tmp_path, record, '{"step": 1, "train/loss": 1.0}')
    record.run_id = run_id
    assert series.listing(tmp_path, record) == {}
    assert curves(tmp_path, record) == {}


def test_links_out_of_a_run_s_folder_are_not_followed(tmp_path: Path, record: RunRecord) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}')
    folder = tmp_path / "runs" / record.run_id
    folder.mkdir(parents=True)
    (folder / "sentiment").symlink_to(secret)
    assert series.listing(tmp_path, record) == {}


def test_the_lens(tmp_path: Path, record: RunRecord) -> None:
    invented.write_lens(tmp_path, record, matrices=2, steps=100)
    found = series.lens(tmp_path, record, series.listing(tmp_path, record))["sentiment"]
    assert list(found) == ["layer.0.attention.query", "layer.1.attention.query"]
    seen = found["layer.0.attention.query"]
    assert seen["shape"] == [384, 384]
    assert len(seen["time"]["x"]) == 40
    assert [spectrum["step"] for spectrum in seen["spectra"]] == [0, 990]
    assert seen["time"]["angles_start"][0] == []
    assert seen["time"]["angles_start"][-1][-1] == pytest.approx(math.degrees(1.5), abs=0.01)


@pytest.mark.parametrize(
    ("points", "higher", "kept"),
    [
        ([(1, 50), (2, 80), (3, 70), (4, 90)], True, [(1, 50), (2, 80), (4, 90)]),
        ([(1, 5), (2, 3), (3, 4), (4, 1)], False, [(1, 5), (2, 3), (4, 1)]),
        ([(2, 80), (2, 85), (1, 85)], True, [(1, 85)]),
        ([], True, []),
    ],
)
def test_front(points: list[tuple[float, float]], higher: bool, kept: list[tuple[float, float]]) -> None:
    assert figures.front(points, higher) == kept


def the_sweep(root: Path) -> SweepPage:
    return next(p for p in collect(read(root), jobs_of=jobs_of).sweeps if p.sweep.name == "altlora_glue")


def test_figures_show_the_table_s_numbers(rich: Path) -> None:
    page = the_sweep(rich)
    view = page.views[0]
    drawn = {figure["id"]: figure for figure in figures.of_view(page.sweep, view, rich)}
    assert list(drawn) == ["scores", "pareto", "learning", "lens"]
    column = page.sweep.column(page.sweep.headline)
    line = view.table.line("altlora")
    assert line is not None
    cell = view.table.cell(line, column)
    strip = [s for s in drawn["scores"]["panels"]["0"]["series"] if s["label"] == "AltLoRA"]
    assert [x for x, *_ in strip[0]["data"]] == [cell.values[seed] for seed in sorted(cell.values)]
    (mean,) = [s["data"][0] for s in strip if s["kind"] == "mean"]
    assert mean[0] == cell.mean
    assert f"{cell.mean:.2f} ± {cell.std:.2f} ({cell.n})" in mean[2]
    panel = drawn["pareto"]["panels"]["0,0"]
    assert panel["x"] == {"label": COSTS["trainable_parameters"], "log": True}
    (mean,) = [s["data"][0] for s in panel["series"] if s["label"] == "AltLoRA" and s["kind"] == "mean"]
    assert mean[:2] == [148_610, cell.mean]


def test_sensitivity_is_of_the_selection_split_and_counts_what_diverged(rich: Path) -> None:
    page = the_sweep(rich)
    figure = figures.of_trials(page)
    assert figure is not None
    assert "17 tuning trials" in figure["caption"]
    assert "1 more did not finish" in figure["caption"]
    panel = figure["panels"]["0"]
    assert panel["x"] == {"label": "learning rate", "log": True}
    counts = {found["label"]: len(found["data"]) for found in panel["series"]}
    assert counts == {"LoRA": 5, "AltLoRA": 6, "AltLoRA+": 6}
    for found in panel["series"]:
        rates = [x for x, *_ in found["data"]]
        assert rates == sorted(rates)


def test_a_pool_keeps_each_value_once_and_tells_texts_from_numbers() -> None:
    pool = Pool()
    places = [pool.add(value) for value in (5, "5", {"a": 1, "b": 2}, {"b": 2, "a": 1}, None, "null", 5)]
    assert places == [0, 1, 2, 2, 3, 4, 0]


def test_what_json_has_not_is_said_in_words() -> None:
    assert plain({"a": [math.nan, math.inf, -math.inf, 1.5]}) == {"a": ["NaN", "infinite", "−infinite", 1.5]}


def test_details_are_strict_json(tmp_path: Path) -> None:
    record = invented.hostile()
    record.cost["wall_seconds"] = math.nan
    invented.write(tmp_path, [record])
    found = details(read(tmp_path).stored, tmp_path)
    assert "NaN" in json.dumps(found, allow_nan=False)
