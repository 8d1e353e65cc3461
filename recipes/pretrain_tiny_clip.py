"""Trains a small CLIP from scratch on image-text pairs, and on images alone.

accelerate launch recipes/pretrain_tiny_clip.py --config recipes/configs/tiny_clip.yaml --pairs <folder>/photo-captions
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import interrupts  # noqa: F401
from pretraining.config import PretrainingConfig
from pretraining.run import pretrain
from pretraining.sources import Sources

from hf_taskvec import get_tasks
from hf_taskvec.arguments import arg, run_recipe


@dataclass
class PretrainArguments:
    """Where the images come from and where the model goes; the rest is `PretrainingConfig`."""

    pairs: list[str] = arg("Hub ids or folders of datasets with the columns `image` and `text`.")
    output_dir: str = arg("Where to save the model, its state and its log.", default="out/tiny-clip")
    generated_pairs: int = arg("How many generated pairs (coloured shapes and stripes) to add.", default=0)
    unlabelled: list[str] = arg("Tasks whose training parts are added without their labels.", default=[])
    held_out: list[str] = arg("Further tasks of which no validation or test image may be among the pairs.", default=[])
    minutes: float = arg("Time after which training stops; the same command goes on. 0 sets no limit.", default=0.0)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)


def main(args: PretrainArguments, config: PretrainingConfig) -> dict[str, float]:
    """Trains, saves, prints and returns the retrieval figures."""
    unlabelled, held_out = (get_tasks(names, data_dir=args.data_dir) for names in (args.unlabelled, args.held_out))
    sources = Sources(args.pairs, args.generated_pairs, unlabelled, held_out)
    minutes = args.minutes or math.inf
    figures = pretrain(sources, config=config, output_dir=args.output_dir, minutes=minutes)
    print(figures)
    return figures


if __name__ == "__main__":
    run_recipe(
        main, PretrainArguments, PretrainingConfig,
        stopped="The same command goes on from the last saved state in --output_dir (one every --save_steps).",
    )  # fmt: skip
