"""The YAML block of a card, by the Hub's rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hf_taskvec.cards.text import clean
from hf_taskvec.evaluation.report import Report
from hf_taskvec.hub.access import is_repo_id
from hf_taskvec.hub.client import LIBRARY
from hf_taskvec.vectors.info import VectorInfo

_TAG = re.compile(r"[\w.-]{1,80}", re.ASCII)
_TRANSFORMERS: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "zero-shot-image-classification"}


def vector_metadata(info: VectorInfo, report: Report | None, *, repo_id: str) -> str:
    """The metadata of a task vector's card."""
    tags = ["task-vector", "task-arithmetic", "model-merging"]
    tags += [name for name in (info.method or "", info.kind) if _TAG.fullmatch(name)]
    tag = (
        task_tag if info.scaling > 0 else "forgets:{}".format
    )  # who looks for a task's vectors wants none that undoes it
    tags += [tag(name) for name in task_names(info) if _TAG.fullmatch(name)]
    tags += ["transductive"] if info.transductive else []
    return _yaml(info, report, repo_id=repo_id, tags=tags, library_name=LIBRARY)


def multi_task_metadata(info: VectorInfo, report: Report | None, *, repo_id: str) -> str:
    """The metadata of the card of several tasks' vectors as one artefact, which is no task vector."""
    tags = ["multi-task-vector", "task-arithmetic", "model-merging"]
    tags += [name for name in (info.method or "",) if _TAG.fullmatch(name)]
    tags += [task_tag(name) for name in task_names(info) if _TAG.fullmatch(name)]
    return _yaml(info, report, repo_id=repo_id, tags=tags, library_name=LIBRARY)


def model_metadata(info: VectorInfo, report: Report | None, *, repo_id: str) -> str:
    """The metadata of the card of a checkpoint that a vector was added to."""
    tags = ["task-arithmetic", "model-merging"]
    tags += [info.method] if info.method and _TAG.fullmatch(info.method) else []
    entries = _TRANSFORMERS if info.architecture is None else {"library_name": "transformers"}
    return _yaml(info, report, repo_id=repo_id, tags=tags, **entries)


def base_metadata(config: dict[str, Any], report: Report | None, *, repo_id: str) -> str:
    """The metadata of the card of a base."""
    data = ModelCardData(
        license=config["license"],
        **_TRANSFORMERS,
        tags=["clip", "task-arithmetic"],
        model_name=repo_id.split("/")[-1],
        eval_results=list(_results(report, VectorInfo())) or None,
    )
    return data.to_yaml()


def task_tag(task: str) -> str:
    """The tag by which a task's vectors are found on the Hub."""
    return f"task:{task}"


def task_names(info: VectorInfo) -> list[str]:
    """The tasks of a vector: its own, or those of the vectors it was merged from."""
    return list(dict.fromkeys(one.task for one in info.lineage() if one.task))


def _yaml(info: VectorInfo, report: Report | None, *, repo_id: str, tags: list[str], **entries: Any) -> str:
    datasets = list(dict.fromkeys(name for name in _datasets(info).values() if is_repo_id(name)))
    if info.base and is_repo_id(info.base):
        relation = "merge" if info.kind == "merged" else "finetune"
        entries |= {"base_model": info.base, "base_model_relation": relation}
    return ModelCardData(
        **entries,
        license=info.license,
        datasets=datasets or None,
        language=_languages(info),
        tags=list(dict.fromkeys([*tags, *map(clean, info.tags)])),
        model_name=repo_id.split("/")[-1],
        eval_results=list(_results(report, info)) or None,
    ).to_yaml()


def _languages(info: VectorInfo) -> str | list[str] | None:
    names = [clean(name) for name in info.language]
    return names[0] if len(names) == 1 else names or None


def _datasets(info: VectorInfo) -> dict[str, str]:
    """The dataset of each task of the vector, where it is known."""
    return {one.task: one.dataset for one in info.lineage() if one.task and one.dataset}


def _results(report: Report | None, info: VectorInfo) -> Iterator[EvalResult]:
    """One result per task, in the Hub's terms."""
    datasets = _datasets(info)
    for result in report.results if report else ():
        dataset = datasets.get(result.task, result.task)
        if not is_repo_id(dataset):
            dataset = re.sub(r"[^\w.-]+", "-", result.task, flags=re.ASCII).strip("-.")[:96] or "task"
        yield EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=clean(result.task),
            dataset_split=(report and clean(report.split)) or None,
            metric_type="accuracy",
            metric_name="accuracy",
            metric_value=round(result.accuracy, 6),
        )
