"""The registry of merge methods: `@merge_method` on a function is all that a new one needs.

A file in this folder is found by itself. A package of somebody else adds methods by an entry point:

    [project.entry-points."hf_taskvec.merge_methods"]
    mine = "my_package.merging"          # a module whose functions are decorated with `merge_method`
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from torch import Tensor

from hf_taskvec.errors import UnknownNameError, check_known
from hf_taskvec.merging.plugins import load_plugins
from hf_taskvec.statistics.value import Kind, Statistics
from hf_taskvec.text import table
from hf_taskvec.vectors.vector import TaskVector

MergeFunction = Callable[..., TaskVector]


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
        statistics: Kinds of statistics that it needs of every vector, as `collect_statistics` names them.
    """

    name: str
    merge: MergeFunction
    paper: str
    order_independent: bool = True
    min_vectors: int = 1
    max_vectors: int | None = None
    resumable: bool = False
    statistics: tuple[str, ...] = ()

    def run(
        self, vectors: Sequence[TaskVector], settings: Mapping[str, Any], statistics: Sequence[Statistics] = ()
    ) -> TaskVector:
        """The unscaled merged vector.

        Raises:
            ValueError: If the method needs statistics and gets none.
        """
        if not self.statistics:
            return self.merge(vectors, **settings)
        if not statistics:
            raise ValueError(f"{self.name} needs statistics, so no other method can be applied to its result")
        own = {key: value for key, value in settings.items() if key != TRANSDUCTIVE}
        return self.merge(vectors, statistics, **own)

    @property
    def defaults(self) -> dict[str, Any]:
        """Each setting with its default; `transductive` allows any method that looks at data to look at test images."""
        parameters = inspect.signature(self.merge).parameters.values()
        own = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
        return own | {TRANSDUCTIVE: False} if self.statistics else own

    @property
    def code(self) -> str:
        """The text of its file, or else the name of its module: another method of its name has another."""
        try:
            return "".join(inspect.findsource(self.merge)[0])
        except (OSError, TypeError):  # as of a function that was typed into an interpreter
            return self.merge.__module__

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.merge) or "").split("\n", 1)[0]

    def check(self, vectors: Sequence[object], settings: Mapping[str, Any]) -> None:
        """Refuses settings and a number of vectors that the method cannot take; their range is its own matter.

        Raises:
            UnknownNameError: If there is no such setting.
            ValueError: If one has not the type of its default, or for that many vectors.
        """
        self.settled(vectors, settings)

    def settled(self, vectors: Sequence[object], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Every setting with its value in plain Python.

        Raises:
            UnknownNameError, ValueError: As `check`.
        """
        settled = self.defaults
        for key, value in settings.items():
            check_known(f"setting of {self.name}:", key, settled)
            settled[key] = _as_default(key, natural(value), settled[key])
        if len(vectors) < self.min_vectors or (self.max_vectors is not None and len(vectors) > self.max_vectors):
            most = "or more" if self.max_vectors is None else f"to {self.max_vectors}"
            raise ValueError(f"{self.name} merges {self.min_vectors} {most} vectors, got {len(vectors)}")
        return settled


def natural(value: Any) -> Any:
    """Numbers, arrays and tensors of NumPy and PyTorch as Python's; tuples as lists.

    Example:
        >>> natural({"weights": np.array([0.5, 1.0]), "layers": (1, 2)})
        {'weights': [0.5, 1.0], 'layers': [1, 2]}
    """
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): natural(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [natural(item) for item in value]
    return value


def _as_default(name: str, value: Any, default: Any) -> Any:
    """The value if it has the kind of the setting's default, a whole float as the integer it is."""
    if type(default) not in _KINDS:
        return value
    accepted, words = _KINDS[type(default)]
    if type(default) is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, accepted) or isinstance(value, bool) is not isinstance(default, bool):
        raise ValueError(f"{name} must be {words}, got {type(value).__name__} {str(value)[:80]!r}")
    return value


