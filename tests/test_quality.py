"""What holds for all code of the package: sizes, types for others, and an example that runs for what is public."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import io
import pkgutil
import re
import tokenize
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import hf_taskvec

PACKAGE = Path(hf_taskvec.__file__).parent
SOURCES = {path.relative_to(PACKAGE): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MOST_LINES = 400  # of a file
MOST_MARKS = 5  # that switch the formatter off
MOST_CODE = 23_840  # lines; what grows beyond it needs a reason
QUIET = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def docstring(node: ast.AST) -> range:
    """The lines of a node's docstring, none if it has none."""
    body = getattr(node, "body", None)
    if not isinstance(body, list) or not body or not isinstance(body[0], ast.Expr):
        return range(0)
    text = body[0].value
    is_text = isinstance(text, ast.Constant) and isinstance(text.value, str)
    return range(body[0].lineno, (body[0].end_lineno or 0) + 1) if is_text else range(0)


def length(function: ast.stmt) -> int:
    """Lines of a function from `def` to its end, without its docstring."""
    return (function.end_lineno or 0) - function.lineno + 1 - len(docstring(function))


def lines_of_code(source: str) -> int:
    """Lines that hold code: no docstrings, comments or blanks."""
    documented = {line for node in ast.walk(ast.parse(source)) for line in docstring(node)}
    tokens = (token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type not in QUIET)
    return len({line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - documented)


def public() -> dict[str, Any]:
    """The functions and classes that the package and its folders offer, by their full names."""
    rooms = [f"hf_taskvec.{room.name}" for room in pkgutil.iter_modules([str(PACKAGE)]) if room.ispkg]
    modules = [hf_taskvec, *map(importlib.import_module, rooms)]
    values = [getattr(module, name) for module in modules for name in getattr(module, "__all__", [])]
    kinds = (inspect.isfunction, inspect.isclass)
    return {f"{value.__module__}.{value.__qualname__}": value for value in values if any(kind(value) for kind in kinds)}


PUBLIC = public()
SHOWN = [
    ".".join(["hf_taskvec", *path.with_suffix("").parts]).removesuffix(".__init__")
    for path, source in SOURCES.items()
    if ">>>" in source
]


def test_no_function_is_longer_than_fifty_lines() -> None:
    functions = ((path, node) for path, text in SOURCES.items() for node in ast.walk(ast.parse(text)))
    long = [
        f"{path}: {node.name} has {length(node)} lines"
        for path, node in functions
        if isinstance(node, FUNCTIONS) and length(node) > 50
    ]
    assert long == []


def test_no_file_is_longer_than_its_bound_and_most_are_short() -> None:
    sizes = {str(path): len(source.splitlines()) for path, source in SOURCES.items()}
    assert {path: size for path, size in sizes.items() if size > MOST_LINES} == {}
    assert median(sizes.values()) <= 150


def test_code_is_counted_without_docstrings_comments_and_blanks() -> None:
    source = (
        '"""Module."""\n\n# comment\nX = (\n    1,\n)\n\n\ndef f():\n    """Text.\n\n    More.\n    """\n    return X\n'
    )
    assert lines_of_code(source) == 5
    assert [length(node) for node in ast.walk(ast.parse(source)) if isinstance(node, FUNCTIONS)] == [2]


def test_the_code_of_the_package_stays_within_its_bound() -> None:
    assert sum(map(lines_of_code, SOURCES.values())) <= MOST_CODE


def test_names_say_what_they_hold() -> None:
    recipes = {path: path.read_text(encoding="utf-8") for path in (PACKAGE.parent / "recipes").rglob("*.py")}
    names = {
        (str(path), node.id if isinstance(node, ast.Name) else node.arg)
        for path, source in {**SOURCES, **recipes}.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Name, ast.arg))
    }
    assert {(path, name) for path, name in names if name in {"part", "found", "res", "tmp"}} == set()


def test_others_see_the_types() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_the_top_of_the_package_holds_what_most_programs_need() -> None:
    nouns = "Base Report Task TaskResult TaskVector TaskVectorConfig TaskVectorTrainer VectorInfo"
    verbs = (
        "choose_epochs choose_scaling choose_weights evaluate get_task get_tasks gradient_vector list_methods "
        "list_vectors load_base merge merge_method push_to_hub verify_equivalence"
    )
    assert sorted(hf_taskvec.__all__) == sorted(f"{nouns} {verbs}".split())  # the rest is in its folder


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_what_is_public_shows_an_example(name: str) -> None:
    value = PUBLIC[name]
    if inspect.isclass(value) and ">>>" not in (inspect.getdoc(value) or ""):
        source = inspect.getsource(value)  # a method shows it, or, of a plain value, the function that makes it
        assert ">>>" in source or hasattr(value, "__dataclass_fields__") or issubclass(value, tuple)
    else:
        assert ">>>" in (inspect.getdoc(value) or "")


@pytest.mark.parametrize("name", SHOWN)
def test_every_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).failed == 0


def test_formatting_is_switched_off_in_a_handful_of_places() -> None:
    root = PACKAGE.parent
    files = [path for folder in ("hf_taskvec", "recipes", "tests") for path in (root / folder).rglob("*.py")]
    marks = {path.name: len(re.findall("# fmt: " + "(?:skip|off)", path.read_text(encoding="utf-8"))) for path in files}
    assert sum(marks.values()) <= MOST_MARKS, {name: count for name, count in marks.items() if count}
