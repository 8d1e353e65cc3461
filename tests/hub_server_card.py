"""The Hub's rules for the metadata of a model card, as its `validate-yaml` endpoint applies them."""

from __future__ import annotations

import re
from typing import Any

import yaml

LICENSES = {
    "apache-2.0",
    "mit",
    "openrail",
    "bigscience-openrail-m",
    "creativeml-openrail-m",
    "bsd",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "gpl",
    "gpl-3.0",
    "lgpl",
    "lgpl-3.0",
    "agpl-3.0",
    "mpl-2.0",
    "unlicense",
    "unknown",
    "other",
}
RELATIONS = {"finetune", "merge", "adapter", "quantized"}
PIPELINES = {"zero-shot-image-classification", "image-classification", "image-feature-extraction"}
REPO_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
STRINGS = ("tags", "datasets", "base_model", "license", "library_name", "pipeline_tag", "base_model_relation")


def card_errors(content: str) -> list[str]:
    """What the Hub would refuse in a README, in words; an empty list if nothing."""
    if not content.startswith("---\n"):
        return []
    head, separator, _ = content[4:].partition("\n---\n")
    if not separator:
        return ["the metadata block is not closed"]
    try:
        data = yaml.safe_load(head)
    except (yaml.YAMLError, RecursionError) as error:
        return [f"the metadata is no valid YAML: {error}"]
    if not isinstance(data, dict):
        return ["the metadata must be a mapping"]
    errors = [f'"{key}" must be a string or a list of strings' for key in STRINGS if not are_strings(data.get(key))]
    if errors:
        return errors
    return [*choices(data), *ids(data), *index_errors(data.get("model-index", []))]


def are_strings(value: Any) -> bool:
    values = value if isinstance(value, list) else [] if value is None else [value]
    return all(isinstance(item, str) and 0 < len(item) < 100 for item in values)


def choices(data: dict[str, Any]) -> list[str]:
    """Entries that are none of the values known."""
    known = {"license": LICENSES, "base_model_relation": RELATIONS, "pipeline_tag": PIPELINES}
    return [
        f'"{key}" must be one of {sorted(allowed)}, got {data[key]!r}'
        for key, allowed in known.items()
        if key in data and data[key] not in allowed
    ]


def ids(data: dict[str, Any]) -> list[str]:
    """Entries that are no repository ids."""
    errors = []
    for key in ("base_model", "datasets"):
        values = data.get(key) or []
        for value in [values] if isinstance(values, str) else values:
            if not REPO_ID.fullmatch(value):
                errors.append(f'"{key}" with value {value!r} is not valid. It should be a repository id')
    return errors


def index_errors(index: Any) -> list[str]:
    """What is wrong in `model-index`."""
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for model in index:
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            return ['"model-index[].name" must be a string']
        for result in model.get("results", []):
            if not isinstance(result.get("task", {}).get("type"), str):
                errors.append('"model-index[].results[].task.type" is required')
            dataset = result.get("dataset", {})
            if not isinstance(dataset.get("name"), str) or not REPO_ID.fullmatch(str(dataset.get("type", " "))):
                errors.append('"model-index[].results[].dataset" needs a name and a type that is a repository id')
            for metric in result.get("metrics", [{}]):
                if not isinstance(metric.get("type"), str) or not isinstance(metric.get("value"), (int, float)):
                    errors.append('"model-index[].results[].metrics[]" needs a type and a number')
    return errors
