"""Where the sliders stand, as a value: as a link, as Python and as a recipe of `hf-taskvec merge`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from urllib.parse import urlencode

import yaml

from hf_taskvec.errors import DataError
from hf_taskvec.hub.access import is_repo_id, split_revision
from hf_taskvec.merging.recipes import MergeRecipe
from hf_taskvec.text import printable, shortened

SUM = "task_arithmetic"
LOWEST, HIGHEST, STEP = -1.0, 2.0, 0.05
MOST_ADDED = 2  # sources
ROOM = 8  # sliders for what is in them
WAYS = {"gradfix": True, "orthogonal_shift": False, "theseus": True, "rebasin": False}  # whether images are looked at
PUBLIC_WAY = "gradfix"  # it alone opens no other base
_ANALOGY = re.compile(r"analogy:(\d{1,3}),(\d{1,3}),(\d{1,3}),(-?\d{1,2}(?:\.\d{1,4})?)")
_LIST = re.compile(r"[-+\d.eE,a-zA-Z]{0,2000}")


@dataclass(frozen=True)
class Setting:
    """Where the sliders stand.

    Attributes:
        factors: The factor of each vector, from -1 to 2.
        moments: Which moment of its training each vector has, by its number.
        method: The merge method.
    """

    factors: tuple[float, ...]
    moments: tuple[int, ...]
    method: str = SUM

    def recipe(self, sources: Sequence[str]) -> MergeRecipe:
        """The merge, of those vectors whose factor is not 0.

        Raises:
            DataError: If there is none.

        Example:
            >>> Setting((0.5, 0.0), (0, 0)).recipe(["a", "b"]).factors
            (0.5,)
        """
        used = [(source, factor) for source, factor in zip(sources, self.factors, strict=True) if factor != 0]
        if not used:
            raise DataError("every slider stands at 0, so there is nothing to merge: move one")
        vectors, factors = zip(*used, strict=True)
        return MergeRecipe(vectors, self.method, factors=factors, missing="zero")

    def python(
        self, sources: Sequence[str], *, codes: Mapping[str, str] = MappingProxyType({}), base: str | None = None
    ) -> str:
        """The merge as a program.

        Args:
            sources: Where each vector is.
            codes: The Python that opens those of them whose source alone names no vector.
            base: Hub id of the base.

        Example:
            >>> print(Setting((0.5, -1.0), (0, 0)).python(["a", "b"], codes={"b": "TaskVector.from_adapter('b')"}))
            from hf_taskvec import TaskVector, load_base, merge
            <BLANKLINE>
            vectors = [
                'a',
                TaskVector.from_adapter('b'),
            ]
            merged = merge(vectors, 'task_arithmetic', factors=[0.5, -1.0], missing="zero")
            model = merged.apply_to(load_base())
        """
        recipe = self.recipe(sources)
        lines = "".join(f"    {codes.get(source, repr(source))},\n" for source in recipe.vectors)
        used = set(re.findall(r"\w+(?=[.(])", "".join(codes.values())))
        names = [*(["TaskVector"] if "TaskVector" in used else []), "load_base", "merge"]
        rooms = {"analogy": "editing", "transport": "editing", "MultiTaskVector": "multitask"}
        more = "".join(f"from hf_taskvec.{rooms[name]} import {name}\n" for name in rooms if name in used)
        return (
            f"from hf_taskvec import {', '.join(names)}\n{more}\nvectors = [\n{lines}]\n"
            f'merged = merge(vectors, {recipe.method!r}, factors={list(recipe.factors)}, missing="zero")\n'
            f"model = merged.apply_to(load_base({'' if base is None else repr(base)}))"
        )

    def yaml(self, sources: Sequence[str], *, codes: Mapping[str, str] = MappingProxyType({})) -> str:
        """The merge as a file for `hf-taskvec merge --config`; where a source names no vector, what to do about it.

        Example:
            >>> print(Setting((0.5,), (0,), "average").yaml(["out/digits"]).splitlines()[1])
            vectors:
        """
        recipe = self.recipe(sources)
        if codes:
            saves = [f"# {code}.save_pretrained(...)  # {source}" for source, code in codes.items()]
            return "\n".join(["# A recipe names folders and Hub ids of vectors; save these as vectors first:", *saves])
        values = {
            "vectors": list(recipe.vectors),
            "method": recipe.method,
            "factors": list(recipe.factors),
            "missing": "zero",
            "output_dir": "out/merged",
        }
        return "# hf-taskvec merge --config this-file.yaml\n" + yaml.safe_dump(values, sort_keys=False)

    def link(self, added: Sequence[str] = ()) -> str:
        """The end of an address that restores the setting.

        Args:
            added: Hub ids of the vectors that were added.

        Example:
            >>> Setting((0.3, -1.0), (0, 4), "ties").link(["user/birds"])
            '?method=ties&factors=0.3,-1&moments=0,4&add=user/birds'
        """
        values = {
            "method": self.method,
            "factors": ",".join(f"{factor:g}" for factor in self.factors),
            "moments": ",".join(map(str, self.moments)),
        }
        pairs = [*values.items(), *(("add", source) for source in added)]
        return "?" + urlencode(pairs, safe=",/@:")


@dataclass(frozen=True)
class Analogy:
    """c + α(b − a) of vectors under the sliders, by their numbers.

    Example:
        >>> Analogy(0, 1, 2, 0.5).source, Analogy.of("analogy:0,1,2,0.5") == Analogy(0, 1, 2, 0.5), Analogy.of("user/x")
        ('analogy:0,1,2,0.5', True, None)
    """

    a: int
    b: int
    c: int
    factor: float = 1.0

    @property
    def source(self) -> str:
        """How it is told among what was added."""
        return f"analogy:{self.a},{self.b},{self.c},{round(self.factor, 4):g}"

    @classmethod
    def of(cls, source: str) -> Analogy | None:
        """The analogy that a source tells, if it tells one."""
        told = _ANALOGY.fullmatch(source)
        return told and cls(int(told[1]), int(told[2]), int(told[3]), float(told[4]))


def way_of(source: str) -> tuple[str | None, str]:
    """How a vector of another base is to be brought here, `None` if it is of this one, and its own source.

    Example:
        >>> way_of("gradfix:user/birds@main"), way_of("user/birds")
        (('gradfix', 'user/birds@main'), (None, 'user/birds'))
    """
    way, colon, place = source.partition(":")
    return (way, place) if colon and way in WAYS else (None, source)


@dataclass(frozen=True)
class Restored:
    """What a link holds.

    Attributes:
        setting: The setting.
        notes: What of the link was not taken, in words.
    """

    setting: Setting
    notes: tuple[str, ...] = ()


def added_of(query: Mapping[str, Sequence[str]]) -> list[str]:
    """What a link adds: Hub ids, also of vectors to be brought here, and analogies; no folders of the machine.

    Example:
        >>> added_of({"add": ["user/birds@main", "../../etc", "/root"]})
        ['user/birds@main']
    """
    sources = dict.fromkeys(source for source in query.get("add", []) if _is_open(source))
    return list(sources)[:MOST_ADDED]


def _is_open(source: str) -> bool:
    way, place = way_of(source)
    return Analogy.of(source) is not None or (way in (None, PUBLIC_WAY) and is_hub_source(place))


def is_hub_source(source: str) -> bool:
    """Whether a text is the id of a Hub repository, with `@revision` if wanted, and no folder of this machine.

    Example:
        >>> is_hub_source("user/birds@main"), is_hub_source("./birds")
        (True, False)
    """
    repo, revision = split_revision(source)
    named = "/" in source and is_repo_id(str(repo)) and not os.path.exists(repo)
    return named and (revision is None or ".." not in revision)


def restored(
    query: Mapping[str, Sequence[str]], start: Setting, counts: Sequence[int], methods: Sequence[str]
) -> Restored:
    """The setting of a link, whatever stands there: what is wild is cut to its range or left as it was, and told.

    Args:
        query: The values of each name in the link.
        start: Where the sliders stand without a link.
        counts: How many moments each vector has.
        methods: The methods there are.

    Example:
        >>> wild = restored({"factors": ["nan,9"], "method": ["tise"]}, Setting((0.3, 0.3), (0, 0)), [1, 1], ["ties"])
        >>> wild.setting.factors, wild.setting.method, len(wild.notes)
        ((0.3, 2.0), 'task_arithmetic', 3)
    """
    setting, notes = start, list[str]()
    method = _last(query, "method")
    if method is not None and method in methods:
        setting = replace(setting, method=method)
    elif method is not None:
        notes.append(f"there is no method {_told(method)}")
    factors = _numbers(query, "factors", start.factors, notes)
    cut = tuple(_within(value, before, notes) for value, before in zip(factors, start.factors, strict=True))
    moments = []
    for value, before, count in zip(
        _numbers(query, "moments", start.moments, notes), start.moments, counts, strict=True
    ):
        known = math.isfinite(value) and value == int(value) and 0 <= value < count
        if not known:
            notes.append(f"there is no moment {value:g} of {count}")
        moments.append(int(value) if known else before)
    return Restored(replace(setting, factors=cut, moments=tuple(moments)), tuple(dict.fromkeys(notes)))


def _last(query: Mapping[str, Sequence[str]], name: str) -> str | None:
    values = query.get(name)
    return values[-1] if values else None


def _numbers(
    query: Mapping[str, Sequence[str]], name: str, before: Sequence[float], notes: list[str]
) -> Sequence[float]:
    """The numbers of a list in the link, as many as there are vectors; those there were if they are not."""
    text = _last(query, name)
    if text is None:
        return before
    try:
        values = [float(word) for word in text.split(",")] if _LIST.fullmatch(text) else []
    except ValueError:
        values = []
    if len(values) != len(before):
        notes.append(f"{name} of the link are not {len(before)} numbers: {_told(text)}")
        return before
    return values


def _within(value: float, before: float, notes: list[str]) -> float:
    """The factor within the slider's range, on one of its steps."""
    if not math.isfinite(value):
        notes.append(f"{value:g} is no factor")
        return before
    cut = min(HIGHEST, max(LOWEST, value))
    if cut != value:
        notes.append(f"the factor {value:g} is cut to {cut:g}")
    return round(round(cut / STEP) * STEP, 4)


def _told(text: str) -> str:
    return repr(shortened(printable(text), 40))
