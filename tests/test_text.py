"""Messages: bounded, harmless to a terminal, with everything that was left out in an attribute; and Markdown tables."""

from __future__ import annotations

import pytest
import torch

from hf_taskvec import TaskVector
from hf_taskvec.errors import (
    CheckpointError,
    HubError,
    IncompatibleVectorsError,
    NotCachedError,
    OutputExistsError,
    TaskVecError,
    UnknownNameError,
)
from hf_taskvec.text import listed, printable, table, table_row
from hf_taskvec.vectors.application import check_fits
from hf_taskvec.vectors.compatibility import check_compatible


def many(prefix: str) -> TaskVector:
    return TaskVector({f"{prefix}.layers.{index}.weight": torch.zeros(2) for index in range(200)})


@pytest.mark.parametrize("kind", [CheckpointError, NotCachedError, HubError, OutputExistsError])
def test_a_message_is_bounded_keeps_its_remedy_and_the_rest_in_an_attribute(kind: type[TaskVecError]) -> None:
    error = kind("bad: " + "x" * 5000 + " the remedy")
    assert len(str(error)) <= 600
    assert str(error).startswith("bad: x")
    assert str(error).endswith("the remedy")
    assert len(error.details[0]) > 5000


@pytest.mark.parametrize("kind", [CheckpointError, NotCachedError, HubError, OutputExistsError])
def test_a_message_drives_no_terminal(kind: type[TaskVecError]) -> None:
    assert str(kind("tensor \x1b[2J\x07\u202e of\nthis file")) == "tensor [2J of this file"


def test_a_short_message_is_as_it_was() -> None:
    error = CheckpointError("no such file")
    assert str(error) == "no such file"
    assert error.details == ()


def test_differences_of_two_hundred_names_fit_a_message_and_are_all_in_the_error() -> None:
    with pytest.raises(IncompatibleVectorsError, match=r"'a\.layers\.0\.weight' is in vector 0 .* 39\d more") as info:
        check_compatible([many("a"), many("b")])
    assert len(str(info.value)) <= 600
    assert len(info.value.details) == 400
    with pytest.raises(IncompatibleVectorsError, match="more") as info:
        TaskVector.from_weights(many("a").deltas, many("b").deltas)
    assert len(str(info.value)) <= 600
    assert len(info.value.details) == 400
    with pytest.raises(IncompatibleVectorsError, match="more") as info:
        check_fits(many("a"), many("b").deltas, allow_other_base=False, where="this model")
    assert len(info.value.details) == 200


def test_an_unknown_name_among_thousands_is_bounded_and_still_hinted() -> None:
    known = [f"parameter {index}" for index in range(5000)]
    error = UnknownNameError("parameter", "parametr 4321", known)
    assert "Did you mean 'parameter 4321'" in str(error)
    assert len(str(error)) <= 600
    assert len(error.details) == 5000
    assert len(str(UnknownNameError("task", "x" * 10_000, ["digits"]))) <= 600


def test_a_list_is_cut_between_names_and_says_how_many_more() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([]) == ""
    assert listed(["aaaa", "bbbb", "cccc"], room=10) == "aaaa, bbbb and 1 more"
    assert len(listed(["x" * 1000, "y"], room=50)) < 70


def test_printable_keeps_letters_of_every_script() -> None:
    assert printable("Größe 大\u00a0é") == "Größe 大 é"


def test_a_table_escapes_what_would_break_it() -> None:
    text = table(["task", "a|b", "note"], [["x|y\nz", 1, "\x1b[31mred"]], align="lrl")
    assert text.splitlines() == ["| task | a\\|b | note |", "| --- | ---: | --- |", "| x\\|y z | 1 | [31mred |"]
    assert table_row([r"already \| escaped"]) == r"| already \| escaped |"


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="3 columns cannot have a row of 2"):
        table(["a", "b", "c"], [[1, 2]])
    with pytest.raises(ValueError, match="2 columns cannot have a row of 3"):
        table(["a", "b"], [], align="lll")
