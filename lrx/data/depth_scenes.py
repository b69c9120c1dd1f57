"""Rendered scenes with exact depth: slanted planes and boxes with textured albedo, seen by a pinhole camera.

A scene is a room (floor, two walls; each a plane, whose inverse depth is affine in the pixel) with 2 to 5 boxes, turned
about the vertical axis, in it. A pixel's depth is that of the nearest surface on its ray, in metres along the optical
axis. Colour is the albedo of the surface (plain, stripes, checks or value noise, in the surface's own coordinates, so
that it is seen in perspective) times a shading of its normal. Edges of albedo thus lie on edges of depth, and textures
have edges where depth has none.

Scene ``number`` of ``seed`` is the same to the last byte everywhere: the numbers come from Python's Mersenne Twister,
and only operations that IEEE 754 rounds exactly are used (+, -, *, /, square roots, comparisons), element by element.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

VERSION = 1  # of what is drawn; raised when a scene changes
MAX_DEPTH = 10.0  # metres; the room ends before
NEAR = 0.5
FOCAL = 0.9  # focal length over the width of the image
LATTICE = 16  # side of the table of value noise

Grid = NDArray[np.float64]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Texture:
    """``kind``: plain, stripes, checks or noise; two colours; ``scale``: metres of a period; ``table``: of noise."""

    kind: str
    first: Triple
    second: Triple
    scale: float
    table: Grid

    def colour(self, u: Grid, v: Grid) -> Grid:
        """(h, w, 3) in [0, 1] at the surface's coordinates in metres."""
        u, v = u / self.scale, v / self.scale
        if self.kind == "plain":
            share = np.zeros_like(u)
        elif self.kind == "stripes":
            share = (np.floor(u) % 2 == 0).astype(np.float64)
        elif self.kind == "checks":
            share = ((np.floor(u) + np.floor(v)) % 2 == 0).astype(np.float64)
        else:
            share = _noise(self.table, u, v)
        first, second = np.asarray(self.first), np.asarray(self.second)
        return first + share[:, :, None] * (second - first)


