"""Tokens in blocks, the learnt tokenizer, the unigram model; against plain restatements."""

from __future__ import annotations

import math
import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrx.data import lm_tokens
from lrx.data.lm import Piece
from lrx.data.lm_text import Documents
from lrx.data.lm_tokens import END, learn_bpe, pack, unigram_perplexity
from lrx.errors import UserError
from lrx.models.tokenizers import bytes_tokenizer, tokenizer_from
from lrx.tasks.lm import IGNORED, Blocks

TEXTS = ["A first document.", "Zwei: äöü, and 東京", "the end is <|end|> not here", "last"]
WORDS = [" ".join(f"{a}{b}{c}" for a in ("ka", "lo") for b in ("min", "der", x) for c in ("ta", x)) for x in "pqrstuvw"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRX_CACHE", str(tmp_path / "cache"))


def piece(texts: list[str], key: str = "k") -> Piece:
    return Piece(key, lambda: Documents(texts, {"duplicates": 2}))


def packed(length: int, *pieces: Piece, whole: bool = False) -> Any:
    return pack(pieces or [piece(TEXTS)], bytes_tokenizer(), "bytes", length, whole=whole)


def stream(texts: list[str]) -> list[int]:
    """End, document, end, document, end, ... spelt out."""
    tokenizer = bytes_tokenizer()
    tokens = [tokenizer.eos_token_id]
    for text in texts:
        for byte in text.encode():
            tokens += tokenizer(bytes([byte]).decode("latin-1"), add_special_tokens=False)["input_ids"] if byte < 128 \
                else [None]  # fmt: skip
        tokens.append(tokenizer.eos_token_id)
    return tokens


@pytest.mark.parametrize("length", [2, 7, 16, 500])
def test_every_token_but_the_first_is_predicted_once(length):
    found = packed(length)
    blocks = Blocks(found)
    want, have = stream(TEXTS), []
    for position in range(len(blocks)):
        batch = blocks.collate([position])
        labels, ids = batch["labels"][0], batch["input_ids"][0]
        assert labels[0] == IGNORED
        assert (labels[1:] == ids[1:]).all()
        assert len(ids) == blocks.sizes[position] + 1
        assert ids[0] == (have[-1] if have else want[0])  # it follows the token before the block
        have += labels[1:].tolist()
    assert len(have) == len(want) - 1 == found.notes["tokens"]
    assert all(b is None or a == b for a, b in zip(have, want[1:], strict=True))
    assert found.bytes == sum(len(text.encode()) + 1 for text in TEXTS) == len(have)  # tokens are bytes here
    assert found.counts.sum() == len(have)


def test_a_special_token_that_is_spelt_in_a_text_is_text():
    tokenizer = bytes_tokenizer()
    (ids,) = packed(8, piece(["x<|end|>y"])).streams
    assert (ids == tokenizer.eos_token_id).sum() == 2
    assert tokenizer.decode(ids[1:-1]) == "x<|end|>y"
    learnt = tokenizer_from(learn_bpe([piece(WORDS, "w")], 300))
    (ids,) = pack([piece(["x<|end|>y"], "s")], learnt, "learnt", 4, whole=False).streams
    assert (ids == learnt.eos_token_id).sum() == 2
    assert learnt.decode(ids[1:-1]) == "x<|end|>y"


def test_training_has_whole_blocks_only_and_the_rest_is_noted():
    total = len(stream(TEXTS)) - 1
    found, scored = packed(16, whole=True), packed(16)
    assert set(found.sizes) == {16}
    assert len(found.sizes) == total // 16
    assert found.notes["short_block"] == total % 16 == scored.sizes[-1]
    assert scored.notes["documents"] == 4
    assert scored.notes["duplicates"] == 2


def test_a_text_shorter_than_a_block_is_one_clear_line():
    with pytest.raises(UserError, match=r"task.length=500: the training text has \d+ tokens and fills no block"):
        packed(500, whole=True)


def test_pieces_are_streams_of_their_own():
    found = packed(5, piece(["abcdefgh"], "a"), piece(["ijk"], "b"), piece(["lmnopqrstu"], "c"))
    assert found.sizes.tolist() == [5, 4, 4, 5, 5, 1]
    assert found.borders.tolist() == [0, 2, 3, 6]
    batch = Blocks(found).collate([5, 0, 2])
    end = bytes_tokenizer().eos_token_id
    text = bytes_tokenizer().decode
    assert batch["index"].tolist() == [5, 0, 2]
    rows = zip(batch["input_ids"], batch["labels"], strict=True)
    predicted = [text(row[label != IGNORED].tolist()) for row, label in rows]
    assert predicted == ["<|end|>", "abcde", "ijk<|end|>"]
    assert batch["input_ids"][1, 0] == end
    assert (batch["labels"][0, 2:] == IGNORED).all()
    assert packed(5, piece(["abcdefgh"], "a"), piece(["ijk"], "b"), whole=True).borders.tolist() == [0, 1, 1]


def test_tokens_come_from_the_cache(monkeypatch):
    first = packed(8)
    monkeypatch.setattr(lm_tokens, "_encode", lambda *_: pytest.fail("tokenised again"))
    again = packed(8)
    assert np.array_equal(first.streams[0], again.streams[0])
    assert first.notes == again.notes
    assert isinstance(again.streams[0], np.memmap)


def test_the_unigram_model():
    train, scored = [0, 0, 1, 2, 2, 2], [2, 0, 3]
    counts, size = Counter(train), 5
    logs = [math.log((counts[token] + 1) / (len(train) + size)) for token in scored]
    found = unigram_perplexity(np.bincount(train, minlength=size), np.bincount(scored, minlength=size))
    assert found == pytest.approx(math.exp(-sum(logs) / len(logs)), rel=1e-12)
    assert unigram_perplexity(np.zeros(7, dtype=int), np.arange(7)) == pytest.approx(7)


def test_the_tokenizer_is_bpe_on_bytes():
    tokenizer = tokenizer_from(learn_bpe([piece(WORDS)], 300))
    assert len(tokenizer) == 300
    assert tokenizer.eos_token == END == tokenizer.pad_token
    for text in [*TEXTS, "\t tabs\n\nand  blanks ", "🙂 never seen"]:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert len(tokenizer(WORDS[0])["input_ids"]) < len(WORDS[0]) / 3  # words that were seen are few tokens


def _learnt(_: int) -> str:
    return learn_bpe([piece(WORDS, "shared")], 290)


def test_processes_that_ask_at_once_get_one_tokenizer():
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.map_async(_learnt, range(3)).get(timeout=60)
    assert len(set(found)) == 1
    assert found[0] == lm_tokens._learn([piece(WORDS)], 290)


def test_a_vocabulary_larger_than_the_text_supports():
    with pytest.raises(UserError, match=r"task.vocab_size=5000: the training text supports \d+ tokens"):
        learn_bpe([piece(["few words, few words"])], 5000)
