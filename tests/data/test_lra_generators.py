"""The generators of ListOps and Pathfinder: grammar, values, bounds, published statistics, independence, repetition."""

from __future__ import annotations

import hashlib
import json
import random
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from lrx.data import lra, lra_listops, lra_pathfinder
from lrx.data.lra_listops import SYMBOLS, draw, encode, expression, generate
from lrx.data.lra_sequences import END, SPECIALS, Sequences
from lrx.errors import UserError

OFFICIAL = {"max_depth": 10, "max_args": 10, "min_length": 500, "max_length": 2000}
SHORT = {"max_depth": 5, "max_args": 5, "min_length": 15, "max_length": 60}


@cache
def official() -> Sequences:
    return generate([1000, 0, 0], 0, **OFFICIAL)[0]


def words(ids: np.ndarray) -> list[str]:
    assert ids[-1] == END
    return [SYMBOLS[each - SPECIALS] for each in ids[:-1]]


def evaluate(symbols: list[str], most: int, deepest: int) -> int:
    """The value of a whole expression, with a stack; checks the grammar on the way."""
    stack: list[list] = [["root"]]
    for symbol in symbols:
        if symbol.startswith("["):
            stack.append([symbol])
            assert len(stack) <= deepest, "an operator at the greatest depth"
        elif symbol == "X":
            name, *arguments = stack.pop()
            assert 2 <= len(arguments) <= most
            median = int(statistics.median(arguments))
            found = {"[MIN": min(arguments), "[MAX": max(arguments), "[MED": median, "[SM": sum(arguments) % 10}[name]
            stack[-1].append(found)
        else:
            stack[-1].append(int(symbol))
    assert len(stack) == 1
    assert len(stack[0]) == 2
    return stack[0][1]


def test_expressions_follow_the_grammar_and_have_their_value() -> None:
    for split, bounds in ((official().take(range(100)), OFFICIAL), (generate([400, 0, 0], 3, **SHORT)[0], SHORT)):
        for i in range(len(split)):
            found = evaluate(words(split.at(i)), bounds["max_args"], bounds["max_depth"])
            assert found == split.labels[i]


def test_an_even_median_is_truncated() -> None:
    assert lra_listops.value(2, [1, 2]) == 1
    assert lra_listops.value(2, [9, 0, 3, 4]) == 3
    assert lra_listops.value(3, [9, 9, 3]) == 1


def test_lengths_lie_strictly_between_the_bounds() -> None:
    tokens = official().lengths - 1  # without the end token
    assert tokens.min() >= 501
    assert tokens.max() <= 1999
    narrow = generate([60, 0, 0], 0, max_depth=4, max_args=3, min_length=6, max_length=8)[0]
    assert set(narrow.lengths - 1) == {7}


def exact(*, max_depth: int, max_args: int, min_length: int, max_length: int) -> tuple[float, float, float]:
    """Share of accepted trees, and mean and deviation of their lengths, by the rule alone: a recursion over depth.

    A digit has length 1; an operator 2 and the sum of 2 to max_args arguments, whose distribution is a convolution.
    """
    size = max_length + 1
    chances = np.zeros(size)
    chances[1] = 1
    for _ in range(max_depth - 1):
        powers, sums = np.fft.rfft(chances, 2 * size), chances
        operator = np.zeros(size)
        for _ in range(2, max_args + 1):
            sums = np.fft.irfft(np.fft.rfft(sums, 2 * size) * powers, 2 * size)[:size]
            operator += sums / (max_args - 1)
        chances = np.concatenate([[0.0, 0.75], operator[: size - 2] / 4])
    lengths = np.arange(size)
    chances = chances * ((lengths > min_length) & (lengths < max_length))
    share = chances.sum()
    mean = chances @ lengths / share
    return share, mean, float(np.sqrt(chances @ (lengths - mean) ** 2 / share))


def test_lengths_of_small_trees_have_their_exact_mean() -> None:
    small = {"max_depth": 4, "max_args": 4, "min_length": 30, "max_length": 80}  # few trees are equal
    _, mean, deviation = exact(**small)
    lengths = generate([3000, 0, 0], 1, **small)[0].lengths - 1
    assert lengths.mean() == pytest.approx(mean, abs=4 * deviation / 3000**0.5)


