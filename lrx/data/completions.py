"""A split of prompts with the answers that a model is to write after them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

from lrx.data.splits import rank


@dataclass(frozen=True)
class Completions:
    """Examples in file order.

    ``prompts``: what the model reads. ``answers``: what it learns to write, with the blank that begins it; ``""`` where
    there is none to learn from. ``references``: what scoring holds its text against; JSON where it is several texts.
    ``ids``: the files' own names of the examples. ``notes``: irregularities that were met and are not errors.
    """

    prompts: list[str]
    answers: list[str]
    references: list[str]
    ids: list[str]
    notes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len({len(self.prompts), len(self.answers), len(self.references), len(self.ids)}) != 1:
            raise ValueError("prompts, answers, references and ids are not equally many")

    def __len__(self) -> int:
        return len(self.prompts)

    def digest(self) -> str:
        """64 hex digits of prompts and answers: what is tokenised."""
        text = json.dumps([self.prompts, self.answers], ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def take(self, positions: list[int]) -> Completions:
        """The examples at ``positions``, in that order."""
        columns = (self.prompts, self.answers, self.references, self.ids)
        prompts, answers, references, ids = ([column[i] for i in positions] for column in columns)
        return Completions(prompts, answers, references, ids, self.notes)

    def hold_out(self, size: int) -> tuple[Completions, Completions]:
        """(kept, held out) in file order, with ``size`` examples held out; equal prompts never straddle.

        Drawn by a hash of the prompts, so that the order of the files does not matter.
        """
        ranks = [rank("hold-out", prompt) for prompt in self.prompts]
        if size <= 0 or not ranks:
            return self, self.take([])
        border = sorted(ranks)[min(size, len(ranks)) - 1]
        kept = self.take([i for i, r in enumerate(ranks) if r > border])
        return kept, self.take([i for i, r in enumerate(ranks) if r <= border])

    def limit(self, size: int | None) -> Completions:
        """A fixed random sample of at most ``size`` examples in file order; a larger one contains a smaller one."""
        if size is None or size >= len(self):
            return self
        drawn = sorted(range(len(self)), key=lambda i: rank("limit", i))[:size]
        return self.take(sorted(drawn))
