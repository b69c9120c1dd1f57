"""When rows of a generation end, when it pays to go on without those that have ended, and what they may not repeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, NoRepeatNGramLogitsProcessor, StoppingCriteria


class StopTexts(StoppingCriteria):
    """True for the rows whose newest tokens complete one of ``texts``; the prompt's tokens are not looked at.

    In each step only a row's last tokens are turned to text: as many as the longest text has bytes, since a token has
    at least one, and two more, whose text may depend on what stands before them.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], prompt: int) -> None:
        self.tokenizer, self.texts, self.prompt = tokenizer, tuple(texts), prompt
        self.tail = max(len(text.encode()) for text in texts) + 2

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        """(rows,) bool for ``input_ids`` (rows, length so far)."""
        newest = input_ids[:, max(self.prompt, input_ids.shape[1] - self.tail) :]
        decoded = self.tokenizer.batch_decode(newest, clean_up_tokenization_spaces=False)
        ended = [any(text in row for text in self.texts) for row in decoded]
        return torch.tensor(ended, device=input_ids.device)


class NoRepeat(LogitsProcessor):
    """No n-gram of an answer's tokens occurs twice in it; those of the prompt (``prompt`` tokens) may be repeated.

    The option of transformers counts the prompt in, and would forbid a name that the answer has to repeat.
    """

    def __init__(self, size: int, prompt: int) -> None:
        self.prompt, self.answer = prompt, NoRepeatNGramLogitsProcessor(size)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``scores`` (rows, vocabulary) with the tokens ruled out that would repeat an n-gram."""
        return self.answer(input_ids[:, self.prompt :], scores)


class Sparse(StoppingCriteria):
    """Ends the generation of all rows once at least a quarter of them has ended; ``ended`` (rows,) says which.

    ``end_tokens``: tokens that end a row; ``stop``: texts that do, or None. Not for beam search, whose rows move.
    """

    def __init__(self, end_tokens: Sequence[int], stop: StopTexts | None, like: Tensor) -> None:
        self.end_tokens = torch.tensor(end_tokens, device=like.device)
        self.stop = stop
        self.ended = torch.zeros(len(like), dtype=torch.bool, device=like.device)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        self.ended = self.ended | torch.isin(input_ids[:, -1], self.end_tokens)
        if self.stop is not None:
            self.ended = self.ended | self.stop(input_ids, scores)
        return self.ended | (4 * self.ended.sum() >= len(self.ended))
