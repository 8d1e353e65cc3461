"""The seven corruptions of images on which merging is measured, at five strengths.

Constants and definitions are those of Hendrycks and Dietterich (arXiv 1903.12261), as `make_imagenet_c.py` and
`make_cifar_c.py` of github.com/hendrycks/robustness have them for images of 224 and of 32 pixels; the seven are those
of AdaMerging (arXiv 2310.02575). Lengths are scaled to the image's shorter side.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.random import RandomState  # its streams are frozen, as for the validation parts
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.floating[Any]]  # (H, W, 3) in [0, 1]
STRENGTHS = (1, 2, 3, 4, 5)
_SIDES = (32, 224)  # of the images that the constants were chosen for
_MIDDLE = math.sqrt(32 * 224)
# Per kind the five settings for images of 32, then of 224 pixels.
_CONSTANTS: Mapping[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "motion_blur": (  # radius, sigma
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "impulse_noise": ((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),  # share of the entries
    "gaussian_noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),  # standard deviation
    "pixelate": ((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),  # share of the side that is left
    "spatter": (  # mean and deviation of the liquid, its blur, its threshold, what is seen of it or its edge, mud
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
        (
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
    ),
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),  # what is left of it
    "jpeg_compression": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),  # quality
}
KINDS = tuple(_CONSTANTS)
_WATER = np.array([175, 238, 238]) / 255
_MUD = np.array([63, 42, 20]) / 255


def distort(image: Image.Image, kind: str, strength: int, *, random: RandomState) -> Image.Image:
    """The image, corrupted: RGB of 8 bits and of the same size.

    Args:
        image: Any image.
        kind: One of `KINDS`.
        strength: From 1 to 5.
        random: Where chance comes from. The same state at another strength draws the same noise, scaled.

    Example:
        >>> grey = Image.new("L", (40, 30), 128)
        >>> noisy = distort(grey, "gaussian_noise", 3, random=RandomState(0))
        >>> noisy.mode, noisy.size, noisy.getextrema()[0][1] > 150
        ('RGB', (40, 30), True)
    """
    image = image.convert("RGB")
    side = min(image.size)
    which = int(side > _MIDDLE)
    setting = _CONSTANTS[kind][which][strength - 1]
    if kind in _ON_IMAGES:
        return _ON_IMAGES[kind](image, setting)
    pixels = np.asarray(image, np.float32) / 255
    changed = _ON_PIXELS[kind](pixels, setting, side / _SIDES[which], random)
    return Image.fromarray((255 * np.clip(changed, 0, 1)).astype(np.uint8))


def _pixelate(image: Image.Image, share: float) -> Image.Image:
    small = image.resize([max(1, int(length * share)) for length in image.size], Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BOX)


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _gaussian_noise(pixels: Pixels, deviation: float, scale: float, random: RandomState) -> Pixels:
    noise: Pixels = random.standard_normal(pixels.shape)
    return pixels + deviation * noise


def _impulse_noise(pixels: Pixels, amount: float, scale: float, random: RandomState) -> Pixels:
    hit, salt = random.uniform(size=pixels.shape) < amount, random.uniform(size=pixels.shape) < 0.5
    return np.where(hit, salt, pixels)


def _contrast(pixels: Pixels, share: float, scale: float, random: RandomState) -> Pixels:
    mean: Pixels = pixels.mean(axis=(0, 1), keepdims=True)
    return (pixels - mean) * share + mean


def _motion_blur(pixels: Pixels, setting: tuple[float, float], scale: float, random: RandomState) -> Pixels:
    """A tail behind every pixel in a direction within 45 degrees of the horizontal; the border goes on outside."""
    angle = math.radians(random.uniform(-45, 45))
    steps = np.arange(2 * max(1, round(setting[0] * scale)) + 1)
    weights = np.exp(-((steps / (setting[1] * scale)) ** 2) / 2)
    room = len(steps)
    padded = np.pad(pixels, ((room, room), (room, room), (0, 0)), mode="edge")
    height, width = pixels.shape[:2]
    blurred = np.zeros_like(pixels)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        down, right = room + round(step * math.sin(angle)), room + round(step * math.cos(angle))
        blurred += weight * padded[down : down + height, right : right + width]
    return blurred


def _spatter(pixels: Pixels, setting: tuple[Any, ...], scale: float, random: RandomState) -> Pixels:
    """Drops of water, lit at their rims, or of mud; noise is scaled with its blur, which leaves its range alone."""
    from scipy import ndimage

    mean, deviation, blur, threshold, seen, mud = setting
    liquid = mean + deviation * scale * random.standard_normal(pixels.shape[:2])
    liquid = np.asarray(ndimage.gaussian_filter(liquid, blur * scale, mode="nearest"))
    wet = liquid >= threshold
    if not wet.any():
        return pixels
    if mud:
        cover = ndimage.gaussian_filter(wet.astype(np.float32), seen * scale, mode="nearest")
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return np.asarray(pixels * (1 - cover) + _MUD * cover)
    # the rim of the drops, where the authors' code takes OpenCV's Canny edges: the liquid is 0 outside of them
    rim = wet & ~ndimage.binary_erosion(wet, border_value=1)
    away = np.minimum(ndimage.distance_transform_edt(~rim), 20) if rim.any() else np.full(wet.shape, 20.0)
    levels = _equalised(ndimage.uniform_filter(away, 3, mode="mirror").astype(np.uint8))
    lit = ndimage.correlate(levels.astype(np.float64), [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], mode="mirror").clip(0, 255)
    shine = np.where(wet, liquid * 255, 0) * ndimage.uniform_filter(lit, 3, mode="mirror")
    light = np.asarray(seen * shine / max(float(shine.max()), 1e-6))[..., None]
    return pixels + light * _WATER


def _equalised(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Levels spread so that each is about as frequent."""
    counts = np.bincount(levels.ravel(), minlength=256)
    below = counts.cumsum()
    first = counts[levels.min()]
    spread = np.rint((below - first) * 255 / max(1, levels.size - first)).clip(0, 255).astype(np.uint8)
    return np.asarray(spread[levels], np.uint8)


_ON_IMAGES: Mapping[str, Callable[[Image.Image, Any], Image.Image]] = {
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg,
}
_ON_PIXELS: Mapping[str, Callable[[Pixels, Any, float, RandomState], Pixels]] = {
    "motion_blur": _motion_blur,
    "impulse_noise": _impulse_noise,
    "gaussian_noise": _gaussian_noise,
    "spatter": _spatter,
    "contrast": _contrast,
}
