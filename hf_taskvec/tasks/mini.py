"""The builtin tasks: real handwritten digits and generated images, with no files and no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial

import numpy as np
from datasets import ClassLabel, Dataset
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


class DrawnSplits(Mapping[str, Dataset]):
    """Splits that are drawn when somebody asks for them, once.

    Args:
        draw: Gives the split of a name.
        names: The names.

    Example:
        >>> DrawnSplits(lambda split: Dataset.from_dict({"label": [0]}), ("train", "test"))["test"]["label"][:]
        [0]
    """

    def __init__(self, draw: Callable[[str], Dataset], names: Iterable[str] = ("train", "test")) -> None:
        self._draw, self._names, self._drawn = draw, tuple(names), dict[str, Dataset]()

    def __getitem__(self, split: str) -> Dataset:
        if split not in self._names:
            raise KeyError(split)
        if split not in self._drawn:
            self._drawn[split] = self._draw(split)
        return self._drawn[split]

    def __contains__(self, split: object) -> bool:  # a mapping's own asks for the value
        return split in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@cache
def builtin_splits(name: str) -> Mapping[str, Dataset]:
    """The `train` and `test` splits of a builtin task, each made in memory once per process, when it is asked for.

    Example:
        >>> len(builtin_splits("shapes")["train"]), len(builtin_splits("shapes")["test"])
        (1200, 400)
    """
    check_known("builtin dataset", name, ("digits", *_DRAWN))
    return DrawnSplits(partial(_digits if name == "digits" else _generated, name))


def _generated(name: str, split: str) -> Dataset:
    draw, names, seed = _DRAWN[name]
    if split == "train":
        return generated_split(draw, names, TRAIN_IMAGES, seed=2 * seed)
    return generated_split(draw, names, TEST_IMAGES, seed=2 * seed + 1)


def _digits(name: str, split: str) -> Dataset:
    """A part of the 1,797 real 8 x 8 digits of scikit-learn, drawn up to 32 px, split with equal class shares."""
    from sklearn.datasets import load_digits  # slow to import, needed by this task only
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.arange(len(digits.images))
    train, test = train_test_split(images, test_size=TEST_IMAGES, stratify=digits.target, random_state=0)
    rows = test if split == "test" else train
    enlarged, labels = [_enlarge(digits.images[row]) for row in rows], [int(digits.target[row]) for row in rows]
    return image_dataset(enlarged, "label", labels, ClassLabel(names=list(DIGITS)))


def _enlarge(image: np.ndarray) -> np.ndarray:
    """From 8 x 8 with values in [0, 16] to 32 x 32 RGB in uint8."""
    grey = PILImage.fromarray((image * (255 / 16)).round().astype(np.uint8))
    return np.asarray(grey.resize((IMAGE_SIZE, IMAGE_SIZE), PILImage.Resampling.BICUBIC).convert("RGB"))
