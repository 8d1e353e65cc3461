"""Vectors that are made at the desk: analogies of those under the sliders, and vectors of another base brought here."""

from __future__ import annotations

from collections.abc import Sequence

from hf_taskvec.cards.metadata import task_names
from hf_taskvec.editing.analogy import analogy
from hf_taskvec.editing.transport import transport
from hf_taskvec.errors import DataError
from hf_taskvec.hub.access import split_revision
from hf_taskvec.merging.sources import open_source
from hf_taskvec.models.base import Base
from hf_taskvec.studio.bank import Lever, Moment
from hf_taskvec.studio.setting import WAYS, Analogy
from hf_taskvec.tasks import Task
from hf_taskvec.text import listed


def analogy_lever(wanted: Analogy, levers: Sequence[Lever]) -> Lever:
    """The lever of c + α(b − a), of vectors that have one.

    Raises:
        DataError: If there is no such lever, or b is a.
        IncompatibleVectorsError: If the vectors are of different bases or parameters.
    """
    if max(wanted.a, wanted.b, wanted.c) >= len(levers) or wanted.a == wanted.b:
        raise DataError(f"an analogy is of two vectors a and b and a third, out of the {len(levers)} under the sliders")
    a, b, c = (levers[number] for number in (wanted.a, wanted.b, wanted.c))
    vector = analogy(a.vector, b.vector, c.vector, factor=wanted.factor)
    opened = ", ".join(_code(lever.moments[-1]) for lever in (a, b, c))
    name = f"{c.name} + {wanted.factor:g} ({b.name} − {a.name})"
    return Lever(name, (Moment("end", name, vector, f"analogy({opened}, factor={wanted.factor:g})"),))


def carried_lever(source: str, way: str, base: Base, tasks: Sequence[Task]) -> Lever:
    """The lever of a vector that is brought to a base.

    Args:
        source: Hub id or folder of the vector.
        way: A method of `transport`.
        base: Where it is brought to.
        tasks: Those whose training images are at hand; the method is shown the vector's own among them.

    Raises:
        DataError: If the method looks at images, and no task is the vector's own.
        TaskVecError: What `transport` refuses, such as a base of another architecture.
    """
    exact, vector = open_source(source)
    names = task_names(vector.info)
    own = [task for task in tasks if task.name in names]
    if WAYS[way] and not own:
        of = f"of {listed(names)}, which has no bar here" if names else "of a task that it does not tell"
        raise DataError(f"{way} looks at images of the vector's task, and {source} is {of}: start with --tasks")
    brought = transport(vector, to=base, tasks=own or None, method=way)
    shown = f", tasks={[task.name for task in own]}" if WAYS[way] else ""
    code = f"transport({_opening(exact)}, to=load_base({base.name!r}), method={way!r}{shown})"
    name = f"{vector.info.task or source} by {way}"
    return Lever(name, (Moment("end", f"{source} by {way}", brought, code),))


def _code(moment: Moment) -> str:
    return moment.code or _opening(moment.source)


def _opening(source: str) -> str:
    place, revision = split_revision(source)
    return f"TaskVector.from_pretrained({str(place)!r}" + (f", revision={revision!r})" if revision else ")")
