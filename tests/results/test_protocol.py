"""Reporting protocols: what each reads from a stored curve, what is refused, and what the table then says."""

from __future__ import annotations

import csv
import io
import math
import statistics
from pathlib import Path

import pytest

from lrx.errors import UserError
from lrx.results import blocks, protocol, render, table
from lrx.results.gather import Gathered
from lrx.results.protocol import Protocol, Reading, read
from lrx.results.record import Part, RunRecord
from tests.results.fakes import FakeJob, curve, jobs_of, record_of

NAME = "altlora_glue"
# (selection, test): best on selection is step 20, best on test step 30, last step 40
POINTS = [(0.50, 0.40), (0.80, 0.60), (0.75, 0.90), (0.70, 0.70)]


def _part(points: list[tuple[float, float]] = POINTS) -> Part:
    record = record_of(FakeJob("lora", 0))
    curve(record, "sentiment", points)
    return record.parts["sentiment"]


def _of(**options: object) -> Protocol:
    return Protocol.model_validate(options)


UNSAFE = _of(unsafe="best_on_test")


@pytest.mark.parametrize(
    ("chosen", "value", "step"),
    [
        (_of(), 0.60, 20),
        (_of(checkpoint="last"), 0.70, 40),
        (_of(checkpoint="best"), 0.60, 20),
        (_of(checkpoint="mean_last_k"), (0.6 + 0.9 + 0.7) / 3, None),
        (_of(checkpoint="mean_last_k", k=2), 0.8, None),
        (_of(checkpoint="mean_last_k", k=1), 0.70, 40),
        (UNSAFE, 0.90, 30),
    ],
)
def test_each_protocol_on_a_curve(chosen: Protocol, value: float, step: int | None) -> None:
    found = read(_part(), "test", "accuracy", chosen)
    assert (found.value, found.step) == (pytest.approx(value), step)


def test_lower_is_better_turns_the_choice_round() -> None:
    part = _part()
    part.higher_is_better["accuracy"] = False
    assert read(part, "test", "accuracy", _of(checkpoint="best")).step == 10
    assert read(part, "test", "accuracy", UNSAFE).step == 10


def test_of_equal_evaluations_the_first_is_best_and_nan_never_is() -> None:
    assert read(_part([(0.5, 0.1), (0.5, 0.2)]), "test", "accuracy", _of(checkpoint="best")).value == 0.1
    assert read(_part([(math.nan, 0.1), (0.5, 0.2)]), "test", "accuracy", _of(checkpoint="best")).value == 0.2
    assert read(_part([(0.5, math.nan), (0.4, 0.2)]), "test", "accuracy", UNSAFE).value == 0.2
    only_nan = read(_part([(math.nan, 0.3), (math.nan, 0.2)]), "test", "accuracy", _of(checkpoint="best"))
    assert only_nan.value == 0.3


def test_a_curve_without_a_selection_split_has_no_best() -> None:
    part = _part()
    for entry in part.curve:
        del entry["splits"]["select"]
    assert "no selection split" in read(part, "test", "accuracy", _of(checkpoint="best")).reason
    assert read(part, "test", "accuracy", _of(checkpoint="mean_last_k", k=4)).value == pytest.approx(0.65)


def test_a_record_without_a_curve_answers_what_it_can() -> None:
    part = _part()
    part.curve = []
    assert read(part, "test", "accuracy", _of(checkpoint="last")).value == 0.70
    assert read(part, "test", "accuracy", _of(checkpoint="best")).value == 0.60
    for chosen, kept in ((_of(checkpoint="best"), "last"), (_of(checkpoint="mean_last_k"), "best"), (UNSAFE, "best")):
        assert read(part, "test", "accuracy", chosen, kept) == Reading(None, reason="no curve in the record")


def test_a_curve_shorter_than_k() -> None:
    assert "shorter than k=5" in read(_part(), "test", "accuracy", _of(checkpoint="mean_last_k", k=5)).reason


