"""Pathfinder of the Long Range Arena, drawn: do two marked ends belong to one dashed contour?

Linsley et al. 2018 (arXiv 1805.08315), Kim et al. 2020 (ICLR); the rules are those of drewlinsley/pathfinder, the
values those that Tay et al. 2021 (arXiv 2011.04006) name for 32, 64 and 128 pixels (``STYLES``). Per image: the label,
drawn before and independent of all geometry; two target contours of ``contour`` dashes each, grown alternately from
seeds ``seed_distance`` apart and started again from nothing when either is stuck; short distractor contours where there
is room; a disc on the origin of one target and one on the far end of the same (label 1) or of the other (label 0).
A dash is ``length`` pixels; the next one's far end is a pixel on the circle of radius length + margin around the pivot,
with probability proportional to free * max(0, cos(min(continuity |turn|, pi/2)))^2.

As in the code: angles of seeds are whole degrees; coordinates are rounded up; the last dash of the first target is not
entered into the mask of what is occupied, so that distractors may cross it; targets have paddle x snake contrast and
distractors snake contrast alone, discs 1 (at 32 pixels 1.5, 2 and 1), then the image is scaled to 0..255.
Departures: every image has a generator of its own, made of the seed and its number, so that each can be drawn alone;
single-dash distractors, which the published wrapper switches off, are left out.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lrx.data import store
from lrx.data.lra_sequences import Sequences, rank_of, regular

Grid = NDArray[np.float64]  # (size, size)
Point = tuple[int, int]  # row, column
SPLITS = ("train", "select", "test")
FINE = 2  # antialias scale
OVERLAP, OCCUPIED = 1.8, 0.3
RETRIALS = {"paddle": 2, "distractor": 4}
LEAST_FREE = 0.01


@dataclass(frozen=True)
class Style:
    """Pixels, dashes and contrasts of one image size."""

    size: int
    padding: int
    length: int
    thickness: float
    margins: tuple[int, ...]
    radius: float
    dashes: int  # of all distractors together
    seed_distance: int
    continuity: float
    snake_contrast: float
    paddle_contrast: float


STYLES = {
    16: Style(16, 1, 2, 0.5, (1,), 1.5, 0, 3, 1.0, 0.9, 1.0),  # no size of the arena; no distractors
    32: Style(32, 1, 2, 0.5, (1,), 1.5, 20, 7, 1.0, 2.0, 0.75),
    64: Style(64, 1, 5, 1.0, (1,), 2.5, 22, 12, 1.8, 0.8, 1.0),
    128: Style(128, 1, 5, 1.5, (2, 3), 3.0, 35, 20, 1.8, 0.9, 1.0),
}


@dataclass(frozen=True)
class Drawing:
    """``pixels`` (size, size) uint8, the label, and for tests the ends: (origin, far end) of both targets."""

    pixels: NDArray[np.uint8]
    label: int
    ends: tuple[tuple[Point, Point], tuple[Point, Point]]


def _moved(point: Point, angle: float, distance: float) -> Point:
    return math.ceil(point[0] + distance * math.sin(angle)), math.ceil(point[1] + distance * math.cos(angle))


def _flipped(angle: float) -> float:
    return angle + math.pi if angle < 0 else angle - math.pi


def _resized(fine: NDArray[Any], size: int) -> NDArray[np.float64]:
    """Lanczos, of values scaled to bytes; 0..1."""
    low, high = float(fine.min()), float(fine.max())
    scaled = (fine - low) * (255.0 / (high - low) if high > low else 1.0)
    image = Image.fromarray((scaled + 0.5).astype(np.uint8))
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS), dtype=np.float64) / 255


@functools.cache
def _disc(radius: int) -> tuple[Point, ...]:
    """Offsets within ``radius``."""
    around = range(-radius, radius + 1)
    return tuple((y, x) for y in around for x in around if y * y + x * x <= radius * radius)


def _dilated(mask: NDArray[Any], offsets: Sequence[Point]) -> NDArray[Any]:
    """Largest value of ``mask`` at the offsets from each pixel; outside there is nothing."""
    reach = max((max(abs(y), abs(x)) for y, x in offsets), default=0)
    height, width = mask.shape
    padded = np.zeros((height + 2 * reach, width + 2 * reach), dtype=mask.dtype)
    padded[reach : reach + height, reach : reach + width] = mask
    out = np.zeros_like(mask)
    for y, x in offsets:
        np.maximum(out, padded[reach + y : reach + y + height, reach + x : reach + x + width], out=out)
    return out


@functools.lru_cache(maxsize=4096)
def _dash(angle: float, length: int, thickness: float, margin: int) -> tuple[Grid, Grid]:
    """A dash from the centre of a small square, and what it occupies: the dash dilated by ``margin``."""
    reach = length + math.ceil(thickness) + margin
    fine = 2 * reach * FINE + 1
    centre = reach * FINE
    head = _moved((centre, centre), angle, length * FINE)
    image = Image.new("L", (fine, fine), 0)
    ImageDraw.Draw(image).line([(centre, centre), (head[1], head[0])], fill=255, width=round(thickness * FINE))
    blown = np.asarray(image)
    return _resized(blown, 2 * reach + 1), _resized(_dilated(blown, _disc(margin * FINE)), 2 * reach + 1)


def _placed(size: int, start: Point, reach: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where the small square around ``start`` lies in the image, and which part of it."""
    inside, part = [], []
    for at in start:
        first, last = max(at - reach, 0), min(at + reach, size - 1)
        inside.append(slice(first, last + 1))
        part.append(slice(first - at + reach, last - at + reach + 1))
    return (inside[0], inside[1]), (part[0], part[1])


