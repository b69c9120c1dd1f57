"""Images per second of the image task's batches: ``python -m benchmarks.images``.

1. RandomResizedCrop(224), flip, normalised: ours beside torchvision's ImageFolder with the same transforms on Pillow
   images, on the same JPEG files, once with ours decoded from its cache and once decoding each image as for large sets
2. the part of a training step (EfficientNet-Lite0 with LoRA, scale=mini) that goes to making its batch

Both sides run in one process and one thread, in turns; each figure is the median over rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lrx.config import compose, settings_of
from lrx.data import images_store
from lrx.experiment import build_suite, quiet_libraries
from lrx.tasks.image_transforms import IMAGENET
from lrx.tasks.imagenet import ImageNet
from lrx.training import assemble

SIDE, BATCH = 256, 32


def photographs(root: Path, count: int) -> Path:
    """``count`` smooth random JPEG images of two classes in ``root/train``, one of each in ``root/val``."""
    rng = np.random.default_rng(0)
    for split, each in (("train", count // 2), ("val", 1)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(each):
                coarse = Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8))
                coarse.resize((SIDE * 5 // 4, SIDE), Image.Resampling.BICUBIC).save(root / split / name / f"{i}.jpg")
    return root


def theirs(root: Path) -> Iterable[Any]:
    """torchvision's usual way."""
    steps = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return DataLoader(
        ImageFolder(str(root / "train"), v2.Compose([*steps, v2.Normalize(*map(list, IMAGENET))])),
        batch_size=BATCH,
        shuffle=True,
    )


def ours(root: Path) -> Iterable[Any]:
    """The training batches of ``task=imagenet``."""
    (task,) = ImageNet(source="local", dataset="folder", data_dir=str(root), batch_size=BATCH, holdout=0.0).parts()
    task.bind(SimpleNamespace(reads="image"), 0)  # type: ignore[arg-type]
    return task.train_dataloader()


def rate(loader: Iterable[Any], count: int) -> float:
    """Images per second of one pass."""
    start = time.perf_counter()
    for _ in loader:
        pass
    return count / (time.perf_counter() - start)


def compare(rounds: int, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LRX_CACHE"] = f"{folder}/cache"
        root = photographs(Path(folder, "images"), count)
        makers: dict[str, Callable[[], Iterable[Any]]] = {
            "torchvision": lambda: theirs(root),
            "ours": lambda: ours(root),
        }
        at_once = images_store.DECODE_AT_ONCE_BYTES
        for what, most in (("from the cache", at_once), ("decoding each", 0)):
            images_store.DECODE_AT_ONCE_BYTES = most
            loaders = {name: make() for name, make in makers.items()}
            rates: dict[str, list[float]] = {name: [] for name in loaders}
            for _ in range(rounds):
                for name, loader in loaders.items():
                    rates[name].append(rate(loader, count))
            ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["torchvision"], strict=True))
            figures = ", ".join(f"{name} {statistics.median(each):.0f}" for name, each in rates.items())
            print(f"{what}: images/s {figures}; ratio {ratio:.2f}", flush=True)
        images_store.DECODE_AT_ONCE_BYTES = at_once


def share(steps: int) -> None:
    """The part of a step of ``python run.py method=lora task=imagenet`` for its batch."""
    settings = settings_of(compose(["task=imagenet", "method=lora", "logger=none"]))
    (task,) = build_suite(settings).parts()
    backbone, method = assemble(task, settings)
    task.bind(backbone, 0)
    task.size("train")
    optimizer = method.optimizer(backbone)
    batches = iter(task.train_dataloader())
    fetching, whole = [], []
    for _ in range(steps):
        start = time.perf_counter()
        batch = next(batches)
        fetched = time.perf_counter()
        task.loss(backbone, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        whole.append(time.perf_counter() - start)
        fetching.append(fetched - start)
    part = statistics.median(fetching) / statistics.median(whole)
    print(f"training: {statistics.median(whole) * 1000:.0f} ms a step, {part:.1%} of it for its batch", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    share(arguments.steps)
    compare(arguments.rounds, arguments.images)


if __name__ == "__main__":
    main()
