"""`python -m lrx`: every verb answers at once and without torch; every mistake is one line and exit code 2."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from lrx import desk, launch, registry
from lrx.__main__ import main
from tests.conftest import ROOT, Result, command
from tests.results.fakes import all_records, jobs_of, with_trouble

Desk = Callable[..., Result]


@pytest.fixture
def lrx(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Run the desk in this process, with an invented grid."""
    monkeypatch.setattr(launch, "sweep_jobs", jobs_of)

    def call(*arguments: str) -> Result:
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


@pytest.mark.parametrize("kind", list(desk.KINDS))
def test_list_names_everything(kind: str, lrx: Desk) -> None:
    shown = lrx("list", kind)
    assert shown.code == 0
    for name, choice in desk.choices(kind).items():
        assert name in shown.out
        assert choice.summary, f"{name} says nothing about itself"
    assert all(kind in lrx("list").out for kind in desk.KINDS)


def test_list_shows_papers(lrx: Desk) -> None:
    assert "2505.12455" in lrx("list", "methods").out


@pytest.mark.parametrize("name", [name for kind in desk.KINDS for name in desk.choices(kind)])
def test_info_knows_everything_in_the_list(name: str, lrx: Desk) -> None:
    shown = lrx("info", name)
    assert shown.code == 0, shown
    assert name in shown.out


def test_info_of_a_method(lrx: Desk) -> None:
    shown = lrx("info", "altlora").out
    assert "2505.12455" in shown
    assert "(B^T B + damping I)^-1" in shown  # its equations, with nothing taken for markup
    for option in registry.find("methods", "altlora").signature:
        assert f"method.{option}" in shown
    assert "paper, Table 2" in shown  # the comment beside rank
    assert "outputs equal the backbone's before training: yes" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "altlorra"], "did you mean 'altlora'?"),
        (["list", "method"], "did you mean 'methods'?"),
        (["table", "altlora_glu"], "did you mean 'altlora_glue'?"),
        (["status", "altlora_glu"], "did you mean 'altlora_glue'?"),
        (["tabel"], "'table'"),
        (["table"], "sweep"),
        (["table", "altlora_glue", "--records", "/nowhere/x"], "no such file"),
        (["table", "altlora_glue", "--rot", "x"], "--root"),
        (["export", "nothing"], "no record 'nothing'"),
        (["export", "../nothing"], "no record"),
        (["export", "x", "--format", "mergd"], "did you mean 'merged'?"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, lrx: Desk) -> None:
    shown = lrx(*arguments)
    assert shown.code == 2, shown
    assert message in shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert "Traceback" not in shown.err


def test_table_writes_everything_and_prints_markdown(tmp_path: Path, lrx: Desk) -> None:
    for record in all_records():
        record.save(tmp_path)
    (tmp_path / "records" / "broken.json").write_text("{")
    shown = lrx("table", "altlora_glue", "--root", str(tmp_path), "--save-records", "--no-plots")
    assert shown.code == 0, shown
    folder = tmp_path / "tables" / "altlora_glue"
    assert {path.name for path in folder.iterdir()} == {"table.md", "table.tex", "table.csv", "records.jsonl"}
    assert (folder / "table.md").read_text().strip() in shown.out
    assert "skipped" in shown.err
    assert "broken.json" in shown.err
    source = ["--records", str(folder / "records.jsonl"), "--out", str(tmp_path / "b")]
    again = lrx("table", "altlora_glue", *source, "--no-plots", "-q")
    assert again.code == 0, again
    assert (tmp_path / "b" / "table.md").read_bytes() == (folder / "table.md").read_bytes()


def test_table_where_nothing_can_be_written(tmp_path: Path, lrx: Desk) -> None:
    (tmp_path / "tables").write_text("")
    shown = lrx("table", "altlora_glue", "--root", str(tmp_path), "--no-plots", "-q")
    assert shown.code == 2
    assert "cannot write" in shown.err
    assert str(tmp_path) in shown.err