@functools.lru_cache(maxsize=4096)
def _footprint(angle: float, length: int, thickness: float, margin: int) -> tuple[Point, ...]:
    """Offsets that a dash with this angle fully occupies, from the middle of a square of length + margin."""
    half = length + margin
    square = np.zeros((2 * half + 1, 2 * half + 1))
    inside, part = _placed(2 * half + 1, (half + 1, half + 1), length + math.ceil(thickness) + margin)
    square[inside] = _dash(angle, length, thickness, margin)[1][part]
    return tuple((int(y) - half, int(x) - half) for y, x in zip(*np.nonzero(square >= 1.0), strict=True))


@functools.cache
def _ring(radius: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pixels at ``radius`` from a pixel, as offsets (k, 2), and their angles (k,)."""
    angles = np.arange(0, 360, 360 / (2 * radius * math.pi)) * math.pi / 180
    points = np.stack([1000 + radius * np.sin(angles), 1000 + radius * np.cos(angles)], axis=1).astype(np.int64) - 1000
    points = np.unique(points, axis=0)
    return points, np.arctan2(points[:, 0], points[:, 1])


class _Stuck(Exception):
    """A contour cannot go on."""


@dataclass
class _Contour:
    """The growing end of a contour: its last dash, not yet part of the mask, is occupied by ``dash`` at ``place``."""

    pivot: Point
    angle: float
    place: tuple[slice, slice]
    dash: Grid
    tip: Point


class Canvas:
    """An image being drawn. ``image``: contrasts; ``mask``: what is occupied, 0 to 1."""

    def __init__(self, style: Style, margin: int, generator: random.Random) -> None:
        self.style, self.margin, self.uniform = style, margin, generator.random
        self.reach = style.length + math.ceil(style.thickness) + margin
        self.image = np.zeros((style.size, style.size))
        self.mask = np.ones((style.size, style.size))
        self.mask[style.padding : -style.padding, style.padding : -style.padding] = 0

    def integer(self, low: int, high: int) -> int:
        """Uniform over low .. high - 1."""
        return low + int(self.uniform() * (high - low))

    def _draw(self, start: Point, angle: float, contrast: float) -> tuple[tuple[slice, slice], Grid]:
        place, part = _placed(self.style.size, start, self.reach)
        line, mask = _dash(angle, self.style.length, self.style.thickness, self.margin)
        self.image[place] = np.maximum(self.image[place], contrast * line[part])
        return place, mask[part]

    def occupy(self, end: _Contour) -> None:
        """Enter the last dash of a contour into the mask."""
        self.mask[end.place] = np.maximum(self.mask[end.place], end.dash)

    def _start(self, tail: Point, angle: float, contrast: float) -> _Contour | None:
        """The first dash from ``tail``; None where its head or pivot lies outside."""
        head = _moved(tail, angle, self.style.length)
        back = angle + math.pi if angle + math.pi < math.pi else angle - math.pi
        pivot = _moved(head, back, self.style.length + self.margin)
        if not all(0 <= value < self.style.size for value in (*head, *pivot)):
            return None
        return _Contour(pivot, angle, *self._draw(tail, angle, contrast), tail)

    def seed(self, border: int, contrast: float, least_free: float = 0.0) -> _Contour:
        """A first dash on a random free pixel at least ``border`` from the edge. Raises ``_Stuck``."""
        style = self.style
        lined = np.ones_like(self.mask)
        within = slice(border, style.size - border)
        lined[within, within] = self.mask[within, within]
        for _ in range(RETRIALS["paddle"] + 1):
            angle = self.integer(-180, 180) * math.pi / 180
            offsets = _footprint(angle, style.length, style.thickness, self.margin)
            rows, columns = np.nonzero(_dilated(lined, offsets) <= OCCUPIED)
            if not len(rows) or (self.mask <= OCCUPIED).mean() < least_free:
                raise _Stuck
            which = self.integer(0, len(rows))
            found = self._start((int(rows[which]), int(columns[which])), angle, contrast)
            if found is not None:
                return found
        raise _Stuck

    def beside(self, tail: Point, contrast: float) -> _Contour:
        """A first dash ``seed_distance`` from ``tail`` in a random direction. Raises ``_Stuck``."""
        for _ in range(RETRIALS["paddle"] + 1):
            angle = self.integer(-180, 180) * math.pi / 180
            where = self.integer(0, 360) * math.pi / 180
            distance = self.style.seed_distance
            start = round(tail[0] + distance * math.sin(where)), round(tail[1] + distance * math.cos(where))
            found = self._start(start, angle, contrast)
            if found is not None:
                return found
        raise _Stuck

    def extend(self, end: _Contour, contrast: float) -> None:
        """One more dash. Raises ``_Stuck``."""
        style, margin = self.style, self.margin
        pivot = _moved(end.pivot, end.angle, style.length + 2 * margin)
        points, angles = _ring(style.length + margin)
        heads = points + np.asarray(pivot)
        inside = ((heads >= 0) & (heads < style.size)).all(axis=1)
        heads, angles = heads[inside], angles[inside]
        if not len(heads):
            raise _Stuck
        turn = np.abs(angles - end.angle)
        turn = np.minimum(np.minimum(turn, 2 * math.pi - turn) * style.continuity, math.pi / 2)
        free = 1 - _dilated(self.mask, _disc(margin))[heads[:, 0], heads[:, 1]]
        weights = free * np.maximum(np.cos(turn), 0) ** 2
        if weights.sum() < 1e-4:
            raise _Stuck
        shares = np.cumsum(weights / weights.sum())
        for _ in range(RETRIALS["paddle"] + 1):
            which = int(np.argmax(shares > self.uniform()))
            head = int(heads[which, 0]), int(heads[which, 1])
            flipped = _flipped(float(angles[which]))
            place, part = _placed(style.size, head, self.reach)
            occupied = _dash(flipped, style.length, style.thickness, margin)[1][part]
            if (self.mask[place] + occupied).max() < OVERLAP:
                break
        else:
            raise _Stuck
        self._draw(head, flipped, contrast)
        self.occupy(end)
        end.pivot, end.angle, end.place, end.dash, end.tip = pivot, float(angles[which]), place, occupied, head


def _targets(canvas: Canvas, contour: int) -> tuple[tuple[Point, Point], tuple[Point, Point]]:
    style = canvas.style
    contrast = style.snake_contrast * style.paddle_contrast
    first = canvas.seed(2 * style.seed_distance, contrast)
    second = canvas.beside(first.tip, contrast)
    origins = first.tip, second.tip
    for _ in range(contour - 1):
        canvas.extend(first, contrast)
        canvas.extend(second, contrast)
    canvas.occupy(second)
    return (origins[0], first.tip), (origins[1], second.tip)


def _distractor(canvas: Canvas, dashes: int) -> bool:
    image, mask = canvas.image.copy(), canvas.mask.copy()
    contrast = canvas.style.snake_contrast
    try:
        end = canvas.seed(1, contrast, LEAST_FREE)
        for _ in range(dashes - 1):
            canvas.extend(end, contrast)
    except _Stuck:
        canvas.image, canvas.mask = image, mask
        return False
    canvas.occupy(end)
    return True


def _marker(style: Style, at: Point) -> Grid:
    fine = np.arange(style.size * FINE, dtype=np.float64)
    inside = (fine[:, None] - at[0] * FINE) ** 2 + (fine - at[1] * FINE) ** 2 <= (style.radius * FINE) ** 2
    return _resized(inside.astype(np.float64), style.size)


def draw(seed: int, number: int, size: int, contour: int) -> Drawing:
    """Image ``number`` of those that ``seed`` gives. ``size``: 16, 32, 64 or 128; ``contour``: dashes of a target."""
    style = STYLES[size]
    generator = random.Random(f"pathfinder {seed} {number}")
    label = int(generator.random() < 0.5)
    margin = style.margins[int(generator.random() * len(style.margins))]
    while True:
        canvas = Canvas(style, margin, generator)
        try:
            ends = _targets(canvas, contour)
            break
        except _Stuck:
            continue
    short = max(1, contour // 3)
    for _ in range(style.dashes // short):
        any(_distractor(canvas, short) for _ in range(RETRIALS["distractor"] + 1))
    origin = int(generator.random() < 0.5)
    far = origin if label else 1 - origin
    markers = np.maximum(_marker(style, ends[origin][0]), _marker(style, ends[far][1]))
    image = np.maximum(canvas.image, markers)
    image = (image - image.min()) * (255 / (image.max() - image.min()))
    return Drawing((image + 0.5).astype(np.uint8), label, ends)


def generate(sizes: Sequence[int], seed: int, size: int, contour: int) -> list[Sequences]:
    """Splits of ``sizes``, all images distinct, rows of pixels one after the other."""
    pixels = np.zeros((sum(sizes), size * size, 1), dtype=np.uint8)
    labels = np.zeros(sum(sizes), dtype=np.int64)
    known: set[int] = set()
    number = 0
    while len(known) < sum(sizes):
        drawing = draw(seed, number, size, contour)
        number += 1
        if (content := rank_of(drawing.pixels.tobytes())) not in known:
            pixels[len(known)], labels[len(known)] = drawing.pixels.reshape(-1, 1), drawing.label
            known.add(content)
    bounds = np.cumsum([0, *sizes])
    return [regular(pixels[a:b], labels[a:b]) for a, b in itertools.pairwise(bounds)]


def stored(split: str, sizes: Sequence[int], seed: int, size: int, contour: int, root: Path | None = None) -> Sequences:
    """``train``, ``select`` or ``test``, drawn once into the cache."""

    def build() -> store.Arrays:
        arrays: store.Arrays = {}
        for name, each in zip(SPLITS, generate(sizes, seed, size, contour), strict=True):
            arrays |= {f"{name}_pixels": each.steps, f"{name}_labels": each.labels}
        return arrays

    arrays = store.stored("lra", ("pathfinder", tuple(sizes), seed, size, contour), build, root)
    labels = np.asarray(arrays[f"{split}_labels"])
    return regular(np.asarray(arrays[f"{split}_pixels"]).reshape(len(labels), size * size, 1), labels)
