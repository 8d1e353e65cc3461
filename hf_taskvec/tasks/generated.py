"""Drawn images of shapes, patterns and counted dots: deterministic, noisy, 32 px, made in memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from numpy.random import RandomState  # its streams are frozen: every version of NumPy draws the same images
from PIL import Image as PILImage

Drawing = Callable[[RandomState, int, str, str], np.ndarray]

IMAGE_SIZE = 32
COLOURS = {
    "red": (214, 44, 40),
    "orange": (240, 140, 30),
    "yellow": (242, 216, 50),
    "green": (50, 160, 70),
    "blue": (45, 90, 205),
    "purple": (130, 60, 170),
    "pink": (240, 140, 180),
    "brown": (125, 80, 45),
    "white": (238, 238, 238),
    "grey": (128, 128, 128),
    "black": (22, 22, 22),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
PATTERNS = (
    "horizontal stripes",
    "vertical stripes",
    "diagonal stripes",
    "chequered squares",
    "a grid of lines",
    "dots",
)
COUNTS = ("one dot", "two dots", "three dots", "four dots", "five dots")

_TASK_STREAM = 1  # first word of the seeds: no image of a task recurs in what others draw with another
ROWS, COLUMNS = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] + 0.5


def generated_split(draw: Drawing, names: Iterable[str], count: int, *, seed: int) -> Dataset:
    """Draws `count` images with equally many of each class, in a shuffled order.

    Args:
        draw: Draws one image of a class in two colours, as uint8 of shape (32, 32, 3).
        names: The class names.
        count: How many images.
        seed: Another seed gives other images.

    Returns:
        A dataset with the columns `image` and `label`.

    Example:
        >>> generated_split(draw_shape, SHAPES, 12, seed=0).features["label"].names[:2]
        ['circle', 'square']
    """
    names = list(names)
    random = RandomState([_TASK_STREAM, seed])
    labels = random.permutation(np.arange(count) % len(names))
    images = [draw(random, label, *two_colours(random)) for label in labels]
    return image_dataset(images, "label", labels.tolist(), ClassLabel(names=names))


def image_dataset(images: list[np.ndarray], column: str, values: list[Any], feature: Any) -> Dataset:
    """Makes a dataset of uint8 images, kept as PNG, and one more column.

    Example:
        >>> image_dataset([np.zeros((2, 2, 3), np.uint8)], "label", [0], ClassLabel(names=["black"]))[0]["label"]
        0
    """
    features = Features({"image": Image(), column: feature})
    encoded = [{"bytes": _png(image), "path": None} for image in images]
    return Dataset.from_dict({"image": encoded, column: values}, features=features)


def draw_shape(random: RandomState, label: int, front: str, back: str) -> np.ndarray:
    """Draws `SHAPES[label]` at a random place, size and tilt.

    Example:
        >>> draw_shape(RandomState(0), 0, "red", "white").shape
        (32, 32, 3)
    """
    radius = random.uniform(8, 13)
    row, column = random.uniform(radius, IMAGE_SIZE - radius, size=2)
    angle = random.uniform(-0.3, 0.3)
    x, y = COLUMNS - column, ROWS - row
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return paint(random, 0.5 - outline_distance(SHAPES[label], u, v, radius), front, back)


def outline_distance(shape: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels from the outline of a shape around the origin, negative inside.

    Example:
        >>> outline_distance("circle", np.array([3.0]), np.array([4.0]), radius=4.0)
        array([1.])
    """
    distance: np.ndarray
    if shape == "circle":
        distance = np.hypot(u, v) - radius
    elif shape == "ring":
        distance = np.abs(np.hypot(u, v) - 0.8 * radius) - 0.2 * radius
    elif shape == "square":
        distance = np.maximum(np.abs(u), np.abs(v)) - 0.85 * radius
    elif shape == "triangle":
        sides = [u * np.cos(a) + v * np.sin(a) for a in np.pi / 2 + np.arange(3) * 2 * np.pi / 3]
        distance = np.max(sides, axis=0) - 0.5 * radius
    elif shape == "cross":
        bars = [np.maximum(np.abs(a) - radius, np.abs(b) - 0.3 * radius) for a, b in ((u, v), (v, u))]
        distance = np.minimum(*bars)
    else:  # star: fold the plane onto half of one of its five points, whose edge is a straight line from tip to notch
        folded = np.abs((np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        p, q = np.hypot(u, v) * np.cos(folded), np.hypot(u, v) * np.sin(folded)
        edge = 0.42 * radius * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)]) - [radius, 0]
        distance = ((p - radius) * edge[1] - q * edge[0]) / np.hypot(*edge)
    return distance


