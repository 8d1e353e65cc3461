"""The registry of merge methods: what it refuses, and how methods of other packages arrive."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from hf_taskvec import TaskVector, list_methods, merge, merge_method
from hf_taskvec.merging import METHODS, get_method
from hf_taskvec.merging.plugins import GROUP
from hf_taskvec.merging.registry import RESERVED


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Leaves the registry as it was."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def pair() -> list[TaskVector]:
    return [TaskVector({"w": torch.tensor([1.0, 2.0])}), TaskVector({"w": torch.tensor([3.0, -2.0])})]


def first(vectors: Sequence[TaskVector]) -> TaskVector:
    """The first vector."""
    return vectors[0]


def test_a_name_that_is_taken_is_refused_and_its_method_stays() -> None:
    before = METHODS["ties"]
    with pytest.raises(ValueError, match=r"there is a merge method 'ties' already, of hf_taskvec\.merging\.sparse"):
        merge_method("ties", paper="none")(first)
    assert METHODS["ties"] is before
    merge_method("mine", paper="none")(first)
    with pytest.raises(ValueError, match="'mine' already"):
        merge_method("mine", paper="none")(first)


def test_every_argument_of_merge_is_refused_as_a_setting() -> None:
    arguments = {p.name for p in inspect.signature(merge).parameters.values() if p.kind is not p.VAR_KEYWORD}
    assert arguments == RESERVED
    for name in sorted(arguments - {"vectors"}):
        scope: dict[str, Callable[..., TaskVector]] = {}
        exec(f"def clash(vectors, *, {name}=None): return vectors[0]", scope)
        with pytest.raises(ValueError, match=rf"'{name}'.*name of an argument of merge\(\)"):
            merge_method("clash", paper="none")(scope["clash"])
    assert "clash" not in METHODS


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(): ...", "first argument"),
        ("def f(*, density=0.1): ...", "first argument"),
        ("def f(*vectors): ...", "first argument"),
        ("def f(vectors, **settings): ...", "'settings'.*keyword-only"),
        ("def f(vectors, *more): ...", "'more'.*keyword-only"),
        ("def f(vectors, density=0.1): ...", "'density'.*keyword-only"),
        ("def f(vectors, *, density): ...", "'density'.*default"),
    ],
)
def test_a_function_whose_settings_would_get_lost_is_refused(source: str, message: str) -> None:
    scope: dict[str, Callable[..., TaskVector]] = {}
    exec(source, scope)
    with pytest.raises(ValueError, match=message):
        merge_method("odd", paper="none")(scope["f"])
    assert "odd" not in METHODS


@pytest.mark.parametrize("name", ["", "two words", "-x", "a/b", None])
def test_a_name_that_is_no_word_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name has letters"):
        merge_method(name, paper="none")(first)


def test_numbers_of_vectors_that_fit_nothing_are_refused() -> None:
    for limits in ({"min_vectors": 0}, {"min_vectors": 3, "max_vectors": 2}):
        with pytest.raises(ValueError, match="min_vectors"):
            merge_method("none_fits", paper="none", **limits)(first)


def distribution(folder: Path, name: str, source: str) -> None:
    """A package as pip would have installed it, with an entry point for its module."""
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {name}\n")


GOOD = """
from hf_taskvec import merge_method
from hf_taskvec.merging.engine import map_sum

@merge_method("third_party", paper="none")
def third_party(vectors, *, factor: float = 2.0):
    '''Scales the first vector.'''
    return map_sum(lambda name: [factor] + [0.0] * (len(vectors) - 1), vectors)
"""


def test_a_package_adds_a_method_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "plugin_good", GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    merged = merge(pair(), "third_party", factor=3.0)
    assert merged.deltas["w"].tolist() == [3.0, 6.0]
    assert merged.info.settings["factor"] == 3.0
    assert "third_party" in [method.name for method in list_methods()]


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("plugin_syntax", "def", "SyntaxError"),
        ("plugin_import", GOOD + "\nimport no_such_package", "no_such_package"),
        ("plugin_error", GOOD + "\nraise KeyError('odd')", "KeyError: 'odd'"),
        ("plugin_clash", GOOD.replace('"third_party"', '"ties"'), "'ties' already"),
        ("plugin_empty", "", "registers no merge method"),
    ],
)
def test_a_broken_package_is_named_and_left_out(
    name: str,
    source: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    distribution(tmp_path, name, source)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(METHODS)
    with caplog.at_level(logging.WARNING):
        assert get_method("ties") is before["ties"]
        assert [method.name for method in list_methods()] == sorted(before)
        list_methods()
    assert before == METHODS
    assert len(caplog.records) == 1  # said once
    assert name in caplog.text
    assert reason in caplog.text


def test_a_new_file_in_the_folder_is_enough(tmp_path: Path) -> None:
    package = Path(__file__).parents[1] / "hf_taskvec"
    for source in package.rglob("*.py*"):
        if source.suffix not in (".py", ".pyi"):
            continue
        copy = tmp_path / source.relative_to(package.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    (tmp_path / "hf_taskvec" / "merging" / "family.py").write_text(GOOD)
    script = "from hf_taskvec.merging import METHODS; assert 'third_party' in METHODS"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=environment)
