"""Documents -> one stream of tokens, cut into blocks; and a byte-level BPE tokenizer learnt from training documents.

A piece of a split (``lrx.data.lm.Piece``) becomes the stream ``<end> document <end> document <end> ...``. Block i of
length L predicts the tokens i L + 1 to (i + 1) L of the stream, each from those before it in the block; so every token
but the first is predicted exactly once, the end tokens included, and the first token of a block is predicted from the
last of the block before. Attention does not stop at the end of a document, as is usual in pretraining.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrx.data.lm import Piece
from lrx.data.store import Arrays, stored
from lrx.errors import UserError

END = "<|end|>"
AT_A_TIME = 1000  # documents that are tokenised in one call


@dataclass(frozen=True)
class Packed:
    """The tokens of a split in blocks. ``streams``: one int32 array per piece; ``length``: of a block.

    ``whole``: only whole blocks (training); otherwise the last one of a piece may be shorter. ``bytes``: of the
    documents in UTF-8, an end of a document counted as one. ``counts`` (vocabulary,): how often each token is
    predicted. ``notes``: documents, tokens, irregularities.
    """

    streams: Sequence[np.ndarray]
    length: int
    whole: bool
    bytes: int
    counts: np.ndarray
    notes: dict[str, int]

    @property
    def sizes(self) -> np.ndarray:
        """(n,): tokens that each block predicts."""
        found = []
        for stream in self.streams:
            blocks, rest = divmod(len(stream) - 1, self.length)
            found += [self.length] * blocks + ([rest] if rest and not self.whole else [])
        return np.array(found, dtype=np.int64)

    @property
    def borders(self) -> np.ndarray:
        """(pieces + 1,): number of the first block of each piece."""
        each = [
            (len(stream) - 1) // self.length if self.whole else -(-(len(stream) - 1) // self.length)
            for stream in self.streams
        ]
        return np.concatenate([[0], np.cumsum(each)]).astype(np.int64)


def pack(pieces: Sequence[Piece], tokenizer: Any, rule: str, length: int, *, whole: bool) -> Packed:
    """Tokenise the pieces, each once: the arrays are memory-mapped from the cache by their content.

    ``rule``: names what the tokenizer does to a text. Notes: ``documents``, ``duplicates``, ``tokens`` (predicted),
    ``short_block``: tokens of the last block of a piece, which are left out where ``whole``.
    Raises ``UserError`` where no block is filled.
    """
    end, size = tokenizer.eos_token_id, len(tokenizer)
    streams, counts, count_of_bytes = [], np.zeros(size, dtype=np.int64), 0
    notes: dict[str, int] = {}
    for piece in pieces:
        made = stored("tokens", ("lm", piece.key, rule, end), lambda piece=piece: _encode(piece, tokenizer))  # type: ignore[misc]
        names = bytes(made["names"]).decode().split()
        for name, value in zip(names, made["values"].tolist(), strict=True):
            notes[name] = notes.get(name, 0) + value
        count_of_bytes += int(made["bytes"][0])
        counts += made["counts"]
        streams.append(made["ids"])
    found = Packed(streams, length, whole, count_of_bytes, counts, notes)
    if whole and not len(found.sizes):
        most = max(len(stream) - 1 for stream in streams)
        raise UserError(
            f"task.length={length}: the training text has {most:,} tokens and fills no block; give a smaller length"
        )
    notes["tokens"] = int(found.sizes.sum())
    if rest := sum((len(stream) - 1) % length for stream in streams):
        notes["short_block"] = rest
    return found


def _encode(piece: Piece, tokenizer: Any) -> Arrays:
    documents = piece.load()
    end, parts = tokenizer.eos_token_id, []
    for rows in _rows(documents.texts, tokenizer):
        ends = np.full(len(rows), end, dtype=np.int32)
        parts += [np.append(np.asarray(row, dtype=np.int32), ends[:1]) for row in rows]
    ids = np.concatenate([np.array([end], dtype=np.int32), *parts])
    notes = documents.notes | {"documents": len(documents)}
    return {
        "ids": ids,
        "counts": np.bincount(ids[1:], minlength=len(tokenizer)).astype(np.int64),
        "bytes": np.array([sum(len(text.encode("utf-8", "replace")) + 1 for text in documents.texts)], dtype=np.int64),
        "names": np.frombuffer("\n".join(notes).encode(), dtype=np.uint8),
        "values": np.array(list(notes.values()), dtype=np.int64),
    }


def _rows(texts: Sequence[str], tokenizer: Any) -> Iterator[list[list[int]]]:
    # A text that spells a special token is text: it must not end a document.
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    for first in range(0, len(texts), AT_A_TIME):
        yield tokenizer(list(texts[first : first + AT_A_TIME]), split_special_tokens=True, **options)["input_ids"]


def unigram_perplexity(train: np.ndarray, scored: np.ndarray) -> float:
    """Perplexity of tokens that occur ``scored`` (V,) times under frequencies ``train`` (V,), add-one smoothed.

    exp(-(1 / sum s) sum_v s_v log((t_v + 1) / (sum t + V))): what a model that knows token frequencies and nothing of
    the context reaches.
    """
    logs = np.log(train + 1.0) - np.log(train.sum() + len(train))
    return float(np.exp(-(scored * logs).sum() / scored.sum()))


def learn_bpe(pieces: Sequence[Piece], size: int) -> str:
    """A ``tokenizer.json``: byte-level BPE with ``size`` tokens, learnt from ``pieces``, kept in the cache.

    Sennrich et al. 2016 (arXiv 1508.07909) on bytes, as GPT-2: 256 bytes, the end token, merges. The same pieces give
    the same tokenizer. Raises ``UserError`` when the text has too few different words for ``size`` tokens.
    """

    def build() -> Arrays:
        text = _learn(pieces, size)
        return {"text": np.frombuffer(text.encode(), dtype=np.uint8)}

    key = ("bpe", tuple(piece.key for piece in pieces), size, END)
    return bytes(stored("tokenizers", key, build)["text"]).decode()


def _learn(pieces: Sequence[Piece], size: int) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator((text for piece in pieces for text in piece.load().texts), trainer)
    if plain.get_vocab_size() < size:
        raise UserError(
            f"task.vocab_size={size}: the training text supports {plain.get_vocab_size():,} tokens; give at most that"
        )
    return str(plain.to_str())
