"""The registry of merge methods: `@merge_method` on a function is all that a new one needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_taskvec.errors import UnknownNameError
from hf_taskvec.text import table
from hf_taskvec.vectors.vector import TaskVector

Merge = Callable[..., TaskVector]


@dataclass(frozen=True)
class MergeMethod:
    """A registered merge method.

    Attributes:
        name: The name of its paper.
        merge: The function: vectors and settings in, the unscaled merged vector out.
        paper: arXiv id or other reference.
        order_independent: Whether the order of the vectors leaves the result alone, up to the rounding of sums.
        min_vectors, max_vectors: How many vectors it takes.
        resumable: Whether it is slow enough for a merge into a folder to keep a journal.
    """

    name: str
    merge: Merge
    paper: str
    order_independent: bool = True
    min_vectors: int = 1
    max_vectors: int | None = None
    resumable: bool = False

    @property
    def defaults(self) -> dict[str, Any]:
        """Each setting with its default."""
        parameters = inspect.signature(self.merge).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.merge) or "").split("\n", 1)[0]

    def check(self, vectors: Sequence[TaskVector], settings: Mapping[str, Any]) -> None:
        """Raises on an unknown setting or a number of vectors that the method cannot take."""
        for key in settings:
            if key not in self.defaults:
                raise UnknownNameError(f"setting of {self.name}:", key, self.defaults)
        if len(vectors) < self.min_vectors or (self.max_vectors is not None and len(vectors) > self.max_vectors):
            most = "or more" if self.max_vectors is None else f"to {self.max_vectors}"
            raise ValueError(f"{self.name} merges {self.min_vectors} {most} vectors, got {len(vectors)}")


METHODS: dict[str, MergeMethod] = {}


def merge_method(
    name: str,
    *,
    paper: str,
    order_independent: bool = True,
    min_vectors: int = 1,
    max_vectors: int | None = None,
    resumable: bool = False,
) -> Callable[[Merge], Merge]:
    """Registers a function as the merge method `name`; its keyword-only arguments are its settings."""

    def register(function: Merge) -> Merge:
        METHODS[name] = MergeMethod(name, function, paper, order_independent, min_vectors, max_vectors, resumable)
        return function

    return register


def get_method(name: str) -> MergeMethod:
    """The registered method, or an `UnknownNameError` that offers the nearest name."""
    if name not in METHODS:
        raise UnknownNameError("merge method", name, METHODS)
    return METHODS[name]


def list_methods() -> list[MergeMethod]:
    """Every registered method, by name."""
    return [METHODS[name] for name in sorted(METHODS)]


def methods_table() -> str:
    """A Markdown table of every method: what it does, its paper, its defaults, whether order matters."""
    rows = []
    for method in list_methods():
        arxiv = method.paper[:4].isdigit() and "." in method.paper
        paper = f"[{method.paper}](https://arxiv.org/abs/{method.paper})" if arxiv else method.paper
        settings = ", ".join(f"`{key}={value!r}`" for key, value in method.defaults.items()) or "-"
        order = "no" if method.order_independent else "yes"
        rows.append([f"`{method.name}`", method.summary, paper, settings, order])
    return table(["method", "what it does", "paper", "settings", "order matters"], rows, align="lllll") + "\n"
