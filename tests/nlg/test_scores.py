"""The scorers against the official script's numbers, and against its definitions written out the slow way."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lrx.nlg import meteor, mteval, scores
from lrx.nlg.cider import cider
from lrx.nlg.rouge_l import longest_common_subsequence, rouge_l

GOLDEN = json.loads((Path(__file__).parent / "golden_scores.json").read_text(encoding="utf-8"))
REAL = "LRX_TEST_E2E"  # the folder of the official testset_w_refs.csv

# Computed by the official script (-p) on that file.
FIRST = {"bleu": 0.6115, "nist": 8.9912, "meteor": 0.4591, "rouge_l": 0.6462, "cider": 2.0361}
TEMPLATE = {"bleu": 0.4316, "nist": 1.3226, "meteor": 0.3165, "rouge_l": 0.6330, "cider": 0.9273}


def printed(found: dict[str, float]) -> dict[str, str]:
    return {metric: f"{value:.4f}" for metric, value in found.items()}


def test_a_small_corpus_equals_the_official_script_to_the_printed_digit(monkeypatch):
    monkeypatch.setattr(meteor, "missing", lambda: "left out here")
    found = printed(scores.corpus(GOLDEN["hypotheses"], GOLDEN["references"]))
    assert found == {metric: f"{GOLDEN['scores'][metric]:.4f}" for metric in scores.METRICS}


@pytest.mark.slow
def test_meteor_equals_the_official_script():
    if problem := meteor.missing():
        pytest.skip(problem)
    found = scores.corpus(GOLDEN["hypotheses"], GOLDEN["references"])
    assert f"{found['meteor']:.4f}" == f"{GOLDEN['scores']['meteor']:.4f}"


@pytest.mark.slow
@pytest.mark.skipif(REAL not in os.environ, reason=f"{REAL} does not name the folder of testset_w_refs.csv")
@pytest.mark.parametrize("case", ["first", "template"])
def test_the_real_test_set(case):
    grouped: dict[str, list[str]] = {}
    with (Path(os.environ[REAL]) / "testset_w_refs.csv").open(encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            grouped.setdefault(row["mr"], []).append(row["ref"].replace("\n", " ").strip())
    assert len(grouped) == 630
    if case == "first":
        found = scores.corpus(
            [texts[0] for texts in grouped.values()], [texts[1:] or texts for texts in grouped.values()]
        )
    else:
        found = scores.corpus([template(mr) for mr in grouped], list(grouped.values()))
    wanted = FIRST if case == "first" else TEMPLATE
    assert printed(found) == {metric: f"{wanted[metric]:.4f}" for metric in found}


def template(mr: str) -> str:
    slots = {key.strip(): value for key, value in re.findall(r"([^,\[\]]+)\[([^\]]*)\]", mr)}
    food = f" {slots['food']}" if "food" in slots else ""
    area = f" in the {slots['area']}" if "area" in slots else ""
    near = f" near {slots['near']}" if "near" in slots else ""
    return f"{slots['name']} is a{food} {slots.get('eatType', 'restaurant')}{area}{near}."


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", [""]),
        ("It's 5.5, not 5. (Or a&b)", ["it's", "5.5", ",", "not", "5", ".", "(", "or", "a", "&", "b", ")"]),
        ("&quot;a&quot; &lt;b&gt; &amp;amp;", ['"', "a", '"', "<", "b", ">", "&", "amp", ";"]),
        ("family-friendly £20-25", ["family-friendly", "£20", "-", "25"]),
        ("A\u00a0b\tc", ["a", "b", "c"]),
    ],
)
def test_tokens_of_bleu(text, tokens):
    assert mteval.tokenize(text) == tokens


def test_bleu_by_hand():
    one = mteval.Segment(list("abcde"), [list("abcdf"), list("abxxxxx")])
    two = mteval.Segment(list("ab"), [list("ab")])
    # hits 4 + 2, 3 + 1, 2, 1 of totals 5 + 2, 4 + 1, 3 + 0, 2 - 1; lengths 7 and 5 + 2
    wanted = (6 / 7 * 4 / 5 * 2 / 3 * 1 / 1) ** 0.25
    assert mteval.bleu([one, two]) == pytest.approx(wanted, rel=1e-12)


def test_bleu_takes_the_shorter_of_two_equally_close_references():
    own = list("abcd")
    shorter, longer = list("abc"), list("abcde")
    assert mteval.bleu([mteval.Segment(own, [longer, shorter])]) == pytest.approx((4 / 4) ** 0.25)
    assert mteval.bleu([mteval.Segment(own, [longer])]) == pytest.approx(math.exp(1 - 5 / 4))


def test_nist_by_hand():
    one = mteval.Segment(["a", "b"], [["a", "b", "c", "a"]])
    # information: a log2(4/2), b log2(4/1); ab log2(2/1); totals 2, 1, 0, -1, -2
    penalty = math.exp(math.log(0.5) / math.log(1.5) ** 2 * math.log(2 / 4) ** 2)
    assert mteval.nist([one]) == pytest.approx(((1 + 2) / 2 + 1 / 1) * penalty, rel=1e-12)


@pytest.mark.parametrize("text", ["", "word", "word word"])
def test_outputs_that_make_the_official_script_divide_by_zero(text):
    found = scores.corpus([text, text], [["a word"], ["b", "word"]]) if meteor.missing() else None
    segments = [mteval.segment(text, ["a word"]), mteval.segment(text, ["b", "word"])]
    assert math.isfinite(mteval.nist(segments))
    assert 0 <= mteval.bleu(segments) < 1e-3
    assert found is None or all(math.isfinite(value) for value in found.values())


def test_rouge_l_by_hand():
    # best precision 2 / 3 (of the first), best recall 1 (of the second), each on its own
    precision, recall, square = 2 / 3, 1.0, 1.2**2
    wanted = (1 + square) * precision * recall / (recall + square * precision)
    assert rouge_l(["a", "b", "x"], [["a", "q", "b", "r"], ["x"]]) == pytest.approx(wanted, rel=1e-12)
    assert rouge_l([], [[]]) == 1.0  # as in the official script: two empty tokens are equal
    assert rouge_l([], [["a"]]) == 0.0


def test_longest_common_subsequences_against_the_table():
    generator = random.Random(1)
    for _ in range(300):
        a, b = (generator.choices("abcde", k=generator.randint(0, 70)) for _ in range(2))
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert longest_common_subsequence(a, b) == table[-1][-1]


def test_cider_against_vectors_over_the_whole_vocabulary():
    generator = random.Random(2)
    references = [
        [generator.choices("abcd", k=generator.randint(1, 9)) for _ in range(generator.randint(1, 3))] for _ in range(8)
    ]
    hypotheses = [generator.choices("abcde", k=generator.randint(0, 12)) for _ in range(8)]

    def counts(tokens: list[str], n: int) -> Counter:
        return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))

    for own, texts, score in zip(hypotheses, references, cider(hypotheses, references), strict=True):
        total = 0.0
        for n in range(1, 5):
            vocabulary = sorted({gram for each in [*references, [own]] for text in each for gram in counts(text, n)})
            seen = [sum(any(gram in counts(text, n) for text in each) for each in references) for gram in vocabulary]
            idf = math.log(8) - np.log(np.maximum(1, seen))
            for text in texts:
                h, r = (np.array([counts(tokens, n)[gram] for gram in vocabulary]) * idf for tokens in (own, text))
                norm = np.linalg.norm(h) * np.linalg.norm(r)
                apart = max(0, len(own) - 1) - max(0, len(text) - 1)
                total += (np.minimum(h, r) @ r / norm if norm else 0) * math.exp(-(apart**2) / 72) / len(texts)
        assert score == pytest.approx(10 * total / 4, abs=1e-12)


def test_items_are_what_the_means_are_made_of():
    items = scores.items(GOLDEN["hypotheses"], GOLDEN["references"])
    assert {metric: values.shape for metric, values in items.items()} == {"rouge_l": (24,), "cider": (24,)}
    assert items["rouge_l"].mean() == pytest.approx(GOLDEN["scores"]["rouge_l"], abs=5e-5)
    assert items["cider"].mean() == pytest.approx(GOLDEN["scores"]["cider"], abs=5e-5)


@pytest.mark.parametrize("references", [[], [[]], [["a"], ["b"]]])
def test_corpora_that_cannot_be_scored(references):
    with pytest.raises(ValueError, match="references"):
        scores.corpus(["a"] if references else [], references)


def test_meteor_says_what_it_lacks(monkeypatch):
    monkeypatch.setattr(meteor.shutil, "which", lambda _: None)
    assert meteor.missing() == "java is not installed"
    with pytest.raises(RuntimeError, match="java is not installed"):
        meteor.meteor([["a"]], [[["a"]]])
    monkeypatch.setattr(meteor.shutil, "which", lambda _: "/usr/bin/java")
    monkeypatch.setattr(meteor, "_jar", lambda: None)
    assert "pycocoevalcap" in str(meteor.missing())
    assert "meteor" not in scores.corpus(["a pub"], [["a pub"]])


def test_a_java_program_that_fails_costs_only_its_own_score(monkeypatch, tmp_path, capsys):
    (tmp_path / "java").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(meteor, "_jar", lambda: tmp_path / "meteor.jar")
    assert set(scores.corpus(["a pub"], [["a pub"]])) == set(scores.METRICS)
    assert "METEOR is not computed: METEOR's Java program gave no score" in capsys.readouterr().out