@pytest.mark.parametrize(
    ("metric", "metrics", "column", "value"),
    [
        ("column", {"accuracy": 0.8, "f1": 0.6}, "accuracy", 0.8),
        ("f1", {"accuracy": 0.8, "f1": 0.6}, "accuracy", 0.6),
        ("both", {"accuracy": 0.8, "f1": 0.6}, "accuracy", 0.7),
        ("both", {"accuracy": 0.8, "f1": 0.6}, "f1", 0.7),
        ("both", {"pearson": 0.5, "spearman": 0.7}, "spearman", 0.6),
        ("both", {"accuracy": 0.8}, "accuracy", 0.8),
        ("both", {"accuracy": 0.8, "matthews_correlation": 0.2}, "matthews_correlation", 0.2),  # as GLUE: no mean here
        ("accuracy", {"accuracy": 0.8, "matthews_correlation": 0.2}, "matthews_correlation", 0.8),
        ("f1", {"accuracy": 0.8}, "accuracy", 0.8),
        ("f1", {}, "accuracy", None),
    ],
)
def test_metric(metric: str, metrics: dict[str, float], column: str, value: float | None) -> None:
    assert _of(metric=metric).pick(column)(metrics) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["protocol.checkpoint=best_on_test"], "refused; protocol.unsafe=best_on_test allows it"),
        (["protocol.checkpoint=last", "protocol.unsafe=best_on_test"], "contradict each other"),
        (["protocol.chekpoint=last"], "did you mean 'checkpoint'"),
        (["protocol.checkpoint=first"], "protocol.checkpoint=first: Input should be 'selected', 'last'"),
        (["protocol.unsafe=yes"], "protocol.unsafe=yes: Input should be"),
        (["protocol.std=runs"], "protocol.std=runs: Input should be 'seeds' or 'items'"),
        (["protocol.checkpoint=mean_last_k", "protocol.k=0"], "protocol.k=0: .*greater than or equal to 1"),
        (["protocol.checkpoint=mean_last_k", "protocol.k=many"], "protocol.k=many: .*integer"),
        (["protocol.k=3"], "k=3 means nothing with checkpoint=selected"),
        (["protocol.metric=acuracy"], "did you mean 'accuracy'"),
        (["protocol=last"], "give a key and a value"),
        (["protocol.checkpoint"], "give a key and a value"),
        (["protocol.checkpoint="], "give a key and a value"),
        (["protocol.checkpoint=mean_last_k", "protocol.k=50"], "k=50: the longest curve here has 4 evaluations"),
    ],
)
def test_what_is_refused_is_refused_in_one_line(overrides: list[str], message: str, tmp_path: Path) -> None:
    _records(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        _gather(tmp_path, *overrides)
    assert "\n" not in str(caught.value)


def test_the_command_line_changes_the_sweep_files_protocol() -> None:
    own = _of(checkpoint="mean_last_k", k=5, metric="both")
    assert protocol.changed(own, {}) == own
    assert protocol.changed(own, {"k": "2"}).k == 2
    last = protocol.changed(own, {"checkpoint": "last"})
    assert (last.checkpoint, last.metric) == ("last", "both")
    assert protocol.changed(own, {"unsafe": "best_on_test"}).on_test
    assert not protocol.changed(UNSAFE, {"checkpoint": "best"}).on_test
    assert protocol.take(["scale=mini", "+protocol.k=3"]) == (["scale=mini"], {"k": "3"})


def _records(root: Path, points: list[tuple[float, float]] = POINTS, bare: tuple[int, ...] = ()) -> list[RunRecord]:
    """LoRA and head only at three seeds, with curves except where the seed is in ``bare``."""
    records = []
    for job in jobs_of(NAME):
        if job.method in ("lora", "head"):
            record = record_of(job)
            for part in ("sentiment", "domain"):
                curve(record, part, [(s, t + 0.01 * job.seed) for s, t in points])
                if job.seed in bare:
                    record.parts[part].curve = []
            record.save(root)
            records.append(record)
    return records


def _gather(root: Path, *overrides: str) -> Gathered:
    return table.gather(NAME, root, jobs_of=jobs_of, overrides=overrides)


def _scores(data: Gathered) -> tuple[render.Block, dict[str, render.Text]]:
    block = next(block for block in table.document(data).blocks if block.key == "scores")
    row = next(row for row in block.rows if str(row[0]) == "LoRA")
    return block, dict(zip(block.header, row, strict=True))


@pytest.mark.parametrize(
    ("overrides", "mean", "words"),
    [
        ([], 61, "the checkpoint that each run kept"),
        (["protocol.checkpoint=last"], 71, "the last step"),
        (["protocol.checkpoint=best"], 61, "best on the selection split"),
        (["protocol.checkpoint=mean_last_k", "protocol.k=2"], 81, "mean over the last 2 evaluations"),
        (["protocol.unsafe=best_on_test"], 91, "UNSAFE"),
    ],
)
def test_the_table_follows_and_its_caption_says_so(
    overrides: list[str], mean: float, words: str, tmp_path: Path
) -> None:
    _records(tmp_path)
    data = _gather(tmp_path, *overrides)
    block, row = _scores(data)
    assert row["sentiment accuracy"].main == f"{mean:.2f}"
    assert words in block.caption
    rows = list(csv.DictReader(io.StringIO(table.tidy_csv(data))))
    cell = next(r for r in rows if (r["kind"], r["method"], r["column"]) == ("ours", "lora", "sentiment_accuracy"))
    assert float(cell["mean"]) == pytest.approx(mean)
    for text in overrides:
        assert text in cell["protocol"]
    unsafe = "protocol.unsafe=best_on_test" in overrides
    assert cell["selected_on_reported"] == str(unsafe)
    for place in (block.title, block.caption, table.document(data).title):
        assert (blocks.MARK in place) == unsafe
    for text in (render.markdown(table.document(data)), render.latex(table.document(data))):
        assert (blocks.MARK in text) == unsafe


def test_records_without_a_curve_are_named(tmp_path: Path) -> None:
    _records(tmp_path, bare=(1,))
    block, row = _scores(_gather(tmp_path, "protocol.checkpoint=mean_last_k", "protocol.k=2"))
    assert "(2)" in str(row["sentiment accuracy"])
    note = next(note for note in block.notes if "no curve in the record" in note)
    assert "LoRA sentiment (seeds 1)" in note
    assert "LoRA intensity (seeds 0, 1, 2)" in note


def test_a_row_without_any_curve_says_why(tmp_path: Path) -> None:
    _records(tmp_path, bare=(0, 1, 2))
    _, row = _scores(_gather(tmp_path, "protocol.checkpoint=mean_last_k", "protocol.k=2"))
    assert str(row["sentiment accuracy"]) == "no value (no curve in the record)"


def test_std_over_test_items_of_an_accuracy_is_the_binomial_one(tmp_path: Path) -> None:
    for record in _records(tmp_path):
        record.parts["sentiment"].sizes["test"] = 400
        record.save(tmp_path, overwrite=True)
    block, row = _scores(_gather(tmp_path, "protocol.std=items"))
    variances = [p * (1 - p) / 400 for p in (0.60, 0.61, 0.62)]
    shown = float(row["sentiment accuracy"].detail.split()[1])
    assert shown == pytest.approx(100 * math.sqrt(statistics.fmean(variances)), rel=0.05)
    assert "standard error over the test items of one run" in block.caption
    assert "±" not in str(row["intensity Pearson"])  # neither predictions nor a binomial law
    assert any("Over seeds only" in note or "no predictions" in note for note in block.notes)


def test_both_metrics_share_one_column_with_a_heading_of_its_own(tmp_path: Path) -> None:
    records = _records(tmp_path)
    block, row = _scores(_gather(tmp_path, "protocol.metric=both"))
    assert "intensity Pearson and Spearman" in block.header
    assert not {"intensity Pearson", "intensity Spearman"} & set(block.header)
    lora = [r.parts["intensity"].metrics["test"] for r in records if r.method == "lora"]
    mean = statistics.fmean((m["pearson"] + m["spearman"]) / 2 for m in lora)
    assert row["intensity Pearson and Spearman"].main == f"{100 * mean:.2f}"


def test_a_metric_that_no_run_reports_is_said(tmp_path: Path) -> None:
    _records(tmp_path)
    block, _ = _scores(_gather(tmp_path, "protocol.metric=f1"))
    assert "No run here reports f1: every column shows its own metric." in block.notes


def test_a_sweep_file_sets_the_protocol(tmp_path: Path) -> None:
    from lrx import paths

    text = (paths.sweeps_dir() / f"{NAME}.yaml").read_text()
    (tmp_path / f"{NAME}.yaml").write_text(text + "\n  protocol: {checkpoint: last}\n")
    _records(tmp_path)
    data = table.gather(NAME, tmp_path, jobs_of=jobs_of, folder=tmp_path)
    assert _scores(data)[1]["sentiment accuracy"].main == "71.00"
    (tmp_path / f"{NAME}.yaml").write_text(text + "\n  protocol: {checkpoint: best_on_test}\n")
    with pytest.raises(UserError, match=r"sweep\.protocol: checkpoint=best_on_test selects on the very split"):
        table.gather(NAME, tmp_path, jobs_of=jobs_of, folder=tmp_path)


def test_infinities_of_both_signs_have_no_mean() -> None:
    part = _part([(0.5, math.inf), (0.5, -math.inf)])
    found = read(part, "test", "accuracy", _of(checkpoint="mean_last_k", k=2))
    assert found.value is not None
    assert math.isnan(found.value)
    pick = _of(metric="both").pick("pearson")
    both = pick({"pearson": math.inf, "spearman": -math.inf})
    assert both is not None
    assert math.isnan(both)


def test_infinities_do_not_break_a_table(tmp_path: Path) -> None:
    record = next(record for record in _records(tmp_path) if (record.method, record.seed) == ("lora", 0))
    record.parts["intensity"].metrics["test"] = {"pearson": math.inf, "spearman": -math.inf}
    record.save(tmp_path, overwrite=True)
    assert "(2; 1 NaN)" in str(_scores(_gather(tmp_path))[1]["avg"])


def test_the_caption_names_what_the_runs_selected_by(tmp_path: Path) -> None:
    for record in _records(tmp_path):
        record.config["trainer"] = {"select": "last"}
        record.save(tmp_path, overwrite=True)
    assert "each run kept (trainer.select=last: the last step)" in _scores(_gather(tmp_path))[0].caption
    assert "trainer.select" not in _scores(_gather(tmp_path, "protocol.checkpoint=last"))[0].caption


@pytest.mark.parametrize(
    ("trainer", "chosen", "marked"),
    [
        ({}, {}, True),
        ({"select": "best"}, {}, True),
        ({"select": "last"}, {}, False),
        ({"select": "last"}, {"checkpoint": "best"}, True),
        ({"select": "best"}, {"checkpoint": "last"}, False),
        ({"select": "best"}, {"checkpoint": "mean_last_k"}, False),
        ({"select": "last", "patience": 2}, {}, True),
        ({"select": "best", "patience": 2}, {"checkpoint": "last"}, True),
        ({"select": "best", "patience": None}, {"checkpoint": "last"}, False),
    ],
)
def test_what_is_chosen_on_the_reported_split_is_decided_run_by_run(
    trainer: dict[str, object], chosen: dict[str, object], marked: bool
) -> None:
    record = record_of(FakeJob("lora", 0))
    record.config["trainer"] = trainer
    assert not _of(**chosen).chooses_on_reported(record)
    record.parts["domain"].selects_on_reported = True
    assert _of(**chosen).chooses_on_reported(record) == marked


def test_the_mark_stands_on_every_block_and_plot(tmp_path: Path) -> None:
    from lrx.results.plots import series

    for record in _records(tmp_path):
        record.parts["domain"].selects_on_reported = True
        record.save(tmp_path, overwrite=True)
    data = _gather(tmp_path)
    titles = {block.key: block.title for block in table.document(data).blocks}
    for key in ("scores", "pairs", "table4-difference", "claims"):
        assert blocks.MARK in titles[key], key
    for make in (series.scores, series.pareto):
        title = make(data.sweep, data.table)["title"]
        assert title.startswith(blocks.MARK)
        assert "the checkpoint that each run kept" in title
    last = _gather(tmp_path, "protocol.checkpoint=last")
    assert not any(blocks.MARK in block.title for block in table.document(last).blocks)
    assert "Protocol: the last step" in series.scores(last.sweep, last.table)["title"]
