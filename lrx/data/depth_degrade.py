"""From a depth map to the low-resolution map that a network is given: two protocols, in NumPy.

``compressed`` ("lrx-compressed": the constants of the published challenge and of Compressed-NYU were not found)::

    D_lr = clip(Q_b(Down_s(D)) + n, 0, 1),   Q_b(x) = round(x (2^b - 1)) / (2^b - 1),   n ~ N(0, sigma^2)

with depth in shares of the data set's largest. ``standard``: PIL's bicubic filter, down by s, and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]


def degrade(depth: Map, task: Mapping[str, Any], name: str) -> Map:
    """(H, W) float32 in [0, 1], sides multiples of the factor -> (H/s, W/s) float32. ``name`` seeds the noise."""
    factor = int(task["scale_factor"])
    if task["protocol"] == "standard":
        return resize(depth, depth.shape[0] // factor, depth.shape[1] // factor)
    low = down(depth, factor, task["downsample"])
    if task["quantiser"] == "uniform":
        low = quantise(low, int(task["bits"]))
    low = low + noise(low.shape, float(task["noise"]), float(task["noise_share"]), name)
    return np.clip(low, 0, 1).astype(np.float32)


def down(depth: Map, factor: int, kernel: str) -> Map:
    """``area``: the mean of each block; ``nearest``: its pixel (s // 2, s // 2); ``bicubic``: PIL's."""
    height, width = depth.shape
    if height % factor or width % factor:
        raise ValueError(f"{height} x {width} is no multiple of {factor}")
    if kernel == "nearest":
        return depth[factor // 2 :: factor, factor // 2 :: factor]
    if kernel == "bicubic":
        return resize(depth, height // factor, width // factor)
    blocks = depth.astype(np.float64).reshape(height // factor, factor, width // factor, factor)
    return blocks.mean(axis=(1, 3)).astype(np.float32)


def quantise(values: Map, bits: int) -> Map:
    """To the nearest of 2^bits levels from 0 to 1; halves go up. Idempotent."""
    levels = 2**bits - 1
    return (np.floor(values.astype(np.float64) * levels + 0.5) / levels).astype(np.float32)


def noise(shape: tuple[int, ...], sigma: float, share: float, name: str) -> Map:
    """Gaussian noise on a random ``share`` of the pixels, a function of ``name`` alone (a stream NumPy keeps fixed)."""
    seed = int.from_bytes(hashlib.sha256(f"depth noise {name}".encode()).digest()[:4], "big")
    stream = np.random.RandomState(seed)
    values = stream.standard_normal(shape) * sigma
    return (values * (stream.random_sample(shape) < share)).astype(np.float32)


def resize(values: Map, height: int, width: int) -> Map:
    """PIL's bicubic filter on float32, antialiased when it goes down."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)


def filled(depth: Map, valid: NDArray[np.bool_]) -> Map:
    """Unknown pixels with the value of the nearest known one; only to make the input, never a metric's truth."""
    if valid.all():
        return depth
    from scipy.ndimage import distance_transform_edt

    rows, columns = distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return np.asarray(depth[rows, columns])
