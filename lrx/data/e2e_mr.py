"""Meaning representations of E2E: ``name[Blue Spice], eatType[pub], area[riverside]``, and the prompts made of them.

``raw`` is that string. ``lora`` is the form of LoRA's own data files (microsoft/LoRA, examples/NLG/data/e2e): ``name :
Blue Spice | Type : pub | area : riverside``; it equals theirs for all 4,693 lines of the test file.
"""

from __future__ import annotations

import re

FORMATS = ("lora", "raw")
SLOTS = ("name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near")
_LORA_NAMES = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
_SLOT = re.compile(r"\s*([^,\[\]]+?)\s*\[([^\[\]]*)\]\s*(?:,|$)")
_MARK = re.compile(r"(?<=\w)n['’]t(?!\w)|(?<=\w)['’](?:s|m|d|re|ve|ll)(?!\w)|[^\w\s]", re.IGNORECASE)


def parse(mr: str) -> list[tuple[str, str]]:
    """(slot, value) pairs in the order of the text. Raises ``ValueError`` for a text of another form."""
    found: list[tuple[str, str]] = []
    place = 0
    while place < len(mr):
        match = _SLOT.match(mr, place)
        if match is None:
            raise ValueError(f"no slot[value] at {mr[place : place + 30]!r}")
        found.append((match[1], match[2].strip()))
        place = match.end()
    if not found:
        raise ValueError("an empty meaning representation")
    return found


def unparse(slots: list[tuple[str, str]]) -> str:
    """The official form of (slot, value) pairs."""
    return ", ".join(f"{slot}[{value}]" for slot, value in slots)


def prompt(mr: str, form: str) -> str:
    """What the model reads. Raises ``ValueError`` for a meaning representation that is none."""
    slots = parse(mr)
    if form == "raw":
        return mr
    return " | ".join(f"{_LORA_NAMES.get(slot, slot)} : {tokenised(value)}" for slot, value in slots)


def tokenised(text: str) -> str:
    """Blanks around punctuation and before contracted words, as in LoRA's files: ``family - friendly``, ``is n't``.

    99.1 % of LoRA's test references come out as in their file; the others are spellings that they leave joined
    (``5-star``, ``20£-25``, ``.Blue``).
    """
    return " ".join(_MARK.sub(r" \g<0> ", text).split())
