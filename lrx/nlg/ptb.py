"""Penn Treebank tokenisation as the official E2E scorer has it: Stanford's PTBTokenizer 3.4.1, lower-cased, per line.

The Java program is not needed: this is its behaviour written anew as a list of patterns, and compared with it over all
texts of the E2E challenge and over random texts (``tests/nlg/test_ptb.py``; what is known to differ stands in
docs/e2e.md). At each place the pattern that reaches farthest wins, among equals the first in the list; a part in
look-ahead counts towards the reach, though not to the token. Abbreviations look over the end of a line at the next one,
so that the lines of a file are tokenised together.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lrx.nlg.ptb_patterns import SPLIT, Action, parts, patterns

# What the official scorer drops of the tokens. It lower-cases first, so brackets (-lrb-) stay, against its intention.
DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_BREAKS = re.compile(r"\r\n|[\r\n\v\f\u2028\u2029]")
_AHEAD = re.compile(r"[^\n]*\n?\s*[^\n]*\n?")
_ESCAPE = re.compile(r"\\u[0-9a-f]{4}|\\x[0-9a-f]{2}|\\p\{\w+\}|\\.|\(\?s?:", re.DOTALL)


def tokenize(lines: Sequence[str]) -> list[list[str]]:
    """Tokens of each line, lower-cased, less the punctuation that the scorer drops. Line breaks inside are blanks."""
    text = "\n".join(" ".join(_BREAKS.split(line)) if _BREAKS.search(line) else line for line in lines)
    found: list[list[str]] = [[]]
    for token in raw_tokens(text):
        if token == "\n":
            found.append([])
        elif token.lower() not in DROPPED:
            found[-1].append(token.lower())
    return found


def raw_tokens(text: str) -> Iterator[str]:
    """The tokens of a text in their own case, ``"\\n"`` at the end of each line."""
    wide = any(ord(c) > 0xFFFF for c in text)
    if wide:  # the Java program sees UTF-16 units
        units = text.encode("utf-16-le", "surrogatepass")
        text = "".join(chr(units[i] | units[i + 1] << 8) for i in range(0, len(units), 2))
    place, end, line_end, far = 0, len(text), -1, 0
    plain, exceptions = _plain(), SPLIT
    while place < end:
        if (word := plain.match(text, place)) and word[0].lower() not in exceptions:
            yield word[0]
            place = word.end()
            continue
        if place > line_end:  # patterns look no farther than the end of the next line that is not blank
            line_end = text.find("\n", place) % (end + 1)
            far = _AHEAD.match(text, place).end()  # type: ignore[union-attr]
        reach, size, chosen = 0, 0, None
        for pattern, act in _rules(text[place]):
            if (match := pattern.match(text, place, far)) and match.end() > reach:
                reach, chosen = match.end(), act
                size = match.end(1) - place if match.re.groups else match.end() - place
        if chosen is None:
            place += 1  # a character of no class
            continue
        token, size_used = chosen(text[place : place + size])
        if token:
            yield token.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") if wide else token
        place += size_used


def _regex() -> Any:
    import regex  # slow to import: only where texts are tokenised

    return regex


@functools.cache
def _compiled() -> list[tuple[Any, Action]]:
    regex, named = _regex(), parts()
    # Leftmost-longest (POSIX) matching: alternatives do not hide longer ones. Case counts only inside brackets.
    return [(regex.compile(f"(?p){_caseless(form.format(**named))}", regex.V1), act) for form, act in patterns()]


def _caseless(form: str) -> str:
    """The pattern with either case of every ASCII letter that is not inside brackets, nor part of an escape."""
    out, depth, place = [], 0, 0
    while place < len(form):
        c = form[place]
        if escape := _ESCAPE.match(form, place):
            out.append(escape[0])
            place = escape.end()
            continue
        depth += (c == "[") - (c == "]")
        out.append(f"[{c.lower()}{c.upper()}]" if depth == 0 and c.isascii() and c.isalpha() else c)
        place += 1
    return "".join(out)


@functools.cache
def _rules(first: str) -> list[tuple[Any, Action]]:
    """The patterns that can begin with a character."""
    return [rule for rule in _compiled() if rule[0].fullmatch(first, partial=True)]


@functools.cache
def _plain() -> Any:
    """A word that no other rule can touch, by what follows it: most of a text."""
    return _regex().compile("[A-Za-z]+(?=,? )")
