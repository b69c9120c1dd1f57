"""Causal language modelling from scratch: perplexity of held-out text.

Data and splits are in ``lrx.data.lm``, tokens and blocks in ``lrx.data.lm_tokens``. Every token of the reported split
is predicted once, from at most ``length`` tokens before it:

    perplexity = exp(sum of -log p / number of tokens),  bits_per_byte = sum of -log p / (log 2 * number of bytes)

with natural logarithms, the ends of documents counted among the tokens and as one byte each. Bits per byte can be
compared between tokenizers, perplexities cannot. The notes of a record have the perplexity of the unigram model, which
knows how often each token occurs in the training split and nothing of its context.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lrx.data import lm
from lrx.data.lm_tokens import Packed, learn_bpe, pack, unigram_perplexity
from lrx.data.loader import Batches, EpochBatches, Positions, ResumableLoader, evaluation_loader
from lrx.errors import UserError
from lrx.models.base import Backbone, Inputs, Outputs
from lrx.seeds import derive
from lrx.tasks.base import Suite, Task
from lrx.tasks.text import tokenizer_digest

IGNORED = -100  # what PyTorch's cross-entropy leaves out


class LanguageModelling(Suite):
    """A corpus, trained on in blocks of tokens in a new random order each epoch.

    Arguments:
        source: ``embedded`` (reviews, editorials, tweets), ``local`` (text files in ``data_dir``) or ``hub``.
        corpus: for ``hub``: c4, wikitext2, wikitext103.
        data_dir: for ``local``, the folder of train.txt, validation.txt and test.txt (the latter two may be missing).
        documents: for ``local``: ``paragraphs`` between blank lines, or ``lines``.
        shards: for C4, the first so many of its 1,024 training files, about 170 million tokens each.
        tokenizer: ``bpe`` is learnt from the training split, for models that have none of their own; ``model`` is the
            one that the model's configuration names.
        vocab_size: tokens of ``bpe``.
        length: tokens that a block predicts; the model reads one more.
        batch_size, eval_batch_size: blocks per batch and process.
        holdout, test_share: for ``local``, shares of the training documents that stand in for a missing
            validation.txt and test.txt.
        train_limit, select_limit, eval_limit: documents of a fixed sample of a split; None for all of it.
        revision: of the hub's repository; None for the fixed one.
        workers: processes that collate batches.
    """

    name: ClassVar[str] = "lm"
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        source: Literal["embedded", "local", "hub"] = "embedded",
        corpus: Literal["c4", "wikitext2", "wikitext103"] = "c4",
        data_dir: str | None = None,
        documents: Literal["paragraphs", "lines"] = "paragraphs",
        shards: int = 1,
        tokenizer: Literal["bpe", "model"] = "bpe",
        vocab_size: int = 2048,
        length: int = 128,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        holdout: float = 0.05,
        test_share: float = 0.1,
        train_limit: int | None = None,
        select_limit: int | None = None,
        eval_limit: int | None = None,
        revision: str | None = None,
        workers: int = 0,
    ) -> None:
        self.options: dict[str, Any] = {
            "source": source,
            "corpus": corpus,
            "data_dir": data_dir,
            "documents": documents,
            "shards": shards,
            "tokenizer": tokenizer,
            "vocab_size": vocab_size,
            "length": length,
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "holdout": holdout,
            "test_share": test_share,
            "train_limit": train_limit,
            "select_limit": select_limit,
            "eval_limit": eval_limit,
            "revision": revision,
            "workers": workers,
        }

    def parts(self) -> list[Task]:
        """The one part."""
        return [LmTask(self.options)]


class LmTask(Task):
    """A prediction is the summed loss of a block in nats, its reference the number of tokens that it predicts."""

    name = "lm"
    primary = "perplexity"
    higher_is_better: Mapping[str, bool] = {"perplexity": False, "bits_per_byte": False}
    outputs = Outputs("text")

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.options = dict(options)
        self.reported = (lm.reported(options),)
        self.notes: dict[str, float] = {}
        self._tokenizer: Any = None
        self._packed: dict[str, Packed] = {}
        self._seed = 0

    @functools.cached_property
    def inputs(self) -> Inputs:  # type: ignore[override]
        """With the tokenizer, learnt or read from the cache when first asked for."""
        learnt = self.options["tokenizer"] == "bpe"
        text = learn_bpe(lm.pieces(self.options, "train"), self.options["vocab_size"]) if learnt else ""
        return Inputs("text", max_length=self.options["length"] + 1, tokenizer=text)

    def bind(self, backbone: Backbone, seed: int) -> None:
        """Take over tokenizer and seed.

        Raises ``UserError`` for a model that continues no text, or has too few positions for a block.
        """
        if backbone.reads != "causal" or backbone.tokenizer is None:
            raise UserError("task lm needs a causal language model")
        if backbone.tokenizer.eos_token_id is None:
            raise UserError("task lm: the tokenizer of this model has no end token; a document would have no end")
        length = self.options["length"]
        if backbone.positions is not None and length + 1 > backbone.positions:
            raise UserError(
                f"task.length={length}: this model has {backbone.positions} positions; give at most one less"
            )
        self._tokenizer, self._seed = backbone.tokenizer, derive(seed, "data", self.name)
        self._packed.clear()

    def size(self, split: str) -> int:
        """Number of blocks of a split; before the task is bound, which is what it depends on, of its files."""
        if split not in {"train", "select", *self.reported}:
            return 0
        return len(lm.pieces(self.options, split)) if self._tokenizer is None else len(self.packed(split).sizes)

    def packed(self, split: str) -> Packed:
        """The blocks of a split. Raises ``UserError`` for a text that cannot be read, or fills no block."""
        if split not in self._packed:
            pieces, rule = lm.pieces(self.options, split), tokenizer_digest(self._tokenizer)
            found = pack(pieces, self._tokenizer, rule, self.options["length"], whole=split == "train")
            self._packed[split] = found
            self.notes.update({f"{split}.{what}": count for what, count in found.notes.items()})
            if split != "train":
                known = self.packed("train").counts
                self.notes[f"{split}.unigram_perplexity"] = unigram_perplexity(known, found.counts)
        return self._packed[split]

    def train_dataloader(self) -> DataLoader:  # type: ignore[override]
        blocks = Blocks(self.packed("train"))
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        batches = EpochBatches(len(blocks), self.options["batch_size"], self._seed, rank, world)
        return ResumableLoader(Positions(len(blocks), blocks.collate), batches, self.options["workers"])

    def eval_dataloader(self, split: str) -> DataLoader:
        """Every block once, the short ones last."""
        blocks = Blocks(self.packed(split))
        batches = Batches(blocks.sizes.tolist(), self.options["eval_batch_size"])
        return evaluation_loader(Positions(len(blocks), blocks.collate), batches, self.options["workers"])

    def loss(self, backbone: Backbone, batch: dict[str, Any]) -> Tensor:
        """Mean cross-entropy of the tokens in float32, in nats."""
        return backbone.token_losses(batch).mean()

    def infer(self, backbone: Backbone, batch: dict[str, Any]) -> np.ndarray:
        """Summed loss of each block (batch,) float64, in nats."""
        known = batch["labels"] != IGNORED
        losses = torch.zeros(known.shape, dtype=torch.float64, device=known.device)
        losses[known] = backbone.token_losses(batch).double()
        return losses.sum(dim=1).cpu().numpy()

    def references(self, split: str) -> np.ndarray:
        """Tokens of each block (n,)."""
        return self.packed(split).sizes

    def measure(self, split: str, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """Perplexity per token and bits per byte; infinite or NaN where the losses are."""
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(predictions.sum() / references.sum()))
        return {
            "perplexity": perplexity,
            "bits_per_byte": float(predictions.sum() / (math.log(2) * self.packed(split).bytes)),
        }

    def tracked(self) -> Sequence[str]:
        """None: the curve of the selection split says the same, and scoring both would double its cost."""
        return ()


class Blocks:
    """Batches of the blocks of a split; ``sizes`` (n,): tokens that each predicts."""

    def __init__(self, packed: Packed) -> None:
        self.packed, self.sizes, self.borders = packed, packed.sizes, packed.borders

    def __len__(self) -> int:
        return len(self.sizes)

    def collate(self, positions: list[int]) -> dict[str, Tensor]:
        """``input_ids`` (batch, longest + 1) and ``labels``, the same but for the first position and padding
        (``IGNORED``); ``index`` (batch,); all int64. A shorter block is padded on the right, where no token that counts
        looks.
        """
        index = np.asarray(positions, dtype=np.int64)
        longest = int(self.sizes[index].max()) + 1
        ids = np.zeros((len(index), longest), dtype=np.int64)
        labels = np.full((len(index), longest), IGNORED, dtype=np.int64)
        for row, position in enumerate(index):
            piece = int(np.searchsorted(self.borders, position, side="right")) - 1
            first, size = int(position - self.borders[piece]) * self.packed.length, int(self.sizes[position])
            ids[row, : size + 1] = self.packed.streams[piece][first : first + size + 1]
            labels[row, 1 : size + 1] = ids[row, 1 : size + 1]
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "index": torch.from_numpy(index),
        }
