"""Imported before anything heavy: Ctrl-C while a recipe's libraries load, for seconds, ends it in one sentence."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

RECIPE = Path(sys.argv[0]).resolve()


def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Tells that the recipe was stopped; other errors keep their traceback."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write(f"{RECIPE.name}: stopped before it began.\n")
    else:
        sys.__excepthook__(kind, error, trace)


if RECIPE.parent == Path(__file__).resolve().parent:  # not where another program imports a recipe
    sys.excepthook = end
