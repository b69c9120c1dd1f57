"""ROUGE-L of each segment as in the MS-COCO caption scorer: Lin and Och 2004, with the recall weighted by 1.2.

Precision and recall take their best reference each on its own. Tokens are those of ``lrx.nlg.ptb``; a text without any
counts as one empty token, as in the official script.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

BETA = 1.2


def rouge_l(hypothesis: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """F from 0 to 1. Raises ``ValueError`` without references."""
    if not references:
        raise ValueError("a segment without references cannot be scored")
    own = list(hypothesis) or [""]
    others = [list(tokens) or [""] for tokens in references]
    common = [longest_common_subsequence(own, tokens) for tokens in others]
    precision = max(common) / len(own)
    recall = max(found / len(tokens) for found, tokens in zip(common, others, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length, by the bit-parallel recurrence of Hyyrö 2004: the zeros of ``row`` are the steps of the table."""
    where: defaultdict[str, int] = defaultdict(int)
    for i, token in enumerate(a):
        where[token] |= 1 << i
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        matched = row & where[token]
        row = ((row + matched) | (row - matched)) & full
    return len(a) - row.bit_count()
