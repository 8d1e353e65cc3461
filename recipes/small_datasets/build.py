"""One small dataset: images drawn from a dataset of the Hub, written as a dataset repository."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from numpy.random import RandomState  # its streams are frozen
from PIL import Image as PILImage
from PIL import ImageOps

from hf_taskvec.errors import DataError, UnknownNameError
from hf_taskvec.weights.folders import atomic_folder, check_output_folder, read_json, write_json, write_text
from hf_taskvec.weights.resume import check_plan

PLAN = "source.json"


@dataclass(frozen=True)
class Source:
    """Where a small dataset comes from.

    Attributes:
        dataset: Hub id.
        train, test: Most images per class of each split.
        license: The Hub's name of its licence.
        classes: Class names by class number; or, for some of the classes, the source's names with those to give them.
        revision: Branch, tag or commit.
        files: The data files of each split, if not all are needed.
        size: Side of the images, unchanged if left out.
        crop: Whether to take the central square, rather than to squeeze the image.
    """

    dataset: str
    train: int
    test: int
    license: str
    classes: list[str] | dict[str, str]
    revision: str | None = None
    files: dict[str, str] | None = None
    size: int | None = None
    crop: bool = False

    @property
    def names(self) -> list[str]:
        """The class names of the small dataset."""
        return list(self.classes.values()) if isinstance(self.classes, dict) else self.classes

    def numbers(self, known: Sequence[str]) -> list[int]:
        """The class numbers in the source, by the small dataset's.

        Raises:
            UnknownNameError: If the source lacks one of them.
        """
        return (
            [_number(known, name) for name in self.classes]
            if isinstance(self.classes, dict)
            else [*range(len(self.classes))]
        )


def build(name: str, source: Source, folder: Path, *, seed: int) -> dict[str, int] | None:
    """Writes a dataset folder, or leaves the one that was made in the same way.

    Returns:
        The number of images of each split, or `None` if the folder was there.

    Raises:
        SettingsDifferError: If the folder holds another draw.
        OutputExistsError: If it holds something else.
        DataError: If the source has no image of a class.
    """
    plan = {**dataclasses.asdict(source), "seed": seed}
    if (folder / PLAN).is_file():
        check_plan(read_json(folder / PLAN), plan, what=str(folder))
        return None
    check_output_folder(folder, marker=PLAN)
    data = load_dataset(source.dataset, revision=source.revision, data_files=source.files)
    numbers = source.numbers(data["train"].features["label"].names)
    sizes = {}
    with atomic_folder(folder, marker=PLAN) as temporary:
        (temporary / "data").mkdir()
        for split in ("train", "test"):
            images, rows = _draw(data, split, numbers, source, seed=seed)
            small = _encoded(images.select(rows), numbers, source)
            small.to_parquet(str(temporary / "data" / f"{split}-00000-of-00001.parquet"))
            sizes[split] = len(rows)
        write_text(temporary / "README.md", _card(name, source, sizes, seed=seed))
        write_json(temporary / PLAN, plan)
    return sizes


def _number(known: Sequence[str], name: str) -> int:
    """The number of a class in the source, which may put other signs between the words."""

    def key(text: str) -> str:
        return re.sub(r"[\W_]+", " ", text).strip().lower()

    numbers = {key(other): number for number, other in enumerate(known)}
    if key(name) not in numbers:
        raise UnknownNameError("class", name, known)
    return numbers[key(name)]


def _draw(
    data: Mapping[str, Dataset], split: str, numbers: Sequence[int], source: Source, *, seed: int
) -> tuple[Dataset, list[int]]:
    """Which rows of which part: of each class at most so many at random, and none in both splits."""
    divided = "test" not in data  # then the training part gives both
    images = data["train" if divided else split]
    labels, rows = np.asarray(images["label"]), []
    for number in numbers:
        shuffled = RandomState(seed).permutation(np.flatnonzero(labels == number))
        if divided:  # a fifth at most for testing, so that a small class keeps images to train on
            held_out = min(source.test, len(shuffled) // 5)
            shuffled = shuffled[held_out:] if split == "train" else shuffled[:held_out]
        if not len(shuffled):
            raise DataError(f"{source.dataset} has no {split} image of class {number}")
        rows += shuffled[: source.train if split == "train" else source.test].tolist()
    return images, sorted(rows)


def _encoded(rows: Dataset, numbers: Sequence[int], source: Source) -> Dataset:
    """The rows with PNG images of the wanted size and the small dataset's labels."""
    labels = {number: index for index, number in enumerate(numbers)}
    features = Features({"image": Image(), "label": ClassLabel(names=source.names)})
    columns = {
        "image": [{"bytes": _png(image, source), "path": None} for image in rows["image"]],
        "label": [labels[number] for number in rows["label"]],
    }
    return Dataset.from_dict(columns, features=features)


def _png(image: PILImage.Image, source: Source) -> bytes:
    if source.size is not None:
        size, bicubic = (source.size, source.size), PILImage.Resampling.BICUBIC
        image = image.convert("RGB")
        image = ImageOps.fit(image, size, bicubic) if source.crop else image.resize(size, bicubic)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _card(name: str, source: Source, sizes: Mapping[str, int], *, seed: int) -> str:
    return f"""---
license: {source.license}
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
---

# {name}

A small subset of [{source.dataset}](https://huggingface.co/datasets/{source.dataset}): {sizes["train"]} training and
{sizes["test"]} test images of {len(source.classes)} classes, drawn with seed {seed} by
`recipes/build_small_datasets.py` of hf_taskvec. The terms are those of the source.
"""
