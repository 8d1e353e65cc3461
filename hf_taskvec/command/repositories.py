"""`push`, `pull` and `results`: vectors to the Hub and from it, and what was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from hf_taskvec.command.outcome import Outcome
from hf_taskvec.command.packing import check_replaced as check_packed_replaced
from hf_taskvec.command.packing import open_packed, shown
from hf_taskvec.command.verbs import Verb
from hf_taskvec.fields import arg
from hf_taskvec.text import columns


@dataclass
class PushSettings:
    """What is published, where and how."""

    vector: str = arg("Folder of the vector.")
    repo_id: str = arg("Repository, user/name; it is created if need be. Without a namespace it is your own.")
    report: str | None = arg("Report in JSON, as evaluate saves it, for the card.", default=None)
    checkpoint: bool = arg("Publish base plus vector as a checkpoint instead; needs --scaling.", default=False)
    scaling: float | None = arg("Factor of the vector in the checkpoint.", default=None)
    base: str | None = arg("Hub id or folder of the base of the checkpoint.", default=None)
    private: bool = arg("A new repository is private.", default=False)
    revision: str | None = arg("Branch to commit on; it is created if need be.", default=None)
    create_pr: bool = arg("Open a pull request instead of committing.", default=False)
    message: str | None = arg("Title of the commit.", default=None)
    license: str | None = arg("Licence, by the Hub's name for it, as apache-2.0.", default=None)
    tags: list[str] = arg("Further tags of the card.", default=[])
    base_name: str | None = arg("Hub id of the base, where the vector knows only a folder of it.", default=None)


def push(settings: PushSettings) -> Outcome:
    """Publishes a vector, or the checkpoint that it makes."""
    from hf_taskvec.cards.multitask import push_multi_task
    from hf_taskvec.cards.publish import push_model_to_hub, push_to_hub
    from hf_taskvec.evaluation.report import Report
    from hf_taskvec.vectors.vector import TaskVector

    if settings.checkpoint is (settings.scaling is None):
        raise ValueError("--checkpoint needs --scaling, and --scaling is for a --checkpoint")
    packed = open_packed(settings.vector)
    report = None if settings.report is None else Report.load(settings.report)
    options: dict[str, Any] = {
        "private": settings.private or None,
        "revision": settings.revision,
        "create_pr": settings.create_pr,
        "commit_message": settings.message,
        "licence": settings.license,
        "tags": settings.tags,
        "base_name": settings.base_name,
    }
    if packed is not None:
        if settings.scaling is not None:
            raise ValueError(
                "vectors of several tasks give no one checkpoint; write that of a task by hf-taskvec apply --task"
            )
        url = push_multi_task(packed, settings.repo_id, report=report, **options)
        return Outcome({"url": url, "repo_id": settings.repo_id}, url, [url])
    vector = TaskVector.from_pretrained(settings.vector)
    if settings.scaling is None:
        url = push_to_hub(vector, settings.repo_id, report=report, **options)
    else:
        url = push_model_to_hub(
            vector, settings.repo_id, scaling=settings.scaling, base=settings.base, report=report, **options
        )
    return Outcome({"url": url, "repo_id": settings.repo_id}, url, [url])


@dataclass
class PullSettings:
    """What is fetched, and where it goes."""

    repo_id: str = arg("Repository of the vector, with @revision if wanted.")
    output_dir: str | None = arg("Folder for a copy; the Hub's cache alone if left out.", default=None)
    overwrite: bool = arg("Replace a vector that the output folder holds already.", default=False)


def pull(settings: PullSettings) -> Outcome:
    """Fetches a vector and checks it against the hashes in its configuration."""
    from hf_taskvec.merging.recipes import check_replaced
    from hf_taskvec.merging.sources import open_source

    check_replaced(settings.output_dir, overwrite=settings.overwrite)
    if (packed := open_packed(settings.repo_id)) is not None:
        if settings.output_dir is not None:
            check_packed_replaced(settings.output_dir, overwrite=settings.overwrite)
            packed.save_pretrained(settings.output_dir)
        told = shown(packed, settings.output_dir or "the Hub's cache")
        return replace(told, names=[settings.output_dir or f"{packed.info.repo_id}@{packed.info.repo_commit}"])
    exact, vector = open_source(settings.repo_id)
    if settings.output_dir is not None:
        vector.save_pretrained(settings.output_dir)
    data = {"vector": exact, "label": vector.info.label, "folder": settings.output_dir}
    place = settings.output_dir or "the Hub's cache"
    return Outcome(data, f"{exact} ({vector.info.label}) is in {place}", [settings.output_dir or exact])


@dataclass
class ResultsSettings:
    """Whose results, and which to add."""

    repo_id: str = arg("Repository of a model, with @revision if wanted.")
    report: str | None = arg("Report in JSON whose accuracies to add.", default=None)
    benchmark: str | None = arg("Dataset repository whose eval.yaml names the report's tasks.", default=None)
    source_url: str | None = arg("Where the evaluation is told.", default=None)
    create_pr: bool = arg("Open a pull request, as on somebody else's model.", default=False)


def results(settings: ResultsSettings) -> Outcome:
    """Lists the results in a repository, or adds those of a report."""
    from hf_taskvec.cards.results import list_results, push_results, result_entries
    from hf_taskvec.evaluation.report import Report
    from hf_taskvec.hub.access import split_revision

    if (settings.report is None) is not (settings.benchmark is None):
        raise ValueError("--report and --benchmark go together")
    repo, revision = split_revision(settings.repo_id)
    if settings.report is None:
        entries = list_results(str(repo), revision=revision)
        rows = [asdict(entry) for entry in entries]
        shown = [[row["dataset_id"], row["task_id"], row["value"], row["date"], row["notes"]] for row in rows]
        text = columns(["benchmark", "task", "value", "date", "notes"], shown) if rows else "It holds no results."
        return Outcome(rows, text, [row["value"] for row in rows])
    report = Report.load(settings.report)
    datasets = {result.task: str(settings.benchmark) for result in report.results}
    entries = result_entries(report, datasets, source_url=settings.source_url)
    url = push_results(entries, str(repo), create_pr=settings.create_pr, revision=revision)
    return Outcome({"url": url, "results": len(entries)}, url, [url])


VERBS = [
    Verb(
        "push",
        "Publishes a vector with its card in one commit.",
        PushSettings,
        push,
        [
            "hf-taskvec push out/ties user/ties --report out/report.json --license mit",
            "hf-taskvec push out/ties user/ties-clip --checkpoint --scaling 0.3",
        ],
        positional=["vector", "repo_id"],
        stopped="The repository is as it was, or has the whole commit; the same command pushes again.",
    ),
    Verb(
        "pull",
        "Fetches a vector from the Hub and checks it.",
        PullSettings,
        pull,
        ["hf-taskvec pull user/ties", "hf-taskvec pull user/ties@main -o out/ties"],
        positional=["repo_id"],
        stopped="What was fetched is in the Hub's cache; the same command goes on.",
    ),
    Verb(
        "results",
        "Lists the results in a model's repository, or adds some.\n\n"
        "As the Hub's leaderboards read them: the files .eval_results/*.yaml.",
        ResultsSettings,
        results,
        [
            "hf-taskvec results user/ties-clip",
            "hf-taskvec results somebody/clip --report out/report.json --benchmark user/vision8 --create-pr",
        ],
        positional=["repo_id"],
        stopped="The repository is as it was, or has the whole commit.",
    ),
]
