"""Results as the Hub's leaderboards read them: `.eval_results/*.yaml` of a model, `eval.yaml` of a benchmark.

Formats: https://huggingface.co/docs/hub/eval-results. They stand beside the card's `model-index`, which they replace on
the Hub's pages.
"""

from __future__ import annotations

import datetime
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import yaml
from huggingface_hub import EvalResultEntry, HfApi, constants, eval_result_entries_to_yaml, parse_eval_result_entries

from hf_taskvec.cards.text import clean, code
from hf_taskvec.errors import CheckpointError
from hf_taskvec.evaluation.report import Report
from hf_taskvec.fields import read_yaml_value
from hf_taskvec.hub.access import HubAccess, PushKeywords, PushOptions, is_repo_id
from hf_taskvec.hub.client import COMMIT, LIBRARY, hub_errors, with_retries
from hf_taskvec.hub.fetch import Wanted, fetch_folder
from hf_taskvec.hub.push import push_folder
from hf_taskvec.tasks import Task
from hf_taskvec.text import listed, table
from hf_taskvec.weights.folders import atomic_folder, write_text

FOLDER = ".eval_results"
BENCHMARK_NAME = "eval.yaml"
_ODD = re.compile(r"[^\w.-]+", re.ASCII)
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)


def result_entries(
    report: Report,
    datasets: Mapping[str, str],
    *,
    revisions: Mapping[str, str] | None = None,
    date: str | None = None,
    source_url: str | None = None,
) -> list[EvalResultEntry]:
    """The accuracies of a report in the Hub's terms.

    Args:
        report: The report.
        datasets: Hub id of each task's benchmark: a dataset repository whose `eval.yaml` names the task.
        revisions: Commit of a task's benchmark, where it is known.
        date: The day of the evaluation, as in "2026-11-26"; today if left out.
        source_url: Where the evaluation is told, such as the report in a repository.

    Raises:
        CheckpointError: If a task has no benchmark, or one is no Hub id.

    Example:
        >>> from hf_taskvec import TaskResult
        >>> report = Report("merged", "test", (TaskResult("digits", 0.5, 100),), scaling=0.3)
        >>> (entry,) = result_entries(report, {"digits": "user/mini"}, date="2026-11-26")
        >>> entry.dataset_id, entry.task_id, entry.value, entry.notes
        ('user/mini', 'digits', 0.5, 'accuracy on 100 images of test, scaling 0.3')
    """
    names = [result.task for result in report.results]
    if lacking := [name for name in names if not is_repo_id(datasets.get(name, ""))]:
        raise CheckpointError(
            f"the benchmark of {listed(map(repr, lacking))} is unknown: name a dataset repository (user/name) whose "
            f"{BENCHMARK_NAME} tells the task",
            details=lacking,
        )
    day = date or datetime.datetime.now(datetime.UTC).date().isoformat()
    entries = []
    for result in report.results:
        notes = f"accuracy on {result.num_images} images of {report.split}"
        notes += "" if report.scaling is None else f", scaling {report.scaling:g}"
        notes += ", test images used in the making" if report.transductive else ""
        revision = (revisions or {}).get(result.task, "")
        entries.append(
            EvalResultEntry(
                dataset_id=datasets[result.task],
                task_id=clean(result.task),
                value=round(result.accuracy, 6),
                dataset_revision=revision if COMMIT.fullmatch(revision) else None,
                date=day,
                source_url=source_url,
                source_name=None if source_url is None else LIBRARY,
                notes=notes,
            )
        )
    return entries


def write_results(entries: Sequence[EvalResultEntry], folder: Path) -> list[Path]:
    """Writes results into the folder `.eval_results` of a repository, one file per task.

    Example:
        >>> entry = EvalResultEntry(dataset_id="user/mini", task_id="digits", value=0.5)
        >>> [path.name for path in write_results([entry], Path(tempfile.mkdtemp()))]
        ['digits.yaml']
    """
    paths = []
    for entry in entries:
        name = _ODD.sub("-", entry.task_id).strip("-.")[:80] or "task"
        path = folder / FOLDER / f"{name}.yaml"
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
        write_text(path, text)
        paths.append(path)
    if len(set(paths)) < len(paths):
        raise CheckpointError(f"two tasks have one file name: {listed(sorted(path.name for path in paths))}")
    return paths


