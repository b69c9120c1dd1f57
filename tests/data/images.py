"""Small image files and sets, made here, for the tests of the image task."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrx.data import imagenet
from lrx.errors import UserError


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (6, 8, 3), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def folder(root: Path, counts: dict[str, dict[str, int]]) -> Path:
    """``{"train": {"cat": 3}}`` -> train/cat/{0,1,2}.png, every image another one and of another size."""
    seed = 0
    for split, classes in counts.items():
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                seed += 1
                (root / split / name / f"{i}.png").write_bytes(encoded(noise(seed, 5 + i % 3, 7, 3)))
    return root


def idx(path: Path, values: np.ndarray) -> None:
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    data = header + values.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def fashion(root: Path, train: int = 20, test: int = 10) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for prefix, count, seed in (("train", train, 0), ("t10k", test, 1)):
        idx(root / f"{prefix}-images-idx3-ubyte.gz", noise(seed, count, 28, 28))
        idx(root / f"{prefix}-labels-idx1-ubyte.gz", (np.arange(count) % 10).astype(np.uint8))
    return root


def cifar(root: Path, before: int = 1, train: tuple[str, ...] = (), test: str = "test_batch.bin") -> Path:
    """CIFAR's binary version, 4 images a file; ``before``: label bytes in front of each image."""
    root.mkdir(parents=True, exist_ok=True)
    names = train or tuple(f"data_batch_{i}.bin" for i in range(1, 6))
    for seed, name in enumerate((*names, test)):
        rows = noise(seed, 4, before + 3072)
        rows[:, :before] = (np.arange(4) + seed)[:, None] % 10
        rows[:, 0] = 3 if before == 2 else rows[:, 0]
        rows.tofile(root / name)
    return root


def parquet(columns: dict) -> bytes:
    import pyarrow
    import pyarrow.parquet

    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), stream, row_group_size=3)
    return stream.getvalue()


def rows(count: int, seed: int = 0, classes: int = 10) -> dict:
    """Columns as the hub has them."""
    images = [{"bytes": encoded(noise(seed * 1000 + i, 6, 8, 3)), "path": None} for i in range(count)]
    return {"img": images, "label": [i % classes for i in range(count)]}


def local(dataset: str, data_dir: Path, **options) -> dict:
    return {"source": "local", "dataset": dataset, "data_dir": str(data_dir), **options}


def refusal(task: dict, mode: str = "train") -> str:
    """The one line that ``check`` says."""
    with pytest.raises(UserError) as caught:
        imagenet.check(task, mode)
    assert "\n" not in str(caught.value)
    return str(caught.value)
