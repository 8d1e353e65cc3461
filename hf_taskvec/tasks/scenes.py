"""Drawn images of arrows, faces, places, sizes and colours: further tasks for many vectors beside each other."""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState

from hf_taskvec.tasks.generated import COLOURS, COLUMNS, IMAGE_SIZE, ROWS, SHAPES, outline_distance, paint

ARROWS = ("up", "down", "left", "right")
FACES = ("happy", "sad", "surprised")
PLACES = ("top left", "top right", "bottom left", "bottom right", "middle")
SIZES = ("tiny", "small", "large", "huge")
_TURNS = {"right": 0.0, "down": 0.5, "left": 1.0, "up": 1.5}  # of half a circle, clockwise
_CENTRES = {"top left": (8, 8), "top right": (8, 24), "bottom left": (24, 8), "bottom right": (24, 24)}
_RADII = {"tiny": (2.0, 3.2), "small": (4.2, 6.0), "large": (7.5, 9.5), "huge": (11.5, 14.0)}


def draw_arrow(random: RandomState, label: int, front: str, back: str) -> np.ndarray:
    """Draws an arrow that points to `ARROWS[label]`, a little off.

    Example:
        >>> draw_arrow(RandomState(0), 0, "red", "white").shape
        (32, 32, 3)
    """
    angle = _TURNS[ARROWS[label]] * np.pi + random.uniform(-0.3, 0.3)
    length, width = random.uniform(8, 12), random.uniform(1.2, 2.2)
    x, y = _around(random, IMAGE_SIZE / 2, IMAGE_SIZE / 2, 3)
    along, across = x * np.cos(angle) + y * np.sin(angle), np.abs(y * np.cos(angle) - x * np.sin(angle))
    shaft = np.maximum(np.abs(along + 2) - (length - 2), across - width)
    head = np.maximum(along + across - length, length - 7 - along)
    return paint(random, 0.5 - np.minimum(shaft, head), front, back)


def draw_face(random: RandomState, label: int, front: str, back: str) -> np.ndarray:
    """Draws a face with the mouth of `FACES[label]`.

    Example:
        >>> draw_face(RandomState(0), 0, "yellow", "black").shape
        (32, 32, 3)
    """
    radius = random.uniform(10, 13)
    x, y = (axis / radius for axis in _around(random, IMAGE_SIZE / 2, IMAGE_SIZE / 2, 2))
    eyes = np.hypot(np.abs(x) - 0.36, y + 0.3) - random.uniform(0.12, 0.18)
    if FACES[label] == "surprised":
        mouth = np.hypot(x, y - 0.42) - random.uniform(0.18, 0.26)
    else:
        bend = random.uniform(0.7, 1.1) * (1 if FACES[label] == "happy" else -1)
        curve = np.abs(y - 0.45 - bend * (0.15 - x**2)) - 0.1
        mouth = np.maximum(curve, np.abs(x) - 0.55)
    inside = np.minimum(eyes, mouth) * radius
    return paint(random, np.minimum(0.5 + radius * (1 - np.hypot(x, y)), 0.5 + inside), front, back)


def draw_place(random: RandomState, label: int, front: str, back: str) -> np.ndarray:
    """Draws a shape at `PLACES[label]`.

    Example:
        >>> draw_place(RandomState(0), 4, "red", "white").shape
        (32, 32, 3)
    """
    row, column = _CENTRES.get(PLACES[label], (IMAGE_SIZE // 2, IMAGE_SIZE // 2))
    return _shape(random, _around(random, row, column, 2), random.uniform(3.5, 6.5), front, back)


def draw_size(random: RandomState, label: int, front: str, back: str) -> np.ndarray:
    """Draws a shape of the size `SIZES[label]`.

    Example:
        >>> draw_size(RandomState(0), 0, "red", "white").shape
        (32, 32, 3)
    """
    radius = random.uniform(*_RADII[SIZES[label]])
    room = IMAGE_SIZE / 2 - radius
    return _shape(random, _around(random, IMAGE_SIZE / 2, IMAGE_SIZE / 2, room), radius, front, back)


def draw_colour(random: RandomState, label: int, front: str, back: str) -> np.ndarray:
    """Draws a shape in the colour number `label`, on `back` where the two can be told apart.

    Example:
        >>> draw_colour(RandomState(0), 0, "red", "white").shape
        (32, 32, 3)
    """
    front = list(COLOURS)[label]
    apart = [name for name in COLOURS if np.linalg.norm(np.subtract(COLOURS[front], COLOURS[name])) >= 130]
    back = back if back in apart else apart[random.randint(len(apart))]
    radius = random.uniform(8, 12)
    return _shape(random, _around(random, IMAGE_SIZE / 2, IMAGE_SIZE / 2, 15.5 - radius), radius, front, back)


def _around(random: RandomState, row: float, column: float, room: float) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's x and y from a point at most `room` beside the given one."""
    down, right = random.uniform(-room, room, size=2)
    return COLUMNS - column - right, ROWS - row - down


def _shape(
    random: RandomState, places: tuple[np.ndarray, np.ndarray], radius: float, front: str, back: str
) -> np.ndarray:
    """Any shape, tilted, around the origin of the places."""
    angle, shape = random.uniform(-0.3, 0.3), SHAPES[random.randint(len(SHAPES))]
    x, y = places
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return paint(random, 0.5 - outline_distance(shape, u, v, radius), front, back)
