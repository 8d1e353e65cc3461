"""The builtin tasks: real handwritten digits and generated images, with no files and no network."""

from __future__ import annotations

from functools import cache

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict
from PIL import Image as PILImage

from hf_taskvec.errors import check_known
from hf_taskvec.tasks.generated import (
    COLOURS,
    COUNTS,
    IMAGE_SIZE,
    PATTERNS,
    SHAPES,
    draw_count,
    draw_pattern,
    draw_shape,
    generated_split,
    image_dataset,
)
from hf_taskvec.tasks.scenes import (
    ARROWS,
    FACES,
    PLACES,
    SIZES,
    draw_arrow,
    draw_colour,
    draw_face,
    draw_place,
    draw_size,
)

TRAIN_IMAGES = 1200
TEST_IMAGES = 400
DIGITS = tuple(
    f"handwritten digit {word}"
    for word in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
)
_DRAWN = {  # how an image is drawn, the classes, and which pair of seeds the parts have
    "shapes": (draw_shape, SHAPES, 0),
    "patterns": (draw_pattern, PATTERNS, 1),
    "counts": (draw_count, COUNTS, 2),
    "arrows": (draw_arrow, ARROWS, 3),
    "faces": (draw_face, FACES, 4),
    "places": (draw_place, PLACES, 5),
    "sizes": (draw_size, SIZES, 6),
    "hues": (draw_colour, tuple(COLOURS), 7),
}


@cache
def builtin_splits(name: str) -> DatasetDict:
    """The `train` and `test` splits of a builtin task, made in memory once per process.

    Example:
        >>> len(builtin_splits("shapes")["train"]), len(builtin_splits("shapes")["test"])
        (1200, 400)
    """
    check_known("builtin dataset", name, ("digits", *_DRAWN))
    if name == "digits":
        return _digits()
    draw, names, seed = _DRAWN[name]
    train = generated_split(draw, names, TRAIN_IMAGES, seed=2 * seed)
    return DatasetDict(train=train, test=generated_split(draw, names, TEST_IMAGES, seed=2 * seed + 1))


def _digits() -> DatasetDict:
    """The 1,797 real 8 x 8 digits of scikit-learn, drawn up to 32 px, split with equal class shares."""
    from sklearn.datasets import load_digits  # slow to import, needed by this task only
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = [_enlarge(image) for image in digits.images]
    indices = np.arange(len(images))
    train, test = train_test_split(indices, test_size=TEST_IMAGES, stratify=digits.target, random_state=0)

    def split_of(rows: np.ndarray) -> Dataset:
        labels = [int(digits.target[row]) for row in rows]
        return image_dataset([images[row] for row in rows], "label", labels, ClassLabel(names=list(DIGITS)))

    return DatasetDict(train=split_of(train), test=split_of(test))


def _enlarge(image: np.ndarray) -> np.ndarray:
    """From 8 x 8 with values in [0, 16] to 32 x 32 RGB in uint8."""
    grey = PILImage.fromarray((image * (255 / 16)).round().astype(np.uint8))
    return np.asarray(grey.resize((IMAGE_SIZE, IMAGE_SIZE), PILImage.Resampling.BICUBIC).convert("RGB"))