def test_status_counts_and_gives_reasons(tmp_path: Path, lrx: Desk) -> None:
    for record in with_trouble():
        record.save(tmp_path)
    shown = lrx("status", "altlora_glue", "--root", str(tmp_path), "task.subset=[a,b]")
    assert shown.code == 0
    assert "10 of 15 jobs finished" in shown.out
    assert "diverged: loss is NaN at step 12" in shown.out
    assert "1 missing" in shown.out
    assert f"python run.py +sweeps=altlora_glue 'task.subset=[a,b]' paths.root={tmp_path}" in shown.out.replace(
        "\n", ""
    )


def test_a_changed_grid_does_not_replace_the_table_that_counts(tmp_path: Path, lrx: Desk) -> None:
    assert lrx("table", "altlora_glue", "--root", str(tmp_path), "--no-plots").code == 0
    before = (tmp_path / "tables" / "altlora_glue" / "table.md").read_text()
    shown = lrx(
        "table", "altlora_glue", "scale=paper", "task.subset=[a,b]", "--root", str(tmp_path), "--no-plots", "-q"
    )
    assert shown.code == 0, shown
    assert "altlora_glue,scale=paper,task.subset=_a,b_/table.md" in shown.out
    assert (tmp_path / "tables" / "altlora_glue" / "table.md").read_text() == before


def test_export_hands_over_to_lrx_export(tmp_path: Path, lrx: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    record = all_records()[0]
    path = record.save(tmp_path)
    calls = []
    fake = types.ModuleType("lrx.export")
    fake.export_record = lambda *arguments: calls.append(arguments) or [tmp_path / "out"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lrx.export", fake)
    assert lrx("export", str(path), "--format", "merged").code == 0
    assert lrx("export", record.run_id, "--root", str(tmp_path)).code == 0
    assert calls == [(path, "merged", None), (path, "peft", None)]


def test_run_passes_its_arguments_on(lrx: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(launch, "main", lambda arguments: seen.append(list(arguments)) or 1)
    assert lrx("run", "-m", "method=lora,altlora", "--cfg", "job", "--help").code == 1
    assert seen == [["-m", "method=lora,altlora", "--cfg", "job", "--help"]]


def test_bare_call_and_help(lrx: Desk) -> None:
    assert "table" in lrx().out
    assert lrx().code == 0
    assert "status" in lrx("--help").out
    assert lrx("--version").out.startswith("lrx ")


_NO_TORCH = """
import json, sys, time
start = time.perf_counter()
from lrx.__main__ import main
code = main(sys.argv[1:])
print()
heavy = sorted({"torch", "transformers", "scipy.stats"} & set(sys.modules))
print(json.dumps([code, time.perf_counter() - start, heavy]))
"""


@pytest.mark.parametrize(
    "arguments", [["list"], ["info", "altlora"], ["--help"], ["table", "altlora_glu"], ["status", "altlora_glue"]]
)
def test_torch_stays_out(arguments: list[str], tmp_path: Path) -> None:
    shown = command("-c", _NO_TORCH, *arguments)
    code, _, heavy = json.loads(shown.out.strip().splitlines()[-1])
    assert heavy == []
    assert code == (2 if arguments[-1] == "altlora_glu" else 0), shown


def test_an_empty_option_comment_is_no_comment(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "# Head.\nname: x\nrank: 8   # paper\n          # and more\n"
        "path: a#b  # real\ntext: 'a # b'\nlast: [1, 2]\n# loose\n"
    )
    assert desk.leading_comment(path) == "Head."
    assert desk.option_comments(path) == {
        "name": "",
        "rank": "paper and more",
        "path": "real",
        "text": "",
        "last": "",
    }


def test_desk_reads_the_repository(lrx: Desk) -> None:
    assert (ROOT / "sweeps" / "altlora_glue.yaml").exists()
    assert "altlora_glue" in lrx("list", "sweeps").out
