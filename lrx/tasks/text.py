"""Texts -> batches of token ids for a backbone's tokenizer, for encoders with a head and for text-to-text models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrx import warm
from lrx.data.splits import Split


@dataclass
class Encoded:
    """A tokenised split. Token ids of all examples end to end; ``offsets``: (n + 1,) where each begins.

    ``labels``: (n,) int64 classes or float32 values, None if hidden.
    """

    ids: np.ndarray
    types: np.ndarray | None
    offsets: np.ndarray
    labels: Tensor | None
    pad_id: int
    pad_type: int
    pad_left: bool

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [int(size) for size in np.diff(self.offsets)]

    def collate(self, positions: list[int]) -> dict[str, Tensor]:
        """A batch padded to its longest example.

        ``input_ids``, ``attention_mask`` and, if the tokenizer knows segments, ``token_type_ids``: (batch, length)
        int64; ``labels``: (batch,), absent if hidden; ``index``: (batch,) int64, each example's place in the split.
        """
        index = np.asarray(positions)
        sizes = self.offsets[index + 1] - self.offsets[index]
        shape = (len(index), int(sizes.max()))
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        types = None if self.types is None else np.full(shape, self.pad_type, dtype=np.int64)
        for row, (position, size) in enumerate(zip(index, sizes, strict=True)):
            begin = self.offsets[position]
            place = slice(shape[1] - size, None) if self.pad_left else slice(0, size)
            ids[row, place] = self.ids[begin : begin + size]
            mask[row, place] = 1
            if types is not None and self.types is not None:
                types[row, place] = self.types[begin : begin + size]
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if types is not None:
            batch["token_type_ids"] = torch.from_numpy(types)
        batch["index"] = torch.from_numpy(index)
        if self.labels is not None:
            batch["labels"] = self.labels[batch["index"]]
        return batch


def encode(
    split: Split, tokenizer: Any, max_length: int, *, instruction: str | None = None, regression: bool = False
) -> tuple[Encoded, dict[str, int]]:
    """Tokenise ``split``; at most ``max_length`` tokens each, the longer text of a pair cut first.

    ``instruction`` (text-to-text): one text, instruction + sentences by lines + ``"result: "`` (the form of LoRA-GA's
    scripts). Returns the tokens and the counts of what was irregular: ``truncated``, ``empty``; neither may be changed.
    """
    if not warm.active():
        return _encode(split, tokenizer, max_length, instruction, regression)
    options = (max_length, instruction, regression, tokenizer.padding_side)
    key = ("tokens", split.digest(), tokenizer_digest(tokenizer), *options)
    return warm.keep(key, lambda: _encode(split, tokenizer, max_length, instruction, regression))


def tokenizer_digest(tokenizer: Any) -> str:
    """What the tokenizer does to a text, as 64 hex digits; slow tokenizers are told apart by object only.

    Taken once: what a tokenizer says of itself changes with the last truncation that was asked of it.
    """
    if not hasattr(tokenizer, "lrx_digest"):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else f"object {id(tokenizer)}"
        tokenizer.lrx_digest = hashlib.sha256(text.encode()).hexdigest()
    return str(tokenizer.lrx_digest)


def _encode(
    split: Split, tokenizer: Any, max_length: int, instruction: str | None, regression: bool
) -> tuple[Encoded, dict[str, int]]:
    if instruction is None:
        columns: list[list[str]] = [list(column) for column in zip(*split.texts, strict=True)]
    else:
        columns = [[instruction + "\n".join(texts) + "\nresult: " for texts in split.texts]]
    rows = _tokens(tokenizer, columns, None)
    long = [i for i, row in enumerate(rows["input_ids"]) if len(row) > max_length]
    if long:
        cut = _tokens(tokenizer, [[column[i] for i in long] for column in columns], max_length)
        for key, values in cut.items():
            for i, value in zip(long, values, strict=True):
                rows[key][i] = value
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows["input_ids"]])]).astype(np.int64)
    labels = None
    if split.labels is not None:
        labels = torch.tensor(split.labels, dtype=torch.float32 if regression else torch.int64)
    encoded = Encoded(
        ids=_flat(rows["input_ids"]),
        types=_flat(rows["token_type_ids"]) if "token_type_ids" in rows else None,
        offsets=offsets,
        labels=labels,
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        pad_type=tokenizer.pad_token_type_id,
        pad_left=tokenizer.padding_side == "left",
    )
    empty = sum(any(not text.strip() for text in texts) for texts in split.texts)
    return encoded, {key: count for key, count in (("truncated", len(long)), ("empty", empty)) if count}


def _tokens(tokenizer: Any, columns: list[list[str]], max_length: int | None) -> dict[str, list[list[int]]]:
    names = [name for name in ("input_ids", "token_type_ids") if name in {"input_ids", *tokenizer.model_input_names}]
    limits = {"truncation": True, "max_length": max_length} if max_length is not None else {"truncation": False}
    found = tokenizer(*columns, return_attention_mask=False, verbose=False, **limits)
    return {name: list(found[name]) for name in names}


def _flat(rows: Sequence[Sequence[int]]) -> np.ndarray:
    return np.fromiter((token for row in rows for token in row), dtype=np.int32, count=sum(map(len, rows)))
