"""Text for people: harmless to a terminal, bounded in length, and Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MAX_MESSAGE = 600  # characters of an error's message; the rest is in its attribute `details`
_TAIL = 200  # of them for the end of a message, where the remedy stands
_RULES = {"l": "---", "r": "---:"}
_BARE_PIPE = re.compile(r"(?<!\\)\|")


def printable(text: str) -> str:
    r"""The text without control characters and invisible direction marks; every odd space is a plain one.

    Example:
        >>> printable("red\x1b[2J\tgreen")
        'red[2J green'
    """
    return "".join(char if char.isprintable() else " " if char.isspace() else "" for char in text)


def shortened(text: str, limit: int = MAX_MESSAGE) -> str:
    """The text, without its middle if it is longer than `limit` characters.

    Example:
        >>> shortened("abcdefghijklmnop", 13)
        'abcd … klmnop'
    """
    if len(text) <= limit:
        return text
    tail = min(_TAIL, limit // 2)
    return f"{text[: limit - tail - 3]} … {text[-tail:]}"


def listed(items: Iterable[object], *, separator: str = ", ", room: int = 300) -> str:
    """The first of some names, or all if they take no more than `room` characters, and how many more there are.

    Example:
        >>> listed(["circle", "square", "star"], room=16)
        'circle, square and 1 more'
    """
    words = [shortened(printable(str(item)), max(room, 40)) for item in items]
    count, length = 0, 0
    while count < len(words) and (count == 0 or length + len(words[count]) <= room):
        length += len(words[count]) + len(separator)
        count += 1
    more = f" and {len(words) - count} more" if count < len(words) else ""
    return separator.join(words[:count]) + more


def table(headers: Sequence[object], rows: Iterable[Sequence[object]], *, align: str | None = None) -> str:
    """A Markdown table.

    Args:
        headers: Titles of the columns.
        rows: Cells of each row, made one line of printable characters in which `|` is escaped.
        align: `l` or `r` per column; by default the first column is left and the others, which hold numbers, right.

    Raises:
        ValueError: If a row or `align` has another length than the headers.

    Example:
        >>> print(table(["task", "accuracy"], [["digits", 61.5]]))
        | task | accuracy |
        | --- | ---: |
        | digits | 61.5 |
    """
    align = align or "l" + "r" * (len(headers) - 1)
    rules = [_RULES[letter] for letter in align]
    lines = [headers, rules, *rows]
    for cells in lines:
        if len(cells) != len(headers):
            raise ValueError(f"a table of {len(headers)} columns cannot have a row of {len(cells)} cells")
    return "\n".join(map(table_row, lines))


def table_row(cells: Sequence[object]) -> str:
    r"""One row of a Markdown table, for one that is printed row by row.

    Example:
        >>> table_row(["a|b", 1])
        '| a\\|b | 1 |'
    """
    words = [_BARE_PIPE.sub(r"\|", printable(str(cell))) for cell in cells]
    return f"| {' | '.join(words)} |"


def columns(headers: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table for a terminal: columns of one width each, numbers to the right, what is None empty.

    Example:
        >>> print(columns(["task", "accuracy"], [["digits", 0.615], ["shapes", None]]))
        task    accuracy
        digits     0.615
        shapes
    """
    rows = [list(row) for row in rows]
    numbers = [all(isinstance(row[index], int | float | None) for row in rows) for index in range(len(headers))]
    cells = [[_cell(value) for value in line] for line in (headers, *rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(headers))]
    sides = [">" if number else "<" for number in numbers]
    lines = []
    for line in cells:
        padded = [f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(f"{value:.4g}" if isinstance(value, float) else str(value))