METHODS: dict[str, MergeMethod] = {}
TRANSDUCTIVE = "transductive"  # the setting of every method that needs statistics
RESERVED = frozenset(
    {
        *("vectors", "method", "output_dir", "dtype", "scaling", "device", "recipe", "missing", "allow_zero"),
        *("factors", "statistics", "over_processes", "resume"),
    }
)  # the arguments of `merge`: a setting of that name would never reach its method
_KINDS: dict[type, tuple[type | tuple[type, ...], str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "text"),
}  # of the settings whose default tells what they are
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def merge_method(
    name: str,
    *,
    paper: str,
    order_independent: bool = True,
    min_vectors: int = 1,
    max_vectors: int | None = None,
    resumable: bool = False,
    statistics: Sequence[str] = (),
) -> Callable[[MergeFunction], MergeFunction]:
    """Registers a function as the merge method `name`; its keyword-only arguments are its settings.

    Args:
        name: A name that no method has. To try a changed function in a notebook, `del METHODS[name]` first.
        paper: arXiv id or other reference.
        order_independent: Whether the order of the vectors makes no difference.
        min_vectors: The fewest vectors it merges.
        max_vectors: The most, if there is a limit.
        resumable: Whether a merge into a folder that was stopped goes on where it stopped: for slow methods.
        statistics: Kinds of statistics that it needs, as "gram"; it then gets one `Statistics` per vector as its second
            argument, `statistics`, and `merge` has checked that each is its vector's and has these kinds.

    Raises:
        ValueError: If the name is taken or no name, or if the function is no merge method: its first argument is the
            list of vectors, all others are keyword-only, have defaults, and no name that `merge` itself takes.

    Example:
        >>> @merge_method("first_of_all", paper="none")
        ... def first_of_all(vectors: Sequence[TaskVector], *, factor: float = 1.0) -> TaskVector:
        ...     '''Returns the first vector.'''
        ...     return vectors[0] * factor
        >>> METHODS.pop("first_of_all").defaults
        {'factor': 1.0}
    """

    def register(function: MergeFunction) -> MergeFunction:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"a merge method's name has letters, digits, '_', '-' and '.', got {name!r}")
        if name in METHODS:
            owner = METHODS[name].merge.__module__
            raise ValueError(f"there is a merge method {name!r} already, of {owner}; choose another name")
        if not 1 <= min_vectors <= (max_vectors or min_vectors):
            raise ValueError(f"{name}: min_vectors must be at least 1 and at most max_vectors, got {min_vectors}")
        for kind in statistics:
            check_known("kind of statistics", kind, get_args(Kind))
        _check_signature(name, function, 2 if statistics else 1)
        METHODS[name] = MergeMethod(
            name, function, paper, order_independent, min_vectors, max_vectors, resumable, tuple(statistics)
        )
        return function

    return register


def _check_signature(name: str, function: MergeFunction, values: int) -> None:
    """Raises a `ValueError` if something of a function's settings would be lost on the way through `merge`."""
    parameters = list(inspect.signature(function).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].kind not in positional:
        raise ValueError(f"the merge method {name!r} must take the list of vectors as its first argument")
    if values > 1 and (len(parameters) < values or parameters[1].kind not in positional):
        raise ValueError(f"the merge method {name!r} needs statistics: it must take them as its second argument")
    for parameter in parameters[values:]:
        what = f"the setting {parameter.name!r} of the merge method {name!r}"
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            raise ValueError(f"{what} must be keyword-only, behind a '*', and none of *args or **kwargs")
        if parameter.default is inspect.Parameter.empty:
            raise ValueError(f"{what} must have a default, which stands in the provenance")
        if parameter.name in RESERVED:
            raise ValueError(f"{what} has the name of an argument of merge() and would never arrive; rename it")


def get_method(name: str) -> MergeMethod:
    """The registered method, or an `UnknownNameError` that offers the nearest name.

    Example:
        >>> import hf_taskvec.merging
        >>> get_method("ties").paper
        '2306.01708'
    """
    if name not in METHODS:
        load_plugins(METHODS)
    if name not in METHODS:
        raise UnknownNameError("merge method", name, METHODS)
    return METHODS[name]


def list_methods() -> list[MergeMethod]:
    """Every registered method by name, those of installed packages included.

    Example:
        >>> [method.name for method in list_methods()][:3]
        ['ace', 'actmat', 'adarank']
    """
    load_plugins(METHODS)
    return [METHODS[name] for name in sorted(METHODS)]


def methods_table() -> str:
    """A Markdown table of every method: what it does, its paper, its defaults, what it needs, whether order matters.

    Example:
        >>> print(methods_table().splitlines()[0])
        | method | what it does | paper | settings | statistics | order matters |
    """
    rows = []
    for method in list_methods():
        arxiv = method.paper[:4].isdigit() and "." in method.paper
        paper = f"[{method.paper}](https://arxiv.org/abs/{method.paper})" if arxiv else method.paper
        settings = ", ".join(f"`{key}={value!r}`" for key, value in method.defaults.items()) or "-"
        order = "no" if method.order_independent else "yes"
        needs = ", ".join(f"`{kind}`" for kind in method.statistics) or "-"
        rows.append([f"`{method.name}`", method.summary, paper, settings, needs, order])
    headers = ["method", "what it does", "paper", "settings", "statistics", "order matters"]
    return table(headers, rows, align="llllll") + "\n"
