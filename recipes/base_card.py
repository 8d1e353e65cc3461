# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Measures an embedded base and writes its card: configuration, report and README.

python recipes/base_card.py --base hf-taskvec/feature-clip --data_dir <folder> --tasks mnist eurosat mini \
    --pairs <folder>/photo-captions
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard

from hf_taskvec import evaluate, get_tasks, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.cards import render_base_card
from hf_taskvec.models.base import EMBEDDED, EMBEDDED_BASES
from hf_taskvec.vectors.info import library_versions
from hf_taskvec.weights.folders import read_json, write_json, write_text

WORDS = Path(__file__).with_name("base_cards.yaml")  # what no measurement can tell
GENERATED = {"name": "hf_taskvec.tasks.generated", "license": "apache-2.0"}


@dataclass
class CardArguments:
    tasks: list[str] = arg("Tasks or suites to measure.")
    pairs: list[str] = arg("The pair sets it was trained on, by Hub id or folder.")
    base: str = arg("The embedded base, by its name; the card stands in the repository of that name.", default=EMBEDDED)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    output_dir: str = arg("Where to write the folder of the card.", default="hub_cards")


def main(args: CardArguments) -> str:
    base, output_dir = load_base(args.base), Path(args.output_dir) / args.base.split("/")[-1]
    words = yaml.safe_load(WORDS.read_text(encoding="utf-8"))[args.base]
    log = read_json(EMBEDDED_BASES[args.base] / "training_log.json")
    report = evaluate(base, get_tasks(args.tasks, data_dir=args.data_dir), label="zero-shot", progress=True)
    seen = log.get("unlabelled_tasks", [])
    parameters = sum(parameter.numel() for parameter in base.model.parameters())
    config = {
        "description": words["description"],
        "license": "other",
        "facts": {
            "parameters": f"{parameters:,}",
            **facts_of(log["stages"]),
            **({"equal images left out": log["duplicates_left_out"]} if seen else {}),
            "versions": ", ".join(f"{name} {version}" for name, version in library_versions().items()),
        },
        "data": [
            *map(source, args.pairs),
            {**GENERATED, "pairs": log["generated_pairs"]},
            *(unlabelled(name, args.data_dir) for name in seen),
        ],
        "command": words["command"],
        "retrieval": {
            f"text recall@5 on the test pairs of {name}": value for name, value in log["recall_at_5"].items()
        },
        "limits": words["limits"],
    }
    write_json(output_dir / "config.json", config)
    report.save(output_dir / "report.json")
    card = render_base_card(config, report, repo_id=args.base)
    for folder in (output_dir, EMBEDDED_BASES[args.base]):  # those who install the package get the terms of its data
        write_text(folder / "README.md", card)
    print(report.to_markdown())
    return card


def facts_of(stages: list[dict[str, Any]]) -> dict[str, object]:
    """The settings of the last stage, and how many steps all of them took."""
    settings = {name: value for name, value in stages[-1]["config"].items() if name not in ("init_from", "steps")}
    steps = [f"{stage['stopped_at']} of {stage['config']['batch_size']} pairs" for stage in stages]
    return {"steps": ", then ".join(steps), **settings}


def source(name: str) -> dict[str, object]:
    """Name, licence and number of training pairs of a pair set."""
    folder = Path(name)
    return {
        "name": folder.name if folder.is_dir() else name,
        "license": licence_of(name),
        "pairs": load_dataset(name, split="train").num_rows,
    }


def unlabelled(name: str, data_dir: str | None) -> dict[str, object]:
    """Name, licence and number of images of a task whose training part was seen without its labels."""
    (task,) = get_tasks([name], data_dir=data_dir)
    images = len(task.load("train"))
    return {"name": f"{name}, images without labels", "license": licence_of(task.dataset), "pairs": images}


def licence_of(name: str) -> str:
    """The licence that the card of a dataset states."""
    folder = Path(name)
    card = DatasetCard.load(folder / "README.md" if folder.is_dir() else name)
    return str(card.data.get("license_name") or card.data.license)


if __name__ == "__main__":
    run_recipe(main, CardArguments, stopped="No card was written; the same command begins anew.")
