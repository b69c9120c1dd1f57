"""``python -m lrx verify``: every claim of every sweep on one page, quickly and without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lrx import paths
from lrx.__main__ import main
from lrx.errors import UserError
from lrx.results import verify
from lrx.results.blocks import MARK
from lrx.results.sweep import load
from tests.conftest import ROOT
from tests.results.fakes import all_records, jobs_of

NAME = "altlora_glue"
CLAIMS = load(NAME).claims


def _sweeps(folder: Path) -> Path:
    """A sweep, the same under another name with a claim that fails, one without claims, and a broken one."""
    text = (paths.sweeps_dir() / f"{NAME}.yaml").read_text()
    renamed = text.replace(f"name: {NAME}\n", "name: other\n")
    assert renamed != text
    (folder / f"{NAME}.yaml").write_text(text)
    (folder / "other.yaml").write_text(renamed.replace("a: lora, b: head", "a: head, b: lora"))
    (folder / "silent.yaml").write_text(renamed.replace("name: other", "name: silent").split("\n  claims:")[0])
    (folder / "broken.yaml").write_text("sweep: {name: broken}\n")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for record in all_records():
        record.save(tmp_path / "root")
    return tmp_path / "root"


def test_all_sweeps_stand_on_one_page(root: Path, tmp_path: Path) -> None:
    found = verify.verify([], root, jobs_of=jobs_of, folder=_sweeps(tmp_path))
    assert [block.key for block in found.page.blocks] == [NAME, "broken", "other", "silent"]
    blocks = {block.key: block for block in found.page.blocks}
    assert len(blocks[NAME].rows) == len(blocks["other"].rows) == len(CLAIMS)
    assert "makes no claims" in blocks["silent"].caption
    assert "Field required" in blocks["broken"].caption
    assert set(found.broken) == {"broken"}
    assert len(found.judged) == 2 * len(CLAIMS)
    assert found.fails
    counts = [sum(item.verdict == word for item in found.judged) for word in ("holds", "fails", "not enough evidence")]
    assert found.page.intro[0] == (
        f"{2 * len(CLAIMS)} claims of 4 sweeps: {counts[0]} hold, {counts[1]} fails, {counts[2]} not enough evidence."
    )


def test_named_sweeps_only(root: Path, tmp_path: Path) -> None:
    folder = _sweeps(tmp_path)
    found = verify.verify([NAME], root, jobs_of=jobs_of, folder=folder)
    assert [block.key for block in found.page.blocks] == [NAME]
    assert not found.fails
    with pytest.raises(UserError, match="did you mean 'other'"):
        verify.verify(["othr"], root, jobs_of=jobs_of, folder=folder)
    with pytest.raises(UserError, match="Field required"):
        verify.verify(["broken"], root, jobs_of=jobs_of, folder=folder)


def test_the_protocol_can_be_changed(root: Path, tmp_path: Path) -> None:
    found = verify.verify([NAME], root, ["protocol.checkpoint=last"], jobs_of=jobs_of)
    assert "the last step" in found.page.blocks[0].caption
    with pytest.raises(UserError, match="refused"):
        verify.verify([NAME], root, ["protocol.checkpoint=best_on_test"], jobs_of=jobs_of)


def test_a_broken_record_is_told_and_not_fatal(root: Path) -> None:
    (root / "records" / "torn.json").write_text('{"schema": 1,')
    found = verify.verify([NAME], root, jobs_of=jobs_of)
    assert [problem.path.name for problem in found.problems] == ["torn.json"]
    assert any(item.verdict == "holds" for item in found.judged)


def test_exit_codes(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    folder = _sweeps(tmp_path)
    monkeypatch.setattr(paths, "sweeps_dir", lambda: folder)
    monkeypatch.setattr("lrx.results.gather._compose", jobs_of)
    page = tmp_path / "claims.md"
    assert main(["verify", "--root", str(root), "--out", str(page)]) == 0
    printed = capsys.readouterr()
    assert page.read_text() in printed.out
    assert main(["verify", "--root", str(root), "--strict"]) == 1
    assert main(["verify", NAME, "--root", str(root), "--strict"]) == 0
    assert main(["verify", "nothing", "--root", str(root)]) == 2
    assert "no sweep is called 'nothing'" in capsys.readouterr().err


def test_the_command_needs_neither_records_nor_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from lrx.__main__ import main; code = main(['verify', '--root', sys.argv[1]]); "
        "assert code == 0; heavy = {'torch', 'scipy.stats', 'statsmodels', 'pandas'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "0 hold, 0 fail" in done.stdout


def test_the_page_says_what_was_selected_on_the_reported_split(root: Path) -> None:
    assert MARK not in verify.verify([NAME], root, jobs_of=jobs_of).page.title
    for record in all_records():
        record.parts["domain"].selects_on_reported = True
        record.save(root, overwrite=True)
    page = verify.verify([NAME], root, jobs_of=jobs_of).page
    for text in (page.title, page.intro[0], page.blocks[0].title, page.blocks[0].caption):
        assert MARK in text


def test_claims_are_not_adjusted_and_own_checks_stand_apart(root: Path) -> None:
    page = verify.verify([NAME], root, jobs_of=jobs_of).page
    assert "4 of papers: " in page.intro[1]
    assert "2 checks of our own: " in page.intro[1]
    assert "not adjusted for each other" in page.intro[2]
    assert "not adjusted for each other" in page.blocks[0].caption
