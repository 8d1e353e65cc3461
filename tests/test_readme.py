"""The README says what is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_taskvec.merging import methods_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_methods_is_todays() -> None:
    assert f"<!-- methods -->\n{methods_table().rstrip()}\n<!-- end of methods -->" in README


def test_every_file_it_links_to_exists() -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README):
        assert (ROOT / link).exists(), link


def test_every_recipe_it_names_exists() -> None:
    for recipe in re.findall(r"recipes/[\w/]+\.(?:py|yaml)", README):
        assert (ROOT / recipe).is_file(), recipe


@pytest.mark.slow
def test_its_first_python_example_runs_as_written(tmp_path: Path) -> None:
    example = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    (tmp_path / "example.py").write_text(example)
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| **mean** |" in done.stdout
