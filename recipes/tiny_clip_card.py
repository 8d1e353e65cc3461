"""Measures the embedded tiny CLIP and writes its card: configuration, report and README.

python recipes/tiny_clip_card.py --data_dir <folder> --tasks mnist eurosat mini --pairs <folder>/photo-captions
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401
from huggingface_hub import DatasetCard

from hf_taskvec import evaluate, get_tasks, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.cards import render_base_card
from hf_taskvec.models.base import TINY_CLIP
from hf_taskvec.vectors.info import library_versions
from hf_taskvec.weights.folders import read_json, write_json, write_text

LIMITS = [
    "Made to try task vectors without a network: 32 px images, a few thousand words, no broad knowledge of the world.",
    "Its captions of photographs are class names in a few sentence patterns, so six of the real tasks' class names "
    "(mnist, fashion-mnist, cifar10, eurosat, gtsrb, quickdraw5) and apple leaves were seen in pretraining, on other "
    "images than those of the tasks: zero-shot means no image of the task here, not no image like it.",
    "How merges of the eight real tasks' vectors fare on it, and which other settings were tried, is in the README and "
    "in recipes/results/tiny_clip_study.md of hf_taskvec.",
    "The weights come from a driver script around the same trainer, before the training of tokenizers was "
    "deterministic: the commands above repeat its settings and stages, not its exact weights.",
    "The images keep their own terms, listed above; some sources state none and ask for citation.",
]
GENERATED = {"name": "hf_taskvec.tasks.generated", "license": "apache-2.0"}


@dataclass
class CardArguments:
    tasks: list[str] = arg("Tasks or suites to measure.")
    pairs: list[str] = arg("The pair sets it was trained on, by Hub id or folder.")
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    repo_id: str = arg("Where the card stands.", default="hf-taskvec/tiny-clip")
    command: str = arg("The command that trained it.", default="see training_log.json")
    output_dir: str = arg("Where to write the card.", default="hub_cards/tiny-clip")


def main(args: CardArguments) -> str:
    base, output_dir = load_base(), Path(args.output_dir)
    log = read_json(TINY_CLIP / "training_log.json")
    report = evaluate(base, get_tasks(args.tasks, data_dir=args.data_dir), label="zero-shot", progress=True)
    parameters = sum(parameter.numel() for parameter in base.model.parameters())
    config = {
        "description": "A CLIP of 32 px images, small enough to ship with hf_taskvec and to train on two cores; "
        "the base of its examples, tests and measurements.",
        "license": "other",
        "facts": {
            "parameters": f"{parameters:,}",
            **facts_of(log["stages"]),
            "versions": ", ".join(f"{name} {version}" for name, version in library_versions().items()),
        },
        "data": [*map(source, args.pairs), {**GENERATED, "pairs": log["generated_pairs"]}],
        "command": args.command,
        "retrieval": {
            f"text recall@5 on the test pairs of {name}": value for name, value in log["recall_at_5"].items()
        },
        "limits": LIMITS,
    }
    write_json(output_dir / "config.json", config)
    report.save(output_dir / "report.json")
    card = render_base_card(config, report, repo_id=args.repo_id)
    write_text(output_dir / "README.md", card)
    print(report.to_markdown())
    return card


def facts_of(stages: list[dict[str, Any]]) -> dict[str, object]:
    """The settings of the last stage, and how many steps all of them took."""
    settings = {name: value for name, value in stages[-1]["config"].items() if name not in ("init_from", "steps")}
    steps = [f"{stage['stopped_at']} of {stage['config']['batch_size']} pairs" for stage in stages]
    return {"steps": ", then ".join(steps), **settings}


def source(name: str) -> dict[str, object]:
    """Name, licence and number of training pairs of a pair set."""
    from datasets import load_dataset

    folder = Path(name)
    card = DatasetCard.load(folder / "README.md" if folder.is_dir() else name)
    licence = str(card.data.get("license_name") or card.data.license)
    pairs = load_dataset(name, split="train").num_rows
    return {"name": folder.name if folder.is_dir() else name, "license": licence, "pairs": pairs}


if __name__ == "__main__":
    run_recipe(main, CardArguments, stopped="No card was written; the same command begins anew.")
