"""The tasks that a caller means: one or many, by value or by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hf_taskvec.errors import DataError
from hf_taskvec.tasks import as_tasks, get_task


def test_tasks_may_be_given_one_by_one_or_by_name() -> None:
    digits = get_task("digits")
    assert as_tasks(digits) == as_tasks("digits") == as_tasks([digits]) == as_tasks(iter(["digits"])) == [digits]
    assert [task.name for task in as_tasks([get_task("counts"), "digits"])] == ["counts", "digits"]
    assert [task.name for task in as_tasks("mini")] == ["digits", "shapes", "patterns", "counts"]
    assert as_tasks([]) == []


def test_two_tasks_of_one_name_are_refused_with_both_datasets() -> None:
    other = replace(get_task("counts"), name="digits")
    with pytest.raises(DataError, match=r"'digits' comes twice, on builtin:digits and on builtin:counts.*name="):
        as_tasks([get_task("digits"), other])


@pytest.mark.parametrize("tasks", [3, None, {"digits": 1}, [3], [Path("digits")]])
def test_what_is_no_task_is_refused_in_a_sentence(tasks: Any) -> None:
    with pytest.raises(TypeError, match="tasks must"):
        as_tasks(tasks)
