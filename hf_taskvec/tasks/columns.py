"""Columns of a dataset: what they hold, and their values."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from datasets import Dataset, Image, Value


def is_image(feature: Any) -> bool:
    """Whether a column's type is that of images, or of their bytes.

    Example:
        >>> is_image(Image()), is_image(Value("binary")), is_image(Value("string"))
        (True, True, False)
    """
    if isinstance(feature, Image):
        return True
    if isinstance(feature, Value):
        return feature.dtype in ("binary", "large_binary")
    return isinstance(feature, dict) and "bytes" in feature and is_image(feature["bytes"])


def is_text(feature: Any) -> bool:
    """Whether a column's type is that of words.

    Example:
        >>> is_text(Value("string")), is_text(Value("int64"))
        (True, False)
    """
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string", "string_view")


def is_number(feature: Any) -> bool:
    """Whether a column's type is that of whole numbers.

    Example:
        >>> is_number(Value("int64")), is_number(Value("float32"))
        (True, False)
    """
    return isinstance(feature, Value) and feature.dtype.startswith(("int", "uint"))


def values_of(data: Dataset, column: str) -> pa.Array:
    """The values of a column as they are stored, (N,).

    Example:
        >>> values_of(Dataset.from_dict({"label": ["cat", None]}), "label").null_count
        1
    """
    return data.with_format("arrow", columns=[column])[:][column].combine_chunks()


def image_paths(data: Dataset, column: str) -> list[str | None]:
    """Where the images of a column lie, as far as they are files.

    Example:
        >>> image_paths(Dataset.from_dict({"image": ["cat.png", None]}), "image")
        ['cat.png', None]
    """
    return [image and image["path"] for image in data.cast_column(column, Image(decode=False))[column]]
