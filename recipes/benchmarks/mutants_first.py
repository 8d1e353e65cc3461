"""A plugin of pytest for `mutants.py`: the tests that run a mutant's line go first, or alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests that the file `MUTANTS_FIRST` names before the others, which go if they are to be alone."""
    first = set(Path(os.environ["MUTANTS_FIRST"]).read_text(encoding="utf-8").splitlines())
    items.sort(key=lambda item: item.nodeid not in first)
    if os.environ["MUTANTS_ALONE"] == "True":
        items[:] = [item for item in items if item.nodeid in first]
