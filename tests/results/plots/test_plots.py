"""The standard plots: what they show is the table's data, and a picture is never empty, stale or different twice."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path

import pytest

from lrx.results import plots, table
from lrx.results.gather import Gathered
from lrx.results.plots import painters, series
from lrx.results.plots.painters import Order, render
from lrx.results.record import RunRecord
from tests.results.fakes import FakeJob, all_records, jobs_of, record_of, with_trouble
from tests.results.plots.fakes import histories, trials

NAMES = ("scores", "pareto", "sensitivity", "curves")


def gathered(root: Path, records: list[RunRecord]) -> Gathered:
    for record in records:
        record.save(root, overwrite=True)
    return table.gather("altlora_glue", root, jobs_of=jobs_of)


@pytest.fixture
def full(tmp_path: Path) -> Gathered:
    """A finished grid with evaluations, logs and trials."""
    records = all_records()
    histories(tmp_path, records)
    trials(tmp_path)
    return gathered(tmp_path, records)


def test_every_plot_is_a_png_and_an_svg(full: Gathered, tmp_path: Path) -> None:
    drawn = plots.draw(full.sweep, full.table, tmp_path / "out")
    assert [path.name for path in drawn.files] == [f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")]
    assert drawn.absent == []
    for path in drawn.files:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG") if path.suffix == ".png" else b"</svg>" in content
    for name in ("pareto", "sensitivity", "curves"):
        text = (tmp_path / "out" / f"{name}.svg").read_text()
        for line in full.table.lines:
            assert line.row.label in text
        assert "no data" not in text


def test_equal_data_are_drawn_once_and_equally(full: Gathered, tmp_path: Path) -> None:
    first = {path: path.read_bytes() for path in plots.draw(full.sweep, full.table, tmp_path / "a").files}
    stamps = {path: path.stat().st_mtime_ns for path in first}
    time.sleep(0.01)
    again = plots.draw(full.sweep, full.table, tmp_path / "a")
    assert {path: path.stat().st_mtime_ns for path in again.files} == stamps
    elsewhere = plots.draw(full.sweep, full.table, tmp_path / "b")
    assert [path.read_bytes() for path in elsewhere.files] == list(first.values())


def test_other_data_are_drawn_again(full: Gathered, tmp_path: Path) -> None:
    before = (plots.draw(full.sweep, full.table, tmp_path / "out").files)[0].read_bytes()
    changed = record_of(FakeJob("lora", 0), shift=-0.1)
    changed.save(tmp_path, overwrite=True)
    data = table.gather("altlora_glue", tmp_path, jobs_of=jobs_of)
    assert plots.draw(data.sweep, data.table, tmp_path / "out").files[0].read_bytes() != before


def test_in_this_process_the_pictures_are_the_same(
    full: Gathered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked = [path.read_bytes() for path in plots.draw(full.sweep, full.table, tmp_path / "a").files]
    monkeypatch.setattr(painters, "get_ready", lambda: None)
    alone = [path.read_bytes() for path in plots.draw(full.sweep, full.table, tmp_path / "b").files]
    assert alone == forked


def test_plots_without_data_are_named_and_an_old_one_is_removed(full: Gathered, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plots.draw(full.sweep, full.table, out)
    empty = gathered(tmp_path / "empty", [])
    drawn = plots.draw(empty.sweep, empty.table, out)
    assert [line.split(":")[0] for line in drawn.absent] == ["pareto", "sensitivity", "curves"]
    assert "python -m lrx tune altlora_glue budget=N" in drawn.absent[1]
    assert sorted(path.name for path in out.iterdir()) == ["scores.png", "scores.svg"]
    assert "not run" in (out / "scores.svg").read_text()


def test_a_row_without_data_says_so(tmp_path: Path) -> None:
    records = with_trouble()
    histories(tmp_path, records)
    data = gathered(tmp_path, records)
    plots.draw(data.sweep, data.table, tmp_path / "out")
    for name in ("pareto", "curves"):
        assert "Full fine-tuning: no data" in (tmp_path / "out" / f"{name}.svg").read_text()
    assert "none (1 failed, 2 out of memory)" in (tmp_path / "out" / "scores.svg").read_text()


def test_scores_are_the_table_s(full: Gathered) -> None:
    shown = series.scores(full.sweep, full.table)
    for column, drawn in zip(full.table.columns, shown["columns"], strict=True):
        for line, cell in zip(full.table.lines, drawn["cells"], strict=True):
            assert cell["seeds"] == full.table.cell(line, column).finite
            assert cell["mean"] == full.table.cell(line, column).mean


def test_pareto_front_holds_what_nothing_beats() -> None:
    points = [(1.0, 5.0), (2.0, 5.0), (3.0, 9.0), (3.0, 8.0), (4.0, 7.0), (5.0, 9.5)]
    assert series.pareto_front(points, True) == [[1.0, 5.0], [3.0, 9.0], [5.0, 9.5]]
    assert series.pareto_front(points, False) == [[1.0, 5.0]]
    for x, y in series.pareto_front(points, True):
        assert not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)


def test_a_row_without_training_is_a_level(tmp_path: Path) -> None:
    """It costs nothing, and nothing has no place on a logarithmic axis."""
    records = [record for record in with_trouble() if record.status == "finished"]
    for record in records:
        if record.method == "head":
            record.cost |= {"trainable_parameters": 0.0, "median_step_seconds": 0.0}
    data = gathered(tmp_path, records)
    for panel in series.pareto(data.sweep, data.table)["panels"]:
        assert [item["x"] for item in panel["free"]] == [0.0]
        assert 0.0 not in [item["x"] for item in panel["items"]]
        assert 0.0 not in [x for x, _ in panel["front"]]
    plots.draw(data.sweep, data.table, tmp_path / "out")
    assert "dotted: without training" in (tmp_path / "out" / "pareto.svg").read_text()


def test_both_costs_have_a_panel_with_seeds(full: Gathered) -> None:
    size, pace = series.pareto(full.sweep, full.table)["panels"]
    assert (size["label"], pace["label"]) == ("trainable parameters", "median step (ms)")
    for panel in (size, pace):
        assert len(panel["items"]) == 5
        assert all(len(item["ys"]) == 3 for item in panel["items"])
        means = [(item["x"], item["y"]) for item in panel["items"]]
        assert panel["front"] == series.pareto_front(means, True)
    lora = full.table.line("lora")
    assert lora
    assert pace["items"][2]["x"] == pytest.approx(1e3 * (lora.cost("median_step_seconds").mean or 0))


def test_sensitivity_shows_all_trials_and_marks_the_failed(full: Gathered) -> None:
    (panel,) = series.sensitivity(full.sweep, full.table)["panels"]
    assert panel["label"] == "method.lr"
    assert panel["log"]
    by_row = {line["row"]: line for line in panel["lines"]}
    assert {row: (len(line["points"]), len(line["failed"])) for row, line in by_row.items()} == {
        0: (4, 1), 1: (5, 0), 2: (5, 0), 3: (4, 1), 4: (5, 0),
    }  # fmt: skip
    assert by_row[0]["failed"] == [pytest.approx(1e-3)]
    assert by_row[2]["best"][0] == pytest.approx(3e-3)


@pytest.mark.parametrize(("scale", "model"), [("smoke", "minilm"), ("mini", "roberta_base")])
def test_trials_of_another_setting_are_not_shown(tmp_path: Path, scale: str, model: str) -> None:
    trials(tmp_path, scale, model)
    data = gathered(tmp_path, all_records())
    with pytest.raises(series.NoData, match="no trial of scale mini"):
        series.sensitivity(data.sweep, data.table)


def test_a_broken_list_of_trials_is_named(tmp_path: Path) -> None:
    trials(tmp_path).write_text('{"studies": [{"trials": 3}]}')
    data = gathered(tmp_path, all_records())
    drawn = plots.draw(data.sweep, data.table, tmp_path / "out")
    assert any("trials.json: no list of trials" in line for line in drawn.absent)


def test_curves_are_means_over_seeds_with_their_range(full: Gathered) -> None:
    parts = {part["name"]: part for part in series.curves(full.sweep, full.table)["parts"]}
    assert set(parts) == {"sentiment", "intensity", "domain"}
    line = next(line for line in parts["intensity"]["select"]["lines"] if line["row"] == 2)
    lora = full.table.line("lora")
    assert lora
    last = [record.parts["intensity"].curve[-1]["splits"]["select"]["pearson"] for record in lora.finished]
    assert (line["n"], line["x"][-1]) == (3, 80)
    assert line["mean"][-1] == pytest.approx(sum(last) / 3)
    assert (line["low"][-1], line["high"][-1]) == (min(last), max(last))
    assert parts["intensity"]["select"]["label"] == "selection pearson"
    assert parts["intensity"]["loss"]["lines"][2]["x"][0] == 1


def test_long_curves_are_thinned_and_keep_their_ends(tmp_path: Path) -> None:
    records = [record_of(FakeJob("lora", 0))]
    histories(tmp_path, records, steps=3000)
    (part, *_) = series.curves(*_pair(gathered(tmp_path, records)))["parts"]
    (line,) = part["loss"]["lines"]
    assert len(line["x"]) == series.POINTS
    assert (line["x"][0], line["x"][-1]) == (1, 2996)


def _pair(data: Gathered):  # type: ignore[no-untyped-def]
    return data.sweep, data.table


def test_a_seed_that_is_no_number_leaves_the_others(tmp_path: Path) -> None:
    records = [record_of(FakeJob("lora", seed)) for seed in (0, 1)]
    histories(tmp_path, records)
    records[1].parts["domain"].curve[-1]["splits"]["select"]["accuracy"] = math.nan
    parts = {part["name"]: part for part in series.curves(*_pair(gathered(tmp_path, records)))["parts"]}
    (line,) = parts["domain"]["select"]["lines"]
    assert all(map(math.isfinite, line["mean"]))
    assert line["x"][-1] == 80


def test_without_logs_the_curves_show_evaluations_alone(tmp_path: Path) -> None:
    records = all_records()
    histories(tmp_path / "elsewhere", records)
    shown = series.curves(*_pair(gathered(tmp_path, records)))
    assert all(not part["loss"]["lines"] for part in shown["parts"])
    assert render(Order("curves", shown, "x"))["png"].startswith(b"\x89PNG")


def test_hostile_labels_are_text(full: Gathered) -> None:
    shown = series.pareto(full.sweep, full.table)
    shown["rows"][0] = "50% $x_1$ <b>&amp; {y}"
    shown["title"] = "$\\frac{1}$ " * 20
    svg = render(Order("pareto", shown, "x"))["svg"].decode()
    assert "50% $x_1$ &lt;b&gt;&amp;amp; {y}" in svg


def test_texts_do_not_overlap(full: Gathered) -> None:
    """No two texts of a figure share any place, and none leaves the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from lrx.results.plots import figures, style

    makers = {name: getattr(series, name) for name in NAMES}
    import matplotlib as mpl
    from matplotlib.text import Text

    for name, make in makers.items():
        with mpl.rc_context(style.RC):
            figure = getattr(figures, name)(make(full.sweep, full.table))
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            unseen = {
                label
                for axes in figure.axes
                for axis in (axes.xaxis, axes.yaxis)
                for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)
                if not min(axis.get_view_interval()) <= place <= max(axis.get_view_interval())
            }
            texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
            boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text not in unseen]
        shown = [(word, box) for word, box in boxes if box.width > 0]
        assert len(shown) > 10
        for i, (word, box) in enumerate(shown):
            assert box.x0 >= -1, (name, word)
            assert box.x1 <= figure.bbox.x1 + 1, (name, word)
            for other, another in shown[:i]:
                apart = (box.x1 <= another.x0 + 1 or another.x1 <= box.x0 + 1
                         or box.y1 <= another.y0 + 1 or another.y1 <= box.y0 + 1)  # fmt: skip
                assert apart, (name, word, other)


def test_many_rows_stay_apart() -> None:
    from lrx.results.plots.style import colour, marker

    assert len({(colour(row), marker(row)) for row in range(50)}) == 50
    assert all(re.fullmatch(r"#[0-9A-F]{6}", colour(row)) for row in range(8))
