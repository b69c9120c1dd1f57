"""Reading image sets: every kind of image, every format, every irregularity, the cache, and what ``check`` says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrx.data import imagenet, images_files, images_store
from lrx.data.images_decode import Unreadable, decode
from lrx.errors import UserError
from tests.conftest import ROOT
from tests.data import images as make
from tests.data.images import local, refusal


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRX_CACHE", str(tmp_path / "cache"))


def test_known_without_torch() -> None:
    work = "imagenet.check({}); imagenet.digest({})"
    code = f"import sys; from lrx.data import imagenet; {work}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# kinds of images


def test_rgb_is_what_it_was() -> None:
    pixels = make.noise(1)
    assert np.array_equal(decode(make.encoded(pixels))[0], pixels)
    assert decode(make.encoded(pixels))[1] == ""


def test_grey_alpha_palette_cmyk() -> None:
    rgb = Image.fromarray(make.noise(2, 6, 8, 3))
    notes = {"L": "grey", "1": "grey", "LA": "alpha", "RGBA": "alpha", "P": "palette", "CMYK": "cmyk"}
    for mode, note in notes.items():
        kind = "JPEG" if mode == "CMYK" else "PNG"
        image = rgb.convert(mode)
        found, said = decode(make.encoded(image, kind))
        assert (found.shape, found.dtype, said) == ((6, 8, 3), np.uint8, note), mode
        if kind == "PNG":
            assert np.array_equal(found, np.asarray(image.convert("RGB"))), mode


def test_sixteen_bits_keep_their_range() -> None:
    values = np.array([[0, 255, 256], [32768, 65280, 65535]], dtype=np.uint16)
    found, said = decode(make.encoded(Image.fromarray(values)))
    assert said == "16_bit"
    assert found[..., 0].tolist() == [[0, 0, 1], [128, 255, 255]]
    assert np.array_equal(found[..., 0], found[..., 2])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_broken_images(kind: str) -> None:
    data = make.encoded(make.noise(3, 40, 40, 3), kind)
    for broken in (b"", b"no image", data[: len(data) // 2], data[:20]):
        with pytest.raises(Unreadable):
            decode(broken)


def test_floating_point_has_no_known_range() -> None:
    with pytest.raises(Unreadable, match="range is not known"):
        decode(make.encoded(Image.fromarray(np.ones((3, 3), dtype=np.float32)), "TIFF"))


# the sets


def test_digits_are_fixed_disjoint_and_whole() -> None:
    train, test = (imagenet.load({}, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1198, 599) == tuple(imagenet.SETS["digits"].sizes.values())
    assert not set(train.ranks.tolist()) & set(test.ranks.tolist())
    assert set(test.labels.tolist()) == set(range(10))
    from sklearn.datasets import load_digits

    bunch = load_digits()
    whole = {
        (np.round(x * 255 / 16).astype(np.uint8).tobytes(), y) for x, y in zip(bunch.images, bunch.target, strict=True)
    }
    ours = {(s.pixels(i)[..., 0].tobytes(), int(s.labels[i])) for s in (train, test) for i in range(len(s))}
    assert ours == whole


def test_fashion_mnist(tmp_path: Path) -> None:
    task = local("fashion_mnist", make.fashion(tmp_path / "f"))
    imagenet.check(task)
    test = imagenet.load(task, "test")
    assert len(test) == 10
    assert test.labels.tolist() == list(range(10))
    assert test.pixels(3).shape == (28, 28, 3)
    assert np.array_equal(test.pixels(3)[..., 1], make.noise(1, 10, 28, 28)[3])


def test_fashion_mnist_without_debian_s_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_files, "DEBIAN", tmp_path / "none")
    assert "dataset-fashion-mnist" in refusal({"source": "local", "dataset": "fashion_mnist"})
    monkeypatch.setattr(images_files, "DEBIAN", make.fashion(tmp_path / "there"))
    imagenet.check({"source": "local", "dataset": "fashion_mnist"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte.gz", b"not packed", "cannot be read"),
        ("train-images-idx3-ubyte.gz", None, "is no IDX file of bytes with 3 axes"),
        ("train-labels-idx1-ubyte.gz", np.arange(5, dtype=np.uint8), "has 20 images and"),
        ("train-labels-idx1-ubyte.gz", np.full(20, 11, dtype=np.uint8), "row 0: label 11 is no class id from 0 to 9"),
    ],
)
def test_broken_idx_files(tmp_path: Path, name: str, content, message: str) -> None:
    task = local("fashion_mnist", make.fashion(tmp_path / "f"))
    path = tmp_path / "f" / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        make.idx(path, np.arange(20, dtype=np.uint8) if content is None else content)
    with pytest.raises(UserError, match=message):
        imagenet.load(task, "train")


def test_idx_file_that_breaks_off(tmp_path: Path) -> None:
    task = local("fashion_mnist", make.fashion(tmp_path / "f"))
    for path in (tmp_path / "f").glob("t10k*"):
        path.unlink()
    assert "has no t10k-images-idx3-ubyte.gz" in refusal(task)
    make.idx(tmp_path / "f" / "t10k-images-idx3-ubyte", make.noise(1, 4, 28, 28))
    make.idx(tmp_path / "f" / "t10k-labels-idx1-ubyte", np.zeros(4, dtype=np.uint8))
    imagenet.check(task)
    path = tmp_path / "f" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="is not whole: 3,129 bytes of values, its header says 4 x 28 x 28"):
        imagenet.load(task, "test")


def test_binary_cifar(tmp_path: Path) -> None:
    make.cifar(tmp_path / "c" / "cifar-10-batches-bin")
    task = local("cifar10", tmp_path / "c")
    imagenet.check(task)
    train, test = imagenet.load(task, "train"), imagenet.load(task, "test")
    assert (len(train), len(test)) == (20, 4)
    first = np.fromfile(tmp_path / "c" / "cifar-10-batches-bin" / "data_batch_1.bin", dtype=np.uint8)[:3073]
    assert train.labels[0] == first[0]
    assert np.array_equal(train.pixels(0)[..., 2].ravel(), first[1 + 2048 :])  # blue comes last
    hundred = local("cifar100", make.cifar(tmp_path / "h", 2, ("train.bin",), "test.bin"))
    assert imagenet.load(hundred, "train").labels.tolist() == [0, 1, 2, 3]  # the fine label, not the coarse one


def test_cifar_files_that_do_not_fit(tmp_path: Path) -> None:
    root = make.cifar(tmp_path / "c")
    (root / "data_batch_3.bin").unlink()
    assert "data_batch_3.bin is missing: the train split of cifar10 has 5 files" in refusal(local("cifar10", root))
    (root / "test_batch.bin").write_bytes(b"x" * 100)
    make.cifar(tmp_path / "c", test="other.bin")
    with pytest.raises(UserError, match="is not whole: 100 bytes are no multiple of 3073"):
        imagenet.load(local("cifar10", root), "test")


def test_the_pickled_cifar_is_not_read(tmp_path: Path) -> None:
    inner = tmp_path / "cifar-10-batches-py"
    inner.mkdir()
    (inner / "data_batch_1").write_bytes(b"\x80\x04")
    message = refusal(local("cifar10", tmp_path))
    assert "the pickled Python version is not read" in message
    assert "data_batch_1.bin (the binary version)" in message


def test_parquet_files(tmp_path: Path) -> None:
    first, second, test = make.rows(5), make.rows(4, 1), make.rows(3, 2)
    test["image"] = test.pop("img")
    for name, columns in (("train-00000-of-00002", first), ("train-00001-of-00002", second), ("test", test)):
        (tmp_path / f"{name}.parquet").write_bytes(make.parquet(columns))
    task = local("cifar10", tmp_path)
    imagenet.check(task)
    train = imagenet.load(task, "train")
    assert train.labels.tolist() == [*range(5), *range(4)]
    assert np.array_equal(train.pixels(6), make.noise(1001, 6, 8, 3))
    assert len(imagenet.load(task, "test")) == 3
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    assert "has 1 of the 2 files like train-00000-of-00002.parquet" in refusal(task)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (b"PAR1 no", "is not readable as parquet"),
        ({"img": None}, "has no column img or image; it has label"),
        ({"label": [0, 1, 10]}, "row 2: label 10 is no class id from 0 to 9"),
        ({"label": [-1, -1, -1]}, "the labels of this split are hidden"),
        ({"label": [0, None, 1]}, "has to hold a class id in every row"),
        ({"label": ["a", "b", "c"]}, "has to hold a class id in every row"),
    ],
    ids=["bytes", "columns", "label", "hidden", "null", "text"],
)
def test_parquet_files_that_do_not_fit(tmp_path: Path, change, message: str) -> None:
    columns = make.rows(3)
    if isinstance(change, dict):
        columns = {key: value for key, value in {**columns, **change}.items() if value is not None}
    (tmp_path / "train.parquet").write_bytes(change if isinstance(change, bytes) else make.parquet(columns))
    with pytest.raises(UserError, match=message):
        imagenet.load(local("cifar10", tmp_path), "train")


@pytest.mark.parametrize("at_once", [images_store.DECODE_AT_ONCE_BYTES, 0])
def test_a_parquet_file_with_damaged_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(images_store, "DECODE_AT_ONCE_BYTES", at_once)
    data = bytearray(make.parquet(make.rows(9)))
    data[4:200] = bytes(196)  # the first page of the images; labels and footer are whole
    (tmp_path / "train.parquet").write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"train\.parquet is not readable as parquet"):
        imagenet.load(local("cifar10", tmp_path), "train")


def test_a_row_without_an_image(tmp_path: Path) -> None:
    columns = make.rows(4)
    columns["img"][1] = {"bytes": None, "path": "elsewhere.png"}
    columns["img"][2] = {"bytes": b"", "path": None}
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").write_bytes(make.parquet(columns))
    train = imagenet.load(local("cifar10", tmp_path), "train")
    assert train.labels.tolist() == [0, 3]
    assert train.notes == {"unreadable_images": 2}
    with pytest.raises(
        UserError, match=r"test.parquet, row 1 cannot be decoded \(no image in the row\) \(and 1 more\)"
    ):
        imagenet.load(local("cifar10", tmp_path), "test")


def test_a_large_set_is_read_image_by_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = make.rows(5)
    columns["img"][3] = {"bytes": b"no image", "path": None}
    (tmp_path / "train.parquet").write_bytes(make.parquet(columns))
    root = make.folder(tmp_path / "f", {"train": {"a": 3, "b": 2}, "val": {"a": 1}})
    small = imagenet.load(local("folder", root), "train")
    monkeypatch.setattr(images_store, "DECODE_AT_ONCE_BYTES", 10)
    large = imagenet.load(local("folder", root), "train")
    assert all(np.array_equal(large.pixels(i), small.pixels(i)) for i in range(5))
    assert len(set(large.ranks.tolist())) == 5
    rows = imagenet.load(local("cifar10", tmp_path), "train")
    assert np.array_equal(rows.pixels(4), make.noise(4, 6, 8, 3))
    with pytest.raises(UserError, match=r"train.parquet, row 3 cannot be decoded \(no known image format\); remove or"):
        rows.pixels(3)
    worker = (
        "Caught Undecodable in DataLoader worker process 0.\nTraceback\n  File\nlrx.data.images_store.Undecodable: it"
    )
    assert str(images_store.Undecodable(worker)) == "it"


# identity and cache


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    counts = {"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1}}
    one, other = (local("folder", make.folder(tmp_path / name, counts)) for name in ("one", "other"))
    assert imagenet.digest(one) == imagenet.digest(other)
    path = tmp_path / "other" / "val" / "a" / "0.png"
    path.write_bytes(make.encoded(make.noise(77)))
    assert imagenet.digest(one) != imagenet.digest(other)
    moved = tmp_path / "one" / "train"
    before = imagenet.digest(one)
    (moved / "a" / "1.png").rename(moved / "b" / "7.png")
    assert imagenet.digest(one) != before
    assert imagenet.digest({}) != imagenet.digest(one)


def test_the_store_is_made_once_and_again_when_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = local("folder", make.folder(tmp_path / "f", {"train": {"a": 2, "b": 2}, "val": {"a": 1}}))
    first = [imagenet.load(task, "train").pixels(i).copy() for i in range(4)]
    decoded = []
    monkeypatch.setattr(images_store, "decode", lambda data: decoded.append(data) or decode(data))
    again = imagenet.load(task, "train")
    assert not decoded
    assert all(np.array_equal(again.pixels(i), image) for i, image in enumerate(first))
    with pytest.raises(ValueError, match="read-only"):
        again.pixels(0)[0] = 1
    (pixels,) = (tmp_path / "cache" / "images").rglob("pixels.npy")
    pixels.write_bytes(b"")
    healed = imagenet.load(task, "train")
    assert len(decoded) == 4
    assert np.array_equal(healed.pixels(3), first[3])


def test_shares_are_fixed_nested_and_keep_equal_images_together(tmp_path: Path) -> None:
    train = imagenet.load({}, "train")
    kept, held = images_store.hold_out(train, 0.1, None)
    assert (len(kept), len(held)) == (1078, 120)
    assert not set(kept.ranks.tolist()) & set(held.ranks.tolist())
    assert len(images_store.hold_out(train, 0.1, 30)[1]) == 30
    assert len(images_store.hold_out(train, 0.0, None)[1]) == 0
    small, large = images_store.limit(train, 10), images_store.limit(train, 50)
    assert set(small.places.tolist()) < set(large.places.tolist())
    root = make.folder(tmp_path / "f", {"train": {"a": 3, "b": 3}, "val": {"a": 1}})
    for path in root.glob("train/*/*.png"):
        path.write_bytes(make.encoded(make.noise(5)))
    same = imagenet.load(local("folder", root), "train")
    assert [len(each) for each in images_store.hold_out(same, 0.3, None)] == [0, 6]


# options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "fashion"}, "task.dataset=fashion: no such set; did you mean 'fashion_mnist'? (choices: "),
        ({"source": "web"}, "task.source=web: no such source; (choices: embedded, hub, local)"),
        ({"dataset": "cifar10"}, "task.dataset=cifar10 comes with task.source=local or hub; embedded has: digits"),
        ({"source": "local"}, "task.dataset=digits comes with task.source=embedded"),
        ({"source": "local", "dataset": "cifar10"}, "task.source=local needs task.data_dir=<the folder with cifar10>"),
        ({"data_dir": "x"}, "task.data_dir is read only with task.source=local"),
        ({"revision": "x"}, "task.revision is read only with task.source=hub"),
        ({"batch_size": 0}, "task.batch_size=0: must be at least 1"),
        ({"mixup": -0.1}, "task.mixup=-0.1: must be at least 0"),
        ({"flip": 1.5}, "task.flip=1.5: from 0 to 1"),
        ({"crop_ratio": 0.0}, "task.crop_ratio=0.0: above 0, at most 1"),
        ({"holdout": 1.0}, "a fraction of the training part"),
        ({"label_smoothing": 1.0}, "must be below 1"),
        ({"rand_augment_magnitude": 31}, "at most 30"),
        ({"normalization": "own", "mean": [0.5]}, "task.normalization=own needs task.mean"),
        ({"mean": [0.5, 0.5, 0.5]}, "task.mean is read only with task.normalization=own"),
        ({"normalization": "own", "mean": [0.5] * 3, "std": [1.0, 0.0, 1.0]}, "every value must be above 0"),
    ],
    ids=str,
)
def test_wrong_options(options: dict, message: str) -> None:
    assert message in refusal(options)


def test_what_is_needed_to_evaluate_alone(tmp_path: Path) -> None:
    (tmp_path / "test.parquet").write_bytes(make.parquet(make.rows(3)))
    task = local("cifar10", tmp_path)
    assert "has no train split of cifar10" in refusal(task)
    imagenet.check(task, "eval")
    assert len(imagenet.digest(task)) == 64
