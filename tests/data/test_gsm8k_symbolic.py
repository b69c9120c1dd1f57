"""The generated problems: fetched by hash, the same bytes everywhere, splits that share no question."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest

from lrx.data import gsm8k_symbolic as symbolic
from lrx.data.gsm8k_problems import plain
from lrx.errors import UserError

GOLDEN = "d31da8cd0e5cc4301f44f6867a4203b0c1d3ec26a76280581caf5817a36376c2"


@pytest.fixture(scope="module")
def cached() -> Path:
    try:
        symbolic.check()
    except UserError as error:
        pytest.skip(f"no templates: {error}")
    return symbolic.folder()


def _digest(templates: int) -> str:
    found = symbolic.problems(templates)
    rows = [(split, *map(str, (p.question, p.solution, p.number, p.id))) for split in found for p in found[split].rows]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def test_the_same_bytes_every_time(cached):
    assert _digest(10) == GOLDEN


@pytest.mark.parametrize("templates", [1, 10, 81])
def test_splits_share_no_question_and_have_equal_shares_of_each_template(cached, templates):
    found = symbolic.problems(templates)
    assert {name: len(part) for name, part in found.items()} == symbolic.SIZES
    keys = [plain(problem.question) for part in found.values() for problem in part.rows]
    assert len(set(keys)) == len(keys) == sum(symbolic.SIZES.values())
    for part in found.values():
        shares = Counter(problem.id.split("/")[0] for problem in part.rows)
        assert set(map(int, shares)) == set(symbolic.TEMPLATES[:templates])
        assert max(shares.values()) - min(shares.values()) <= 1 or templates == 81  # some of 81 run dry


def test_every_solution_ends_in_its_integer(cached):
    for part in symbolic.problems(81).values():
        for problem in part.rows:
            assert re.fullmatch(r"-?\d+", problem.number)
            assert problem.solution.endswith(f"\n#### {problem.number}")


def test_the_order_of_the_templates_is_the_documented_one(cached):
    known = symbolic.load_templates(cached)
    assert len(known) == 100

    def difficulty(number: int) -> tuple[float, float, int]:
        drawn = [symbolic.make(number, draw, known[number]) for draw in range(200)]
        lines = mean(problem.solution.count("\n") for problem in drawn)
        return lines, mean(len(problem.question) + len(problem.solution) for problem in drawn), number

    assert len(symbolic.TEMPLATES) == 81
    assert sorted(symbolic.TEMPLATES, key=difficulty) == list(symbolic.TEMPLATES)
    for number in (25, 27, 84, 89):
        with pytest.raises(ValueError, match="does not end in"):
            [symbolic.make(number, draw, known[number]) for draw in range(200)]


def test_a_package_of_that_name_is_left_alone(cached, monkeypatch):
    marker = type(sys)("reasoning_gym")
    monkeypatch.setitem(sys.modules, "reasoning_gym", marker)
    assert 43 in symbolic.load_templates(cached)
    assert sys.modules["reasoning_gym"] is marker
    assert "reasoning_gym.utils" not in sys.modules


def test_exhausted_templates_leave_the_rest():
    def fixed(rng, difficulty):
        return {"question": "one", "answer": "1", "metadata": {"answer_cot": "a\n#### 1"}}

    def many(rng, difficulty):
        number = rng.randrange(10**6)
        return {"question": f"q{number}", "answer": str(number), "metadata": {"answer_cot": f"a\n#### {number}"}}

    drawn = symbolic._draw((1, 2), {1: fixed, 2: many})
    assert [next(drawn).question[0] for _ in range(5)] == ["o", "q", "q", "q", "q"]
    assert len(list(symbolic._draw((1,), {1: fixed}))) == 1


def test_absent_and_damaged_files_are_named_with_the_remedy(cached, tmp_path):
    with pytest.raises(UserError, match=r"not in .*reasoning-gym-0.1.25; fetch them once with: python -m lrx fetch"):
        symbolic.check(tmp_path)
    where = symbolic.folder(tmp_path)
    shutil.copytree(cached, where)
    (where / "utils.py").write_bytes((where / "utils.py").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"utils.py is damaged \(6450 bytes, not 6451\); repair it with"):
        symbolic.check(tmp_path)
    (where / "utils.py").write_bytes(b"#" * 6451)  # right size, other content: not executed
    with pytest.raises(UserError, match=r"utils.py is damaged \(its hash is wrong\)"):
        symbolic.problems(10, tmp_path)


def _wheel(path: Path, cached: Path, **changed: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file, (place, _, _) in symbolic.FILES.items():
            archive.writestr(place, changed.get(file.removesuffix(".py"), (cached / file).read_bytes()))
    return path


def test_fetching_repairs_and_needs_no_network_when_all_is_there(cached, tmp_path, monkeypatch):
    wheel = _wheel(tmp_path / "a.whl", cached)
    monkeypatch.setattr(symbolic, "_download", lambda temporary: wheel)
    where = symbolic.fetch(tmp_path)
    symbolic.check(tmp_path)
    (where / "utils.py").write_bytes(b"")
    symbolic.fetch(tmp_path)
    symbolic.check(tmp_path)
    assert sorted(path.name for path in where.iterdir() if path.name != ".lock") == sorted(symbolic.FILES)
    monkeypatch.setattr(symbolic, "_download", lambda temporary: pytest.fail("nothing to fetch"))
    assert symbolic.fetch(tmp_path) == where


def test_a_wheel_with_another_content_is_refused(cached, tmp_path):
    with pytest.raises(UserError, match=r"does not hold the expected reasoning_gym/utils.py; nothing was kept"):
        symbolic.unpack(_wheel(tmp_path / "b.whl", cached, utils=b"import os"))


def test_a_failing_pip_is_one_line(tmp_path, monkeypatch):
    def run(command, **_):
        assert "--no-deps" in command
        assert "--require-hashes" in command
        return subprocess.CompletedProcess(command, 1, "", "x\nERROR: no such host\nERROR: more")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError) as error:
        symbolic.fetch(tmp_path)
    assert str(error.value).startswith("pip could not download reasoning-gym==0.1.25: ERROR: no such host")
    assert "\n" not in str(error.value)


def test_an_unwritable_cache(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the cache folder"):
        symbolic.fetch(tmp_path / "file")