def test_published_statistics() -> None:
    generator = random.Random(0)
    drawn = [draw(generator, 10, 10, 2000) for _ in range(8000)]
    accepted = sum(each is not None and len(each[0]) > 500 for each in drawn) / len(drawn)
    assert accepted == pytest.approx(0.083, abs=0.012)  # four standard errors
    tokens = official().lengths - 1
    share, mean, deviation = exact(**OFFICIAL)
    assert (share, mean, deviation) == pytest.approx((0.0828, 1035.0, 393.8), rel=1e-3)
    assert tokens.mean() == pytest.approx(mean, abs=4 * deviation / len(tokens) ** 0.5)
    assert tokens.std() == pytest.approx(deviation, rel=0.1)
    shares = np.bincount(official().labels, minlength=10) / len(official())
    assert shares[0] == pytest.approx(0.166, abs=0.047)
    assert shares[9] == pytest.approx(0.157, abs=0.046)
    assert shares[1:9].min() > 0.04
    assert shares[1:9].max() < 0.13


def test_splits_are_distinct_and_a_smaller_set_begins_a_larger_one() -> None:
    splits = generate([300, 50, 50], 1, max_depth=3, max_args=3, min_length=3, max_length=12)
    everything = [split.at(i).tobytes() for split in splits for i in range(len(split))]
    assert len(set(everything)) == 400
    smaller = generate([20, 5, 5], 1, max_depth=3, max_args=3, min_length=3, max_length=12)
    assert smaller[0].at(19).tobytes() == splits[0].at(19).tobytes()
    other = generate([20, 5, 5], 2, max_depth=3, max_args=3, min_length=3, max_length=12)
    assert other[0].steps.tobytes() != smaller[0].steps.tobytes()


def test_too_few_trees_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lra_listops, "FRUITLESS", 2000)
    with pytest.raises(UserError, match="only 10 of 30 different trees"):
        generate([30, 0, 0], 0, max_depth=1, max_args=2, min_length=0, max_length=5)


def test_the_official_form_reads_back_as_the_same_ids(tmp_path: Path) -> None:
    assert expression(encode("[MAX 3 5 ]", "here")[:-1]) == "( ( ( [MAX 3 ) 5 ) ] )"
    split = generate([30, 0, 0], 0, **SHORT)[0]
    lines = [f"{expression(split.at(i)[:-1].tolist())}\t{split.labels[i]}" for i in range(30)]
    path = tmp_path / "basic_train.tsv"
    path.write_text("\n".join(["Source\tTarget", *lines]))
    found = lra_listops.read(path, 60)
    assert found.steps.tobytes() == split.steps.tobytes()
    assert found.labels.tolist() == split.labels.tolist()
    cut = lra_listops.read(path, 20)
    assert cut.lengths.max() == 20
    assert cut.at(0)[-1] == END
    assert cut.notes["truncated"] >= 20
    path.write_text("Source\tTarget\n( [MAX 3 )\t12\n")
    with pytest.raises(UserError, match=r"basic_train.tsv, line 2: expected an expression, a tab and a digit"):
        lra_listops.read(path, 60)
    path.write_text("[MUL 3 4 ]\t1\n")
    with pytest.raises(UserError, match=r"line 1: \[MUL is no ListOps symbol"):
        lra_listops.read(path, 60)


def test_a_split_is_the_same_bytes_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import hashlib, sys; from lrx.data import lra_listops as l, lra_pathfinder as p\n"
        "a = l.generate([20, 5, 5], 7, max_depth=5, max_args=5, min_length=15, max_length=60)\n"
        "b = p.generate([2, 1, 1], 7, 32, 6)\n"
        "print([hashlib.sha256(s.steps.tobytes() + s.labels.tobytes()).hexdigest() for s in (*a, *b)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    here = [*generate([20, 5, 5], 7, **SHORT), *lra_pathfinder.generate([2, 1, 1], 7, 32, 6)]
    digests = [hashlib.sha256(each.steps.tobytes() + each.labels.tobytes()).hexdigest() for each in here]
    assert json.loads(done.stdout.replace("'", '"')) == digests

    calls = []
    monkeypatch.setattr(lra_listops, "generate", lambda *a, **k: calls.append(1) or generate(*a, **k))
    for split, each in zip(("train", "select", "test"), here[:3], strict=True):
        task = {"dataset": "listops", "data_seed": 7, "train_size": 20, "select_size": 5, "test_size": 5} | SHORT
        found = lra.load(task, split, tmp_path)
        assert found.steps.tobytes() == each.steps.tobytes()
        assert found.labels.tolist() == each.labels.tolist()
    assert len(calls) == 1  # the cache has them afterwards


