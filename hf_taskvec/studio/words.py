"""What vectors are called on the page."""

from __future__ import annotations

from collections.abc import Sequence

from hf_taskvec.studio.bank import Lever
from hf_taskvec.text import listed, printable, shortened


def lever_label(lever: Lever) -> str:
    """A vector's slider."""
    return shortened(printable(f"{lever.name} · norm {lever.moments[-1].norm:.1f}"), 60)


def moment_label(lever: Lever, moment: int) -> str:
    """The slider of its epochs at one of them."""
    here = lever.moments[moment]
    when = {"gradient": "the gradient alone"}.get(here.label, f"epoch {here.label}")
    return shortened(printable(f"{lever.name}: {when} of {lever.moments[-1].label}, norm {here.norm:.2g}"), 80)


def added_note(levers: Sequence[Lever]) -> str:
    """What was added."""
    if len(levers) > 1:
        names = listed(lever.name for lever in levers)
        return f"{len(levers)} vectors of this base ({names}); their sliders are below the others, at 0."
    (lever,) = levers
    series = " over its epochs" if len(lever.moments) > 1 else ""
    return f"{lever.name} is of this base (norm {lever.moments[-1].norm:.3g}); its slider{series} is below the others."
