"""ListOps of the Long Range Arena: nested lists of digits under MIN, MAX, MED and SM, ten classes.

Nangia and Bowman 2018 (arXiv 1804.06028) in the version of Tay et al. 2021 (arXiv 2011.04006), whose generator this
follows. A node at depth d < ``max_depth`` is an operator with probability 1/4 and a digit else; at ``max_depth`` it is
a digit. The root has depth 1. An operator, uniform over the four, has 2 to ``max_args`` arguments, uniform. A tree's
length is the number of its tokens without parentheses, one for the operator and one for its closing bracket; trees with
``min_length`` < length < ``max_length`` are kept, each once. MED is the integer part of the median, SM the sum modulo
10.
Departures: the official order is that of a Python set and no seed is set; here trees come in the order of drawing from
a seed, and the first are the training split. A tree is given up as soon as it is too long, which changes no
probability. As in S4's loader, the tokens end with an end token.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lrx.data import store
from lrx.data.lra_sequences import END, SPECIALS, Sequences, packed
from lrx.errors import UserError

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
CLOSE = "X"  # what every loader makes of "]"
SYMBOLS = (*OPERATORS, CLOSE, *map(str, range(10)))
IDS = {symbol: number for number, symbol in enumerate(SYMBOLS, start=SPECIALS)}
VOCABULARY = SPECIALS + len(SYMBOLS)
OPERATOR_SHARE = 0.25
SPLITS = ("train", "select", "test")
FILES = {"train": "basic_train.tsv", "select": "basic_val.tsv", "test": "basic_test.tsv"}
_DIGIT, _CLOSE = IDS["0"], IDS[CLOSE]
FRUITLESS = 1_000_000  # trees in a row that are too short, too long or known: the bounds leave too few


class _TooLong(Exception):
    pass


def value(operator: int, arguments: Sequence[int]) -> int:
    """What an operator (0 to 3 as in ``OPERATORS``) makes of digits."""
    if operator == 0:
        return min(arguments)
    if operator == 1:
        return max(arguments)
    if operator == 2:
        ordered, half = sorted(arguments), len(arguments) // 2
        return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) // 2
    return sum(arguments) % 10


def draw(generator: random.Random, max_depth: int, max_args: int, max_length: int) -> tuple[bytes, int] | None:
    """A tree as ids and its value; None when it has ``max_length`` tokens or more.

    Only ``random()`` is drawn from the generator, whose stream is the same in every version of Python.
    """
    tokens = bytearray()
    uniform = generator.random

    def grow(depth: int) -> int:
        if depth >= max_depth or uniform() > OPERATOR_SHARE:
            digit = int(uniform() * 10)
            tokens.append(_DIGIT + digit)
            return digit
        operator = int(uniform() * len(OPERATORS))
        tokens.append(SPECIALS + operator)
        arguments = []
        for _ in range(2 + int(uniform() * (max_args - 1))):
            arguments.append(grow(depth + 1))
            if len(tokens) >= max_length:
                raise _TooLong
        tokens.append(_CLOSE)
        return value(operator, arguments)

    try:
        found = grow(1)
    except _TooLong:
        return None
    return (bytes(tokens), found) if len(tokens) < max_length else None


def generate(
    sizes: Sequence[int], seed: int, *, max_depth: int, max_args: int, min_length: int, max_length: int
) -> list[Sequences]:
    """Splits of ``sizes``, all trees distinct. Raises ``UserError`` when the bounds leave too few trees."""
    generator = random.Random(f"listops {seed}")
    found: dict[bytes, int] = {}
    fruitless = 0
    while len(found) < sum(sizes):
        drawn = draw(generator, max_depth, max_args, max_length)
        if drawn is not None and len(drawn[0]) > min_length and drawn[0] not in found:
            found[drawn[0]] = drawn[1]
            fruitless = 0
        elif (fruitless := fruitless + 1) >= FRUITLESS:
            raise UserError(
                f"task.train_size: only {len(found)} of {sum(sizes)} different trees found with task.min_length="
                f"{min_length}, task.max_length={max_length}, task.max_depth={max_depth}, task.max_args={max_args}"
            )
    rows, splits = list(found.items()), []
    for size in sizes:
        chosen, rows = rows[:size], rows[size:]
        ids = [np.frombuffer(tokens + bytes([END]), dtype=np.uint8) for tokens, _ in chosen]
        splits.append(packed(ids, [label for _, label in chosen]))
    return splits


def stored(split: str, sizes: Sequence[int], seed: int, root: Path | None = None, **bounds: int) -> Sequences:
    """``train``, ``select`` or ``test``, generated once into the cache."""

    def build() -> store.Arrays:
        arrays: store.Arrays = {}
        for name, each in zip(SPLITS, generate(sizes, seed, **bounds), strict=True):
            arrays |= {f"{name}_steps": each.steps, f"{name}_offsets": each.offsets, f"{name}_labels": each.labels}
        return arrays

    arrays = store.stored("lra", ("listops", tuple(sizes), seed, sorted(bounds.items())), build, root)
    steps, offsets, labels = (np.asarray(arrays[f"{split}_{what}"]) for what in ("steps", "offsets", "labels"))
    return Sequences(steps, offsets, labels)


def expression(ids: Sequence[int]) -> str:
    """The tree in the official files' form, with its binary parentheses: ``( ( ( [MAX 3 ) 5 ) ] )``."""
    stack: list[str] = []
    for each in ids:
        symbol = SYMBOLS[each - SPECIALS]
        if symbol in OPERATORS:
            stack.append(symbol)
            continue
        text = symbol
        if symbol == CLOSE:
            text = f"( {stack.pop()} ] )"
        if stack:
            stack[-1] = f"( {stack[-1]} {text} )"
        else:
            return text
    raise ValueError("the tree does not end")


def encode(source: str, where: str) -> bytes:
    """Ids of an official line, its end token included. Raises ``UserError`` naming ``where``."""
    words = source.replace("(", " ").replace(")", " ").replace("]", f" {CLOSE} ").split()
    unknown = next((word for word in words if word not in IDS), None)
    if unknown is not None or not words:
        raise UserError(f"{where}: {unknown or 'an empty line'} is no ListOps symbol ({' '.join(SYMBOLS)})")
    return bytes([*(IDS[word] for word in words), END])


def read(path: Path, max_length: int) -> Sequences:
    """An official file: a header line, then expression, tab, value. Longer ones are cut as in S4's loader, and counted.

    Raises ``UserError`` with file and line for a line that does not fit.
    """
    rows, labels, cut = [], [], 0
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        source, tab, target = line.rpartition("\t")
        if number == 1 and target.strip() == "Target":
            continue
        if not tab or not target.strip().isdecimal() or int(target) > 9:
            raise UserError(f"{path}, line {number}: expected an expression, a tab and a digit")
        ids = encode(source, f"{path}, line {number}")
        if len(ids) > max_length:
            ids, cut = ids[: max_length - 1] + bytes([END]), cut + 1
        rows.append(np.frombuffer(ids, dtype=np.uint8))
        labels.append(int(target))
    if not rows:
        raise UserError(f"{path} has no examples")
    return packed(rows, labels, truncated=cut)