def push_results(entries: Sequence[EvalResultEntry], repo_id: str, **options: Unpack[PushKeywords]) -> str:
    """Adds results to a model's repository in one commit; to somebody else's by `create_pr=True`.

    Args:
        entries: The results; see `result_entries`.
        repo_id: The repository, which must exist.
        **options: `create_pr`, `revision`, `token`, `commit_message`; see `PushOptions`.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        CheckpointError: If there is no such repository.
        HubError: If the Hub refuses or fails.

    Example:
        >>> push_results(entries, "somebody/clip", create_pr=True)  # doctest: +SKIP
    """
    if not entries:
        raise ValueError("there are no results to add")
    chosen = PushOptions.of({"commit_message": f"Add results on {listed(e.task_id for e in entries)}", **options})
    with hub_errors(repo_id, "reading"):
        with_retries(lambda: HfApi(token=chosen.token).model_info(repo_id, timeout=constants.HF_HUB_ETAG_TIMEOUT))
    with tempfile.TemporaryDirectory() as temporary:
        write_results(entries, Path(temporary))
        return push_folder(temporary, repo_id, chosen)


def list_results(
    repo_id: str, *, revision: str | None = None, token: str | bool | None = None
) -> list[EvalResultEntry]:
    """The results in a model's repository.

    Args:
        repo_id: The repository.
        revision: Branch, tag, commit or pull request (`refs/pr/1`).
        token: An access token, for a private repository.

    Returns:
        One entry per result, in the order of the files' names; none if it holds no results.

    Raises:
        CheckpointError: If there is no such repository, or a file holds no results.
        NotCachedError, HubError: If the Hub is out of reach or fails.

    Example:
        >>> list_results("user/ties-clip")  # doctest: +SKIP
    """
    with hub_errors(repo_id, "reading"):
        info = with_retries(
            lambda: HfApi(token=token).model_info(repo_id, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        )
    if not any(_is_results(file.rfilename) for file in info.siblings or []):
        return []
    wanted = Wanted(("*.yaml",))
    folder = fetch_folder(repo_id, wanted, revision=revision, subfolder=FOLDER, access=HubAccess(token=token)).path
    return [entry for path in sorted(folder.glob("*.yaml")) for entry in read_results(path)]


def read_results(path: Path) -> list[EvalResultEntry]:
    """The results in one file.

    Raises:
        CheckpointError: If it holds none, or an entry lacks what it needs.

    Example:
        >>> entry = EvalResultEntry(dataset_id="user/mini", task_id="digits", value=0.5)
        >>> (path,) = write_results([entry], Path(tempfile.mkdtemp()))
        >>> read_results(path) == [entry]
        True
    """
    try:
        values = read_yaml_value(path)
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise ValueError("it must be a list of mappings")
        return parse_eval_result_entries([{**value, "value": _number(value["value"])} for value in values])
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name} in {FOLDER} holds no results as the Hub has them: {error}") from None


def _is_results(name: str) -> bool:
    return name.startswith(f"{FOLDER}/") and name.endswith(".yaml") and name.count("/") == 1


def _number(text: Any) -> Any:
    """A number that is written as one; other values, which the format allows, stay text."""
    return float(text) if isinstance(text, str) and _NUMBER.fullmatch(text) else text


def write_benchmark(name: str, tasks: Iterable[Task], folder: Path, *, description: str) -> None:
    """Writes a dataset repository that collects the results of a suite: `eval.yaml` and a card.

    The images stay where they are; the card tells each task's dataset, commit and number of classes.

    Args:
        name: Name of the benchmark.
        tasks: Its tasks.
        folder: A new folder, or one that this function wrote.
        description: What it measures, in a sentence.

    Raises:
        OutputExistsError: If the folder holds something else.

    Example:
        >>> from hf_taskvec import get_tasks
        >>> folder = Path(tempfile.mkdtemp()) / "mini"
        >>> write_benchmark("mini", get_tasks("mini"), folder, description="Four drawn tasks.")
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'eval.yaml']
    """
    tasks = list(tasks)
    values = {
        "name": name,
        "description": description,
        "evaluation_framework": LIBRARY,
        "tasks": [{"id": task.name, "config": task.config or "default", "split": task.test_split} for task in tasks],
    }
    rows = [[code(task.name), code(task.dataset), code(task.revision or ""), len(task.class_names)] for task in tasks]
    header = yaml.safe_dump({"pretty_name": name, "tags": ["benchmark", LIBRARY], "license": "other"}, sort_keys=False)
    card = (
        f"---\n{header}---\n\n# {clean(name)}\n\n{clean(description)}\n\n"
        f"{table(['task', 'dataset', 'commit', 'classes'], rows, align='lllr')}\n\n"
        "Accuracy by a frozen head on the test part of each dataset: zero-shot, with the class names and prompts of "
        "`hf_taskvec`, or of a model without a text tower linear, fitted to its features of the training part. "
        "Results are the files `.eval_results/*.yaml` of models; "
        f"`hf_taskvec.cards.results.push_results` adds them, `{BENCHMARK_NAME}` here names the tasks.\n"
    )
    with atomic_folder(folder, marker=BENCHMARK_NAME) as target:
        write_text(target / BENCHMARK_NAME, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        write_text(target / "README.md", card)
