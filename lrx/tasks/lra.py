"""The Long Range Arena (Tay et al. 2021, arXiv 2011.04006): classification of long sequences, accuracy.

Data and splits are in ``lrx.data.lra``. Each data set is a part of its own, and a run has one. Steps are ids
(``listops``, ``text``, ``retrieval``) or real values (pixels from -1 to 1, series as published). Model selection uses a
split of its own, or a held-out share of the training split (``holdout``); ``holdout=0`` selects on the reported split,
as every paper does for ``text``, and the record says so. The notes of a record have the accuracy of always answering
the most frequent class of the training split (``test.majority``), and of ``smnist`` what it was filled with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from lrx import warm
from lrx.data import lra, lra_images, lra_noise
from lrx.data.loader import Batches, EpochBatches, Positions, ResumableLoader, evaluation_loader
from lrx.data.lra_sequences import Sequences, hold_out, limit, shared
from lrx.errors import UserError
from lrx.models.base import Backbone, Inputs, Outputs
from lrx.seeds import derive
from lrx.tasks.base import Suite, Task
from lrx.tasks.metrics import accuracy


class LongRangeArena(Suite):
    """One data set of the arena, or of its embedded relatives ``smnist`` and ``acsf1``.

    Arguments:
        dataset: listops, text, retrieval, image, pathfinder, pathx, smnist (Fashion-MNIST or digits), acsf1 (series).
        source: ``embedded`` (generated, or of a package), ``local`` (files in ``data_dir``) or ``hub``.
        data_dir: for ``local``, where the files are.
        data_seed: of generated data; their splits are a function of it and of the sizes.
        train_size, select_size, test_size: examples of generated splits.
        max_depth, max_args, min_length: of ListOps' trees; lengths lie strictly between min_length and max_length.
        max_length: of ListOps' trees without the end token; of texts in tokens with it, longer ones are cut and
        counted. contour: dashes of Pathfinder's target contours: 6 easy, 9 intermediate, 14 hard.
        size: pixels of a side of Pathfinder's drawn images: 16, 32 (None: the arena's) or 64.
        batch_size, eval_batch_size: examples per batch and process.
        group_by_length: examples of similar length share a training batch: less padding, another order.
        holdout: share of the training split kept for model selection where there is no split for it, at most
            ``holdout_most`` examples (None: no limit); 0 selects on the reported split.
        train_limit, eval_limit: a fixed sample of the training and of every scored split; None for all of it.
        noise: a sinusoid added to the test split, scored as test_spike and test_control beside it: omega (radians per
            step), or states and dt from which it follows; amplitude (default 0.1); control (default 2/3 omega).
        revision: of the hub's repository; None for the fixed one.
        workers: processes that collate batches.
    """

    name: ClassVar[str] = "lra"
    version: ClassVar[int] = 1
    named_by: ClassVar[str] = "dataset"

    def __init__(
        self,
        *,
        dataset: Literal["listops", "text", "retrieval", "image", "pathfinder", "pathx", "smnist", "acsf1"],
        source: Literal["embedded", "local", "hub"] = "embedded",
        data_dir: str | None = None,
        data_seed: int = 0,
        train_size: int | None = None,
        select_size: int | None = None,
        test_size: int | None = None,
        max_depth: int = 10,
        max_args: int = 10,
        min_length: int = 500,
        max_length: int = 2000,
        contour: int = 14,
        size: int | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        group_by_length: bool = False,
        holdout: float = 0.1,
        holdout_most: int | None = 2000,
        train_limit: int | None = None,
        eval_limit: int | None = None,
        noise: dict[str, float] | None = None,
        revision: str | None = None,
        workers: int = 0,
    ) -> None:
        self.options: dict[str, Any] = {
            "dataset": dataset,
            "source": source,
            "data_dir": data_dir,
            "data_seed": data_seed,
            "train_size": train_size,
            "select_size": select_size,
            "test_size": test_size,
            "max_depth": max_depth,
            "max_args": max_args,
            "min_length": min_length,
            "max_length": max_length,
            "contour": contour,
            "size": size,
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "group_by_length": group_by_length,
            "holdout": holdout,
            "holdout_most": holdout_most,
            "train_limit": train_limit,
            "eval_limit": eval_limit,
            "noise": noise,
            "revision": revision,
            "workers": workers,
        }

    def parts(self) -> list[Task]:
        """The data set, as one part of its name."""
        return [SequenceTask(self.options)]


class SequenceTask(Task):
    """One data set. Splits are read, or generated, when first needed."""

    primary = "accuracy"
    higher_is_better: Mapping[str, bool] = {"accuracy": True}

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.options = dict(options)
        self.name = options["dataset"]
        self.kind = lra.spec(options)
        self.outputs = Outputs("classes", lra.classes(options))
        self.own_select = lra.own_select(options)
        self.selects_on_reported = options["holdout"] == 0 and not self.own_select
        self.tones = lra_noise.frequencies(options["noise"]) if options["noise"] else {}
        self.reported = ("test", *self.tones)
        self.notes: dict[str, float] = {}
        self._splits: dict[str, Sequences] = {}
        self._seed = 0

    @property
    def inputs(self) -> Inputs:  # type: ignore[override]
        """With the length of the longest example that can come."""
        kind = self.kind
        longest = self.options["max_length"] if kind.vocabulary else int(self.split("test").lengths.max())
        return Inputs(
            "sequence",
            max_length=longest,
            vocabulary=kind.vocabulary,
            features=kind.features,
            pairs=kind.pairs,
        )

    def bind(self, backbone: Backbone, seed: int) -> None:
        """Take over the seed of the order. Raises ``UserError`` for a model that reads no sequences."""
        if backbone.reads != "sequence":
            raise UserError(f"task lra/{self.name} is long sequences; this model reads none (model=s4d does)")
        self._seed = derive(seed, "data", self.name)

    def split(self, name: str) -> Sequences:
        """The examples of ``train``, ``select``, ``test`` or, with noise, of the test split again."""
        if name in self.tones or (name == "select" and self.selects_on_reported):
            name = "test"
        if name not in self._splits:
            if name not in {"train", "select", "test"}:
                raise KeyError(f"{self.name} has no split {name!r}")
            loose = ("batch_size", "eval_batch_size", "group_by_length", "workers", "noise")
            key = ("lra", name, *(str(value) for key, value in self.options.items() if key not in loose))
            for found, examples in warm.keep(key, lambda: self._load(name)).items():
                self._splits[found] = examples
                self.notes.update({f"{found}.{what}": count for what, count in examples.notes.items()})
            self._note()
        return self._splits[name]

    def _load(self, name: str) -> dict[str, Sequences]:
        """The split, and the other one of ``train`` and ``select`` where both are of the training split."""
        options = self.options
        found = {name: lra.load(options, "train" if name == "select" and not self.own_select else name)}
        if name in {"train", "select"} and not self.own_select and not self.selects_on_reported:
            train, select = hold_out(found[name], options["holdout"], options["holdout_most"])
            if not len(train):
                raise UserError(f"task.holdout={options['holdout']} leaves nothing to train on of {self.name}")
            select.notes.clear()
            found = {"train": train, "select": select}
        most = {"train": options["train_limit"]}
        return {key: limit(each, most.get(key, options["eval_limit"])) for key, each in found.items()}

    def _note(self) -> None:
        """What a reader of the scores has to know, once the splits are there."""
        if self.name == "smnist":
            self.notes[f"data.{lra_images.filled_with(self.options)}"] = 1.0
        if {"train", "test"} <= set(self._splits):
            train, test = self._splits["train"], self._splits["test"]
            most = np.bincount(train.labels).argmax()
            self.notes["test.majority"] = float(np.mean(test.labels == most))
            if known := shared(train, test):
                self.notes["test.in_train"] = float(known)

    def size(self, split: str) -> int:
        """Number of examples of a split."""
        return len(self.split(split))

    def train_dataloader(self) -> DataLoader:  # type: ignore[override]
        train = self.split("train")
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        lengths = train.lengths.tolist() if self.options["group_by_length"] else None
        order = EpochBatches(len(train), self.options["batch_size"], self._seed, rank, world, lengths)
        return ResumableLoader(Positions(len(train), self._collator("train")), order, self.options["workers"])

    def eval_dataloader(self, split: str) -> DataLoader:
        """Every example of a split once."""
        examples = self.split(split)
        order = Batches(examples.lengths.tolist(), self.options["eval_batch_size"])
        return evaluation_loader(Positions(len(examples), self._collator(split)), order, self.options["workers"])

    def _collator(self, split: str) -> Collate:
        amplitude = (self.options["noise"] or {}).get("amplitude", 0.1)
        return Collate(self.split(split), self.kind.vocabulary > 0, self.tones.get(split), amplitude)

    def loss(self, backbone: Backbone, batch: dict[str, Any]) -> Tensor:
        """Cross-entropy in float32."""
        return F.cross_entropy(backbone(batch).float(), batch["labels"])

    def predict(self, outputs: Tensor) -> Tensor:
        """Scores (batch, classes) -> the best class (batch,); with a NaN -1."""
        return outputs.argmax(dim=1).masked_fill(outputs.isnan().any(dim=1), -1)

    def score(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """Share of right answers."""
        return {"accuracy": accuracy(predictions, references)}


class Collate:
    """Positions -> a batch, padded on the right with 0 to its longest example.

    ``input_ids`` (batch, length) int64 or ``values`` (batch, length, features) float32, ``lengths``, ``labels`` and
    ``index`` (batch,) int64; of pairs also ``input_ids_b`` or ``values_b`` and ``lengths_b``. Bytes of pixels become
    values from -1 to 1. ``omega``: of a sinusoid that is added to all features.
    """

    def __init__(self, examples: Sequences, ids: bool, omega: float | None = None, amplitude: float = 0.0) -> None:
        self.examples, self.ids, self.omega, self.amplitude = examples, ids, omega, amplitude

    def __call__(self, positions: list[int]) -> dict[str, Tensor]:
        batch = self._side(self.examples, positions, "")
        if self.examples.second is not None:
            batch |= self._side(self.examples.second, positions, "_b")
        chosen = np.asarray(positions)
        batch["labels"] = torch.from_numpy(self.examples.labels[chosen])
        batch["index"] = torch.from_numpy(chosen.astype(np.int64))
        return batch

    def _side(self, examples: Sequences, positions: list[int], suffix: str) -> dict[str, Tensor]:
        rows = [examples.at(position) for position in positions]
        lengths = np.asarray([len(row) for row in rows], dtype=np.int64)
        shape = (len(rows), int(lengths.max()), *examples.steps.shape[1:])
        out = np.zeros(shape, dtype=np.int64 if self.ids else np.float32)
        for number, row in enumerate(rows):
            scaled = row.astype(np.float32) / 127.5 - 1 if row.dtype == np.uint8 and not self.ids else row
            out[number, : len(row)] = scaled
        if self.omega is not None:
            tone = lra_noise.wave(np.asarray(positions), shape[1], self.omega, self.amplitude)
            out += (tone * (np.arange(shape[1]) < lengths[:, None]))[:, :, None]
        key = "input_ids" if self.ids else "values"
        return {f"{key}{suffix}": torch.from_numpy(out), f"lengths{suffix}": torch.from_numpy(lengths)}
