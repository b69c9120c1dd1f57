"""Corpora of language modelling: documents, splits, bad files, and the hub against a server on the loopback."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lrx.data import lm
from lrx.data.lm_text import Documents, articles, identity, read_text, share
from lrx.errors import UserError
from tests.conftest import ROOT
from tests.data.test_hub import free_port, parquet
from tests.hub import Hub


def write(folder: Path, **files: str | bytes) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    return {"source": "local", "data_dir": str(folder)}


def start(task: dict[str, Any]) -> None:
    """What a run does first."""
    lm.check(task)
    for split in lm.splits(task):
        documents(task, split)


def documents(task: dict[str, Any], split: str) -> Documents:
    (piece,) = lm.pieces(task, split)
    return piece.load()


NUMBERED = "\n\n".join(f"Document number {n}.\nIts second line." for n in range(400))


def test_paragraphs_and_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo\r\n\r\n \t\r\nthree\n\n\n".encode())
    assert read_text(path, "paragraphs").texts == ["one\ntwo", "three"]
    assert read_text(path, "lines").texts == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\n\t\n", "holds no text"),
        (b"good\nline \xff here", "line 2: byte 0xff is not UTF-8"),
        (b"PK\x03\x04\x00\x00", "byte 4 is zero"),
    ],
)
def test_bad_files_are_one_line_that_names_the_file(tmp_path, content, words):
    task = write(tmp_path, train=content)
    with pytest.raises(UserError) as caught:
        start(task)
    assert words in str(caught.value)
    assert "train.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_file_is_divided_by_content_whatever_its_order(tmp_path):
    task = write(tmp_path, train=NUMBERED)
    found = {split: set(documents(task, split).texts) for split in lm.splits(task)}
    assert sum(map(len, found.values())) == 400
    assert len(set().union(*found.values())) == 400
    assert 20 <= len(found["test"]) <= 60
    assert 8 <= len(found["select"]) <= 36
    turned = write(tmp_path / "turned", train="\n\n".join(reversed(NUMBERED.split("\n\n"))))
    assert {split: set(documents(turned, split).texts) for split in found} == found
    larger = {split: set(documents(task | {"holdout": 0.2}, split).texts) for split in found}
    assert larger["test"] == found["test"]
    assert larger["select"] > found["select"]


def test_equal_documents_never_straddle_and_are_counted(tmp_path):
    texts = [f"Text {n}, as it is." for n in range(200)]
    repeated = [f"TEXT  {n} as it is" for n in range(200)]
    task = write(tmp_path, train="\n\n".join(texts + repeated))
    splits = {split: documents(task, split) for split in lm.splits(task)}
    for split, found in splits.items():
        assert len(found) == 2 * len({identity(text) for text in found.texts}), split
        assert found.notes["duplicates"] == len(found) // 2
    kinds = [{identity(text) for text in found.texts} for found in splits.values()]
    assert len(set().union(*kinds)) == sum(map(len, kinds)) == 200


def test_files_of_their_own_lose_what_is_held_out_elsewhere(tmp_path):
    task = write(
        tmp_path, train="One.\n\nTwo.\n\nThree.\n\nFour.", validation="two\n\nFive.\n\nSix.", test="THREE\n\nsix"
    )
    train, select, test = (documents(task, split) for split in lm.splits(task))
    assert test.texts == ["THREE", "six"]
    assert not test.notes
    assert select.texts == ["two", "Five."]
    assert select.notes == {"in_test": 1}
    assert train.texts == ["One.", "Four."]
    assert train.notes == {"in_test": 1, "in_select": 1}


def test_a_test_file_alone_leaves_selection_to_the_training_text(tmp_path):
    task = write(tmp_path, train=NUMBERED, test="Document number 7.\nIts second line.")
    train, select, test = (set(documents(task, split).texts) for split in lm.splits(task))
    assert not train & select
    assert not (train | select) & test
    assert len(train) + len(select) == 399
    assert all(share(text) < 0.05 for text in select)


def test_nothing_left_for_a_split_says_what_to_give(tmp_path):
    task = write(tmp_path, train="Only one document.\nOf two lines.")
    with pytest.raises(UserError, match=r"no document is left for the split \w+; give .*task.documents"):
        start(task)


def test_limits_are_nested_samples(tmp_path):
    task = write(tmp_path, train=NUMBERED)
    ten, twenty = (documents(task | {"train_limit": size}, "train").texts for size in (10, 20))
    assert len(ten) == 10
    assert len(twenty) == 20
    assert set(ten) < set(twenty)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"length": 0}, "task.length=0: must be at least 2"),
        ({"length": 1}, "task.length=1: must be at least 2"),
        ({"vocab_size": 256}, "task.vocab_size=256: must be at least 257"),
        ({"holdout": 0}, "task.holdout=0"),
        ({"holdout": 0.6, "test_share": 0.5}, "their sum must be below 1"),
        ({"shards": 2000}, "task.shards=2000"),
        ({"data_dir": None}, "task.data_dir=<"),
        ({"data_dir": "/nowhere/at/all"}, "no such folder"),
        ({"source": "hub"}, "task.data_dir is read only"),
        ({"source": "locla"}, "local"),
        ({"revision": "abc"}, "task.revision is read only"),
    ],
)
def test_bad_options(tmp_path, changed, words):
    task = write(tmp_path, train=NUMBERED)
    with pytest.raises(UserError) as caught:
        lm.check(task | changed)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_training_file_names_what_is_there(tmp_path):
    task = write(tmp_path, validation="x")
    with pytest.raises(UserError, match=r"train\.txt is missing.*validation\.txt"):
        lm.check(task)


def test_the_digest_is_that_of_the_content(tmp_path):
    one, two = write(tmp_path / "a", train=NUMBERED), write(tmp_path / "b", train=NUMBERED)
    assert lm.digest(one) == lm.digest(two)
    time.sleep(0.01)
    write(tmp_path / "b", train=NUMBERED + "!")
    assert lm.digest(one) != lm.digest(two)
    assert lm.digest(one) != lm.digest(one | {"documents": "lines"})


def test_embedded_documents_are_whole_and_disjoint():
    from lrx.data import embedded

    try:
        embedded.check()
    except UserError as error:
        pytest.skip(str(error))
    found = {split: documents({}, split) for split in lm.splits({})}
    assert sum(map(len, found.values())) == 15603
    text = next(text for text in found["train"].texts + found["select"].texts + found["test"].texts
                if "Franklin D. Roosevelt Drive" in text)  # fmt: skip
    assert text.startswith("To the Editor:")
    assert text.endswith("ALFRED J. LURIE New York, July 6, 1990")
    kinds = [{identity(each) for each in some.texts} for some in found.values()]
    assert len(set().union(*kinds)) == sum(map(len, kinds))


def test_articles_begin_with_their_titles():
    rows = ["", " = First = \n", "", " Words of it . \n", "", " = = Section = = \n", " x = y = z \n", " = not = \n", "",
            " = Second thing = \n", "", " More . \n"]  # fmt: skip
    assert [text.split("\n")[0].strip() for text in articles(rows).texts] == ["= First =", "= Second thing ="]
    assert "Section" in articles(rows).texts[0]
    assert "= not =" in articles(rows).texts[0]


def c4(texts: list[str]) -> bytes:
    return gzip.compress("".join(json.dumps({"text": text, "url": "u"}) + "\n" for text in texts).encode())


def load(tmp_path: Path, endpoint: str, task: dict[str, Any]) -> tuple[Any, float]:
    """(texts and notes of each split or the error's message, seconds) in a process of its own."""
    code = (
        "import json, sys\nfrom lrx.data import lm\nfrom lrx.errors import UserError\ntask = json.loads(sys.argv[1])\n"
        "try:\n    lm.check(task)\n"
        "    found = {s: [(p.load().texts, p.load().notes) for p in lm.pieces(task, s)] for s in lm.splits(task)}\n"
        "    print(json.dumps(found))\n"
        "except UserError as e:\n    print(json.dumps(str(e)))\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    env = clean | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    start = time.monotonic()
    command = [sys.executable, "-c", code, json.dumps(task)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), time.monotonic() - start


@pytest.fixture
def served() -> Iterator[Hub]:
    running = Hub(f"datasets/{lm.C4}", lm.REVISIONS[lm.C4])
    for number in range(2):
        texts = [f"Page {number} {n}" for n in range(5)] + ["Reported twice", "Selected twice", " "]
        running.files[f"en/c4-train.{number:05d}-of-01024.json.gz"] = c4(texts)
    running.files["en/c4-validation.00000-of-00008.json.gz"] = c4(["reported  TWICE", "Only reported"])
    running.files["en/c4-validation.00001-of-00008.json.gz"] = c4(["selected twice!", "Only reported"])
    yield running
    running.close()


def test_c4_and_then_its_cache(tmp_path, served):
    task = {"source": "hub", "corpus": "c4", "shards": 2}
    found, _ = load(tmp_path, served.url, task)
    assert list(found) == ["train", "select", "validation"]
    assert found["validation"] == [[["reported  TWICE", "Only reported"], {}]]
    assert found["select"] == [[["selected twice!"], {"in_test": 1}]]
    assert [texts for texts, _ in found["train"]] == [[f"Page {n} {i}" for i in range(5)] for n in range(2)]
    assert found["train"][0][1] == {"empty": 1, "in_test": 1, "in_select": 1}
    before = len(served.requests)
    again, _ = load(tmp_path, f"http://127.0.0.1:{free_port()}", task)  # no server there: nothing is asked
    assert again == found
    assert len(served.requests) == before


def test_a_broken_file_of_c4_is_one_line(tmp_path, served):
    served.files["en/c4-train.00000-of-01024.json.gz"] = c4(["x"])[:-9]
    message, _ = load(tmp_path, served.url, {"source": "hub", "corpus": "c4"})
    assert "not readable as gzip" in message
    assert "\n" not in message


def test_wikitext(tmp_path):
    running = Hub(f"datasets/{lm.WIKITEXT}", lm.REVISIONS[lm.WIKITEXT])
    for name in ("train", "validation", "test"):
        rows = ["", f" = {name} one = \n", "", " Text . \n", "", f" = {name} two = \n", "", " Text . \n"]
        running.files[f"wikitext-2-raw-v1/{name}-00000-of-00001.parquet"] = parquet({"text": rows})
    try:
        found, _ = load(tmp_path, running.url, {"source": "hub", "corpus": "wikitext2"})
    finally:
        running.close()
    assert [len(found[split][0][0]) for split in ("train", "select", "test")] == [2, 2, 2]
    assert found["select"][0][0][1].startswith("= validation two =")


def test_no_server_is_one_line_within_seconds(tmp_path):
    message, seconds = load(tmp_path, f"http://127.0.0.1:{free_port()}", {"source": "hub"})
    assert "cannot get en/c4-train.00000-of-01024.json.gz of allenai/c4" in message
    assert "task.source=local" in message
    assert "\n" not in message
    assert seconds < 20