def draw(seed: int, number: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Image (size, size, 3) uint8 and depth (size, size) float32 in metres of scene ``number``."""
    rng = random.Random(f"depth scene {seed} {number}")
    centre = (np.arange(size, dtype=np.float64) + 0.5) / size - 0.5
    x, y = np.meshgrid(centre / FOCAL, centre / FOCAL)  # the ray of a pixel is (x, y, 1), y downwards
    tilt = rng.uniform(-0.15, 0.15)
    light = _unit((rng.uniform(-1, 1), rng.uniform(-1.5, -0.3), rng.uniform(-1.5, -0.3)))
    depth = np.full((size, size), MAX_DEPTH)
    colour = np.zeros((size, size, 3))

    # Planes n . p = d seen from their inner side: floor below, a far wall and a wall at one side.
    side = rng.choice((-1.0, 1.0))
    far = rng.uniform(5.0, 9.0)
    height = rng.uniform(0.9, 1.8)
    planes = [
        ((0.0, 1.0, rng.uniform(0.0, 0.1)), height),
        ((rng.uniform(-0.4, 0.4), tilt, 1.0), far),
        ((side, 0.0, rng.uniform(0.05, 0.5)), rng.uniform(1.2, 3.5)),
    ]
    for normal, distance in planes:
        inverse = (normal[0] * x + normal[1] * y + normal[2]) / distance
        found = np.where(inverse > 1 / MAX_DEPTH, 1 / np.maximum(inverse, 1 / MAX_DEPTH), MAX_DEPTH)
        _paint(depth, colour, found, np.asarray(found < depth), x, y, _unit(normal), light, _texture(rng))

    for _ in range(rng.randint(2, 5)):
        _box(rng, depth, colour, x, y, height, light)
    image = np.floor(np.clip(colour, 0, 1) * 255 + 0.5).astype(np.uint8)
    return image, depth.astype(np.float32)


def _box(rng: random.Random, depth: Grid, colour: Grid, x: Grid, y: Grid, floor: float, light: Triple) -> None:
    """A box on the floor or in the air, by the slabs that its ray crosses."""
    half = (rng.uniform(0.15, 0.7), rng.uniform(0.15, 0.7), rng.uniform(0.15, 0.7))
    where_z = rng.uniform(1.6, 5.5)
    where_x = rng.uniform(-0.45, 0.45) * where_z
    where_y = floor - half[1] if rng.random() < 0.6 else rng.uniform(-0.4, 0.4) * where_z
    c, s = _rotation(rng.uniform(-1.0, 1.0))
    textures = [_texture(rng) for _ in range(3)]
    # The camera's origin and the rays, in the box's own frame: turned about the vertical axis.
    origin = (-(c * where_x - s * where_z), -where_y, -(s * where_x + c * where_z))
    ray = (c * x - s, y, s * x + c)
    enter, leave = np.full_like(x, -np.inf), np.full_like(x, np.inf)
    axis = np.zeros(x.shape, dtype=np.int64)
    for i in range(3):
        safe = np.where(np.abs(ray[i]) < 1e-9, 1e-9, ray[i])
        one, other = (-half[i] - origin[i]) / safe, (half[i] - origin[i]) / safe
        first, last = np.minimum(one, other), np.maximum(one, other)
        axis = np.where(first > enter, i, axis)
        enter, leave = np.maximum(enter, first), np.minimum(leave, last)
    hit = (enter < leave) & (enter > NEAR) & (enter < depth)
    found = np.where(hit, enter, 1.0)
    points = [origin[i] + found * ray[i] for i in range(3)]
    # Of a face along axis i: its texture's coordinates are the other two.
    for i, (a, b) in enumerate(((2, 1), (0, 2), (0, 1))):
        face = hit & (axis == i)
        back = ((c, 0.0, -s), (0.0, 1.0, 0.0), (s, 0.0, c))[i]
        shade = _shade(back, light)
        paint = textures[i].colour(points[a], points[b]) * shade
        colour[face] = paint[face]
    depth[hit] = enter[hit]


def _paint(
    depth: Grid, colour: Grid, found: Grid, where: NDArray[np.bool_], x: Grid, y: Grid, normal: Triple, light: Triple,
    texture: Texture,
) -> None:  # fmt: skip
    """A plane's pixels. Its coordinates run along two directions in it."""
    first = _unit((normal[2], 0.0, -normal[0])) if abs(normal[1]) < 0.9 else (1.0, 0.0, 0.0)
    second = _cross(normal, first)
    px, py = found * x, found * y
    u = first[0] * px + first[1] * py + first[2] * found
    v = second[0] * px + second[1] * py + second[2] * found
    paint = texture.colour(u, v) * _shade(normal, light)
    colour[where] = paint[where]
    depth[where] = found[where]


def _texture(rng: random.Random) -> Texture:
    kind = rng.choice(("plain", "stripes", "checks", "noise"))
    first = (rng.uniform(0.15, 1), rng.uniform(0.15, 1), rng.uniform(0.15, 1))
    second = (rng.uniform(0.15, 1), rng.uniform(0.15, 1), rng.uniform(0.15, 1))
    table = np.asarray([rng.random() for _ in range(LATTICE * LATTICE)]).reshape(LATTICE, LATTICE)
    return Texture(kind, first, second, rng.uniform(0.25, 0.8), table)


def _noise(table: Grid, u: Grid, v: Grid) -> Grid:
    """Values of a lattice, blended by 3 t^2 - 2 t^3."""
    i, j = np.floor(u), np.floor(v)
    a, b = u - i, v - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    rows, columns = i.astype(np.int64) % LATTICE, j.astype(np.int64) % LATTICE
    below, right = (rows + 1) % LATTICE, (columns + 1) % LATTICE
    top = table[rows, columns] * (1 - b) + table[rows, right] * b
    bottom = table[below, columns] * (1 - b) + table[below, right] * b
    return np.asarray(top * (1 - a) + bottom * a)


def _rotation(t: float) -> tuple[float, float]:
    """Cosine and sine of an angle whose half has the tangent t: rational, so that it is exact everywhere."""
    return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)


def _shade(normal: Triple, light: Triple) -> float:
    facing = abs(normal[0] * light[0] + normal[1] * light[1] + normal[2] * light[2])
    return 0.35 + 0.65 * facing


def _unit(v: Triple) -> Triple:
    length = float(np.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]))
    return v[0] / length, v[1] / length, v[2] / length


def _cross(a: Triple, b: Triple) -> Triple:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]
