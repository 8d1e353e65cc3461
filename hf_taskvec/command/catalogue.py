"""`methods`, `tasks` and `list`: what there is, in the package and on the Hub."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from hf_taskvec.command.outcome import Outcome, facts
from hf_taskvec.command.verbs import Verb
from hf_taskvec.fields import arg
from hf_taskvec.text import columns, listed


@dataclass
class MethodsSettings:
    """Which methods."""

    name: str | None = arg("One method, to read all about it.", default=None)


def methods(settings: MethodsSettings) -> Outcome:
    """Lists merge methods, or explains one."""
    from hf_taskvec.merging import get_method, list_methods

    chosen = list_methods() if settings.name is None else [get_method(settings.name)]
    rows = [
        {
            "method": one.name,
            "paper": one.paper,
            "settings": one.defaults,
            "statistics": list(one.statistics),
            "what it does": one.summary,
        }
        for one in chosen
    ]
    if settings.name is None:
        told = [[_told(value) for value in row.values()] for row in rows]
        return Outcome(rows, columns(list(rows[0]), told), [row["method"] for row in rows])
    (row,) = rows
    explained = inspect.getdoc(chosen[0].merge) or ""
    text = facts({name: _told(value) for name, value in row.items() if name != "what it does"})
    return Outcome({**row, "documentation": explained}, f"{text}\n\n{explained}", [row["method"]])


def _told(value: Any) -> str:
    """Settings with their defaults, kinds of statistics, or a word."""
    if isinstance(value, dict):
        return ", ".join(f"{name}={default!r}" for name, default in value.items()) or "-"
    return (", ".join(value) or "-") if isinstance(value, list) else str(value)


@dataclass
class TasksSettings:
    """Which tasks."""

    name: str | None = arg("One task or suite, to read all about it.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)


def tasks(settings: TasksSettings) -> Outcome:
    """Lists registered tasks and suites, or shows one."""
    from hf_taskvec.tasks import TASKS
    from hf_taskvec.tasks.registry import SUITES, get_tasks

    names = [settings.name] if settings.name is not None else list(TASKS)
    chosen = get_tasks(names, data_dir=settings.data_dir)
    rows: list[dict[str, Any]] = [
        {
            "task": task.name,
            "classes": len(task.class_names),
            "dataset": task.dataset,
            "suites": [suite for suite, members in SUITES.items() if task.name in members],
        }
        for task in chosen
    ]
    if len(chosen) == 1 and settings.name is not None:
        task = chosen[0]
        values = {spec.name: getattr(task, spec.name) for spec in fields(task)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        data = {name: value for name, value in plain.items() if isinstance(value, str | int | float | list)}
        told = {name: listed(value) if isinstance(value, list) else value for name, value in data.items()}
        return Outcome({**data, "suites": rows[0]["suites"]}, facts(told), [task.name])
    told_rows = [[row["task"], row["classes"], row["dataset"], ", ".join(row["suites"])] for row in rows]
    return Outcome(rows, columns(list(rows[0]), told_rows), [row["task"] for row in rows])


@dataclass
class ListSettings:
    """Which vectors on the Hub."""

    base: str | None = arg("Only vectors of this base, by its Hub id.", default=None)
    task: str | None = arg("Only vectors of this task, alone or merged with others.", default=None)
    author: str | None = arg("Only those of this user or organisation.", default=None)
    kind: Literal["any", "vector", "multi-task"] = arg(
        "Single vectors, or those of several tasks as `hf-taskvec pack` makes them.", default="any"
    )


def list_published(settings: ListSettings) -> Outcome:
    """Lists the task vectors on the Hub."""
    from hf_taskvec.cards.find import list_vectors

    vectors = list_vectors(base_model=settings.base, task=settings.task, author=settings.author, kind=settings.kind)
    rows = [asdict(vector) for vector in vectors]
    told = [[one.repo_id, one.kind, one.base, listed(one.tasks), (one.commit or "")[:8]] for one in vectors]
    text = columns(["repository", "kind", "base", "tasks", "commit"], told) if told else "No task vector was found."
    return Outcome([{**row, "tasks": list(row["tasks"])} for row in rows], text, [row["repo_id"] for row in rows])


VERBS = [
    Verb(
        "methods",
        "Lists the merge methods, or explains one.",
        MethodsSettings,
        methods,
        ["hf-taskvec methods", "hf-taskvec methods ties"],
        positional=["name"],
    ),
    Verb(
        "tasks",
        "Lists the registered tasks, or shows a task or suite.",
        TasksSettings,
        tasks,
        ["hf-taskvec tasks", "hf-taskvec tasks vision8", "hf-taskvec tasks eurosat --json"],
        positional=["name"],
    ),
    Verb(
        "list",
        "Lists the task vectors on the Hub.",
        ListSettings,
        list_published,
        ["hf-taskvec list --task mnist", "hf-taskvec list --base openai/clip-vit-base-patch32 --quiet"],
    ),
]
