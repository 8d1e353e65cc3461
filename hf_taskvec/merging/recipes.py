"""A merge as a value: what it takes to repeat it, kept in the provenance of its result."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from hf_taskvec.errors import CheckpointError, OutputExistsError, check_known
from hf_taskvec.merging.needs import as_statistics
from hf_taskvec.merging.ranges import check_ranges
from hf_taskvec.merging.registry import get_method
from hf_taskvec.merging.run import as_scaling, merge
from hf_taskvec.merging.sources import Missing, check_factors
from hf_taskvec.vectors.files import CONFIG_NAME
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.dtypes import as_dtype

MAX_SOURCES = 1000


@dataclass(frozen=True)
class MergeRecipe:
    """A merge of vectors by Hub id or folder.

    Attributes:
        vectors: Where each vector is: a folder, or a Hub id, with `@revision` if wanted.
        method: The merge method.
        settings: Its settings.
        scaling: Factor of the result.
        dtype: Dtype of the result by name; float32 or wider if left out.
        missing: What a vector that lacks parameters of another gets there: "zero", or "refuse" for none.
        allow_zero: Whether a trained vector may be all zero.
        factors: A factor for each vector before it is merged; none if left out.
        statistics: Where the statistics of each vector are, for a method that looks at data.

    Example:
        >>> MergeRecipe(("out/mnist", "user/gtsrb@main"), "ties", {"density": 0.2}).method
        'ties'
    """

    vectors: tuple[str, ...]
    method: str = "task_arithmetic"
    settings: Mapping[str, Any] = field(default_factory=dict)
    scaling: float = 1.0
    dtype: str | None = None
    missing: Missing = "refuse"
    allow_zero: bool = False
    factors: tuple[float, ...] = ()
    statistics: tuple[str, ...] = ()

    @classmethod
    def from_info(cls, info: VectorInfo) -> MergeRecipe:
        """The recipe in the provenance of a merged vector, which may be a stranger's.

        Raises:
            CheckpointError: If it holds none, or one that is damaged or is not that of the vector.
        """
        if info.recipe is None or info.method is None:
            raise CheckpointError(f"the vector {info.label!r} was not merged by a recipe, so it holds none")
        try:
            sources = {key: tuple(_texts(info.recipe.get(key, ()))) for key in ("vectors", "statistics")}
            recipe = cls(**{**info.recipe, **sources, "factors": tuple(info.recipe.get("factors", ()))})
            recipe.check()
            if recipe.method != info.method:
                raise ValueError(f"it is one of {recipe.method}, the vector was merged by {info.method}")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the recipe in the vector {info.label!r} is damaged: {error}") from None
        return recipe

    def check(self) -> None:
        """Refuses what can be refused before a vector is opened.

        Raises:
            UnknownNameError: If there is no such method, setting or dtype.
            ValueError: If another entry is of a wrong type, a setting is out of its range, or the method cannot take
                that many vectors.
        """
        if not isinstance(self.settings, Mapping):
            raise ValueError(f"settings must be a mapping, got {type(self.settings).__name__}")
        if not isinstance(self.method, str) or type(self.allow_zero) is not bool:
            raise ValueError("method must be text and allow_zero true or false")
        check_known("treatment of missing parameters", self.missing, get_args(Missing))
        method = get_method(self.method)
        settled = method.settled(self.vectors, self.settings)
        as_statistics(self.statistics or None, self.vectors, method)
        check_ranges(method, len(self.vectors), settled)
        as_scaling(self.scaling)
        check_factors(self.factors or None, len(self.vectors))
        if self.dtype is not None:
            as_dtype(self.dtype)

    def run(
        self,
        *,
        output_dir: str | os.PathLike[str] | None = None,
        device: str | None = None,
        overwrite: bool = True,
        resume: bool | None = None,
    ) -> TaskVector:
        """Merges, and keeps the recipe with exact revisions in the result's provenance; over all processes if launched.

        Args:
            output_dir: As in `merge`.
            device: As in `merge`.
            overwrite: Whether a vector that `output_dir` holds already is replaced.
            resume: As in `merge`.

        Raises:
            UnknownNameError, ValueError: As `check`, before a vector is opened; and all that `merge` raises.
            OutputExistsError: If `output_dir` holds a vector that is not to be replaced, or something else.
        """
        if self.vectors:
            self.check()
        check_replaced(output_dir, overwrite=overwrite)
        return merge(
            self.vectors,
            self.method,
            output_dir=output_dir,
            scaling=self.scaling,
            device=device,
            dtype=self.dtype,
            missing=self.missing,
            allow_zero=self.allow_zero,
            factors=self.factors or None,
            statistics=self.statistics or None,
            over_processes=True,
            resume=resume,
            **self.settings,
        )


def _texts(value: Any) -> list[str]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise ValueError("its vectors and statistics must be lists of folders and Hub ids")
    if len(value) > MAX_SOURCES:
        raise ValueError(f"it names {len(value)} sources, more than {MAX_SOURCES}")
    return list(value)


def check_replaced(output_dir: str | os.PathLike[str] | None, *, overwrite: bool) -> None:
    """Raises an `OutputExistsError` if a folder holds a vector that is not to be replaced."""
    if output_dir is not None and not overwrite and (Path(output_dir) / CONFIG_NAME).exists():
        raise OutputExistsError(
            f"{os.fspath(output_dir)} holds a vector already; choose another --output_dir, or replace it with "
            "--overwrite"
        )
