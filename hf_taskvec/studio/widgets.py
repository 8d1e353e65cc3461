"""The page's controls in Gradio that stand for vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from hf_taskvec.studio.bank import Lever
from hf_taskvec.studio.setting import HIGHEST, LOWEST, STEP
from hf_taskvec.studio.words import lever_label
from hf_taskvec.text import printable, shortened

_TERMS = {"a": "Analogy: from a", "b": "to b", "c": "likewise from c"}


def factor_slider(lever: Lever, factor: float, *, name: str) -> Any:
    """The slider of a vector."""
    return gr.Slider(LOWEST, HIGHEST, value=factor, step=STEP, label=lever_label(lever), elem_id=name, buttons=[])


def epoch_slider(label: str, last: int, *, name: str, visible: bool = True) -> Any:
    """The slider of a vector's moments."""
    return gr.Slider(0, last, value=last, step=1, label=label, elem_id=name, visible=visible, buttons=[])


def term_choices(levers: Sequence[Lever]) -> list[Any]:
    """Where the a, b and c of an analogy are chosen; at first the first three vectors."""
    names = lever_choices(levers)
    starts = [min(number, len(names) - 1) for number in range(len(_TERMS))]
    return [
        gr.Dropdown(names, value=start, label=label, elem_id=f"term-{term}", min_width=90)
        for start, (term, label) in zip(starts, _TERMS.items(), strict=True)
    ]


def lever_choices(levers: Sequence[Lever]) -> list[tuple[str, int]]:
    """The vectors by name, to be told by their numbers."""
    return [(shortened(printable(lever.name), 40), number) for number, lever in enumerate(levers)]
