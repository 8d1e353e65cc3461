"""What a verb found, and its three forms: a table for people, JSON for programs, bare names for a shell's loop."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hf_taskvec.text import columns, printable

Format = Literal["table", "json", "quiet"]


@dataclass(frozen=True)
class Outcome:
    """What a verb found.

    Attributes:
        data: All of it, as JSON can hold it.
        text: The same for people.
        names: What the next command of a pipe takes, one a line: names, folders, URLs or numbers.
        code: The exit code: 1 where the answer is no.

    Example:
        >>> Outcome({"cosine": 0.5}, "cosine  0.5", ["0.5"]).in_form("json")
        '{"cosine": 0.5}'
    """

    data: Any
    text: str
    names: Sequence[object] = field(default=())
    code: int = 0

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]], *, name: str) -> Outcome:
        """A table of rows that have the same keys.

        Args:
            rows: The rows.
            name: The key of what the quiet form shows.

        Example:
            >>> print(Outcome.of_rows([{"task": "digits", "classes": 10}], name="task").text)
            task    classes
            digits       10
        """
        text = columns(list(rows[0]), [list(row.values()) for row in rows]) if rows else "Nothing was found."
        return cls(list(rows), text, [row[name] for row in rows])

    def in_form(self, form: Format) -> str:
        """The text of a form, without control characters of somebody else's."""
        if form == "json":
            return json.dumps(self.data, ensure_ascii=False)
        lines = [str(name) for name in self.names] if form == "quiet" else self.text.splitlines()
        return "\n".join(printable(line) for line in lines)


def facts(values: Mapping[str, object]) -> str:
    """One line per fact, the facts that are known.

    Example:
        >>> print(facts({"base": "hf-taskvec/tiny-clip", "task": None, "entries": 12}))
        base     hf-taskvec/tiny-clip
        entries  12
    """
    known = {name: value for name, value in values.items() if value not in (None, "", (), [], {})}
    width = max(map(len, known), default=0)
    return "\n".join(f"{name:<{width}}  {printable(str(value))}" for name, value in known.items())
