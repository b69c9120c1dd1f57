"""BLEU-4 and NIST-5 of a corpus as the official E2E scorer computes them (``-p``, its form of NIST's mteval-v13a).

Source of the definitions: tuetschek/e2e-metrics at 1b9c4d8, ``metrics/pymteval.py``; BLEU: Papineni et al. 2002; NIST:
Doddington 2002. Both are corpus scores: counts are summed over the segments first, so that they are no means of items.
Case does not count.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

Gram = tuple[str, ...]

_TINY_HITS, _SMALL_TOTAL = 1e-15, 1e-9  # what zero hits and zero n-grams count as
_NIST_BETA = -math.log(0.5) / math.log(1.5) ** 2  # a system of two thirds of the references' length loses half
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))  # in this order: &amp;lt; becomes <
_PUNCTUATION = re.compile(r"([{-~\[-` -&(-+:-@/])")  # of ASCII all but ' , - .
_BEFORE, _AFTER = re.compile(r"([^0-9])([.,])"), re.compile(r"([.,])([^0-9])")
_DASH = re.compile(r"([0-9])(-)")


def tokenize(text: str) -> list[str]:
    """Tokens in lower case. Full stops and commas stay inside numbers, a dash is split off behind a digit.

    An empty text has one token, the empty one.
    """
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = _PUNCTUATION.sub(r" \1 ", f" {text} ")
    text = _AFTER.sub(r" \1 \2", _BEFORE.sub(r"\1 \2 ", text))
    text = re.sub(r"\s+", " ", _DASH.sub(r"\1 \2 ", text)).strip()
    return [token.lower() for token in text.split(" ")]


@dataclass(frozen=True)
class Segment:
    """A tokenised hypothesis and its references (at least one)."""

    hypothesis: list[str]
    references: list[list[str]]


def segment(hypothesis: str, references: Sequence[str]) -> Segment:
    """Tokenise. Raises ``ValueError`` where there is no reference."""
    if not references:
        raise ValueError("a segment without references cannot be scored")
    return Segment(tokenize(hypothesis), [tokenize(text) for text in references])


def _grams(tokens: Sequence[str], n: int) -> Counter[Gram]:
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


def _hits(one: Segment, n: int) -> dict[Gram, int]:
    """n-gram -> how often it counts: as in the hypothesis, at most as in the reference that has it most often."""
    most: Counter[Gram] = Counter()
    for tokens in one.references:
        most |= _grams(tokens, n)
    return {gram: min(count, most[gram]) for gram, count in _grams(one.hypothesis, n).items() if gram in most}


def bleu(segments: Sequence[Segment]) -> float:
    """BLEU-4 from 0 to 1: unsmoothed, against the reference whose length is closest (the shorter of two).

    A hypothesis of L tokens adds L - n + 1 to the total of n-grams even where that is negative.
    """
    hits, totals, length = [0] * 4, [0] * 4, 0
    for one in segments:
        size = len(one.hypothesis)
        for n in range(4):
            hits[n] += sum(_hits(one, n + 1).values())
            totals[n] += size - n
        length += min((abs(len(tokens) - size), len(tokens)) for tokens in one.references)[1]
    precisions = (max(h, _TINY_HITS) / max(t, _SMALL_TOTAL) for h, t in zip(hits, totals, strict=True))
    brevity = math.exp(1 - length / totals[0]) if totals[0] <= length else 1.0
    return brevity * math.exp(sum(map(math.log, precisions)) / 4)


def nist(segments: Sequence[Segment]) -> float:
    """NIST-5, 0 or more: hits weighted by their information over all references, with a penalty for brevity.

    Where the hypotheses' total of n-grams of a size is zero, the official script divides by zero; here that size adds
    nothing.
    """
    seen: Counter[Gram] = Counter()  # over all references; the empty n-gram stands for every token
    length = 0.0
    for one in segments:
        sizes = [len(tokens) for tokens in one.references]
        seen[()] += sum(sizes)
        length += sum(sizes) / len(sizes)
        for tokens in one.references:
            for n in range(1, 6):
                seen.update(zip(*(tokens[i:] for i in range(n)), strict=False))
    score = 0.0
    for n in range(1, 6):
        found: Counter[Gram] = Counter()
        for one in segments:
            found.update(_hits(one, n))
        information = sum(count * math.log2(seen[gram[:-1]] / seen[gram]) for gram, count in found.items())
        total = sum(len(one.hypothesis) - n + 1 for one in segments)
        score += information / total if total else 0.0
    ratio = sum(len(one.hypothesis) for one in segments) / length
    return score * math.exp(-_NIST_BETA * math.log(min(1.0, ratio)) ** 2)
