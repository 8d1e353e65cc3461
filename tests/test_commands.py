"""Every command and every YAML that the project shows: the recipe is there and takes the arguments as they stand."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import sys
import tokenize
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from hf_taskvec.arguments import parse_recipe, read_yaml

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.py") if "run_recipe(" in path.read_text("utf-8"))
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))
COMMAND = re.compile(
    r"(?:python|accelerate launch(?: --\w+ \d+)?|torchrun --nproc_per_node \d+) (recipes/[\w/]+\.py)([^`]*)"
)
PLACE = re.compile(r"<[\w -]+>")  # as in `--data_dir <folder>`
PATH = re.compile(r"\brecipes/[\w./-]*\w")


@cache
def documents() -> dict[str, str]:
    """Everything that tells a user what to run: Markdown, docstrings, help texts and comments of YAML files."""
    texts = {}
    for pattern in ("*.md", ".github/*.md", "recipes/**/*.md", "hub_cards/*/*.md", "hf_taskvec/**/*.md"):
        texts |= {path: path.read_text("utf-8") for path in ROOT.glob(pattern)}
    texts |= {path: re.sub(r"(?m)^# ?", "", path.read_text("utf-8")) for path in CONFIGS}
    for path in [*ROOT.glob("recipes/**/*.py"), *ROOT.glob("hf_taskvec/**/*.py")]:
        with tokenize.open(path) as file:
            text = file.read()
        strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
        comments = re.findall(r"#.*", text)
        texts[path] = "\n".join([*(string for string in strings if isinstance(string, str)), *comments])
    return {str(path.relative_to(ROOT)): text for path, text in sorted(texts.items())}


def commands() -> list[tuple[str, str, list[str]]]:
    """Where each command stands, its recipe, and its arguments as the shell would give them."""
    calls = []
    for where, text in documents().items():
        for line in text.replace("\\\n", " ").splitlines():
            for recipe, rest in COMMAND.findall(line):
                words = shlex.split(PLACE.sub("X", rest), comments=True)
                if "…" not in rest and "[" not in rest:
                    calls.append((where, recipe, words))
    return calls


@cache
def classes(recipe: str) -> tuple[type, ...]:
    """The argument classes of a recipe, as it names them to `run_recipe`."""
    path = ROOT / recipe
    (call,) = (
        node
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "run_recipe"
    )
    names = [argument.id for argument in call.args[1:] if isinstance(argument, ast.Name)]
    spec = spec_from_file_location(f"shown_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where the types of the dataclasses are looked up
    spec.loader.exec_module(module)
    return tuple(getattr(module, name) for name in names)


COMMANDS = commands()


@pytest.mark.parametrize(
    ("where", "recipe", "argv"), COMMANDS, ids=[f"{where}:{recipe}" for where, recipe, _ in COMMANDS]
)
def test_a_command_that_is_shown_names_a_recipe_and_its_arguments(
    where: str, recipe: str, argv: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    parse_recipe(*classes(recipe), argv=argv)


def test_the_commands_are_found() -> None:  # a pattern that matches nothing would let everything pass
    assert {"README.md", "recipes/quickstart.py", "recipes/configs/merge_ties.yaml"} <= {
        where for where, *_ in COMMANDS
    }
    assert {path.relative_to(ROOT).as_posix() for path in RECIPES} <= {recipe for _, recipe, _ in COMMANDS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_yaml_file_is_read_by_the_recipe_it_names(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    own = [(recipe, argv) for where, recipe, argv in COMMANDS if where == name and name in argv]
    assert own, f"{name} does not show the command that reads it"
    for recipe, _ in own:
        known = {field.name for kind in classes(recipe) for field in dataclasses.fields(kind)}
        assert set(read_yaml(path)) <= known


@pytest.mark.parametrize("where", documents())
def test_every_file_of_the_recipes_that_is_named_is_there(where: str) -> None:
    for name in PATH.findall(documents()[where]):
        assert any(ROOT.glob(f"{name}*")), f"{where} names {name}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_flag_has_a_help_text(path: Path) -> None:
    for kind in classes(path.relative_to(ROOT).as_posix()):
        for field in dataclasses.fields(kind):
            assert len(field.metadata.get("help", "")) > 10, f"{kind.__name__}.{field.name} explains nothing"
