"""Tables: which records enter, what a cell says, and that nothing is blank, mixed up or different the second time."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lrx.errors import UserError
from lrx.results import blocks, collect, render, table
from lrx.results.gather import Gathered
from lrx.results.protocol import Protocol
from lrx.results.record import RunRecord
from lrx.results.sweep import Column, Row
from tests.results.fakes import FakeJob, all_records, jobs_of, record_of, with_trouble

NAME = "altlora_glue"


def _gather(root: Path, records: list[RunRecord], **options: object) -> Gathered:
    for record in records:
        record.save(root, overwrite=True)
    return table.gather(NAME, root, jobs_of=jobs_of, **options)  # type: ignore[arg-type]


def _block(data: Gathered, key: str) -> render.Block:
    return next(block for block in table.document(data).blocks if block.key == key)


def _row(block: render.Block, label: str) -> dict[str, render.Text]:
    row = next(row for row in block.rows if str(row[0]) == label)
    return dict(zip(block.header, row, strict=True))


def _paper_records() -> list[RunRecord]:
    return [record_of(job) for job in jobs_of(NAME, ["scale=paper"])]


def test_mean_std_n_and_nothing_in_bold_that_three_seeds_cannot_tell(tmp_path: Path) -> None:
    records = all_records()
    lora = [record for record in records if record.method == "lora"]
    cells = [record.parts["sentiment"].metrics["test"]["accuracy"] * 100 for record in lora]
    mean = sum(cells) / 3
    std = math.sqrt(sum((cell - mean) ** 2 for cell in cells) / 2)
    block = _block(_gather(tmp_path, records), "scores")
    assert re.fullmatch(rf"{mean:.2f} ± {std:.2f} \(3\) [a-d]+", str(_row(block, "LoRA")["sentiment accuracy"]))
    assert str(_row(block, "LoRA")["runs"]) == "3 of 3"
    assert not any(cell.bold for row in block.rows for cell in row)
    assert "where nothing is bold, no method is" in block.caption


def test_the_significantly_best_is_bold(tmp_path: Path) -> None:
    records = [record_of(job, shift=0.08 * (job.method == "altlora")) for job in jobs_of(NAME)]
    block = _block(_gather(tmp_path, records), "scores")
    column = block.header.index("sentiment accuracy")
    assert [str(row[0]) for row in block.rows if row[column].bold] == ["AltLoRA"]
    assert str(_row(block, "AltLoRA")["sentiment accuracy"]).endswith("(3) a")


def test_one_seed_each_claims_no_significance(tmp_path: Path) -> None:
    block = _block(_gather(tmp_path, [record_of(FakeJob(method, 0)) for method in ("lora", "head")]), "scores")
    assert not any(cell.bold for row in block.rows for cell in row)
    assert "no significance is claimed" in block.caption
    assert str(_row(block, "LoRA")["avg"]).endswith("(1)")


def test_one_seed_has_no_std(tmp_path: Path) -> None:
    block = _block(_gather(tmp_path, [record_of(FakeJob("lora", 1))]), "scores")
    assert re.fullmatch(r"\d+\.\d\d \(1\)", str(_row(block, "LoRA")["avg"]))
    assert str(_row(block, "LoRA")["runs"]) == "1 of 3 (2 missing)"


def test_average_takes_the_two_correlations_first() -> None:
    values = {"accuracy": 0.9}
    record = record_of(FakeJob("lora", 0))
    record.parts["sentiment"].metrics["test"] = dict(values)
    record.parts["intensity"].metrics["test"] = {"pearson": 0.6, "spearman": 0.4}
    record.parts["domain"].metrics["test"] = {"accuracy": 0.7}
    from lrx.results.sweep import load

    sweep = load(NAME)
    joined = collect.join(sweep.rows, sweep.columns, jobs_of(NAME), [record])
    line = joined.line("lora")
    assert line
    assert joined.cell(line, sweep.column("avg")).mean == pytest.approx(100 * (0.9 + 0.5 + 0.7) / 3)


def test_failed_diverged_missing_and_nan_are_shown(tmp_path: Path) -> None:
    block = _block(_gather(tmp_path, with_trouble()), "scores")
    assert str(_row(block, "Full fine-tuning")["avg"]) == "none (1 failed, 2 out of memory)"
    assert str(_row(block, "AltLoRA")["runs"]) == "2 of 3 (1 diverged)"
    assert str(_row(block, "Head only")["runs"]) == "2 of 3 (1 missing)"
    assert "(2; 1 NaN)" in str(_row(block, "LoRA")["domain accuracy"])
    assert "(2; 1 NaN)" in str(_row(block, "LoRA")["avg"])
    assert "(3)" in str(_row(block, "LoRA")["sentiment accuracy"])
    assert any("AltLoRA, seed 2: diverged: loss is NaN at step 12" in note for note in block.notes)


def test_only_nan_is_nan_and_not_zero(tmp_path: Path) -> None:
    records = [record_of(FakeJob("lora", seed)) for seed in range(3)]
    for record in records:
        record.parts["domain"].metrics["test"]["accuracy"] = math.nan
    block = _block(_gather(tmp_path, records), "scores")
    assert str(_row(block, "LoRA")["domain accuracy"]) == "NaN (3 of 3)"


def test_without_records_everything_says_not_run(tmp_path: Path) -> None:
    data = _gather(tmp_path, [])
    for key in ("scores", "cost"):
        for row in _block(data, key).rows:
            assert {str(cell) for cell in row[1:]} <= {"not run", "0 of 3 (3 missing)"}
    assert all(str(cell) == "not run" for row in _block(data, "table4-difference").rows for cell in row[3:])
    assert {row[-1].main for row in _block(data, "claims").rows} == {"not enough evidence"}


def test_no_cell_is_ever_blank(tmp_path: Path) -> None:
    for index, records in enumerate(([], with_trouble(), all_records() + _paper_records())):
        for block in table.document(_gather(tmp_path / str(index), records)).blocks:
            assert all(cell.main.strip() for row in block.rows for cell in row), block.key


def test_records_of_other_settings_do_not_leak_in(tmp_path: Path) -> None:
    other = dataclasses.replace(record_of(FakeJob("lora", 0), shift=0.1), fingerprint="another", run_id="another")
    smoke = record_of(FakeJob("lora", 1, scale="smoke"))
    data = _gather(tmp_path, [other, smoke])
    assert data.table.strays == 2
    assert str(_row(_block(data, "scores"), "LoRA")["avg"]) == "not run"


def test_a_finished_record_counts_before_an_unfinished_one_and_the_later_before_the_earlier() -> None:
    job = FakeJob("lora", 0)
    finished = record_of(job)
    later_failure = dataclasses.replace(record_of(job, "failed"), run_id="z", finished="2027-01-01T00:00:00+00:00")
    later = dataclasses.replace(finished, run_id="y", finished="2026-06-01T00:00:00+00:00")
    joined = collect.join([], [], [job], [later, later_failure, finished])
    assert joined.records() == [later]


def test_a_job_without_a_row_gets_one_and_two_jobs_in_one_place_are_an_error() -> None:
    joined = collect.join([], [], [FakeJob("lora", 0), FakeJob("head", 0)], [])
    assert [line.row.key for line in joined.lines] == ["lora", "head"]
    row = Row(key="lora", label="LoRA", method="lora")
    with pytest.raises(UserError, match="'where'"):
        collect.join([row], [], [FakeJob("lora", 0), FakeJob("lora", 0)], [])


def test_only_reported_splits_can_be_shown(tmp_path: Path) -> None:
    record = record_of(FakeJob("lora", 0))
    column = Column(key="x", label="x", part="domain", metric="accuracy", split="select")
    assert collect.reading(record, column, Protocol()).value is None
    record.parts["domain"].reported = ["test", "other"]
    with pytest.raises(UserError, match="say which with 'split'"):
        collect.reading(record, column.model_copy(update={"split": ""}), Protocol())


def test_published_numbers_stand_apart_with_scale_and_source(tmp_path: Path) -> None:
    data = _gather(tmp_path, all_records())
    block = _block(data, "table4")
    assert len(block.rows) == 11
    assert "Published" in block.title
    assert "Scale paper" in block.caption
    assert "2505.12455" in block.caption
    assert "Table 4" in block.caption
    assert str(_row(block, "AltLoRA+")["MRPC (scale paper)"]) == "87.25 ± 1.12"
    assert all("scale paper" in heading for heading in block.header[1:])
    beside = _block(data, "table4-difference")
    assert beside.header[1:] == [
        "published avg (scale paper)",
        "source",
        "ours avg (scale paper)",
        "ours less published",
        "ours avg (scale mini)",
    ]
    row = _row(beside, "AltLoRA+")
    assert str(row["published avg (scale paper)"]) == "88.3"
    assert str(row["ours avg (scale paper)"]) == str(row["ours less published"]) == "not run"
    assert re.fullmatch(r"8\d\.\d\d ± \d\.\d\d \(3\)", str(row["ours avg (scale mini)"]))
    assert any("hub" in note for note in beside.notes)
    assert "scale mini" in _block(data, "scores").title


def test_ours_at_the_papers_scale_stands_beside_the_published_value(tmp_path: Path) -> None:
    data = _gather(tmp_path, all_records() + _paper_records())
    block = _block(data, "table4-difference")
    row = _row(block, "LoRA")
    assert re.fullmatch(r"\d+\.\d\d ± \d\.\d\d \(3\)", str(row["ours avg (scale paper)"]))
    difference = float(row["ours avg (scale paper)"].main) - 87.88
    assert str(row["ours less published"]) == f"{difference:+.2f}".replace("-", "−")
    assert str(_row(block, "rsLoRA")["ours avg (scale paper)"]) == "not run"
    assert str(_row(block, "LoRA-Pro")["ours less published"]) == "not run"
    assert not any("Not run" in note for note in block.notes)
    cell = _row(_block(data, "table4-ours"), "LoRA")["MRPC"]
    assert cell.detail.endswith(f"; {float(cell.main) - 86.03:+.2f}".replace("-", "−"))
    assert "Behind a semicolon" in _block(data, "table4-ours").caption
    assert "scale paper" in _block(data, "table4-ours").title


def _paper_with_f1(root: Path) -> Gathered:
    records = _paper_records()
    for record in records:
        for part in record.parts.values():
            for metrics in part.metrics.values():
                metrics["f1"] = 0.5 + record.seed / 100
            part.higher_is_better["f1"] = True
    for record in records:
        record.save(root)
    return table.gather(NAME, root, jobs_of=jobs_of, overrides=["protocol.metric=f1"])


def test_no_difference_from_a_published_value_of_another_metric(tmp_path: Path) -> None:
    data = _paper_with_f1(tmp_path)
    row = _row(_block(data, "table4-difference"), "LoRA")
    assert str(row["ours less published"]) == "another metric"
    assert "ours avg (f1) (scale paper)" in row
    cell = _row(_block(data, "table4-ours"), "LoRA")["mrpc F1"]
    assert cell.detail.endswith("; another metric")
    rows = [r for r in csv.DictReader(io.StringIO(table.tidy_csv(data))) if r["kind"] == "ours"]
    assert {r["difference"] for r in rows} == {""}


def test_runs_at_the_papers_scale_that_selected_on_what_they_report_are_marked(tmp_path: Path) -> None:
    paper = _paper_records()
    for record in paper:
        record.parts["mrpc"].selects_on_reported = True
    data = _gather(tmp_path, all_records() + paper)
    assert blocks.MARK in table.document(data).title
    assert blocks.MARK in _block(data, "table4-difference").title
    assert blocks.MARK in _block(data, "table4-difference").caption
    assert blocks.MARK not in _block(data, "scores").title


def test_selection_on_the_reported_split_is_said(tmp_path: Path) -> None:
    record = record_of(FakeJob("lora", 0))
    record.parts["domain"].selects_on_reported = True
    data = _gather(tmp_path, [record])
    block = _block(data, "scores")
    assert blocks.MARK in block.title
    assert "optimistic" in block.caption
    assert blocks.MARK in table.document(data).title
    rows = csv.DictReader(io.StringIO(table.tidy_csv(data)))
    assert {row["selected_on_reported"] for row in rows if row["kind"] == "ours"} == {"True"}


def test_csv_is_tidy(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(table.tidy_csv(_gather(tmp_path, with_trouble())))))
    ours = [row for row in rows if row["kind"] == "ours"]
    assert len(ours) == 5 * 5
    assert len([row for row in rows if row["kind"] == "cost"]) == 5 * 4
    assert {row["scale"] for row in ours} == {"mini"}
    assert {row["protocol"] for row in ours} == {
        "protocol.checkpoint=selected protocol.std=seeds protocol.metric=column"
    }
    pairs = [row for row in rows if row["kind"] == "pair"]
    assert all(float(row["low"]) <= float(row["mean"]) <= float(row["high"]) for row in pairs)
    assert {row["verdict"] for row in pairs} == {"differ (seeds only)", "not resolved"}
    assert all(float(row["p"]) <= float(row["p_holm"]) for row in pairs)
    assert [row["verdict"] for row in rows if row["kind"] == "claim"].count("holds") == 2
    published = [row for row in rows if row["kind"] == "published"]
    assert len(published) == 11 * 6
    assert {row["scale"] for row in published} == {"paper"}
    lora = next(row for row in ours if (row["method"], row["column"]) == ("lora", "domain_accuracy"))
    assert (lora["n"], lora["not_finite"], lora["finished"]) == ("2", "1", "3")
    assert float(lora["std"]) > 0
    assert float(lora["low"]) < float(lora["mean"]) < float(lora["high"])
    assert lora["letters"]
    full = next(row for row in ours if (row["method"], row["column"]) == ("full", "avg"))
    assert (full["mean"], full["n"], full["out_of_memory"]) == ("", "0", "2")


def test_rendering_is_deterministic_and_a_bundle_renders_the_same(tmp_path: Path) -> None:
    data = _gather(tmp_path, with_trouble() + _paper_records())
    first = table.write(data, tmp_path / "a", save_records=True)
    again = table.write(_gather(tmp_path, []), tmp_path / "b", plots=False)

    def no_jobs(name: str, overrides: object) -> list[FakeJob]:
        raise AssertionError("a bundle brings its own jobs")

    bundle = table.gather(NAME, "nowhere", records_from=tmp_path / "a" / "records.jsonl", jobs_of=no_jobs)
    third = table.write(bundle, tmp_path / "c", save_records=True)
    assert [path.name for path in first] == [path.name for path in third]
    for path in first:
        assert path.read_bytes() == (tmp_path / "c" / path.name).read_bytes(), path.name
    for path in again:
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes(), path.name
    folder = table.gather(NAME, "nowhere", records_from=tmp_path / "records", jobs_of=jobs_of)
    assert render.markdown(table.document(folder)) == render.markdown(table.document(data))


def test_a_bundle_of_another_sweep_or_a_broken_one(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"bundle": 1, "sweep": "altlora_glue", "jobs": {"": [{"seed": 1}]}}\n')
    with pytest.raises(UserError, match="broken list of jobs"):
        table.gather(NAME, "nowhere", records_from=path, jobs_of=jobs_of)
    with pytest.raises(UserError, match="no such file"):
        table.gather(NAME, "nowhere", records_from=tmp_path / "y.jsonl", jobs_of=jobs_of)


def test_markdown_has_as_many_cells_in_every_row(tmp_path: Path) -> None:
    text = render.markdown(table.document(_gather(tmp_path, with_trouble())))
    widths = {}
    for number, line in enumerate(text.splitlines()):
        if line.startswith("|"):
            widths.setdefault(number - len(widths), set())
            widths[max(widths)].add(len(re.findall(r"(?<!\\)\|", line)))
    assert all(len(counts) == 1 for counts in widths.values())


def test_plots_are_images(tmp_path: Path) -> None:
    written = table.write(_gather(tmp_path, []), tmp_path / "out")
    names = {path.name for path in written}
    assert {"scores.png", "scores.svg"} <= names
    assert (tmp_path / "out" / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert b"</svg>" in (tmp_path / "out" / "scores.svg").read_bytes()


HOSTILE = r"50% & more_ {x} #1 $2 ~ ^ \ | <b> -- " + '"q" ± − ≤ é 漢'


def test_latex_escapes_everything_that_is_special() -> None:
    shown = render.latex(_document(HOSTILE))
    body = shown.split("\\midrule")[1].split("\\bottomrule")[0]
    assert "50\\% \\& more\\_ \\{x\\} \\#1 \\$2" in body
    assert "漢" not in shown.split("\n", 2)[2]


def _document(text: str) -> render.Document:
    cell = render.Text(text, text, bold=True)
    running = render.Block("k", text, text, [text, "n", "words"], [[cell, cell, cell]], [text], [0, 0, 0.2])
    return render.Document("a_b", text, [text], [running])


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_latex_compiles_and_fits_the_page(tmp_path: Path) -> None:
    sources = {"trouble": with_trouble(), "none": [], "paper": all_records() + _paper_records()}
    inputs = []
    for name, records in sources.items():
        inputs.append(tmp_path / f"{name}.tex")
        inputs[-1].write_text(render.latex(table.document(_gather(tmp_path / name, records))))
    body = "\n\\clearpage\n".join(f"\\input{{{path}}}" for path in inputs)
    main = tmp_path / "main.tex"
    main.write_text(
        f"\\documentclass{{article}}\n\\usepackage{{booktabs}}\n\\begin{{document}}\n{body}\n\\end{{document}}\n"
    )
    assert "Overfull" not in _compile(main)
    (tmp_path / "hostile.tex").write_text(render.latex(_document(HOSTILE)))
    main.write_text(main.read_text().replace(body, "\\input{hostile}"))
    _compile(main)


def _compile(main: Path) -> str:
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", main.name]
    done = subprocess.run(command, cwd=main.parent, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout
