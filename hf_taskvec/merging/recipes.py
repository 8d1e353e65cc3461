"""A merge as a value: what it takes to repeat it, kept in the provenance of its result."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_taskvec.errors import CheckpointError, UnknownNameError
from hf_taskvec.hub.fetch import Wanted, fetch_folder
from hf_taskvec.merging.run import merge
from hf_taskvec.vectors.files import CONFIG_NAME
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.dtypes import DTYPES


@dataclass(frozen=True)
class MergeRecipe:
    """A merge of vectors by Hub id or folder.

    Attributes:
        vectors: Where each vector is: a folder, or a Hub id, with `@revision` if wanted.
        method: The merge method.
        settings: Its settings.
        scaling: Factor of the result.
        dtype: Dtype of the result by name; float32 or wider if left out.
    """

    vectors: tuple[str, ...]
    method: str = "task_arithmetic"
    settings: Mapping[str, Any] = field(default_factory=dict)
    scaling: float = 1.0
    dtype: str | None = None

    @classmethod
    def from_info(cls, info: VectorInfo) -> MergeRecipe:
        """The recipe in the provenance of a merged vector.

        Raises:
            CheckpointError: If it holds none.
        """
        recipe = info.recipe
        if recipe is None or info.method is None:
            raise CheckpointError(f"the vector {info.label!r} was not merged by a recipe, so it holds none")
        try:
            return cls(**{**recipe, "vectors": tuple(recipe["vectors"])})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the recipe in the vector {info.label!r} is damaged: {error}") from None

    def run(self, *, output_dir: str | os.PathLike[str] | None = None, device: str | None = None) -> TaskVector:
        """Merges, and keeps the recipe with exact revisions in the result's provenance."""
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UnknownNameError("dtype", self.dtype, DTYPES)
        opened = [_open(source) for source in self.vectors]
        recipe = dataclasses.replace(self, vectors=tuple(source for source, _ in opened))
        return merge(
            [vector for _, vector in opened], self.method, output_dir=output_dir, scaling=self.scaling, device=device,
            dtype=DTYPES[self.dtype] if self.dtype else None, recipe=dataclasses.asdict(recipe), **self.settings,
        )  # fmt: skip


def _open(source: str) -> tuple[str, TaskVector]:
    """The vector, and its source with the commit it came from."""
    if Path(source).is_dir():
        return source, TaskVector.from_pretrained(source)
    repo, _, revision = source.partition("@")
    commit = fetch_folder(repo, Wanted([CONFIG_NAME]), revision=revision or None).commit
    return f"{repo}@{commit}", TaskVector.from_pretrained(repo, revision=commit)
