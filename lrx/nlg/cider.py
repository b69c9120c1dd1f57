"""CIDEr of each segment as in the MS-COCO caption scorer, whose class of that name is CIDEr-D (Vedantam et al. 2015).

Document frequencies come from the references of the scored corpus, so that the score of a segment depends on the
others: of a single segment it is 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

ORDER = 4
SIGMA = 6.0  # tokens, of the Gaussian penalty for a different length

Gram = tuple[str, ...]
Vector = tuple[list[dict[Gram, float]], list[float], int]  # weights and norm for each n, number of bigrams


def cider(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """Scores of the segments, 0 to 10. ``references``: at least one per segment, else ``ValueError``."""
    if len(hypotheses) != len(references) or not all(references):
        raise ValueError("every segment needs a hypothesis and at least one reference")
    counts = [[_grams(tokens) for tokens in texts] for texts in references]
    documents: Counter[Gram] = Counter()
    for texts in counts:
        documents.update(set().union(*texts))
    log_n = math.log(len(counts)) if counts else 0.0
    scores = []
    for tokens, texts in zip(hypotheses, counts, strict=True):
        own = _vector(_grams(tokens), documents, log_n)
        total = sum(_similarity(own, _vector(text, documents, log_n)) for text in texts)
        scores.append(10 * total / ORDER / len(texts))
    return scores


def _grams(tokens: Sequence[str]) -> Counter[Gram]:
    """All n-grams up to ``ORDER``; a token with a no-break space inside (5 1/2) is two here."""
    words = " ".join(tokens).split()
    return Counter(tuple(words[i : i + n]) for n in range(1, ORDER + 1) for i in range(len(words) - n + 1))


def _vector(counts: Counter[Gram], documents: Counter[Gram], log_n: float) -> Vector:
    weights: list[dict[Gram, float]] = [{} for _ in range(ORDER)]
    for gram, count in counts.items():
        weights[len(gram) - 1][gram] = count * (log_n - math.log(max(1, documents[gram])))
    norms = [math.sqrt(sum(value * value for value in each.values())) for each in weights]
    return weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2)


def _similarity(own: Vector, other: Vector) -> float:
    """Clipped cosines, summed over n and damped by the difference in length."""
    total = 0.0
    for mine, theirs, norm, their_norm in zip(own[0], other[0], own[1], other[1], strict=True):
        if norm and their_norm:
            product = sum(min(value, theirs[gram]) * theirs[gram] for gram, value in mine.items() if gram in theirs)
            total += product / (norm * their_norm)
    return total * math.exp(-((own[2] - other[2]) ** 2) / (2 * SIGMA**2))
