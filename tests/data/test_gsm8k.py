"""GSM8K's files, splits and prompts: what is irregular is counted, nothing of the test split is trained on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrx.data import gsm8k, gsm8k_symbolic
from lrx.data.gsm8k_prompts import COT, FORMATS
from lrx.errors import UserError
from tests.conftest import ROOT
from tests.data.test_hub import free_port, parquet
from tests.hub import Hub


def row(n: int, text: str = "Q", number: str | None = None) -> dict[str, str]:
    return {"question": f"{text} {n}?", "answer": f"{n}+1 = <<{n}+1={n + 1}>>{n + 1}\n#### {number or n + 1}"}


def write(folder: Path, train: object = None, test: object = None) -> dict:
    """A folder with the two files; lists are made of dicts and of raw lines."""
    folder.mkdir(exist_ok=True)
    given = {"train": [row(n) for n in range(40)] if train is None else train,
             "test": [row(n, "T") for n in range(6)] if test is None else test}  # fmt: skip
    for name, rows in given.items():
        if isinstance(rows, list):
            lines = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in rows]
            (folder / f"{name}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return {"source": "local", "data_dir": str(folder)}


def test_the_splits_of_local_files(tmp_path):
    task = write(tmp_path)
    gsm8k.check(task)
    train, select, test = (gsm8k.completions(task | {"holdout": 0.25}, name) for name in gsm8k.SPLITS)
    assert (len(train), len(select), len(test)) == (30, 10, 6)
    assert not set(train.ids) & set(select.ids)
    assert test.references == ["1", "2", "3", "4", "5", "6"]
    assert test.ids == ["0", "1", "2", "3", "4", "5"]
    assert test.prompts[0] == "Question: T 0?\nAnswer:"
    assert test.answers[0] == " 0+1 = 1\n#### 1"
    assert gsm8k.completions(task | {"holdout": 0}, "select").prompts == test.prompts
    with pytest.raises(KeyError):
        gsm8k.problems(task, "validation")


def test_the_division_depends_on_the_questions_and_not_on_their_order(tmp_path):
    rows = [row(n) for n in range(40)]
    one = gsm8k.problems(write(tmp_path / "a", rows), "select")
    other = gsm8k.problems(write(tmp_path / "b", rows[::-1]), "select")
    assert {p.question for p in one.rows} == {p.question for p in other.rows}


IRREGULAR = [
    b"{broken",
    b'{"question": "\xff?", "answer": "#### 1"}',
    b"[1, 2]",
    b"3",
    {"question": "half a character: \ud800", "answer": "#### 1"},
    {"question": "no answer"},
    {"question": "wrong type", "answer": 3},
    {"question": None, "answer": "#### 1"},
    {"question": "  ", "answer": "#### 1"},
    {"question": "q", "answer": ""},
    {"question": "q", "answer": "it is 5"},
    {"question": "q", "answer": "#### five"},
]


def test_irregular_lines_are_counted_and_named_in_the_notes(tmp_path):
    good = [row(n) for n in range(20)]
    task = write(tmp_path, [b"\xef\xbb\xbf" + json.dumps(row(99)).encode() + b"\r", b"", *IRREGULAR, b"   ", *good])
    kept, held = (gsm8k.completions(task, name) for name in ("train", "select"))
    assert len(kept) + len(held) == 21
    assert kept.notes == {"broken_line": 5, "missing_field": 3, "empty_question": 1, "no_number": 3}


def test_a_question_of_the_test_split_is_not_trained_on(tmp_path):
    task = write(tmp_path, [row(n) for n in range(10)], [row(3), {**row(4), "question": " q  4? "}])
    kept, held = gsm8k.problems(task, "train"), gsm8k.problems(task, "select")
    assert len(kept) + len(held) == 8
    assert kept.notes == {"in_test": 2}


def test_what_was_rephrased_from_a_test_question_is_not_trained_on(tmp_path):
    write(tmp_path, test=[{"question": "O3", "answer": "#### 1"}])
    (tmp_path / "MetaMathQA-395K.json").write_text(json.dumps([rephrased(n) for n in range(40)]))
    task = {"source": "local", "data_dir": str(tmp_path), "train_data": "metamath", "holdout": 0.2}
    kept, held = gsm8k.problems(task, "train"), gsm8k.problems(task, "select")
    assert not [row for row in (*kept.rows, *held.rows) if row.origin == "o3"]
    assert kept.notes["in_test"] == sum(KINDS[n % 4].startswith("GSM") for n in range(12, 16))
    assert held.notes == {}


def test_unicode_separators_and_extra_fields_are_no_trouble(tmp_path):
    task = write(tmp_path, test=[{"question": "a\u2028b\x85c", "answer": "x\n#### -3", "more": 1}])
    found = gsm8k.completions(task, "test")
    assert found.prompts == ["Question: a\u2028b\x85c\nAnswer:"]
    assert found.references == ["-3"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "train.jsonl holds no examples"),
        ([b"x", b"y", row(1)], r"2 of 3 examples cannot be used \(broken_line 2\); each needs the texts 'question'"),
        ([{"text": "a"}], r"1 of 1 examples cannot be used \(missing_field 1\)"),
        ([row(1, "T"), row(2, "T")], "leaves no select example"),
        ([row(n, number="five") for n in range(3)], r"no_number 3\).*ending in '#### N'"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(tmp_path, train, message):
    with pytest.raises(UserError, match=message) as error:
        gsm8k.problems(write(tmp_path, train), "select")
    assert "\n" not in str(error.value)


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        gsm8k.check({"source": "local", "data_dir": str(tmp_path / "none")})
    task = write(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(UserError, match=r"train.jsonl is missing.*test.jsonl\); without it .* \(mode=eval\)"):
        gsm8k.check(task)
    gsm8k.check(task, mode="eval")
    assert gsm8k.digest(task)
    with pytest.raises(UserError, match=r"train.jsonl is missing"):
        gsm8k.check(task | {"few_shot": 1, "shots": "train"}, mode="eval")
    (tmp_path / "test.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match=r"test\.jsonl is empty"):
        gsm8k.check(task, mode="eval")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"source": "hug"}, "task.source=hug: no such source; did you mean 'hub'"),
        ({"source": "local"}, "task.source=local needs task.data_dir"),
        ({"data_dir": "/x"}, "task.data_dir is read only with task.source=local"),
        ({"train_data": "metamath"}, "task.train_data=metamath needs task.source=hub or task.source=local"),
        ({"extract": "offical"}, "did you mean 'official'"),
        ({"prompt": "alpacca"}, "task.prompt=alpacca: no such prompt; did you mean 'alpaca'"),
        ({"eval_prompt": "x"}, "task.eval_prompt=x: no such eval_prompt"),
        ({"few_shot": 9}, "task.few_shot=9: there are 8 fixed examples"),
        ({"few_shot": -1}, "task.few_shot=-1: must be at least 0"),
        ({"templates": 82}, "task.templates=82: from 1 to 81"),
        ({"templates": 0}, "task.templates=0: from 1 to 81"),
        ({"holdout": 1.0}, "task.holdout=1.0: a fraction"),
        ({"revision": "x"}, "task.revision is read only with task.source=hub"),
        ({"max_new_tokens": 0}, "task.max_new_tokens=0: must be at least 1"),
        ({"label_smoothing": 1.5}, "task.label_smoothing=1.5: from 0 to below 1"),
        ({"eval_limit": 0}, "task.eval_limit=0: must be at least 1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_options_are_checked_first(task, message):
    with pytest.raises(UserError) as error:
        gsm8k.check({"shots": "cot"} | task)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_digest_is_of_the_content(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    assert gsm8k.digest(a) == gsm8k.digest(b)
    write(tmp_path / "b", test=[row(7, "T")])
    assert gsm8k.digest(a) != gsm8k.digest(b)
    hub = {"source": "hub"}
    digests = [gsm8k.digest(task) for task in ({}, {"templates": 3}, hub, hub | {"revision": "main"},
                                               hub | {"train_data": "metamath"})]  # fmt: skip
    assert len(set(digests)) == 5


FORMS = {
    "harness": ("Question: T 1?\nAnswer:", " 1+1 = 2\n#### 2"),
    "cot": ("Q: T 1?\nA:", " 1+1 = 2\n#### 2"),
    "loraga": ("Q: T 1?\nA: ", " 1+1 = 2\n#### 2"),
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nT 1?\n\n### Response: Let's think step by step.",
        "1+1 = 2\n#### 2",
    ),
    "altlora": ("Question: T 1? </s> Answer: ", "1+1 = 2\n#### 2"),
}


@pytest.mark.parametrize("prompt", list(FORMATS))
def test_the_formats_letter_by_letter(tmp_path, prompt):
    found = gsm8k.completions(write(tmp_path) | {"prompt": prompt}, "test")
    assert (found.prompts[1], found.answers[1]) == FORMS[prompt]
    trained = gsm8k.completions(write(tmp_path) | {"prompt": prompt}, "train")
    assert not any("step by step" in text for text in trained.prompts)


ENDED = {
    "as_is": "1+1 = 2\n#### 2",
    "hashes": "1+1 = 2\n#### 2",
    "metamath": "1+1 = 2\n#### 2\nThe answer is: 2",
    "cot": "1+1 = 2\nThe answer is 2.",
    "llama": "1+1 = 2\nThe final answer is 2",
}


@pytest.mark.parametrize("ending", list(ENDED))
def test_how_solutions_end(tmp_path, ending):
    task = write(tmp_path) | {"ending": ending}
    assert gsm8k.completions(task, "test").answers[1] == " " + ENDED[ending]
    kept = gsm8k.completions(task | {"calculator_marks": "keep"}, "test").answers[1]
    assert kept == " " + ENDED[ending].replace("= 2", "= <<1+1=2>>2")


def test_worked_examples_stand_before_scored_prompts_only(tmp_path):
    task = write(tmp_path) | {"few_shot": 8, "eval_prompt": "cot"}
    test = gsm8k.completions(task, "test").prompts[0]
    assert test.startswith(f"Q: {COT[0][0]}\nA: There are 15 trees originally.")
    assert "21 - 15 = 6. The answer is 6.\n\nQ: If there are 3 cars" in test
    assert test.endswith("23 - 15 is 8. The answer is 8.\n\nQ: T 0?\nA:")
    assert gsm8k.completions(task, "train").prompts[0].startswith("Question: Q ")
    hashes = gsm8k.completions(task | {"ending": "hashes", "few_shot": 1}, "test").prompts[0]
    assert hashes.endswith("21 - 15 = 6.\n#### 6\n\nQ: T 0?\nA:")


def test_worked_examples_from_the_training_split(tmp_path):
    task = write(tmp_path) | {"few_shot": 3, "shots": "train"}
    prompts = gsm8k.completions(task, "test").prompts
    train = {p.question for p in gsm8k.problems(task, "train").rows}
    shown = [line.removeprefix("Question: ") for line in prompts[0].splitlines() if line.startswith("Question: ")]
    assert len(set(shown)) == 4
    assert set(shown[:3]) <= train
    assert prompts[0].split("Question: T")[0] == prompts[5].split("Question: T")[0]
    with pytest.raises(UserError, match=r"task\.few_shot=99: the training split has"):
        gsm8k.completions(task | {"few_shot": 99}, "test")


def test_braces_in_a_question_are_text(tmp_path):
    task = write(tmp_path, test=[{"question": "{question} {0} {", "answer": "#### 1"}])
    assert gsm8k.completions(task, "test").prompts == ["Question: {question} {0} {\nAnswer:"]


KINDS = ["GSM_Rephrased", "GSM_SV", "MATH_FOBAR", "GSM_AnsAug"]


def rephrased(n: int) -> dict[str, str]:
    return {
        "query": f"q{n}",
        "response": f"r{n}\n#### {n}\nThe answer is: {n}",
        "type": KINDS[n % 4],
        "original_question": f"o{n // 4}",
    }


OTHER = {"query": "m", "response": "so\nThe answer is: \\frac{1}{2}", "type": "MATH_AnsAug", "original_question": "mo"}
META = [*(rephrased(n) for n in range(40)), OTHER]


def test_metamath_with_the_papers_filters(tmp_path):
    write(tmp_path, test=[{"question": "Q5", "answer": "#### 1"}])
    (tmp_path / "MetaMathQA-395K.json").write_text(json.dumps([*META, {"query": "x", "type": "GSM_SV"}]))
    task = {"source": "local", "data_dir": str(tmp_path), "train_data": "metamath", "holdout": 0.1}
    gsm8k.check(task)
    kept, held = gsm8k.problems(task, "train"), gsm8k.problems(task, "select")
    assert len(kept) + len(held) == 29  # 30 made from GSM8K, of which q5 is in the test split
    assert not {p.origin for p in kept.rows} & {p.origin for p in held.rows}
    assert kept.notes == {"other_type": 11, "missing_field": 1, "in_test": 1}
    first = gsm8k.problems(task | {"train_first": 7}, "train")
    assert first.rows == kept.rows[:7]
    every = gsm8k.completions(task | {"metamath_types": "all", "ending": "hashes", "holdout": 0.01}, "train")
    assert " r0\n#### 0" in every.answers or " r1\n#### 1" in every.answers
    assert every.notes["ending_kept"] == 1
    assert " so\nThe answer is: \\frac{1}{2}" in every.answers


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not a JSON file"), ("{}", "holds no list of examples"), ("[]", "holds no examples")],
)
def test_a_broken_metamath_file(tmp_path, text, message):
    write(tmp_path)
    (tmp_path / "MetaMathQA-395K.json").write_text(text)
    with pytest.raises(UserError, match=message):
        gsm8k.problems({"source": "local", "data_dir": str(tmp_path), "train_data": "metamath"}, "train")


def test_the_embedded_problems():
    try:
        gsm8k.check({})
    except UserError as error:
        pytest.skip(f"no templates: {error}")
    found = {name: gsm8k.completions({}, name) for name in gsm8k.SPLITS}
    assert {name: len(part) for name, part in found.items()} == gsm8k_symbolic.SIZES
    assert found["test"].prompts[0].startswith("Question: A child has ")
    assert not set(found["test"].prompts) & set(found["train"].prompts)


@pytest.fixture
def served() -> Iterator[tuple[Hub, Hub]]:
    rows = {name: [row(n, name) for n in range(20)] for name in ("train", "test")}
    files = {gsm8k._parquet(name): parquet({key: [each[key] for each in some] for key in some[0]})
             for name, some in rows.items()}  # fmt: skip
    hubs = (
        Hub("datasets/openai/gsm8k", gsm8k.REVISION, files),
        Hub("datasets/meta-math/MetaMathQA", gsm8k.METAMATH_REVISION,
            {gsm8k.METAMATH_FILE: json.dumps(META).encode()}),
    )  # fmt: skip
    yield hubs
    for each in hubs:
        each.close()


def load(tmp_path: Path, endpoint: str, task: dict, split: str) -> tuple[dict | str, float]:
    """(prompts and references or the error's message, seconds) in a process of its own."""
    code = (
        "import json, sys\nfrom lrx.data import gsm8k\nfrom lrx.errors import UserError\n"
        "task = json.loads(sys.argv[1])\n"
        "try:\n    gsm8k.check(task)\n    c = gsm8k.completions(task, sys.argv[2])\n"
        "    print(json.dumps({'prompts': c.prompts, 'references': c.references}))\n"
        "except UserError as e:\n    print(json.dumps(str(e)))\n"
    )
    env = {"PATH": "/usr/bin:/bin", "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    start = time.monotonic()
    command = [sys.executable, "-c", code, json.dumps(task), split]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), time.monotonic() - start


def test_the_hub_and_then_its_cache(tmp_path, served):
    task = {"source": "hub", "holdout": 0.2}
    found, _ = load(tmp_path, served[0].url, task, "test")
    assert found["prompts"][1] == "Question: test 1?\nAnswer:"
    assert found["references"][:3] == ["1", "2", "3"]
    train, _ = load(tmp_path, served[0].url, task, "train")
    assert len(train["prompts"]) == 16
    before = len(served[0].requests)
    again, _ = load(tmp_path, f"http://127.0.0.1:{free_port()}", task, "train")
    assert again == train
    assert len(served[0].requests) == before


def test_metamath_from_the_hub_in_one_cache_with_gsm8k(tmp_path, served):
    load(tmp_path, served[0].url, {"source": "hub", "holdout": 0.2}, "test")
    task = {"source": "hub", "train_data": "metamath", "holdout": 0.1, "train_first": 5, "prompt": "loraga"}
    found, _ = load(tmp_path, served[1].url, task, "train")
    assert len(found["prompts"]) == 5
    assert found["prompts"][0].startswith("Q: q")


def test_no_server_is_one_line_within_seconds(tmp_path):
    message, seconds = load(tmp_path, f"http://127.0.0.1:{free_port()}", {"source": "hub"}, "test")
    assert seconds < 5
    assert "task.source=hub: cannot get main/test-00000-of-00001.parquet of openai/gsm8k" in message
    assert "task.source=local task.data_dir=<folder of train.jsonl and test.jsonl>" in message
    assert "\n" not in message


def test_wrong_columns_on_the_hub(tmp_path, served):
    served[0].files[gsm8k._parquet("test")] = parquet({"query": ["a"], "answer": ["#### 1"]})
    message, _ = load(tmp_path, served[0].url, {"source": "hub"}, "test")
    assert "has no column question; it has query, answer" in message


def test_checks_are_quick_and_import_nothing_heavy():
    code = (
        "import sys\nfrom lrx.data import gsm8k\nfrom lrx.errors import UserError\n"
        "try:\n    gsm8k.check({'source': 'foo'})\nexcept UserError:\n    pass\n"
        "print([m for m in ('torch', 'numpy', 'datasets', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    start = time.monotonic()
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert time.monotonic() - start < 2
