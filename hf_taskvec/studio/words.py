"""What vectors are called on the page."""

from __future__ import annotations

from collections.abc import Sequence

from hf_taskvec.errors import DataError
from hf_taskvec.studio.bank import Bank, Lever
from hf_taskvec.studio.board import Flip
from hf_taskvec.studio.setting import Setting
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
    if (way := lever.vector.info.transport) is not None:
        shown = f" by {way.get('images_per_class')} images a class of {listed(way['tasks'])}" if "tasks" in way else ""
        return (
            f"{lever.name} was brought here from {way.get('base', 'another base')}{shown} (norm "
            f"{lever.moments[-1].norm:.3g}); its slider is below the others."
        )
    if lever.vector.info.method == "analogy":
        return f"{lever.name} has norm {lever.moments[-1].norm:.3g}; its slider is below the others."
    series = " over its epochs" if len(lever.moments) > 1 else ""
    return f"{lever.name} is of this base (norm {lever.moments[-1].norm:.3g}); its slider{series} is below the others."


def copied(bank: Bank, setting: Setting, base: str) -> tuple[str, str]:
    """A setting as Python and as YAML, or why there is none."""
    codes, sources = bank.codes(setting), bank.sources(setting)
    try:
        return setting.python(sources, codes=codes, base=base), setting.yaml(sources, codes=codes)
    except DataError as error:
        return f"# {error}", f"# {error}"


def flip_caption(flip: Flip, task: str) -> str:
    """What an image of the strip was taken for, before and now."""
    return f"{'✓' if flip.mended else '✗'} {task}: {flip.before} → {flip.now}"
