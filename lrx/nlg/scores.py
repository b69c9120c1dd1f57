"""The five scores of the E2E NLG Challenge over a whole split, by the official definitions (tuetschek/e2e-metrics).

One hypothesis per meaning representation, held against all of its references. BLEU, METEOR and ROUGE-L are fractions
(papers print them times 100), NIST and CIDEr as they are. The order of the segments counts in one detail: see
``lrx.nlg.ptb``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from lrx.nlg import meteor
from lrx.nlg.cider import cider
from lrx.nlg.mteval import bleu, nist, segment
from lrx.nlg.ptb import tokenize
from lrx.nlg.rouge_l import rouge_l

METRICS = ("bleu", "nist", "rouge_l", "cider")  # and meteor where Java is


def corpus(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """``bleu``, ``nist``, ``rouge_l``, ``cider`` and, where it can be computed, ``meteor``.

    Raises ``ValueError`` for no segment, or one without references.
    """
    if not len(hypotheses) or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} sets of references")
    segments = [segment(own, others) for own, others in zip(hypotheses, references, strict=True)]
    scores = {"bleu": bleu(segments), "nist": nist(segments)}
    scores |= {metric: float(values.mean()) for metric, values in items(hypotheses, references).items()}
    if meteor.missing() is None:
        try:
            scores["meteor"] = meteor.meteor(*_tokens(tuple(hypotheses), tuple(map(tuple, references))))
        except RuntimeError as error:  # the other scores of a long run are not to be lost with it
            print(f"note: METEOR is not computed: {error}", flush=True)
    return scores


def items(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """The scores that are means over the segments, (n,) float64 each: ``rouge_l`` and ``cider``."""
    own, others = _tokens(tuple(hypotheses), tuple(map(tuple, references)))
    return {
        "rouge_l": np.array([rouge_l(tokens, texts) for tokens, texts in zip(own, others, strict=True)]),
        "cider": np.array(cider(own, others)),
    }


@functools.lru_cache(maxsize=2)
def _tokens(
    hypotheses: tuple[str, ...], references: tuple[tuple[str, ...], ...]
) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Hypotheses as one text, references as another, as the official script tokenises them."""
    flat = iter(_reference_tokens(references))
    return tokenize(hypotheses), [[next(flat) for _ in texts] for texts in references]


@functools.lru_cache(maxsize=2)
def _reference_tokens(references: tuple[tuple[str, ...], ...]) -> list[list[str]]:
    """Kept for the next scoring of the same split."""
    return tokenize([text for texts in references for text in texts])
