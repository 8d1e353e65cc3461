"""Results as the Hub's leaderboards read them: written, pushed, listed, and a benchmark's own repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResultEntry, HfApi, parse_eval_result_entries
from huggingface_hub.errors import RepositoryNotFoundError
from typer.testing import CliRunner

from hf_taskvec import Report, TaskResult, get_tasks
from hf_taskvec.cards.results import (
    list_results,
    push_results,
    read_results,
    result_entries,
    write_benchmark,
    write_results,
)
from hf_taskvec.command.app import app
from hf_taskvec.errors import CheckpointError, OutputExistsError
from tests.hub_server import HubServer

REPORT = Report("merged", "test", (TaskResult("digits", 0.5, 100), TaskResult("my shapes", 0.25, 40)), scaling=0.3)
SUITE = dict.fromkeys(("digits", "my shapes"), "user/suite")
COMMIT = "0123456789abcdef" * 2 + "01234567"
ENTRIES = result_entries(REPORT, SUITE, revisions={"digits": COMMIT}, date="2026-11-26", source_url="https://a.b/c")


@pytest.fixture(autouse=True)
def logged_in(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A user with an empty model repository."""
    monkeypatch.setenv("HF_TOKEN", "write-user")
    HfApi().create_repo("user/model")
    return hub


def test_a_file_per_task_is_what_the_client_of_the_hub_reads(tmp_path: Path) -> None:
    paths = write_results(ENTRIES, tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        ".eval_results/digits.yaml",
        ".eval_results/my-shapes.yaml",
    ]
    (digits,) = yaml.safe_load(paths[0].read_text())
    assert digits == {
        "dataset": {"id": "user/suite", "task_id": "digits", "revision": COMMIT},
        "value": 0.5,
        "date": "2026-11-26",
        "source": {"url": "https://a.b/c", "name": "hf-taskvec"},
        "notes": "accuracy on 100 images of test, scaling 0.3",
    }
    assert parse_eval_result_entries([digits]) == [ENTRIES[0]] == read_results(paths[0])


def test_a_task_without_a_benchmark_is_named() -> None:
    with pytest.raises(CheckpointError, match="the benchmark of 'my shapes' is unknown"):
        result_entries(REPORT, {"digits": "user/suite", "my shapes": "shapes"})


def test_test_images_in_the_making_are_told() -> None:
    report = Report("merged", "test", (TaskResult("digits", 0.5, 100),), transductive=True)
    (entry,) = result_entries(report, SUITE)
    assert entry.notes is not None
    assert entry.notes.endswith("test images used in the making")


def test_results_that_were_pushed_are_listed(hub: HubServer) -> None:
    assert list_results("user/model") == []
    push_results(ENTRIES, "user/model")
    assert list_results("user/model") == ENTRIES
    assert len(hub.store.get("model", "user/model").commits) == 2


def test_results_on_somebody_elses_model_are_a_pull_request(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "write-other")
    assert "/discussions/1" in push_results(ENTRIES, "user/model", create_pr=True)
    assert list_results("user/model") == []
    assert list_results("user/model", revision="refs/pr/1") == ENTRIES


def test_results_make_no_repository(hub: HubServer) -> None:
    with pytest.raises(CheckpointError, match="user/nothing"):
        push_results(ENTRIES, "user/nothing")
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("user/nothing")


@pytest.mark.parametrize(
    "text", ["a: 1", "- 1", "- dataset: {id: a}", "- value: 1", "- &a [*a]", "[", "- dataset: 3\n  value: 1"]
)
def test_a_file_that_holds_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"odd\.yaml"):
        read_results(tmp_path / "odd.yaml")


def test_two_tasks_of_one_file_name_are_refused(tmp_path: Path) -> None:
    entries = [EvalResultEntry(dataset_id="user/suite", task_id=name, value=1.0) for name in ("a b", "a-b")]
    with pytest.raises(CheckpointError, match=r"a-b\.yaml"):
        write_results(entries, tmp_path)


def test_a_benchmark_names_every_task_of_its_suite(tmp_path: Path) -> None:
    tasks = get_tasks("vision8")
    write_benchmark("vision8", tasks, tmp_path / "suite", description="Eight tasks.")
    values = yaml.safe_load((tmp_path / "suite" / "eval.yaml").read_text())
    assert values["evaluation_framework"] == "hf-taskvec"
    assert [entry["id"] for entry in values["tasks"]] == [task.name for task in tasks]
    assert values["tasks"][0]["split"] == tasks[0].test_split
    assert all(task.dataset in (tmp_path / "suite" / "README.md").read_text() for task in tasks)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(OutputExistsError):
        write_benchmark("vision8", tasks, tmp_path / "thesis", description="Eight tasks.")


def test_the_command_adds_a_reports_results_and_lists_them(tmp_path: Path) -> None:
    REPORT.save(tmp_path / "report.json")
    argv = ["results", "user/model", "--report", str(tmp_path / "report.json"), "--benchmark", "user/suite", "--json"]
    pushed = CliRunner().invoke(app, argv)
    assert pushed.exit_code == 0, pushed.output
    assert json.loads(pushed.stdout)["results"] == 2
    listed = CliRunner().invoke(app, ["results", "user/model", "-q"])
    assert listed.stdout.split() == ["0.5", "0.25"]
    assert CliRunner().invoke(app, argv[:4]).exit_code == 1
