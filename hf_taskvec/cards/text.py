"""Text from anywhere made harmless inside a card: Markdown, HTML, code and terminals."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from hf_taskvec.text import printable

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~$&!])")


def clean(value: object) -> str:
    """One line of printable characters."""
    return printable(" ".join(str(value).split()))


def markdown(value: object) -> str:
    """Plain text in Markdown: nothing in it is markup."""
    return _SPECIAL.sub(r"\\\1", clean(value))


def code(value: object) -> str:
    """An inline code span, also inside a table."""
    text = clean(value).replace("`", "'").replace("|", r"\|")
    return f"`{text}`" if text else "–"


def capitalised(text: str) -> str:
    """The text with its first letter large, for the start of a sentence."""
    return text[:1].upper() + text[1:]


def literal(value: object) -> str:
    """A Python literal on one line: a string in double quotes where that is safe, a list of them, or a number."""
    if isinstance(value, str):
        return json.dumps(value) if value.isascii() else ascii(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(literal(item) for item in value)}]"
    return repr(value)


def fence(value: object, language: str = "") -> str:
    """A fenced block whose content cannot close it."""
    lines = [printable(line).rstrip() for line in str(value).splitlines()]
    longest = max((len(run) for run in re.findall(r"`+", "\n".join(lines))), default=0)
    marks = "`" * max(3, longest + 1)
    return "\n".join([marks + language, *lines, marks])


def by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts names as people do: layer 2 before layer 10.

    Example:
        >>> sorted(["layer 10", "layer 2", "end"], key=by_number)
        ['end', 'layer 2', 'layer 10']
    """
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"([0-9]+)", name)]


def bars(values: Mapping[str, float], *, width: int = 30) -> str:
    """One line per value, in the order of their names: its name, itself and a bar."""
    values = {name: values[name] for name in sorted(values, key=by_number)}
    largest, longest = max(values.values()), max(map(len, values))
    return "\n".join(
        f"{name:<{longest}}  {value:<8.3g} {bar(value, largest, width=width)}" for name, value in values.items()
    )


def bar(value: float, largest: float, *, width: int) -> str:
    """A horizontal bar of block characters, to the eighth of one."""
    eighths = round(8 * width * value / largest) if largest > 0 else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