# Pathfinder


@cache
def drawings() -> list[lra_pathfinder.Drawing]:
    return [lra_pathfinder.draw(0, i, 32, 6) for i in range(60)]


def test_images_have_the_right_form() -> None:
    for each in drawings():
        assert each.pixels.shape == (32, 32)
        assert each.pixels.dtype == np.uint8
        assert each.pixels.min() == 0
        assert each.pixels.max() == 255
        assert 0.05 < (each.pixels > 40).mean() < 0.7
    assert len({each.pixels.tobytes() for each in drawings()}) == len(drawings())


def test_seeds_lie_at_their_distance_inside_the_border() -> None:
    for each in drawings():
        (first, _), (second, _) = each.ends
        assert all(
            13 <= value < 18 for value in first
        )  # twice the distance from every edge; a dash begins beside its middle
        assert np.hypot(first[0] - second[0], first[1] - second[1]) == pytest.approx(7, abs=0.75)


def test_the_discs_mark_one_contour_or_two() -> None:
    """With everything else as it is drawn, the brightness of discs (1 of at most 2) stands at the two marked ends."""
    for each in drawings():
        marked = [end for contour in each.ends for end in contour if _disc(each.pixels, end)]
        same = [contour for contour in each.ends if all(_disc(each.pixels, end) for end in contour)]
        assert len(marked) >= 2
        if each.label:
            assert same
        else:
            assert all(any(_disc(each.pixels, end) for end in contour) for contour in each.ends)


def _disc(pixels: np.ndarray, at: tuple[int, int]) -> bool:
    """Whether 7 of the 9 pixels around an end are about as bright as a disc (128, less at its corners)."""
    rows, columns = (slice(max(value - 1, 0), min(value + 1, 31) + 1) for value in at)
    return int((pixels[rows, columns] >= 95).sum()) >= 7


def test_the_label_is_independent_of_the_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are the first draw of each image's generator; with the other label the same contours are drawn."""
    for number, each in enumerate(drawings()[:40]):
        assert each.label == int(random.Random(f"pathfinder 0 {number}").random() < 0.5)

    class Other(random.Random):
        first = True

        def random(self) -> float:
            value = super().random()
            if self.first:
                self.first, value = False, 1 - value
            return value

    monkeypatch.setattr(lra_pathfinder.random, "Random", Other)
    for number, each in enumerate(drawings()[:10]):
        turned = lra_pathfinder.draw(0, number, 32, 6)
        assert turned.label == 1 - each.label
        assert turned.ends == each.ends


def test_labels_are_balanced_and_splits_distinct(tmp_path: Path) -> None:
    assert 15 <= sum(each.label for each in drawings()) <= 45  # of 60: four standard errors
    splits = lra_pathfinder.generate([8, 3, 3], 0, 32, 6)
    pixels = [split.at(i).tobytes() for split in splits for i in range(len(split))]
    assert len(set(pixels)) == 14
    assert pixels[0] == drawings()[0].pixels.tobytes()
    task = {"dataset": "pathfinder", "data_seed": 0, "contour": 6, "train_size": 8, "select_size": 3, "test_size": 3}
    found = lra.load(task, "select", tmp_path)
    assert [found.at(i).tobytes() for i in range(3)] == pixels[8:11]
    assert found.labels.tolist() == splits[1].labels.tolist()
    assert set(found.lengths) == {1024}


def test_small_images() -> None:
    """16 pixels: every image has two bright discs and dashes, and both labels occur."""
    found = [lra_pathfinder.draw(0, i, 16, 3) for i in range(20)]
    assert {each.pixels.shape for each in found} == {(16, 16)}
    assert {each.label for each in found} == {0, 1}
    for each in found:
        bright = {(int(y), int(x)) for y, x in zip(*np.nonzero(each.pixels > 240), strict=True)}
        ends = [end for contour in each.ends for end in contour]
        marked = [end for end in ends if any(abs(y - end[0]) + abs(x - end[1]) <= 1 for y, x in bright)]
        assert len(marked) >= 2
        assert (each.pixels > 40).sum() > len(bright) + 10  # and dashes


@pytest.mark.slow
def test_all_sizes_and_the_hard_contours_can_be_drawn() -> None:
    for size in (32, 64, 128):
        for number in range(2):
            assert lra_pathfinder.draw(1, number, size, 14).pixels.shape == (size, size)
