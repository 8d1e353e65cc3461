"""The benchmark of mutants: what counts as caught, and what a person found out about the others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mutants
import mutants_again
import mutants_report
import pytest
from mutants_again import look_again, mutated
from mutants_report import Outcome, Sample, read_reasons, report

from hf_taskvec.errors import ArgumentsError
from hf_taskvec.weights.folders import read_json

ROOT = Path(__file__).parents[1]
DIFF = (
    "--- mutation diff ---\n--- a/m.py\n+++ b/m.py\n@@ -1,3 +1,3 @@\n def f(x):\n-    return x + 1\n+    return x - 1\n"
)
FAILED = "F\n=== short test summary info ===\nFAILED tests/test_m.py::test_f[a] - assert 1\n!!! stopping\n"
LATE = FAILED.replace("assert 1", "Failed: Timeout (>180.0s) from pytest-timeout.")


def result(outcome: str, output: str) -> Any:
    return SimpleNamespace(test_outcome=outcome, output=output, diff=DIFF)


def item(job: str, line: int) -> Any:
    mutation = SimpleNamespace(module_path="m.py", operator_name="op", start_pos=(line, 4))
    return SimpleNamespace(job_id=job, mutations=[mutation])


@pytest.mark.parametrize(
    ("outcome", "output", "caught_by", "is_caught"),
    [
        ("killed", FAILED, "tests/test_m.py::test_f[a]", True),
        ("killed", "ImportError: no x\n", "the import", True),
        ("killed", LATE, "tests/test_m.py::test_f[a]", False),
        ("killed", "timeout", "the import", False),
        ("survived", "3 passed", "", False),
    ],
)
def test_a_failed_test_catches_and_a_time_limit_does_not(
    outcome: str, output: str, caught_by: str, is_caught: bool
) -> None:
    made = Outcome.of(result(outcome, output))
    assert (made.caught_by, made.is_caught) == (caught_by, is_caught)
    assert (made.removed, made.added) == ("return x + 1", "return x - 1")


def test_a_mutant_that_could_not_be_run_is_no_catch() -> None:
    with pytest.raises(ArgumentsError, match="could not be run"):
        Outcome.of(result("incompetent", "Traceback"))


def test_the_table_counts_what_is_caught_at_first_and_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.py").write_text("def f(x):\n    return x + 1\n")
    caught, alive, late = (Outcome.of(result(*one)) for one in (("killed", FAILED), ("survived", ""), ("killed", LATE)))
    first = [(item("a", 1), caught), (item("b", 2), alive), (item("c", 3), late), (item("d", 4), alive)]
    facts = {"commit": "c" * 40, "seed": 0, "pool": 9, "drawn": 4, "again": "d" * 40}

    def told(kind: str) -> str:
        reasons = {("m.py", "op", "return x + 1", "return x - 1"): mutants_report.Reason(kind, "x")}
        monkeypatch.setattr(mutants_report, "read_reasons", lambda: reasons)
        again = {"b": "tests/test_m.py::test_g", "d": ""} if kind == "test" else {}
        return report(Sample(first, again, {"m.py": "storage"}, facts, tmp_path, "pytest 9"))

    assert "| storage | 4 | 1 | 1 | 1 | 3 | 3 |" in told("equivalent")
    assert "| **all** | 4 | 1 (25.0%) | 1 | 1 (25.0%) | 3 | 3 |" in told("equivalent")
    assert "| storage | 4 | 2 | 1 | 2 | 2 | 0 |" in told("endless")
    assert "| storage | 4 | 1 | 1 | 2 | 2 | 0 |" in told("test")
    assert "| `m.py:2` | `return x + 1` → `return x - 1` | left alone because x |" in told("left")
    assert "| `m.py:2` | `return x + 1` → `return x - 1` | caught by `tests/test_m.py::test_g` |" in told("test")
    assert "| `m.py:4` | `return x + 1` → `return x - 1` | survives; test added: x |" in told("test")
    assert "lines are gone" not in told("left")
    (tmp_path / "m.py").write_text("def f(x):\n    return x + 2\n")
    assert "whose lines are gone: `m.py`: `return x + 1`." in told("left")


def test_a_line_is_known_with_its_statement_its_function_and_the_whole() -> None:
    source = "def f(\n    x=1,\n):\n    if (\n        x\n    ):\n        return [\n            1,\n        ]\nY = 2\n"
    lines = {line: mutants.around(source, line)[:2] for line in (2, 5, 8, 10)}
    function = range(4, 10)
    assert lines == {
        2: [range(1, 4), function],
        5: [range(4, 7), function],
        8: [range(7, 10), function],
        10: [range(10, 11), range(0)],
    }
    assert 1 in mutants.around(source, 10)[2]


def test_a_mutant_is_made_again_at_the_nearest_place_of_its_lines() -> None:
    source = "def f(x):\n    return x + 1\n\ndef g(x):\n        return x + 1\n"
    assert mutated(source, 2, "return x + 1", "return x - 1") == source.replace("+", "-", 1)
    again = mutated(source, 9, "return x + 1", "y = x\nreturn y")
    assert again == "def f(x):\n    return x + 1\n\ndef g(x):\n        y = x\n        return y\n"
    assert mutated(source, 2, "return x + 2", "return x") is None


def test_survivors_with_a_test_are_made_again_and_the_sources_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.py").write_text("def f(x):\n    return x + 1\n")
    reasons = {("m.py", "op", "return x + 1", "return x - 1"): mutants_report.Reason("test", "tests/t.py::test_f")}
    monkeypatch.setattr(mutants_again, "read_reasons", lambda: reasons)
    alive = Outcome.of(result("survived", ""))

    def fails(copy: Path, test: str) -> bool:
        assert test == "tests/t.py::test_f"
        return "x - 1" in (copy / "m.py").read_text()

    monkeypatch.setattr(mutants_again, "fails", fails)
    look_again(tmp_path, tmp_path / "again.json", [(item("b", 2), alive)], "c" * 40)
    assert read_json(tmp_path / "again.json") == {"commit": "c" * 40, "results": {"b": "tests/t.py::test_f"}}
    assert "x + 1" in (tmp_path / "m.py").read_text()


def test_tests_that_reasons_name_are_there() -> None:
    for reason in read_reasons().values():
        if reason.kind == "test":
            file, _, name = reason.text.strip("`").partition("::")
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
