"""The rules of extraction against verdicts that the official code of each gave (``gsm8k_golden.jsonl``).

The first line of the file has the gold numbers; every other one a completion and for each rule what the official code
extracted, and for which gold numbers its verdict was right. Where that code raised, the extraction is null.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lrx.data import gsm8k_extract as rules
from lrx.data.gsm8k_extract import RULES

LINES = (Path(__file__).parent / "gsm8k_golden.jsonl").read_text(encoding="utf-8").splitlines()
GOLDS = json.loads(LINES[0])["golds"]
STRINGS = [json.loads(line) for line in LINES[1:]]
EXTRACT = {
    "official": rules.official,
    "strict": rules.strict,
    "flexible": rules.flexible,
    "cot": rules.cot,
    "llama": rules.llama,
    "lorasb": rules.lorasb,
    "lorasb_equal": rules.lorasb,
    "loraga": rules.loraga,
}


@pytest.mark.parametrize("name", list(RULES))
def test_extraction_and_verdict_equal_the_official_code(name):
    assert len(STRINGS) > 190
    for row in STRINGS:
        extracted, right = row[name]
        assert EXTRACT[name](row["text"]) == extracted, row["text"]
        found = [gold for gold in GOLDS if RULES[name].right(row["text"], gold)]
        assert sorted(found) == sorted(right), row["text"]


def test_every_rule_is_seen_right_and_wrong():
    for name in RULES:
        verdicts = {gold in row[name][1] for row in STRINGS for gold in GOLDS}
        assert verdicts == {True, False}


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("so\n#### 1,000", "1000", {"official", "strict", "flexible"}),
        ("so\n#### 1000", "1,000", {"official", "strict", "flexible"}),
        ("so $18.", "18", {"flexible"}),
        ("the answer is 5 or 7", "7", {"flexible"}),
        ("nothing to see", "18", set()),
        ("#### -3", "-3", {"official", "strict", "flexible", "loraga"}),  # loraga: 0 on both sides
        ("#### 18.", "18", {"strict", "flexible", "loraga"}),
        ("#### 18.00", "18", {"loraga"}),
        ("#### $18", "18", {"flexible"}),
        ("#### 18 apples", "18", {"official", "strict", "flexible", "loraga"}),
        ("The answer is 18", "18", {"flexible"}),  # gsm8k_cot reads 1 here
        ("The answer is 18.", "18", {"flexible", "cot"}),
        ("The final answer is 18", "18", {"flexible", "llama"}),
        ("#### 18\nThe answer is: 1800", "18", {"official", "strict", "lorasb", "loraga"}),
        ("The answer is: 37/2", "18", {"lorasb", "lorasb_equal"}),  # 18.5, half to even
        ("The answer is: 18/00", "18", set()),  # ends the original script
        ("The answer is: 1.2", "1.2.3", set()),
    ],
)
def test_the_rules_differ_where_their_authors_do(text, gold, right):
    assert {name for name, rule in RULES.items() if rule.right(text, gold)} == right


def test_what_a_run_reports():
    def metrics(name):
        return [rule.metric for rule in rules.reported(name)]

    assert metrics("official") == ["exact_match", "strict", "flexible"]
    assert metrics("flexible") == ["flexible", "exact_match", "strict"]
    assert metrics("loraga") == ["loraga", "exact_match", "strict", "flexible"]
    assert metrics("lorasb") == ["lorasb", "exact_match", "strict", "flexible", "lorasb_equal"]


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("a\n#### 1,000", "1,000"),
        ("a\n####  -3 ", "-3"),
        ("#### 1 #### 2", "2"),
        ("a\n#### five", None),
        ("a\n#### ", None),
        ("a 18", None),
        ("", None),
        ("#### 1,2.5", "1,2.5"),
        ("#### .,", None),
        ("#### 18 apples", "18"),
        ("#### $18", None),
    ],
)
def test_the_gold_number(answer, number):
    assert rules.gold_number(answer) == number


def test_verdicts_need_as_many_gold_numbers():
    assert rules.verdicts(RULES["official"], ["#### 1", "1"], ["1", "1"]) == [True, False]
    with pytest.raises(ValueError, match="argument 2"):
        rules.verdicts(RULES["official"], ["#### 1"], [])
