"""Recipes on a bare machine: `uv` reads what a recipe needs from its first lines."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.test_recipes import METADATA, RECIPES, ROOT

NEEDED = tomllib.loads("\n".join(line.removeprefix("# ") for line in METADATA.splitlines()[1:-1]))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_says_what_it_needs(path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert path.read_text("utf-8").startswith(METADATA)
    assert {"requires-python": project["requires-python"], "dependencies": [project["name"]]} == NEEDED


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="needs uv")
@pytest.mark.parametrize("name", ["finetune.py", "merge.py"])
def test_uv_runs_a_recipe_that_is_alone_on_a_bare_machine(name: str, tmp_path: Path) -> None:
    """The package comes from a wheel that is built here, everything else from the registry: a gigabyte."""
    subprocess.run(["uv", "build", "--wheel", "--out-dir", tmp_path / "dist", ROOT], check=True)
    shutil.copyfile(ROOT / "recipes" / name, tmp_path / name)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        ["uv", "run", "--find-links", tmp_path / "dist", name, "--help"],
        cwd=tmp_path,
        env={**environment, "UV_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--output_dir" in done.stdout
