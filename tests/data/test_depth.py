"""Depth data: rendered scenes, degradation, files, and one line for what is wrong with them."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from lrx.data import depth_degrade, depth_files, depth_scenes, depth_sr
from lrx.errors import UserError
from lrx.tasks.depth_sr import DepthSR

RENDERED = {"train_size": 6, "select_size": 3, "test_size": 4, "scene_size": 16}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRX_CACHE", str(tmp_path / "cache"))


def options(**given: Any) -> dict[str, Any]:
    return DepthSR(**given).options


def test_scenes_are_the_same_bytes_for_a_seed() -> None:
    total = hashlib.sha256()
    for number in range(8):
        image, depth = depth_scenes.draw(3, number, 32)
        total.update(image.tobytes() + depth.tobytes())
        assert (image.shape, image.dtype, depth.shape, depth.dtype) == ((32, 32, 3), np.uint8, (32, 32), np.float32)
        assert 0 < depth.min() < depth.max() <= depth_scenes.MAX_DEPTH
    assert total.hexdigest() == "9c80949f2b348bfe8cdbf1def5f354d8ab008abe39c682b14d0c7c0ed7cf10ca"
    assert not np.array_equal(depth_scenes.draw(3, 0, 32)[1], depth_scenes.draw(4, 0, 32)[1])


def test_depth_is_of_planes() -> None:
    """Where a surface goes on in both directions, inverse depth is affine: its second differences vanish."""
    flat = 0
    for number in range(10):
        inverse = 1 / depth_scenes.draw(0, number, 64)[1].astype(np.float64)
        across = inverse[1:-1, 2:] - 2 * inverse[1:-1, 1:-1] + inverse[1:-1, :-2]
        down = inverse[2:, 1:-1] - 2 * inverse[1:-1, 1:-1] + inverse[:-2, 1:-1]
        flat += ((np.abs(across) < 1e-6) & (np.abs(down) < 1e-6)).mean()
    assert flat / 10 > 0.8


def test_the_quantiser_is_idempotent_and_has_few_levels() -> None:
    values = np.random.RandomState(0).random_sample((50, 40)).astype(np.float32)
    for bits in (1, 4, 5, 8):
        once = depth_degrade.quantise(values, bits)
        np.testing.assert_array_equal(depth_degrade.quantise(once, bits), once)
        assert len(np.unique(once)) <= 2**bits
        assert np.abs(once - values).max() <= 0.5 / (2**bits - 1) + 1e-7
        assert once.min() == 0
        assert once.max() == 1


def test_degradation_is_its_formula() -> None:
    depth = depth_scenes.draw(0, 1, 32)[1] / np.float32(10)
    given = options(bits=4, noise=0.0, scale_factor=8)
    low = depth_degrade.degrade(depth, given, "a")
    assert low.shape == (4, 4)
    mean = np.asarray(
        [[depth[i : i + 8, j : j + 8].mean(dtype=np.float64) for j in range(0, 32, 8)] for i in range(0, 32, 8)]
    )
    np.testing.assert_allclose(low, np.floor(mean * 15 + 0.5) / 15, atol=1e-6)
    assert len(np.unique(low)) <= 16
    noisy = depth_degrade.degrade(depth, {**given, "noise": 0.05}, "a")
    assert not np.array_equal(noisy, low)
    np.testing.assert_array_equal(noisy, depth_degrade.degrade(depth, {**given, "noise": 0.05}, "a"))
    assert not np.array_equal(noisy, depth_degrade.degrade(depth, {**given, "noise": 0.05}, "b"))
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    many = depth_degrade.noise((400, 500), 0.03, 0.2, "c")
    assert (many != 0).mean() == pytest.approx(0.2, abs=0.01)
    assert many[many != 0].std() == pytest.approx(0.03, rel=0.02)
    np.testing.assert_array_equal(depth_degrade.down(depth, 8, "nearest"), depth[4::8, 4::8])
    clean = depth_degrade.degrade(depth, options(protocol="standard", scale_factor=8), "a")
    pil = Image.fromarray(depth).resize((4, 4), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(clean, np.asarray(pil))


def test_rendered_splits_are_disjoint_and_kept() -> None:
    given = options(**RENDERED)
    found = depth_sr.splits(given, "train") | depth_sr.splits(given, "test")
    assert {name: len(each) for name, each in found.items()} == {"train": 6, "select": 3, "test": 4}
    names = [each.name(i) for each in found.values() for i in range(len(each))]
    assert names == [f"0/{i}" for i in range(13)]
    image = found["select"].image(1)
    pixels, depth = depth_scenes.draw(0, 7, 16)
    np.testing.assert_array_equal(image["pixels"], pixels)
    np.testing.assert_allclose(image["depth"] * 10, depth, rtol=1e-6)
    np.testing.assert_array_equal(image["low"], depth_degrade.degrade(image["depth"], given, "rendered 0/7"))
    assert found["test"].span(0) == 1000  # centimetres
    assert len(depth_sr.splits({**given, "eval_limit": 2, "train_limit": 5}, "train")["train"]) == 5
    assert len(depth_sr.splits({**given, "eval_limit": 2}, "test")["test"]) == 2


def picture(path: Path, height: int, width: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def depth_map(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def own_folder(root: Path) -> Path:
    for split, count in (("train", 8), ("test", 2)):
        for i in range(count):
            picture(root / split / "RGB" / f"{i}.png", 18, 22, i)
            values = np.full((18, 22), 1500 + i, dtype=np.uint16)
            values[:, 11:] = 3000
            values[0, 0] = 0  # unknown
            values[1, 1] = 60000  # deeper than max_depth
            depth_map(root / split / "Depth" / f"{i}.png", values)
    return root


def test_a_folder_of_16_bit_maps(tmp_path: Path) -> None:
    given = options(dataset="folder", source="local", data_dir=str(own_folder(tmp_path)), max_depth=8.0, patch=8)
    depth_sr.check(given)
    found = depth_sr.splits(given, "train")
    assert len(found["train"]) + len(found["select"]) == 8
    assert len(found["select"]) > 0
    image = depth_sr.splits(given, "test")["test"].image(1)
    assert image["depth"].shape == (16, 20)  # cut to multiples of 4
    assert found["train"].notes == {"cut": 8.0, "too_deep": 8.0}
    assert image["depth"][5, 0] == pytest.approx(1.501 / 8)
    assert not image["known"][0, 0]
    assert not image["known"][1, 1]
    assert image["known"].sum() == 318
    assert image["low"].shape == (4, 5)
    millimetres = depth_sr.splits({**given, "depth_unit": 0.0005}, "test")["test"].image(1)
    assert millimetres["depth"][5, 0] == pytest.approx(1.501 / 16)


def middlebury(root: Path) -> Path:
    values = np.add.outer(np.arange(32), np.arange(40)).astype(np.uint8) + 50
    for name in ("art", "books", "moebius"):
        picture(root / f"middlebury_A/RGB/{name}.png", 32 + 22, 40 + 14)
        depth_map(root / f"middlebury_A/Depth/{name}.png", values)
    for name in ("cones", "teddy", "tsukuba", "venus"):
        picture(root / f"middlebury_C/RGB/{name}.bmp", 33, 40)
        (root / "middlebury_C/Depth").mkdir(exist_ok=True)
        savemat(root / f"middlebury_C/Depth/{name}_2.mat", {"img_double": values.astype(np.float64)})
    picture(root / "aloe/aloeL.jpg", 32, 40)
    holes = values.copy()
    holes[4:8, 4:9] = 0
    depth_map(root / "aloe/aloeGT.png", holes)
    return root


def test_middlebury_s_files_are_cut_as_its_users_do(tmp_path: Path) -> None:
    given = options(
        dataset="middlebury", source="local", data_dir=str(middlebury(tmp_path)), holdout=0.25,
        train_items=["art", "books", "moebius", "aloe"], test_items=["cones", "teddy", "tsukuba", "venus"],
    )  # fmt: skip
    depth_sr.check(given)
    name, image, depth, known = next(depth_files.read(given, "train"))
    whole = np.asarray(Image.open(tmp_path / "middlebury_A/RGB/art.png"))
    assert (name, depth.max(), known.all()) == ("art", 120, True)
    np.testing.assert_array_equal(image, whole[11:43, 7:47])
    _, corner, _, _ = next(depth_files.read(given, "test"))
    np.testing.assert_array_equal(corner, np.asarray(Image.open(tmp_path / "middlebury_C/RGB/cones.bmp"))[:32])
    found = depth_sr.splits(given, "train")
    assert [found["train"].shape(i) for i in range(4)] == [(24, 40)] * 4
    assert [found["select"].shape(i) for i in range(4)] == [(8, 40)] * 4
    aloe = found["train"].image(3)
    assert (~aloe["known"]).sum() == 20
    assert aloe["low"][1].min() > 0.1  # the input's holes are filled
    assert found["train"].span(0) == 255


def test_nyu_from_the_official_file_and_from_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")
    monkeypatch.setattr(depth_files, "NYU_TRAIN", 3)
    monkeypatch.setattr(depth_files, "NYU_ALL", 5)
    rng = np.random.RandomState(0)
    images = rng.randint(0, 256, (5, 3, 12, 8), dtype=np.uint8)
    depths = (rng.random_sample((5, 12, 8)) * 8 + 1).astype(np.float32)
    with h5py.File(tmp_path / depth_files.NYU_MAT, "w") as content:
        content["images"], content["depths"] = images, depths
    given = options(dataset="nyu", source="local", data_dir=str(tmp_path), holdout=0.0, protocol="standard")
    test = depth_sr.splits(given, "test")["test"]
    assert [test.name(i) for i in range(len(test))] == ["3", "4"]
    image = test.image(0)
    np.testing.assert_array_equal(image["pixels"], images[3].transpose(2, 1, 0))
    least, most = depths[3].min(), depths[3].max()
    np.testing.assert_allclose(image["depth"], (depths[3].T - least) / (most - least), atol=1e-6)
    assert test.span(0) == pytest.approx((most - least) * 100)
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    turned, maps = images.transpose(0, 3, 2, 1), depths.transpose(0, 2, 1)
    low, high = maps[3:].min((1, 2)), maps[3:].max((1, 2))
    np.save(arrays / "train_images_split.npy", turned[:3])
    np.save(arrays / "train_depth_split.npy", maps[:3])
    np.save(arrays / "test_images_v2.npy", turned[3:])
    np.save(arrays / "test_depth.npy", (maps[3:] - low[:, None, None]) / (high - low)[:, None, None])
    with pytest.raises(UserError, match=r"test_minmax\.npy is missing"):
        depth_sr.check({**given, "data_dir": str(arrays)})
    np.save(arrays / "test_minmax.npy", np.stack([low, high]))
    again = depth_sr.splits({**given, "data_dir": str(arrays)}, "test")["test"].image(1)
    np.testing.assert_allclose(again["depth"], test.image(1)["depth"], atol=1e-5)
    with h5py.File(tmp_path / depth_files.NYU_MAT, "w") as content:
        content["images"], content["depths"] = images[:4], depths[:4]
    with pytest.raises(UserError, match="has 4 maps, not 5"):
        depth_sr.splits(given, "test")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"bits": 0}, "task.bits=0: from 1 to 16"),
        ({"bits": 32}, "task.bits=32: from 1 to 16"),
        ({"noise": -0.1}, "task.noise=-0.1: must be at least 0"),
        ({"noise": float("nan")}, "task.noise=nan: must be at least 0"),
        ({"noise_share": 1.5}, "task.noise_share=1.5: from 0 to 1"),
        ({"scale_factor": 1}, "task.scale_factor=1: must be at least 2"),
        ({"scale_factor": 5}, "task.scene_size=64: must be a multiple of task.scale_factor=5"),
        ({"patch": 30}, "task.patch=30: must be a multiple of task.scale_factor=4"),
        ({"patch": 128}, "task.patch=128: a scene has task.scene_size=64"),
        ({"max_depth": 0.0}, "task.max_depth=0.0: must be above 0"),
        ({"holdout": 1.0}, "task.holdout=1.0"),
        ({"source": "local"}, "comes with task.source=embedded"),
        ({"data_dir": "x"}, "task.data_dir is read only with task.source=local"),
        ({"dataset": "middlebury", "source": "local"}, "needs task.data_dir=<the folder with middlebury_A"),
        ({"dataset": "nyu", "source": "local", "data_dir": "/nowhere"}, "task.data_dir=/nowhere: no such folder"),
        ({"dataset": "nyu", "source": "hub"}, "needs task.repository=OWNER/NAME with nyu_depth_v2_labeled.mat"),
        ({"dataset": "folder", "source": "local", "data_dir": "."}, "needs task.max_depth"),
    ],
)
def test_options_that_mean_nothing_are_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        depth_sr.check(options(**given))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_hub_without_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrx.data.hub.unreachable", lambda: "no answer")
    with pytest.raises(UserError, match=r"cannot get nyu_depth_v2_labeled\.mat of some/where"):
        depth_sr.check(options(dataset="nyu", source="hub", repository="some/where"))


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    def broken(where: str) -> tuple[dict[str, Any], Path]:
        root = own_folder(tmp_path / where)
        given = {"dataset": "folder", "source": "local", "data_dir": str(root), "max_depth": 8.0, "patch": 8}
        return options(**given), root / "test" / "Depth" / "0.png"

    given, path = broken("size")
    depth_map(path, np.full((10, 10), 1000, dtype=np.uint16))
    with pytest.raises(UserError, match=r"0.png is 22 x 18 pixels and its depth map 10 x 10"):
        depth_sr.splits(given, "test")
    given, path = broken("unknown")
    depth_map(path, np.zeros((18, 22), dtype=np.uint16))
    with pytest.raises(UserError, match="image 0: no pixel has a known depth"):
        depth_sr.splits(given, "test")
    given, path = broken("colours")
    picture(path, 18, 22)
    with pytest.raises(UserError, match="has 3 channels; a depth map has one"):
        depth_sr.splits(given, "test")
    given, path = broken("text")
    path.write_text("no picture")
    with pytest.raises(UserError, match="cannot be read"):
        depth_sr.splits(given, "test")
    given, path = broken("missing")
    path.unlink()
    with pytest.raises(UserError, match=r"0\.png is missing"):
        depth_sr.check(given)
    given, path = broken("patch")
    with pytest.raises(UserError, match="the smallest training image has 16 pixels"):
        depth_sr.splits({**given, "patch": 32}, "train")
    item = depth_files.Item("", "", unknown=True)
    values = np.full((18, 22), 2.0)
    values[3, 4] = np.nan
    savemat(tmp_path / "map.mat", {"depth": values})
    *_, known = depth_files.pair("one", path.parents[1] / "RGB" / "0.png", tmp_path / "map.mat", item)
    assert known.sum() == 18 * 22 - 1


def test_every_option_is_explained_and_shown() -> None:
    from omegaconf import OmegaConf

    from tests.conftest import ROOT

    names = set(inspect.signature(DepthSR).parameters)
    assert all(name in (DepthSR.__doc__ or "") for name in names)
    shown = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "task" / "depth_sr.yaml"))
    assert set(shown) - {"defaults", "name"} == names
