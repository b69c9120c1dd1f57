"""Bytes of an image file -> RGB pixels, for every kind of image that occurs in photo collections.

What is not RGB is converted, and said: grey images get three equal channels, transparency is dropped and palettes and
CMYK are converted as ``PIL.Image.convert("RGB")`` does (torchvision's loader); of 16-bit images the upper 8 bits count,
which ``convert`` would clip instead. Of an animation the first picture counts; EXIF rotation is not applied, as in
torchvision.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # (height, width, 3)


class Unreadable(ValueError):
    """Bytes that are no image, or a broken one. The message is short and has no path in it."""


def decode(data: bytes) -> tuple[Pixels, str]:
    """(pixels (height, width, 3), what had to be converted: ``""`` for an RGB image). Raises ``Unreadable``."""
    from PIL import Image

    if not data:
        raise Unreadable("0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about palettes, EXIF data and merely large images
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                return _rgb(image)
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        raise Unreadable("too many pixels") from None
    except Image.UnidentifiedImageError:
        raise Unreadable("no known image format") from None
    except Exception as error:  # the plug-ins raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise Unreadable(" ".join(str(error).split())[:100] or type(error).__name__) from None


def _rgb(image: Any) -> tuple[Pixels, str]:
    mode = image.mode
    if mode == "RGB":
        return np.asarray(image), ""
    if mode.startswith("I"):  # I;16 and its byte orders; a 32-bit image holds 16-bit values in practice
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise Unreadable("32-bit values, whose range is not known")
        return as_rgb((values >> 8).astype(np.uint8)), "16_bit"
    if mode == "F":
        raise Unreadable("floating-point values, whose range is not known")
    kind = {"1": "grey", "L": "grey", "LA": "alpha", "PA": "alpha", "RGBA": "alpha", "RGBa": "alpha", "CMYK": "cmyk"}
    return np.asarray(image.convert("RGB")), kind.get(mode, "palette" if mode == "P" else "other_colours")


def as_rgb(grey: Pixels) -> Pixels:
    """(..., height, width) -> (..., height, width, 3) with three equal channels."""
    return np.repeat(grey[..., None], 3, axis=-1)
