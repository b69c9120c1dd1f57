"""What stands in the report: the table's own numbers, every record, nothing that could become code or ask a network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lrx import launch, registry
from lrx.__main__ import main
from lrx.report import write
from lrx.report.vendor.__main__ import PACKAGES
from lrx.results import table as tables
from lrx.results.record import read_folder
from tests.conftest import ROOT, command
from tests.report import invented
from tests.report.conftest import jobs_of


class Reader(HTMLParser):
    """The page as a parser sees it: cells of tables by id, attributes, elements, scripts and styles, visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.words: list[str] = []
        self._rows: list[list[str]] | None = None
        self._inside = ""
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        given = dict(attrs)
        if tag == "table":
            self._rows = self.tables.setdefault(given.get("id") or "", [])
        if tag == "tr" and self._rows is not None:
            self._rows.append([])
        if tag in ("td", "th") and self._rows:
            self._rows[-1].append("")
            self._in_cell = True
        if tag in ("script", "style"):
            self._inside = tag
            if tag == "script":
                self.scripts.append((given, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._rows = None
        if tag in ("td", "th"):
            self._in_cell = False
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._inside == "style":
            self.styles.append(data)
        else:
            self.words.append(data)
            if self._in_cell and self._rows:
                self._rows[-1][-1] += data

    def data(self, name: str) -> Any:
        """The JSON in the element ``name``."""
        (text,) = [text for given, text in self.scripts if given.get("id") == name]
        return json.loads(gzip.decompress(base64.b64decode(text)))


@pytest.fixture(scope="module")
def page(rich: Path) -> Reader:
    return Reader((rich / "report.html").read_text())


@pytest.mark.parametrize("scale", ["mini", "smoke"])
def test_numbers_are_those_of_the_table(rich: Path, page: Reader, scale: str) -> None:
    overrides = [] if scale == "mini" else [f"scale={scale}"]
    data = tables.gather("altlora_glue", rich, jobs_of=jobs_of, overrides=overrides)
    compared = 0
    for block in tables.document(data).blocks:
        shown = page.tables.get(f"altlora_glue-{scale}-{block.key}")
        if shown is None:
            assert scale != "mini", block.key
            continue
        assert shown[0] == block.header
        assert [[" ".join(cell.split()) for cell in row] for row in shown[1:]] == [
            [" ".join(str(cell).split()) for cell in row] for row in block.rows
        ]
        compared += 1
    assert compared >= 3


def test_scales_stand_in_views_of_their_own(page: Reader) -> None:
    """No table mixes scales, and no figure does."""
    for name, rows in page.tables.items():
        if name.startswith("altlora_glue-") and name.endswith("-scores"):
            assert ("-mini-" in name) or ("-smoke-" in name)
            assert rows[0][0] == "method"
    figures = page.data("index-data")["figures"]
    own = {place for place in figures if place.startswith("figures-altlora_glue")}
    assert own == {"figures-altlora_glue-mini", "figures-altlora_glue-smoke"}
    for place, drawn in figures.items():
        for figure in drawn:
            assert figure["caption"].startswith(f"Scale {place.rpartition('-')[2]}:")


def test_every_record_is_in_it_with_its_whole_configuration(rich: Path, page: Reader) -> None:
    records, _ = read_folder(rich / "records")
    trials, _ = read_folder(rich / "tuning" / "altlora_glue" / "records")
    rows, details = page.data("index-data")["runs"], page.data("details-data")
    assert [row["id"] for row in rows] == [record.run_id for record in [*records, *trials]]
    for record, row, run in zip([*records, *trials], rows, details["runs"], strict=True):
        assert (row["status"], row["seed"], run["message"]) == (record.status, record.seed, record.message)
        for name in ("config", "environment"):
            rebuilt = {key: details["pool"][place] for key, place in run[name].items()}
            assert rebuilt == getattr(record, name)
    assert len(details["pool"]) < 2 * len(rows)  # what repeats is there once


def test_scores_of_a_run_and_its_files(rich: Path, page: Reader) -> None:
    record = read_folder(rich / "records")[0][0]
    row, run = page.data("index-data")["runs"][0], page.data("details-data")["runs"][0]
    value = record.parts["sentiment"].metrics["test"]["accuracy"]
    assert row["scores"]["sentiment accuracy"] == f"{value:.4f}"
    assert row["costs"]["median_step_seconds"] == f"{1000 * record.cost['median_step_seconds']:.1f}"
    assert ["test", "reported", "accuracy", f"{value:.4f}", f"{value:.4f}", None] in run["parts"]["sentiment"]["scores"]
    assert all((rich / link).is_file() and (rich / name).is_file() for name, link, _ in run["files"])
    assert f"runs/{record.run_id}/sentiment/metrics.jsonl" in [name for name, *_ in run["files"]]


def test_what_could_not_be_read_is_named(page: Reader) -> None:
    words = " ".join(" ".join(page.words).split())
    assert "2 files among the records could not be read" in words
    assert "cut-short.json: truncated" in words
    assert "schema 99 is newer" in words


def test_papers_of_sweeps_and_of_methods(page: Reader) -> None:
    papers = page.tables["papers"]
    first = papers[1]
    assert "2505.12455" in first[0]
    assert "altlora, altlora_plus" in first[0]
    assert first[1:3] == ["AltLoRA on GLUE", "mini"]
    assert re.search(r"\d+ (holds|hold|fails|fail|not enough evidence)", first[3])
    named = " ".join(row[0] for row in papers)
    for entry in registry.entries("methods").values():
        assert set(re.findall(r"\d{4}\.\d{5}", str(entry.attributes["paper"]))) <= set(
            re.findall(r"\d{4}\.\d{5}", named)
        )
        assert entry.name in named


def test_nothing_becomes_code(rich: Path, page: Reader) -> None:
    text = (rich / "report.html").read_text()
    assert "<script>window.broken" not in text
    assert not any(tag == "img" or name.startswith("on") or name == "style" for tag, name, _ in page.attributes)
    assert all(value.startswith(("#/", "#main")) for _, name, value in page.attributes if name in ("href", "src"))


def test_the_policy_allows_what_is_in_the_page_and_nothing_else(page: Reader) -> None:
    (policy,) = [value for tag, name, value in page.attributes if tag == "meta" and value.startswith("default-src")]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert set(rules) == {"default-src", "script-src", "style-src", "base-uri", "form-action"}
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules["script-src"].split() == [digest(text) for given, text in page.scripts if "type" not in given]
    assert rules["style-src"].split() == [digest("".join(page.styles))]


def test_an_empty_folder_says_how_to_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "sweep_jobs", jobs_of)
    assert main(["report", "--root", str(tmp_path / "none")]) == 0
    words = " ".join(Reader((tmp_path / "none" / "report.html").read_text()).words)
    assert "There are no records" in words
    assert "python run.py +sweeps=altlora_glue" in words


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for arguments, words in (
        (["--root", str(file)], "not a folder"),
        (["--root", str(tmp_path), "--out", str(tmp_path)], "is a folder"),
    ):
        assert main(["report", *arguments]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line


def test_a_broken_sweep_file_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    folder = tmp_path / "sweeps"
    folder.mkdir()
    (folder / "altlora_glue.yaml").write_text((ROOT / "sweeps" / "altlora_glue.yaml").read_text())
    (folder / "broken.yaml").write_text("sweep: {title: 3}\n")
    out = write(tmp_path / "results", tmp_path / "out.html", jobs_of=jobs_of, folder=folder)
    words = " ".join(Reader(out.read_text()).words)
    assert "Sweep broken is not shown" in words
    assert "AltLoRA on GLUE" in words


def test_two_reports_of_one_folder_are_equal_but_for_the_time(rich: Path, tmp_path: Path) -> None:
    texts = []
    for _ in range(2):
        text = write(rich, rich / "again.html", jobs_of=jobs_of).read_text()
        texts.append(re.sub(r"Made [\d: UTC-]+", "", text))
    assert texts[0] == texts[1]
    (rich / "again.html").unlink()


def test_torch_is_not_imported(tmp_path: Path) -> None:
    program = f"import sys; from lrx.__main__ import main; main(['report', '--root', {str(tmp_path)!r}]); "
    result = command("-c", program + "print(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))")
    assert result.code == 0, result
    assert result.out.splitlines() == [str(tmp_path / "report.html"), "[]"]


@pytest.mark.slow
def test_2000_records_with_their_logs_in_three_seconds_and_ten_megabytes(tmp_path: Path) -> None:
    """Three seconds on two free cores, measured as the time of both processes: other work does not count."""
    invented.write(tmp_path, invented.many(2000))
    seconds = []
    for _ in range(3):
        before = sum(os.times()[:4])
        path = write(tmp_path, jobs_of=jobs_of)
        seconds.append(sum(os.times()[:4]) - before)
    assert min(seconds) < 4.5
    assert path.stat().st_size < 10e6
    assert len(Reader(path.read_text()).data("index-data")["runs"]) == 2000


def test_vendored_libraries_are_those_of_their_readme() -> None:
    folder = ROOT / "lrx" / "report" / "vendor"
    readme = (folder / "README.md").read_text()
    scripts = sorted(folder.glob("*.js"))
    assert [path.name for path in scripts] == ["chart.umd.min.js", "dataTables.min.js"]
    for path in scripts:
        assert f"| `{path.name}` | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |" in readme
        version = re.search(r"(?:Chart\.js v|DataTables )([\d.]+)", path.read_text()[:200])
        assert version is not None
        assert f"| {version[1]} |" in readme
    for files in PACKAGES.values():
        for name in files.values():
            assert (folder / name).is_file()
            assert name in readme
    assert sum(path.stat().st_size for path in scripts) < 600_000


def test_the_generator_has_every_outcome() -> None:
    assert {record.status for record in invented.many(2000)} == {
        "finished",
        *(status for status, _ in invented.OUTCOMES),
    }
