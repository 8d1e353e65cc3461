"""The README says what is true."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_taskvec.merging import methods_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_methods_is_todays() -> None:
    assert f"<!-- methods -->\n{methods_table().rstrip()}\n<!-- end of methods -->" in README


def test_its_claims_are_those_of_the_report() -> None:
    report = (ROOT / "recipes/results/paper7_tiny/report.md").read_text(encoding="utf-8")
    table = report.split("## Claims\n\n")[1].split("\n\n")[0]
    assert f"<!-- claims -->\n{table}\n<!-- end of claims -->" in README


def test_every_file_it_links_to_exists() -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README):
        assert (ROOT / link).exists(), link


def test_every_recipe_it_names_exists() -> None:
    for recipe in re.findall(r"recipes/[\w/]+\.(?:py|yaml)", README):
        assert (ROOT / recipe).is_file(), recipe


FENCE = r"```{}\n(.*?)```"
FIRST, HUB = (re.findall(FENCE.format("python"), part, flags=re.DOTALL)[0] for part in README.split("## The Hub"))
FROM_THE_FIRST = """
import dataclasses
from hf_taskvec import Report, TaskVector, load_base
from hf_taskvec import TaskResult
model = load_base().model
vector = TaskVector.from_models(model, model)
deltas = {name: vector.deltas[name] + 1e-3 for name in vector.deltas}
merged = TaskVector(deltas, dataclasses.replace(vector.info, base="hf-taskvec/tiny-clip", task="digits"))
report = Report("merged", "test", (TaskResult("digits", 0.5, 100),), scaling=0.3)
"""


@pytest.fixture
def offline_trial() -> Iterator[str]:
    """Starts the Hub as the README says; gives the line that it prints for the other shell."""
    section = README.split("## The Hub")[1].split("\n## ")[0]
    (command,) = re.findall(FENCE.format("bash"), section, flags=re.DOTALL)
    words = [sys.executable, *command.split()[1:]]
    assert command.split()[0] == "python"
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("The Hub of user is at http://127.0.0.1:")
        yield server.stdout.readline().strip()
        server.terminate()


def run_in_a_shell(lines: str, example: str, folder: Path) -> str:
    """What a Python example prints in a fresh process, in a shell that ran `lines` before."""
    (folder / "example.py").write_text(example)
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_ENDPOINT", "HF_TOKEN")}
    done = subprocess.run(
        ["bash", "-c", f"{lines}\nexec {shlex.quote(sys.executable)} example.py"], cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "home")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_hub_lines_run_as_written(offline_trial: str, tmp_path: Path) -> None:
    assert offline_trial.startswith("export HF_ENDPOINT=")
    printed = run_in_a_shell(offline_trial, FROM_THE_FIRST + HUB, tmp_path)
    assert "PublishedVector(repo_id='user/digits-and-shapes', base='hf-taskvec/tiny-clip'" in printed


@pytest.mark.slow
def test_its_first_example_and_the_hub_lines_after_it_run_as_written(offline_trial: str, tmp_path: Path) -> None:
    printed = run_in_a_shell(offline_trial, FIRST + HUB, tmp_path)
    assert "| **mean** |" in printed
    assert "tasks=('digits', 'shapes')" in printed
