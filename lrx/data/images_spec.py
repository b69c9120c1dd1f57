"""The image sets: classes, splits, sizes, and where their files are.

Sizes and hub columns as published with each set; the hub's revisions are fixed. ImageNet-1K is Russakovsky et al. 2015
(its test labels are hidden, so the 50,000 validation images are reported), CIFAR Krizhevsky 2009, Fashion-MNIST Xiao et
al. 2017. ``digits`` are the 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries (the test part of UCI's
"Optical Recognition of Handwritten Digits", Alpaydin and Kaynak 1998); they have no split of their own, so one is fixed
here. ``folder`` is a user's own set, with a folder for each class.
"""

from __future__ import annotations

from dataclasses import dataclass, field

HELD_BACK = 1 / 3  # share of the digits that is the test split


@dataclass(frozen=True)
class ImageSet:
    """One set. ``classes``: how many, 0 where the folders say it. ``sources``: where it can come from.

    ``reported``: the split that is scored. ``image`` and ``label``: columns of a parquet file, in the order in which
    they are looked for. ``shards``: split -> (path in the hub's repository, with ``{}`` for the number, how many).
    ``sizes``: split -> published number of images.
    """

    name: str
    classes: int
    sources: tuple[str, ...]
    reported: str = "test"
    image: tuple[str, ...] = ("img", "image")
    label: tuple[str, ...] = ("label",)
    repository: str = ""
    revision: str = ""
    shards: dict[str, tuple[str, int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def files(self, split: str) -> list[str]:
        """The parquet files of a split in the hub's repository."""
        pattern, count = self.shards[split]
        return [pattern.format(f"{number:05d}-of-{count:05d}") for number in range(count)]


SETS: dict[str, ImageSet] = {
    each.name: each
    for each in (
        ImageSet(
            "imagenet1k", 1000, ("local", "hub"), "validation",
            repository="ILSVRC/imagenet-1k", revision="49e2ee26f3810fb5a7536bbf732a7b07389a47b5",
            shards={"train": ("data/train-{}.parquet", 294), "validation": ("data/validation-{}.parquet", 14)},
            sizes={"train": 1281167, "validation": 50000},
        ),
        ImageSet(
            "cifar10", 10, ("local", "hub"),
            repository="uoft-cs/cifar10", revision="0b2714987fa478483af9968de7c934580d0bb9a2",
            shards={split: (f"plain_text/{split}-{{}}.parquet", 1) for split in ("train", "test")},
            sizes={"train": 50000, "test": 10000},
        ),
        ImageSet(
            "cifar100", 100, ("local", "hub"), label=("fine_label", "label"),
            repository="uoft-cs/cifar100", revision="aadb3af77e9048adbea6b47c21a81e47dd092ae5",
            shards={split: (f"cifar100/{split}-{{}}.parquet", 1) for split in ("train", "test")},
            sizes={"train": 50000, "test": 10000},
        ),
        ImageSet(
            "fashion_mnist", 10, ("local", "hub"),
            repository="zalando-datasets/fashion_mnist", revision="531be5e2ccc9dba0c201ad3ae567a4f3d16ecdd2",
            shards={split: (f"fashion_mnist/{split}-{{}}.parquet", 1) for split in ("train", "test")},
            sizes={"train": 60000, "test": 10000},
        ),
        ImageSet("digits", 10, ("embedded",), sizes={"train": 1198, "test": 599}),
        ImageSet("folder", 0, ("local",), "val"),
    )
}  # fmt: skip
