"""The page's pictures as HTML: bars, gauge, logits and heat maps; whatever comes from outside is escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from urllib.parse import quote

from torch import Tensor

from hf_taskvec.studio.board import Bar, Board, ClassLogits
from hf_taskvec.text import printable, shortened


def safe(text: str, limit: int = 60) -> str:
    """A text of somebody else's, harmless in HTML.

    Example:
        >>> safe("<b>birds</b>")
        '&lt;b&gt;birds&lt;/b&gt;'
    """
    return html.escape(shortened(printable(text), limit))


def drawn_board(board: Board, *, busy: bool = False) -> str:
    """A bar per task (base, merged now, expert), their mean, the gauge of the controls and the change.

    Args:
        board: The board.
        busy: Whether more images are being looked at.
    """
    counted = [bar for bar in board.bars if not bar.control]
    controls = [bar for bar in board.bars if bar.control]
    rows = [_row(bar) for bar in counted]
    if len(counted) > 1:
        rows.append(_row(_mean(board, control=False, images=sum(bar.images for bar in counted)), kind="tv-mean"))
    parts = [_LEGEND, f'<div class="tv-bars">{"".join(rows)}</div>'] if counted else [_LEGEND]
    if controls:
        names = ", ".join(safe(bar.task) for bar in controls)
        gauge = _row(_mean(board, control=True, images=sum(bar.images for bar in controls)), kind="tv-control")
        parts.append(f'<p class="tv-head">Control (no vector is of it): {names}</p><div class="tv-bars">{gauge}</div>')
    parts.append(f'<p class="tv-change">{_change(board)}</p>')
    images = max(bar.images for bar in board.bars)
    more = " More are being looked at." if busy else ""
    parts.append(f'<p class="tv-note" role="status">{images} test images a task.{more}</p>')
    return "".join(parts)


_LEGEND = (
    '<p class="tv-legend"><span class="tv-key tv-key-base"></span>base <span class="tv-key tv-key-now"></span>merged '
    'now <span class="tv-key tv-key-expert"></span>expert <span class="tv-unit">accuracy in percent</span></p>'
)


def _mean(board: Board, *, control: bool, images: int) -> Bar:
    base, now, expert = (board.mean(which, control=control) for which in ("base", "now", "expert"))
    return Bar("kept" if control else "mean", base or 0.0, now or 0.0, expert, images, control)


def _row(bar: Bar, *, kind: str = "") -> str:
    base, now = 100 * bar.base, 100 * bar.now
    told = f"{printable(bar.task)}: base {base:.1f}, merged now {now:.1f}"
    mark = ""
    if bar.expert is not None:
        told += f", expert {100 * bar.expert:.1f} percent"
        mark = f'<i class="tv-expert" style="left:{100 * bar.expert:.2f}%"></i>'
    side = "tv-up" if bar.now >= bar.base else "tv-down"
    return (
        f'<div class="tv-row {kind}" role="img" aria-label="{html.escape(shortened(told, 200))}">'
        f'<span class="tv-task">{safe(bar.task, 24)}</span>'
        f'<span class="tv-track"><i class="tv-now {side}" style="width:{now:.2f}%"></i>'
        f'<i class="tv-base" style="left:{base:.2f}%"></i>{mark}</span>'
        f'<span class="tv-number">{now:.1f}</span><span class="tv-gain {side}">{now - base:+.1f}</span></div>'
    )


def _change(board: Board) -> str:
    if board.change is None:
        return "Move a slider: the change against the last setting is told here."
    mean, low, high = (100 * value for value in (board.change.mean, board.change.low, board.change.high))
    verdict = "better" if low > 0 else "worse" if high < 0 else "not to be told apart"
    return (
        f"Against the last setting: <b>{mean:+.1f} points</b> [{low:+.1f}, {high:+.1f}] on the same images "
        f"(paired, 95 %): {verdict}."
    )


def drawn_logits(rows: Sequence[ClassLogits], *, task: str) -> str:
    """The logits of an image before and after, a row per class.

    Example:
        >>> "circle" in drawn_logits([ClassLogits("circle", 1.0, 2.0, True)], task="shapes")
        True
    """
    values = [value for row in rows for value in (row.before, row.now)]
    low, span = min(values), max(max(values) - min(values), 1e-6)
    lines = []
    for row in rows:
        before, now = (5 + 95 * (value - low) / span for value in (row.before, row.now))
        mark = " ✓" if row.true else ""
        lines.append(
            f'<tr class="{"tv-true" if row.true else ""}"><th scope="row">{safe(row.name, 40)}{mark}</th>'
            f'<td><i class="tv-logit tv-logit-base" style="width:{before:.1f}%"></i>'
            f'<i class="tv-logit tv-logit-now" style="width:{now:.1f}%"></i></td>'
            f"<td>{row.before:.1f} → {row.now:.1f}</td></tr>"
        )
    head = f"<caption>Logits of this image ({safe(task)}): base above, merged now below</caption>"
    return f'<table class="tv-logits">{head}{"".join(lines)}</table>'


def drawn_heat(values: Tensor, names: Sequence[str], *, title: str, whole: float = 1.0, percent: bool = False) -> str:
    """A value for each pair of vectors, as a table whose cells are the darker the larger they are.

    Args:
        values: The values, (levers, levers).
        names: The vectors.
        title: What they are.
        whole: The value of the darkest cell.
        percent: Whether they are shown in percent.

    Example:
        >>> import torch
        >>> drawn_heat(torch.eye(2), ["a", "b"], title="cosine").count("<td style")
        4
    """
    head = "".join(f'<th scope="col"><span>{safe(name, 14)}</span></th>' for name in names)
    lines = []
    for name, row in zip(names, values.tolist(), strict=True):
        cells = "".join(_cell(value, whole, percent=percent) for value in row)
        lines.append(f'<tr><th scope="row">{safe(name, 14)}</th>{cells}</tr>')
    return (
        f'<div class="tv-scroll"><table class="tv-heat"><caption>{safe(title, 200)}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(value: float, whole: float, *, percent: bool) -> str:
    shade = min(1.0, abs(value) / whole)
    colour = "230,120,20" if value >= 0 else "20,110,190"
    text = f"{100 * value:.0f}" if percent else f"{value:.2f}"
    return f'<td style="background:rgba({colour},{0.75 * shade:.2f})">{text}</td>'


def drawn_note(lines: Sequence[str], *, bad: bool = False, link: str | None = None) -> str:
    """Sentences for the visitor, each on its line, and a link after them.

    Example:
        >>> drawn_note(["<b>"])
        '<div class="tv-told" role="status">&lt;b&gt;</div>'
    """
    told = "<br>".join(safe(line, 600) for line in lines)
    if link is not None and link.startswith(("https://", "http://")):
        place = html.escape(quote(link, safe=":/?#@&=%"))
        told += f' <a href="{place}" target="_blank" rel="noopener">{safe(link, 600)}</a>'
    kind = "tv-told tv-bad" if bad else "tv-told"
    return f'<div class="{kind}" role="{"alert" if bad else "status"}">{told}</div>' if told else ""
