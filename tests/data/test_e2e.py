"""The E2E data: official CSV files with every irregularity, prompts as in LoRA's files, made-up sentences."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from lrx.data import e2e, e2e_csv, e2e_grammar
from lrx.data.e2e_mr import parse, prompt, tokenised, unparse
from lrx.errors import UserError

EAGLE, MILL = "name[The Eagle], eatType[pub]", "name[The Mill], priceRange[£20-25], near[Café Rouge]"
TRAIN = [("name[Aromi], food[French]", "Aromi is French."), ("name[Aromi], food[French]", "French food, at Aromi.")]


def write(folder: Path, name: str, rows: list[tuple[str, str]], header: str = "mr,ref") -> Path:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    path = folder / name
    path.write_text("\n".join([header, *(f"{quoted(mr)},{quoted(ref)}" for mr, ref in rows)]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def task(tmp_path) -> dict:
    write(tmp_path, "trainset.csv", TRAIN)
    write(tmp_path, "devset.csv", [("name[Zizzi]", "Zizzi is a place.")])
    write(
        tmp_path,
        "testset_w_refs.csv",
        [(EAGLE, "A pub: The Eagle."), (MILL, "The Mill."), (EAGLE, "The Eagle isn't big.")],
    )
    return {"source": "local", "data_dir": str(tmp_path)}


def test_training_has_a_row_per_text_and_the_test_one_per_meaning(task):
    e2e.check(task)
    train, test = e2e.completions(task, "train"), e2e.completions(task, "test")
    assert train.prompts == ["name : Aromi | food : French"] * 2
    assert train.answers == [" Aromi is French.", " French food, at Aromi."]
    assert test.prompts == [
        "name : The Eagle | Type : pub", "name : The Mill | price : £ 20 - 25 | near : Café Rouge"
    ]  # fmt: skip
    assert [json.loads(text) for text in test.references] == [
        ["A pub: The Eagle.", "The Eagle isn't big."],
        ["The Mill."],
    ]
    assert test.answers == ["", ""]
    assert e2e.completions(task, "select").answers == [" Zizzi is a place."]
    assert not train.notes


def test_raw_prompts_and_tokenised_texts(task):
    test = e2e.completions(task | {"mr_format": "raw", "tokenised": True}, "test")
    assert test.prompts == [EAGLE, MILL]
    assert json.loads(test.references[0]) == ["A pub : The Eagle .", "The Eagle is n't big ."]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("It's family-friendly; isn't it?", "It 's family - friendly ; is n't it ?"),
        ("They’re near Café Rouge (£20-25).", "They ’re near Café Rouge ( £ 20 - 25 ) ."),
        ("Travellers' rest", "Travellers ' rest"),
        ("", ""),
    ],
)
def test_texts_as_in_loras_files(text, wanted):
    assert tokenised(text) == wanted


@pytest.mark.parametrize("mr", ["name[The Eagle]", EAGLE, MILL, "name[A, B], customer rating[5 out of 5]"])
def test_meanings_come_back(mr):
    assert unparse(parse(mr)) == mr


@pytest.mark.parametrize("mr", ["", "name", "name[The Eagle", "name[A] food[B]", "[x]", "name[a[b]]"])
def test_what_is_no_meaning(mr):
    with pytest.raises(ValueError, match=r"meaning|slot"):
        prompt(mr, "raw")


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    path = write(
        tmp_path, "trainset.csv",
        [*TRAIN, ("name", "No slot."), (EAGLE, "  "), (EAGLE, "two\nlines"), (MILL, "Costs Â£20 at the CafÃ©.")],
    )  # fmt: skip
    path.write_text(path.read_text(encoding="utf-8") + "only one field\na,b,c\n\n", encoding="utf-8")
    found = e2e_csv.read_csv(path)
    assert found.notes == {"broken_mr": 1, "empty_text": 1, "broken_line": 2, "repaired": 1}
    assert [text for _, text in found.pairs[2:]] == ["two lines", "Costs £20 at the Café."]


def test_meanings_of_a_later_split_are_not_trained_on(tmp_path, task):
    write(tmp_path, "trainset.csv", [*TRAIN, (EAGLE, "x"), ("name[Zizzi]", "y")])
    write(tmp_path, "devset.csv", [("name[Zizzi]", "z"), (MILL, "w")])
    train, select = e2e.completions(task, "train"), e2e.completions(task, "select")
    assert (len(train), train.notes) == (2, {"in_select": 1, "in_test": 1})
    assert (len(select), select.notes) == (1, {"in_test": 1})


def test_a_gzipped_file_with_a_byte_order_mark(tmp_path, task):
    plain = (tmp_path / "trainset.csv").read_bytes()
    (tmp_path / "trainset.csv").unlink()
    (tmp_path / "trainset.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + plain))
    assert len(e2e.completions(task, "train")) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"mr,ref\n", "holds no examples"),
        (b"a,b\nx,y\n", "trainset.csv:1: no columns mr and ref"),
        (b"mr,ref\nx,y\nz,w\n", "2 of 2 rows cannot be used (broken_mr 2)"),
        (b"mr,ref\nname[a],caf\xe9\n", "trainset.csv:2: not UTF-8"),
        (b'mr,ref\nname[a],"b\n' + b"name[c],d\n" * 9, "trainset.csv:2: a quotation mark is not closed"),
        (b'mr,ref\nname[a],b\nname[c],"d\nname[e],f\n', "trainset.csv:3: a quotation mark is not closed"),
        (b'mr,ref\nname[a],"' + b"b" * 200_000 + b"\n", "trainset.csv:2: no CSV (field larger"),
        (b"b" * 200_000, "trainset.csv:1: no CSV (field larger"),
    ],
    ids=["empty", "header", "columns", "rows", "bytes", "quote", "last quote", "field", "one field"],
)
def test_broken_files_are_one_line(tmp_path, task, content, message):
    (tmp_path / "trainset.csv").write_bytes(content)
    with pytest.raises(UserError) as error:
        e2e.completions(task, "train")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_archive(tmp_path, task):
    (tmp_path / "trainset.csv").unlink()
    (tmp_path / "trainset.csv.gz").write_bytes(gzip.compress(b"mr,ref\n" * 50)[:-9])
    with pytest.raises(UserError, match="is damaged"):
        e2e.completions(task, "train")


def test_missing_files(tmp_path, task):
    (tmp_path / "trainset.csv").unlink()
    with pytest.raises(UserError, match=r"trainset.csv is missing.*devset.csv.*only be evaluated"):
        e2e.check(task)
    e2e.check(task, "eval")
    assert len(e2e.digest(task)) == 64
    (tmp_path / "testset_w_refs.csv").unlink()
    with pytest.raises(UserError, match=r"testset_w_refs.csv is missing"):
        e2e.check(task, "eval")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "locl"}, "task.source=locl: no such source"),
        ({"source": "local", "data_dir": None}, "task.source=local needs task.data_dir"),
        ({"source": "embedded"}, "task.data_dir is read only with task.source=local"),
        ({"data_dir": "/nowhere/at/all"}, "no such folder"),
        ({"revision": "x"}, "task.revision is read only with task.source=hub"),
        ({"beams": 0}, "task.beams=0: must be at least 1"),
        ({"label_smoothing": 1.0}, "task.label_smoothing=1.0"),
        ({"repetition_penalty": 0.0}, "task.repetition_penalty=0.0: must be positive"),
        ({"length_penalty": float("nan")}, "task.length_penalty=nan: must be finite"),
        ({"mr_format": "lra"}, "task.mr_format=lra: no such format"),
    ],
)
def test_wrong_options_are_one_line(task, changes, message):
    with pytest.raises(UserError) as error:
        e2e.check(task | changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_digest_is_the_content(tmp_path, task):
    before = e2e.digest(task)
    assert e2e.digest(task | {"beams": 3}) == before
    write(tmp_path, "testset_w_refs.csv", [(EAGLE, "Another.")])
    assert e2e.digest(task) != before
    assert (
        len({before, e2e.digest({}), e2e.digest({"source": "hub"}), e2e.digest({"source": "hub", "revision": "a"})})
        == 4
    )


def test_made_up_sentences():
    seen = {}
    for split, (count, (fewest, most), (few, many)) in e2e_grammar.PLAN.items():
        rows = e2e_grammar.rows(split)
        assert len(rows) == count
        for mr, texts in rows:
            slots = dict(parse(mr))
            assert fewest <= len(slots) <= most
            assert few <= len(texts) <= many or (few <= len(texts) and split == "test")
            assert len(set(texts)) == len(texts)
            assert all(value in e2e_grammar.VALUES[slot] for slot, value in slots.items())
            for text in texts:  # nothing is left out: names word for word, the others by their own words
                assert all(slots[slot] in text for slot in ("name", "near") if slot in slots)
                assert any(word in text for word in ("famil", "hildren")) == ("familyFriendly" in slots)
                assert ("rating" in text) == ("customer rating" in slots)
                assert any(word in text for word in ("river", "city")) == ("area" in slots)
            assert mr not in seen
            seen[mr] = split
    lengths = {split: [len(parse(mr)) for mr, _ in e2e_grammar.rows(split)] for split in ("train", "test")}
    assert sum(lengths["test"]) / len(lengths["test"]) > sum(lengths["train"]) / len(lengths["train"]) + 0.3


def test_made_up_sentences_do_not_change():
    rows = [e2e_grammar.rows(split) for split in e2e_grammar.PLAN]
    assert hashlib.sha256(repr(rows).encode()).hexdigest() == ROWS_OF_VERSION_1


# Another value is another version of the grammar.
ROWS_OF_VERSION_1 = "02201ebf5a4f5f21ab4920694c5a9e3524399fbb73ab63287b8a1163b56a2d19"
