"""The tokenizer against Stanford's own: recorded lines, and random ones where Java and its program are there."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from lrx.nlg import ptb

GOLDEN = json.loads((Path(__file__).parent / "golden_tokens.json").read_text(encoding="utf-8"))["lines"]
JAR = "tokenizer/stanford-corenlp-3.4.1.jar"


def lower(lines: list[str]) -> list[list[str]]:
    """All tokens of lines that are one text."""
    found: list[list[str]] = [[]]
    for token in ptb.raw_tokens("\n".join(lines)):
        if token == "\n":
            found.append([])
        else:
            found[-1].append(token.lower())
    return found


def test_recorded_lines():
    lines = [line for line, _ in GOLDEN]
    wrong = [(line, got, wanted) for (line, wanted), got in zip(GOLDEN, lower(lines), strict=True) if got != wanted]
    assert len(GOLDEN) > 400
    assert not wrong


def test_what_the_scorer_drops_and_what_it_forgets():
    found = ptb.tokenize(['"The Mill" (a pub), isn\'t it? -- [no] ...', "", "A;b:cat."])
    brackets = ["the", "mill", "-lrb-", "a", "pub", "-rrb-", "is", "n't", "it", "-lsb-", "no", "-rsb-"]
    assert found == [brackets, [], ["a", "b", "cat"]]


def test_an_abbreviation_looks_at_the_next_line():
    assert lower(["Prices etc.", "The end"])[0] == ["prices", "etc.", "."]
    assert lower(["Prices etc.", "the end"])[0] == ["prices", "etc."]
    assert lower(["Prices etc.", "", "", "The end"])[0] == ["prices", "etc.", "."]


def test_line_breaks_inside_a_line_make_no_line():
    assert ptb.tokenize(["a\nb\r\nc\u2028d", "e"]) == [["a", "b", "c", "d"], ["e"]]


@pytest.mark.parametrize(
    "text", ["a" * 20000, "a-" * 5000, "'" * 5000, "<" * 3000, "." * 4001, "1,2" * 3000, "x@" * 1000, "😀" * 1000]
)
def test_very_long_tokens_take_no_long_time(text):
    assert len(ptb.tokenize([text])) == 1


def words(generator: random.Random) -> str:
    pieces = [piece for line, _ in GOLDEN for piece in line.split()]
    letters = "abcXYZ.,'-!?:;\"()/&£$%#@<>_*0123 9é—’“”…nt"
    found = ""
    for _ in range(generator.randint(0, 14)):
        odd = generator.random() < 0.3
        found += "".join(generator.choices(letters, k=generator.randint(1, 9))) if odd else generator.choice(pieces)
        found += generator.choice([" ", " ", " ", "", ". ", ", "])
    return found


@pytest.mark.slow
def test_random_lines_against_the_java_program(tmp_path):
    found = find_spec("pycocoevalcap")
    if shutil.which("java") is None or found is None:
        pytest.skip("needs java and the package pycocoevalcap")
    jar = Path(next(iter(found.submodule_search_locations or ()))) / JAR
    lines = [words(random.Random(seed)) for seed in range(2000)]
    text = tmp_path / "lines"
    text.write_bytes("\n".join(lines).encode())
    command = [
        "java",
        "-cp",
        str(jar),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
        str(text),
    ]
    done = subprocess.run(command, capture_output=True, check=True, timeout=100)
    theirs = done.stdout.decode("utf-8").split("\n")
    ours = [" ".join(tokens) for tokens in lower(lines)]
    assert [pair for pair in zip(lines, ours, theirs, strict=False) if pair[1] != pair[2]] == []
