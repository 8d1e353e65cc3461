"""Drawn images of shapes, patterns and counted dots with captions: a source of pairs that needs no download."""

from __future__ import annotations

import numpy as np
from datasets import Dataset, Value
from numpy.random import RandomState  # its streams are frozen: every version of NumPy draws the same images

from hf_taskvec.tasks.generated import (
    COUNTS,
    PATTERNS,
    SHAPES,
    draw_count,
    draw_pattern,
    draw_shape,
    image_dataset,
    two_colours,
)

_PAIR_STREAM = 2  # first word of the seeds, of which the generated tasks have another: no image of theirs recurs here


def generated_pairs(count: int, *, seed: int = 0) -> Dataset:
    """Draws captioned images in the vocabulary of the generated tasks, none of them an image of a task.

    Args:
        count: How many pairs.
        seed: Another seed gives other pairs.

    Returns:
        A dataset with the columns `image` and `text`.
    """
    random = RandomState([_PAIR_STREAM, seed])
    pairs = [_PAIRS[random.randint(len(_PAIRS))](random) for _ in range(count)]
    return image_dataset([image for image, _ in pairs], "text", [text for _, text in pairs], Value("string"))


def _shape_pair(random: RandomState) -> tuple[np.ndarray, str]:
    label, (front, back) = random.randint(len(SHAPES)), two_colours(random)
    texts = (
        f"a {SHAPES[label]}",
        f"{_a(front)} {SHAPES[label]}",
        f"{_a(front)} {SHAPES[label]} on {_a(back)} background",
    )
    return draw_shape(random, label, front, back), _one_of(random, texts)


def _pattern_pair(random: RandomState) -> tuple[np.ndarray, str]:
    label, (front, back) = random.randint(len(PATTERNS)), two_colours(random)
    texts = (PATTERNS[label], f"{PATTERNS[label]} in {front} and {back}", f"a pattern of {PATTERNS[label]}")
    return draw_pattern(random, label, front, back), _one_of(random, texts)


def _count_pair(random: RandomState) -> tuple[np.ndarray, str]:
    label, (front, back) = random.randint(len(COUNTS)), two_colours(random)
    number, noun = COUNTS[label].split()
    texts = (COUNTS[label], f"{number} {front} {noun}", f"{number} {front} {noun} on {_a(back)} background")
    return draw_count(random, label, front, back), _one_of(random, texts)


_PAIRS = (_shape_pair, _pattern_pair, _count_pair)


def _one_of(random: RandomState, texts: tuple[str, ...]) -> str:
    return texts[random.randint(len(texts))]


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"
