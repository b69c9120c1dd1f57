"""GLUE's TSV folders in their own formats, every way they can be wrong, and the checks before a run."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from lrx.data import glue
from lrx.errors import UserError

# file -> lines, in the published formats: columns, order, headers or none, string labels
FILES = {
    "CoLA/train.tsv": ['gj04\t1\t\tHe said "no.', "gj04\t0\t*\tThe him saw."],
    "CoLA/dev.tsv": ["gj04\t0\t*\tThem ran."],
    "CoLA/test.tsv": ["index\tsentence", "0\tBill left."],
    "SST-2/train.tsv": ["sentence\tlabel", 'a " fine film \t1', "dull \t0"],
    "SST-2/dev.tsv": ["sentence\tlabel", "great\t1"],
    "SST-2/test.tsv": ["index\tsentence", "0\tso so"],
    "MRPC/train.tsv": ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", '1\t7\t8\tShe " left .\tShe went .'],
    "MRPC/dev.tsv": ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t7\t9\tIt rains .\tWe win ."],
    "MRPC/test.tsv": ["index\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t1\t2\tA .\tB ."],
    "STS-B/train.tsv": [
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tmain\tf\t2012\t1\tnone\tnone\tA plane.\tA jet.\t4.250",
    ],
    "STS-B/dev.tsv": [
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tmain\tf\t2012\t1\tnone\tnone\tA dog.\tA cat.\t0.000",
    ],
    "STS-B/test.tsv": [
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2",
        "0\tmain\tf\t2012\t1\tnone\tnone\tA.\tB.",
    ],
    "QQP/train.tsv": ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "5\t1\t2\tHow?\tWhy?\t1"],
    "QQP/dev.tsv": ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "6\t1\t2\tWho?\tWhat?\t0"],
    "QQP/test.tsv": ["id\tquestion1\tquestion2", "0\tWhen?\tWhere?"],
    "MNLI/train.tsv": [
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t1\t1n\tfiction\t( a )\t( b )\t(R a)\t(R b)\tIt rained.\tIt was wet.\tneutral\tentailment",
    ],
    "MNLI/dev_matched.tsv": ["index\tsentence1\tsentence2\tlabel1\tgold_label", "0\tA.\tB.\tneutral\tcontradiction"],
    "MNLI/dev_mismatched.tsv": ["index\tsentence1\tsentence2\tlabel1\tgold_label", "0\tC.\tD.\tneutral\tneutral"],
    "MNLI/test_matched.tsv": ["index\tsentence1\tsentence2", "0\tE.\tF."],
    "MNLI/test_mismatched.tsv": ["index\tsentence1\tsentence2", "0\tG.\tH."],
    "diagnostic/diagnostic.tsv": ["index\tsentence1\tsentence2", "0\tThe cat sat.\tIt did not."],
    "QNLI/train.tsv": ["index\tquestion\tsentence\tlabel", "0\tWho?\tBob.\tentailment"],
    "QNLI/dev.tsv": ["index\tquestion\tsentence\tlabel", "0\tWhere?\tBob.\tnot_entailment"],
    "QNLI/test.tsv": ["index\tquestion\tsentence", "0\tWho?\tBob."],
    "RTE/train.tsv": ["index\tsentence1\tsentence2\tlabel", "0\tA\tB\tnot_entailment", "1\tC\tD\tentailment"],
    "RTE/dev.tsv": ["index\tsentence1\tsentence2\tlabel", "0\tE\u2028E\tF\x85\tentailment"],
    "RTE/test.tsv": ["index\tsentence1\tsentence2", "0\tG\tH"],
    "WNLI/train.tsv": ["index\tsentence1\tsentence2\tlabel", "0\tA\tB\t1"],
    "WNLI/dev.tsv": ["index\tsentence1\tsentence2\tlabel", "0\tA\tC\t0"],
    "WNLI/test.tsv": ["index\tsentence1\tsentence2", "0\tA\tD"],
}


def write(root: Path, files: dict[str, list[str]] = FILES, end: str = "\n", last: str = "\n", bom: bytes = b"") -> Path:
    for name, lines in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bom + (end.join(lines) + last).encode())
    return root


def local(root: Path, subset: object = None) -> dict:
    return {"source": "local", "data_dir": str(root), "subset": subset}


@pytest.mark.parametrize(
    "layout", [{}, {"end": "\r\n", "last": ""}, {"bom": b"\xef\xbb\xbf"}, {"last": "\n\n\n"}], ids=str
)
def test_every_task_in_its_own_format(tmp_path, layout):
    root = write(tmp_path, **layout)
    expected = {
        ("cola", "train"): ([('He said "no.',), ("The him saw.",)], [1, 0]),
        ("cola", "test"): ([("Bill left.",)], None),
        ("sst2", "train"): ([('a " fine film ',), ("dull ",)], [1, 0]),
        ("mrpc", "train"): ([('She " left .', "She went .")], [1]),
        ("mrpc", "test"): ([("A .", "B .")], None),
        ("stsb", "train"): ([("A plane.", "A jet.")], [4.25]),
        ("stsb", "validation"): ([("A dog.", "A cat.")], [0.0]),
        ("stsb", "test"): ([("A.", "B.")], None),
        ("qqp", "train"): ([("How?", "Why?")], [1]),
        ("qqp", "test"): ([("When?", "Where?")], None),
        ("mnli", "train"): ([("It rained.", "It was wet.")], [0]),
        ("mnli", "validation_matched"): ([("A.", "B.")], [2]),
        ("mnli", "validation_mismatched"): ([("C.", "D.")], [1]),
        ("mnli", "test_mismatched"): ([("G.", "H.")], None),
        ("mnli", "ax"): ([("The cat sat.", "It did not.")], None),
        ("qnli", "train"): ([("Who?", "Bob.")], [0]),
        ("qnli", "validation"): ([("Where?", "Bob.")], [1]),
        ("rte", "train"): ([("A", "B"), ("C", "D")], [1, 0]),
        ("rte", "validation"): ([("E\u2028E", "F\x85")], [0]),  # only a line feed ends a line
        ("wnli", "train"): ([("A", "B")], [1]),
    }
    for (name, split), (texts, labels) in expected.items():
        found = glue.load(local(root), name, split)
        assert (found.texts, found.labels) == (texts, labels), (name, split)
    assert glue.load(local(root), "qqp", "train").ids == ["5"]
    assert glue.resolve(local(root)) == list(glue.GLUE)
    glue.check(local(root))


@pytest.mark.parametrize("folder", ["rte", "RTE", "Rte"])
@pytest.mark.parametrize("own", [True, False])
def test_folders_are_found_in_any_case_and_as_the_tasks_own(tmp_path, folder, own):
    files = {name.replace("RTE", folder): lines for name, lines in FILES.items() if name.startswith("RTE")}
    root = write(tmp_path, files)
    assert len(glue.load(local(root / folder if own else root, "rte"), "rte", "train")) == 2


@pytest.mark.parametrize("folder", ["SST-2", "sst2", "sst-2", "SST2"])
def test_spellings_of_sst2(tmp_path, folder):
    root = write(tmp_path, {n.replace("SST-2", folder): lines for n, lines in FILES.items() if n.startswith("SST-2")})
    assert len(glue.load(local(root, "sst2"), "sst2", "train")) == 2


def test_a_renamed_folder_counts_as_the_tasks_own_but_another_tasks_does_not(tmp_path):
    files = {n.replace("RTE", "mine"): lines for n, lines in FILES.items() if n.startswith("RTE")}
    assert len(glue.load(local(write(tmp_path, files) / "mine", "rte"), "rte", "train")) == 2
    write(tmp_path, {n: lines for n, lines in FILES.items() if n.startswith("MRPC")})
    with pytest.raises(UserError, match="no folder RTE"):
        glue.load(local(tmp_path / "MRPC", "rte"), "rte", "train")


RTE = "RTE/train.tsv"
MISTAKES = [
    (RTE, "0\tA\tB\tmaybe", "rte", ["train.tsv:2:", "'maybe'", "entailment, not_entailment"]),
    (RTE, "0\tA\tB\t", "rte", ["train.tsv:2:", "label ''"]),
    (RTE, "0\tA\tentailment", "rte", ["train.tsv:2: broken line: 3 fields where 4 are expected"]),
    (RTE, "0\tA\tB\textra\tentailment", "rte", ["train.tsv:2: broken line: 5 fields where 4"]),
    (RTE, "", "rte", ["train.tsv:2: broken line: 1 fields"]),
    ("STS-B/train.tsv", "0\tm\tf\ty\t1\tn\tn\tA\tB\t5.5", "stsb", ["train.tsv:2:", "'5.5'", "number from 0 to 5"]),
    ("STS-B/train.tsv", "0\tm\tf\ty\t1\tn\tn\tA\tB\tnan", "stsb", ["train.tsv:2:", "'nan'"]),
    ("WNLI/train.tsv", "0\tA\tB\t2", "wnli", ["train.tsv:2: label '2' is not one of: 0, 1"]),
    ("CoLA/train.tsv", "gj04\t2\t\tA", "cola", ["train.tsv:2: label '2'"]),
    ("QQP/train.tsv", "1\t2\tHow", "qqp", ["train.tsv:2: broken line"]),
]


@pytest.mark.parametrize(("file", "line", "subset", "parts"), MISTAKES, ids=lambda value: str(value)[:30])
def test_a_wrong_line_is_named_by_its_number(tmp_path, file, line, subset, parts):
    lines = [FILES[file][0], line, FILES[file][-1]]
    write(tmp_path, FILES | {file: lines})
    with pytest.raises(UserError) as error:
        glue.load(local(tmp_path, subset), subset, "train")
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_the_few_broken_lines_of_qqp_are_skipped_and_counted(tmp_path):
    header, row = FILES["QQP/train.tsv"]
    write(tmp_path, FILES | {"QQP/train.tsv": [header, *[row] * 4000, "9\t1\t2\tbroken", *[row] * 4]})
    found = glue.load(local(tmp_path, "qqp"), "qqp", "train")
    assert (len(found), found.notes) == (4004, {"broken_lines_skipped": 1})


def test_trailing_tabs_carry_nothing(tmp_path):
    write(tmp_path, FILES | {RTE: [FILES[RTE][0], "0\tA\tB\tentailment\t\t"]})
    assert glue.load(local(tmp_path, "rte"), "rte", "train").labels == [0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "train.tsv is empty"),
        (b"\n\n", "train.tsv is empty"),
        (b"index\tsentence1\tsentence2\tlabel\n", "holds no examples"),
        (b"index\tquestion\tsentence\tlabel\n0\ta\tb\tentailment\n", "train.tsv:1: no column sentence1, sentence2"),
        (b"index\tsentence1\tsentence2\tlabel\n0\t\xff\xfe\tb\tentailment\n", "train.tsv:2: not UTF-8 text"),
    ],
)
def test_wrong_files(tmp_path, content, message):
    write(tmp_path)
    (tmp_path / RTE).write_bytes(content)
    with pytest.raises(UserError, match=message):
        glue.load(local(tmp_path, "rte"), "rte", "train")


def test_missing_folders_and_files(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match=r"task.data_dir=/no/such/place: no such folder"):
        glue.check(local(Path("/no/such/place"), "rte"))
    with pytest.raises(UserError, match="not a folder"):
        glue.check(local(tmp_path / RTE, "rte"))
    (tmp_path / "RTE").rename(tmp_path / "RTEs")
    with pytest.raises(UserError, match=r"no folder RTE for rte; did you mean 'RTEs'\? \(folders there: CoLA, MNLI"):
        glue.check(local(tmp_path, "rte"))
    (tmp_path / "WNLI" / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"WNLI/dev.tsv is missing: .* \(in the folder: test.tsv, train.tsv\)"):
        glue.check(local(tmp_path, "wnli"))
    assert glue.resolve(local(tmp_path)) == [name for name in glue.GLUE if name not in {"rte", "wnli"}]
    (tmp_path / "CoLA" / "dev.tsv").write_bytes(b"")
    with pytest.raises(UserError, match=r"dev\.tsv is empty"):
        glue.check(local(tmp_path, "cola"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no folder RTE"):
        glue.check(local(tmp_path / "nothing"))


def test_a_task_without_training_file_can_be_evaluated_only(tmp_path):
    write(tmp_path)
    (tmp_path / "QNLI" / "train.tsv").unlink()
    with pytest.raises(UserError, match=r"train.tsv is missing.*can only be evaluated \(mode=eval\)"):
        glue.check(local(tmp_path, "qnli"))
    glue.check(local(tmp_path, "qnli"), mode="eval")
    assert glue.digest(local(tmp_path, "qnli"))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"subset": "foo"}, "task.subset=foo: no such sub-task"),
        ({"subset": "sentimnt"}, "did you mean 'sentiment'"),
        ({"subset": ["domain", "ret"]}, "task.subset=ret: no such sub-task; did you mean 'rte'"),
        ({"subset": "rte"}, "task.subset=rte needs task.source=local task.data_dir=<GLUE folder> or task.source=hub"),
        ({"subset": "domain", "source": "hub"}, "task.subset=domain needs task.source=embedded"),
        ({"subset": []}, "task.subset is an empty list"),
        ({"source": "local"}, "task.source=local needs task.data_dir"),
        ({"source": "hug"}, "task.source=hug: no such source; did you mean 'hub'"),
        ({"data_dir": "/x"}, "task.data_dir is read only with task.source=local"),
        ({"batch_size": 0}, "task.batch_size=0: must be at least 1"),
        ({"holdout": 1.0}, "task.holdout=1.0: a fraction"),
        ({"train_limit": 0}, "task.train_limit=0: must be at least 1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_options_are_checked_first(task, message):
    with pytest.raises(UserError) as error:
        glue.check(task)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_none_asks_for():
    assert glue.resolve({}) == ["sentiment", "intensity", "domain"]
    assert glue.resolve({"source": "hub"}) == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"]
    assert glue.resolve({"source": "hub", "subset": ["rte", "cola", "rte"]}) == ["rte", "cola"]


def test_the_digest_is_of_the_content(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    assert glue.digest(local(a, "rte")) == glue.digest(local(b / "RTE", "rte")) != glue.digest(local(a, "cola"))
    (b / "RTE" / "test.tsv").write_text("not read by a run")
    assert glue.digest(local(a, "rte")) == glue.digest(local(b, "rte"))
    (b / RTE).write_text("changed")
    assert glue.digest(local(a, "rte")) != glue.digest(local(b, "rte"))
    assert glue.digest({}) != glue.digest({"source": "hub"}) != glue.digest({"source": "hub", "revision": "main"})


def test_checks_are_quick_and_import_nothing_heavy():
    code = (
        "import sys\nfrom lrx.data import glue\nfrom lrx.errors import UserError\n"
        "try:\n    glue.check({'subset': 'foo'})\nexcept UserError:\n    pass\n"
        "print([m for m in ('torch', 'numpy', 'datasets', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    start = time.monotonic()
    root = Path(glue.__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert time.monotonic() - start < 2
