"""Images in class folders: layouts, splits, and everything that can be wrong with them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lrx.data import imagenet
from lrx.errors import UserError
from tests.data import images as make
from tests.data.images import local, refusal


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRX_CACHE", str(tmp_path / "cache"))


def test_a_folder(tmp_path: Path) -> None:
    root = make.folder(tmp_path / "f", {"train": {"dog": 4, "cat": 3}, "val": {"cat": 2}})
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / "dog" / "zero.jpg").write_bytes(b"")
    (root / "train" / "dog" / "grey.JPEG").write_bytes(make.encoded(make.noise(99, 4, 4), "JPEG"))
    task = local("folder", root)
    imagenet.check(task)
    assert (imagenet.classes(task), imagenet.reported(task), imagenet.splits(task)) == (2, "val", ("train", "val"))
    train = imagenet.load(task, "train")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert train.notes == {"unreadable_images": 1, "converted_grey": 1, "files_no_images": 1}
    val = imagenet.load(task, "val")
    assert val.notes == {"classes_without_images": 1}


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    root = make.folder(tmp_path / "f", {"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1}})
    task = local("folder", root)
    before = imagenet.digest(task)
    image = next((root / "train" / "a").iterdir())
    try:
        image.rename(os.fsdecode(os.fsencode(image.parent) + b"/caf\xe9.png"))
    except OSError:
        pytest.skip("this file system knows no such name")
    assert imagenet.digest(task) != before
    assert len(imagenet.load(task, "train")) == 4


def test_a_folder_with_three_splits(tmp_path: Path) -> None:
    root = make.folder(tmp_path / "f", {split: {"a": 2, "b": 2} for split in ("train", "val", "test")})
    task = local("folder", root)
    assert (imagenet.reported(task), imagenet.splits(task)) == ("test", ("train", "select", "test"))
    found = [set(imagenet.load(task, split).ranks.tolist()) for split in imagenet.splits(task)]
    assert [len(each) for each in found] == [4, 4, 4]
    assert len(set.union(*found)) == 12


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    assert "no such folder" in refusal(local("folder", tmp_path / "none"))
    root = tmp_path / "f"
    root.mkdir()
    assert "has no folder train (train/<class>/*.jpg)" in refusal(local("folder", root))
    (root / "train").mkdir()
    assert "has no class folders" in refusal(local("folder", root))
    (root / "train" / "a.jpg").write_bytes(b"x")
    assert "its images have to be in a folder for each class" in refusal(local("folder", root))
    make.folder(root, {"train": {"cat": 1, "dog": 1}})
    assert "has no folder val" in refusal(local("folder", root))
    make.folder(root, {"val": {"cat": 1, "dg": 1}})
    assert "val/dg is no class of the training folder; did you mean 'dog'?" in refusal(local("folder", root))


def test_an_empty_class(tmp_path: Path) -> None:
    root = make.folder(tmp_path / "f", {"train": {"a": 1, "b": 0, "c": 0}, "val": {"a": 1}})
    assert f"{root / 'train' / 'b'} (and 1 more) holds no image" in refusal(local("folder", root))


def test_one_class_is_none(tmp_path: Path) -> None:
    root = make.folder(tmp_path / "f", {"train": {"a": 1}, "val": {"a": 1}})
    assert "nothing to tell apart" in refusal(local("folder", root))


def test_a_broken_image_that_is_scored(tmp_path: Path) -> None:
    root = make.folder(tmp_path / "f", {"train": {"a": 2, "b": 2}, "val": {"a": 2, "b": 1}})
    (root / "val" / "b" / "0.png").write_bytes(b"")
    imagenet.check(local("folder", root))
    with pytest.raises(UserError, match=r"val/b/0.png cannot be decoded \(0 bytes\); a scored split has to be whole"):
        imagenet.load(local("folder", root), "val")


def test_nothing_readable(tmp_path: Path) -> None:
    root = make.folder(tmp_path / "f", {"train": {"a": 1, "b": 1}, "val": {"a": 1}})
    for path in root.glob("train/*/*.png"):
        path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"and 1 more\); no image of the split can be read"):
        imagenet.load(local("folder", root), "train")


def test_imagenet_as_folders(tmp_path: Path) -> None:
    root = make.folder(tmp_path / "i", {split: {f"n{i:08d}": 1 for i in range(3)} for split in ("train", "val")})
    assert "train has 3 class folders, imagenet1k has 1000" in refusal(local("imagenet1k", root))
    for split in ("train", "val"):
        for i in range(3, 1000):
            (root / split / f"n{i:08d}").mkdir()
            (root / split / f"n{i:08d}" / "x.JPEG").write_bytes(make.encoded(make.noise(i, 2, 2, 3), "JPEG"))
    task = local("imagenet1k", root)
    imagenet.check(task)
    assert imagenet.reported(task) == "validation"
    assert imagenet.load(task, "validation").labels.tolist() == list(range(1000))
