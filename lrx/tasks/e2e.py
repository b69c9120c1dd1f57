"""E2E NLG Challenge (Novikova, Dušek, Rieser 2017): descriptions of restaurants from meaning representations.

Data, splits and prompts are in ``lrx.data.e2e``; the official scorers in ``lrx.nlg``. The defaults are the protocol of
LoRA (Hu et al. 2021, microsoft/LoRA, examples/NLG): loss on the description only with label smoothing, an end token
between prompt and description, beam search. Where there is no network, descriptions of a small grammar stand in; scores
on those are no E2E scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from lrx.data import e2e
from lrx.data.completions import Completions
from lrx.models.base import Decoding
from lrx.nlg import scores
from lrx.tasks.base import Suite, Task
from lrx.tasks.completion import CompletionTask


class E2e(Suite):
    """E2E from local files or the hub, or made-up sentences. Loss on the text only; scored against all references.

    Arguments:
        source: ``embedded`` (made-up sentences), ``local`` (the official CSV files) or ``hub``.
        data_dir: for ``local``, the folder of the files.
        mr_format: the prompt: ``lora`` (name : X | Type : pub | ...) or ``raw`` (name[X], eatType[pub], ...).
        tokenised: whether texts have blanks around punctuation as LoRA's files do, references included.
        separator: whether an end token stands between prompt and text, as in LoRA's files.
        beams, length_penalty, no_repeat_ngram, repetition_penalty, max_new_tokens: of the search for a text. N-grams
            count within the text alone, so that it may say what the prompt says.
        batch_size, eval_batch_size: examples per batch and process.
        group_by_length: examples of similar length share a training batch, which saves padding.
        max_length: tokens of prompt and text; longer training examples are left out and counted.
        label_smoothing: of the training loss.
        train_limit, select_limit, eval_limit: a fixed sample of a split, of the test in meaning representations; None
            for all of it.
        revision: of tuetschek/e2e_nlg on the hub; None for the hub's own parquet conversion.
        workers: processes that collate batches.
    """

    name: ClassVar[str] = "e2e"
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        source: Literal["embedded", "local", "hub"] = "embedded",
        data_dir: str | None = None,
        mr_format: Literal["lora", "raw"] = "lora",
        tokenised: bool = False,
        separator: bool = True,
        beams: int = 10,
        length_penalty: float = 0.8,
        no_repeat_ngram: int = 4,
        repetition_penalty: float = 1.0,
        max_new_tokens: int = 64,
        batch_size: int = 8,
        eval_batch_size: int = 16,
        group_by_length: bool = False,
        max_length: int = 512,
        label_smoothing: float = 0.1,
        train_limit: int | None = None,
        select_limit: int | None = None,
        eval_limit: int | None = None,
        revision: str | None = None,
        workers: int = 0,
    ) -> None:
        self.options: dict[str, Any] = {
            "source": source,
            "data_dir": data_dir,
            "mr_format": mr_format,
            "tokenised": tokenised,
            "separator": separator,
            "beams": beams,
            "length_penalty": length_penalty,
            "no_repeat_ngram": no_repeat_ngram,
            "repetition_penalty": repetition_penalty,
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "group_by_length": group_by_length,
            "max_length": max_length,
            "label_smoothing": label_smoothing,
            "train_limit": train_limit,
            "select_limit": select_limit,
            "eval_limit": eval_limit,
            "revision": revision,
            "workers": workers,
        }

    def parts(self) -> list[Task]:
        """The one part."""
        return [E2eTask(self.options)]


class E2eTask(CompletionTask):
    """One text per meaning representation, scored over all of them at once.

    ``notes``: also ``meteor_not_computed`` (the number of scored texts) where Java or its program is not there.
    """

    primary = "bleu"
    reported = ("test",)

    def __init__(self, options: Mapping[str, Any]) -> None:
        decoding = Decoding(
            max_new_tokens=options["max_new_tokens"],
            beams=options["beams"],
            length_penalty=options["length_penalty"],
            no_repeat_ngram=options["no_repeat_ngram"],
            repetition_penalty=options["repetition_penalty"],
            stop=("\n\n", "<|endoftext|>"),
        )
        super().__init__("e2e", {**options, "end_of_prompt": "eos" if options["separator"] else ""}, decoding)
        self.higher_is_better = dict.fromkeys((*scores.METRICS, "meteor"), True) | {"loss": False}

    def load(self, split: str) -> Completions:
        """``train`` and ``select`` by references, ``test`` by meaning representations with JSON lists of references."""
        return e2e.completions(self.options, split)

    def score(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """The official scores of a split: ``bleu``, ``meteor`` and ``rouge_l`` from 0 to 1, ``nist``, ``cider``."""
        found = scores.corpus(*_texts(predictions, references))
        if "meteor" not in found:
            self.notes["test.meteor_not_computed"] = len(predictions)
        return found

    def item_scores(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """(n,) float64 each: ``rouge_l`` and ``cider``, the scores that are means over the texts."""
        return scores.items(*_texts(predictions, references))


def _texts(predictions: np.ndarray, references: np.ndarray) -> tuple[list[str], list[list[str]]]:
    """Line ends inside a text become blanks, as in the file that the official script reads."""
    return [" ".join(str(text).split("\n")).strip() for text in predictions], [json.loads(str(r)) for r in references]
