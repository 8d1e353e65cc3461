"""The house: imports go downwards only, whether at the top of a file, inside a function or under `TYPE_CHECKING`."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_taskvec"
FLOORS = [
    "text",
    "errors",
    "fields",
    "arguments",
    "weights",
    "hub",
    "tasks",
    "models",
    "vectors",
    "statistics",
    "merging",
    "evaluation",
    "tuning",
    "multitask",
    "routing",
    "cards",
    "training",
    "theory",
    "editing",
    "doctor",
    "studio",
    "command",
]

Graph = Mapping[str, set[str]]


def imports_of(source: str, modules: Iterable[str]) -> set[str]:
    """The modules of the package that a source imports, wherever the import stands."""
    known, imported = set(modules), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            imported |= {name} - {""}
    return imported


def graph_of(sources: Mapping[str, str]) -> Graph:
    return {module: imports_of(source, sources) for module, source in sources.items()}


def package() -> Graph:
    sources = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        sources[module.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return graph_of(sources)


def circle(graph: Graph) -> list[str]:
    """The modules of a circle; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def steps_up(graph: Graph) -> list[str]:
    """Every import of a room on a higher floor."""

    def floor(module: str) -> int:
        return FLOORS.index(module.split(".")[1])

    rooms = {module: {name for name in names if "." in name} for module, names in graph.items() if "." in module}
    return [f"{a} imports {b}" for a, names in rooms.items() for b in sorted(names) if floor(b) > floor(a)]


def test_there_is_no_circle() -> None:
    assert circle(package()) == []


def test_no_import_goes_up() -> None:
    assert steps_up(package()) == []


def test_every_room_has_a_floor() -> None:
    rooms = {module.split(".")[1] for module in package() if "." in module}
    assert rooms == set(FLOORS)


@pytest.mark.parametrize(
    "planted",
    [
        "from hf_taskvec.b import x",
        "def f():\n    from hf_taskvec.b import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import hf_taskvec.b",
    ],
)
def test_a_planted_circle_is_found(planted: str) -> None:
    graph = graph_of({"hf_taskvec.a": planted, "hf_taskvec.b": "from hf_taskvec import a"})
    assert set(circle(graph)) == {"hf_taskvec.a", "hf_taskvec.b"}


def test_a_planted_step_up_is_found() -> None:
    source = "def f():\n    from hf_taskvec.training.run import train_vector"
    graph = graph_of({"hf_taskvec.vectors.vector": source, "hf_taskvec.training.run": ""})
    assert steps_up(graph) == ["hf_taskvec.vectors.vector imports hf_taskvec.training.run"]


def test_no_function_of_the_vectors_imports_anything() -> None:
    offenders = []
    for path in sorted((PACKAGE / "vectors").glob("*.py")):
        functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
        inside = [node for function in functions for node in ast.walk(function)]
        offenders += [path.name for node in inside if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert offenders == []
