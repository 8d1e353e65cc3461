"""One image as its processor must see it: decoded within bounds, 8 bits per channel, its transparency kept."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
from PIL import Image, UnidentifiedImageError

from hf_taskvec.errors import DataError
from hf_taskvec.text import shortened

_DECODER = datasets.Image()
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# What Pillow and its plugins raise on damaged files.
_UNDECODABLE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
_WHITE16 = 65535


def decode_image(value: Any, where: str) -> tuple[Image.Image, str | None]:
    """Decodes an image as `datasets` stores it, turned upright.

    Args:
        value: A mapping with `bytes` or `path`, or an image.
        where: The row, for the error.

    Returns:
        The image with 8 bits per channel, and a sentence about what was done to it if its values were scaled.

    Raises:
        DataError: If there is no image, if it does not decode or if it has more pixels than Pillow takes for safe.

    Example:
        >>> image, note = decode_image(Image.new("F", (2, 2), 0.5), "row 0")
        >>> image.mode, image.getpixel((0, 0)), note
        ('L', 128, 'floats, scaled so that 1.0 is white')
    """
    if value is None or (isinstance(value, Mapping) and value.get("bytes") is None and value.get("path") is None):
        raise DataError(f"{where} has no image (None); give it one, or leave such rows out with skip_broken=True")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = _DECODER.decode_example(value)
        return _eight_bits(image, where)
    except _BOMBS as error:
        raise DataError(
            f"{where} does not decode as an image within bounds: {_told(error)}. If it is what it should be, raise "
            "PIL.Image.MAX_IMAGE_PIXELS; or leave such rows out with skip_broken=True"
        ) from error
    except DataError:
        raise
    except _UNDECODABLE as error:
        raise DataError(
            f"{where} does not decode as an image: {_told(error)}; mend it, or leave such rows out with "
            "skip_broken=True"
        ) from error


def _eight_bits(image: Image.Image, where: str) -> tuple[Image.Image, str | None]:
    """Scales 16-bit integers and floats in [0, 1] to 8 bits, where every conversion of Pillow would clip them."""
    if image.mode.startswith("I"):
        return _from_integers(image, where)
    if image.mode == "F":
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # also true of NaN
            raise DataError(
                f"{where} holds floats from {low:g} to {high:g}, whose white is not known; save its images with 8 bits "
                "per channel, or with floats in [0, 1]"
            )
        return Image.fromarray(np.rint(values * 255).astype(np.uint8)), "floats, scaled so that 1.0 is white"
    return image, None


def _from_integers(image: Image.Image, where: str) -> tuple[Image.Image, str]:
    values = np.asarray(image).astype(np.int64)
    if image.mode == "I" and not (values.min() >= 0 and 255 < values.max() <= _WHITE16):
        raise DataError(
            f"{where} holds 32-bit integers from {values.min()} to {values.max()}, whose white is not known; save its "
            "images with 8 or 16 bits per channel"
        )
    grey = np.rint(values * (255 / _WHITE16)).astype(np.uint8)
    note = f"16-bit integers, scaled so that {_WHITE16} is white"
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
        return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha))), note
    return Image.fromarray(grey), note


def _told(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message shows the address of a buffer
        return "it is in no format of images that Pillow knows"
    return shortened(str(error) or type(error).__name__, 200)
