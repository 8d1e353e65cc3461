"""What is shipped: the wheel holds the package alone, the source distribution everything."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest
from hatchling.builders.plugin.interface import BuilderInterface
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]


def shipped(builder: type[BuilderInterface]) -> set[str]:  # type: ignore[type-arg]
    return {file.distribution_path for file in builder(str(ROOT)).recurse_included_files()}


def tracked() -> set[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("only in a clone: what is shipped is compared with what git tracks")
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


def test_the_wheel_holds_the_package_and_no_experiments() -> None:
    files = shipped(WheelBuilder)
    assert {name.split("/")[0] for name in files} == {"hf_taskvec"}
    needed = {"py.typed", "__init__.pyi", "tasks/data/mnist.json", "cards/templates/vector.md.j2"}
    for base in ("tiny_clip", "feature_clip"):
        needed |= {f"models/{base}/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")}
    assert {f"hf_taskvec/{name}" for name in needed} <= files


def test_the_source_distribution_holds_the_repository() -> None:
    files = shipped(SdistBuilder)
    assert {"recipes/quickstart.py", "recipes/paper/claims.py", "recipes/configs/paper7_tiny.yaml"} <= files
    assert not any("__pycache__" in name for name in files)
    assert tracked() - files <= {".gitignore"}


def test_the_versions_agree() -> None:
    import hf_taskvec

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert hf_taskvec.__version__ == project["version"]