def draw_pattern(random: RandomState, label: int, front: str, back: str) -> np.ndarray:
    """Draws `PATTERNS[label]` with a random period, phase and tilt.

    Example:
        >>> draw_pattern(RandomState(0), 0, "red", "white").shape
        (32, 32, 3)
    """
    name = PATTERNS[label]
    angle = random.uniform(-0.2, 0.2)
    if name == "vertical stripes":
        angle += np.pi / 2
    if name == "diagonal stripes":
        angle += np.pi / 4 * (1 if random.randint(2) else 3)
    period = random.uniform(5, 12)
    x, y = COLUMNS / period + random.uniform(), ROWS / period + random.uniform()
    u, v = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
    a, b = np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5)  # distance from the middle of a cell, in [0, 0.5]
    if name == "chequered squares":
        cover = (a - 0.25) * (b - 0.25) * 4 * period
    elif name == "a grid of lines":
        cover = (np.maximum(a, b) - 0.36) * period
    elif name == "dots":
        cover = (0.3 - np.hypot(a, b)) * period
    else:
        cover = (0.25 - a) * period
    return paint(random, 0.5 + cover, front, back)


def draw_count(random: RandomState, label: int, front: str, back: str) -> np.ndarray:
    """Draws `label + 1` separate dots of random sizes.

    Example:
        >>> draw_count(RandomState(0), 0, "red", "white").shape
        (32, 32, 3)
    """
    placed: list[tuple[float, float, float]] = []
    while len(placed) <= label:
        radius = random.uniform(2.5, 4.0)
        row, column = random.uniform(radius, IMAGE_SIZE - radius, size=2)
        if all(np.hypot(row - r, column - c) > radius + other + 1.5 for r, c, other in placed):
            placed.append((row, column, radius))
    covers = [0.5 + radius - np.hypot(ROWS - row, COLUMNS - column) for row, column, radius in placed]
    return paint(random, np.max(covers, axis=0), front, back)


def paint(random: RandomState, cover: np.ndarray, front: str, back: str) -> np.ndarray:
    """Mixes two jittered colours by `cover`, clipped to [0, 1], and adds a gradient and noise.

    Example:
        >>> paint(RandomState(0), np.zeros((IMAGE_SIZE, IMAGE_SIZE)), "red", "white").dtype
        dtype('uint8')
    """
    front_rgb, back_rgb = (np.array(COLOURS[name]) + random.uniform(-18, 18, size=3) for name in (front, back))
    alpha = cover.clip(0, 1)[..., None]
    slope = random.uniform(-1.5, 1.5, size=2)
    shade = slope[0] * (ROWS - IMAGE_SIZE / 2) + slope[1] * (COLUMNS - IMAGE_SIZE / 2)
    noise = random.normal(scale=random.uniform(4, 24), size=(IMAGE_SIZE, IMAGE_SIZE, 3))
    pixels: np.ndarray = alpha * front_rgb + (1 - alpha) * back_rgb + shade[..., None] + noise
    rounded: np.ndarray = pixels.clip(0, 255).astype(np.uint8)
    return rounded


def two_colours(random: RandomState) -> tuple[str, str]:
    """Two different colour names, at least 130 apart in RGB so that the drawing can be seen."""
    names = list(COLOURS)
    while True:
        front, back = (names[i] for i in random.randint(len(names), size=2))
        if np.linalg.norm(np.subtract(COLOURS[front], COLOURS[back])) >= 130:
            return front, back


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="png", compress_level=1)
    return buffer.getvalue()
