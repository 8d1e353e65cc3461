"""Work that is done once: read again only if it was made by the same plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_taskvec.errors import OutputExistsError, SettingsDifferError
from hf_taskvec.weights.folders import read_json, write_json
from hf_taskvec.weights.resume import claim_folder, compute_or_read

PLAN = {"learning_rate": 0.1, "tasks": ("a", "b"), "start": None}


def write(path: Path) -> None:
    write_json(path, {"made": str(path.name)})


def refuse(path: Path) -> None:
    raise AssertionError(f"{path} was computed again")


def test_a_result_is_computed_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    first = compute_or_read(path, PLAN, compute=write, read=read_json)
    assert compute_or_read(path, PLAN, compute=refuse, read=read_json) == first == {"made": "result.json"}


def test_a_result_of_another_plan_is_refused_and_every_difference_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    compute_or_read(path, PLAN, compute=write, read=read_json)
    with pytest.raises(
        SettingsDifferError, match=r"learning_rate=0\.1 there, 0\.2 here; seed=unknown there, 3"
    ) as caught:
        compute_or_read(path, {**PLAN, "learning_rate": 0.2, "seed": 3}, compute=refuse, read=read_json)
    assert len(caught.value.differences) == 2


def test_many_differences_make_a_short_message(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    compute_or_read(path, {f"setting_{k}": "x" * 900 for k in range(50)}, compute=write, read=read_json)
    with pytest.raises(SettingsDifferError, match="and 48 more; choose another output folder") as caught:
        compute_or_read(path, {f"setting_{k}": "y" * 900 for k in range(50)}, compute=refuse, read=read_json)
    assert len(str(caught.value)) <= 600
    assert len(caught.value.differences) == 50


def test_a_result_without_a_plan_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "result.json")
    with pytest.raises(OutputExistsError, match=r"no result\.json\.plan\.json"):
        compute_or_read(tmp_path / "result.json", PLAN, compute=refuse, read=read_json)


def test_work_that_failed_is_done_again_by_any_plan(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(AssertionError):
        compute_or_read(path, PLAN, compute=refuse, read=read_json)
    assert compute_or_read(path, {"learning_rate": 0.2}, compute=write, read=read_json) == {"made": "result.json"}
    with pytest.raises(SettingsDifferError):
        compute_or_read(path, PLAN, compute=refuse, read=read_json)


def test_a_folder_is_claimed_by_one_plan(tmp_path: Path) -> None:
    for _ in range(2):
        claim_folder(tmp_path / "run", PLAN, name="plan.json")
    with pytest.raises(SettingsDifferError, match="start=None there, x here"):
        claim_folder(tmp_path / "run", {**PLAN, "start": "x"}, name="plan.json")
    write(tmp_path / "thesis.json")
    with pytest.raises(OutputExistsError, match="something else"):
        claim_folder(tmp_path, PLAN, name="plan.json")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["run", "thesis.json"]
