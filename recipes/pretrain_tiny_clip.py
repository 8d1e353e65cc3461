# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Trains a small CLIP from scratch on image-text pairs, and on images alone.

accelerate launch recipes/pretrain_tiny_clip.py --config recipes/configs/tiny_clip.yaml --pairs <folder>/photo-captions
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import interrupts  # noqa: F401
from pretraining.config import PretrainingConfig
from pretraining.pack import pack
from pretraining.run import Travel, pretrain
from pretraining.sources import Sources, gather_pairs

from hf_taskvec import get_tasks
from hf_taskvec.arguments import arg, run_recipe


@dataclass
class PretrainArguments:
    """Where the images come from and where the model goes; the rest is `PretrainingConfig`."""

    pairs: list[str] = arg("Hub ids or folders of datasets with the columns `image` and `text`.", default=[])
    output_dir: str = arg("Where to save the model, its state and its log.", default="out/tiny-clip")
    generated_pairs: int = arg("How many generated pairs (coloured shapes and stripes) to add.", default=0)
    unlabelled: list[str] = arg("Tasks whose training parts are added without their labels.", default=[])
    held_out: list[str] = arg("Further tasks of which no validation or test image may be among the pairs.", default=[])
    minutes: float = arg("Time after which training stops; the same command goes on. 0 sets no limit.", default=0.0)
    fit_minutes: bool = arg(
        "Ends a constant schedule with the minutes, at a number of steps found by the first of them.", default=False
    )
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    pack_to: str = arg("Only gathers the images, for another machine, and writes them to this folder.", default="")
    pack_quality: int = arg("Quality of the packed images, 1 to 100; 100 loses nothing.", default=85)
    packed: str = arg("Folder of `--pack_to`, instead of pairs and tasks.", default="")
    bundle_to: str = arg("Folder for each saved state in files of 15 MiB, for another machine.", default="")
    bundle_from: str = arg("Folder of `--bundle_to` that a new output folder begins with.", default="")


def main(args: PretrainArguments, config: PretrainingConfig) -> dict[str, float]:
    """Trains, saves, prints and returns the retrieval figures."""
    named = ([], []) if args.packed else (args.unlabelled, args.held_out)
    unlabelled, held_out = (get_tasks(names, data_dir=args.data_dir) for names in named)
    sources = Sources(args.pairs, args.generated_pairs, unlabelled, held_out)
    if args.pack_to:
        size = pack(gather_pairs(sources, config), config, Path(args.pack_to), quality=args.pack_quality)
        print(f"{size / 2**20:.1f} MiB in {args.pack_to}")
        return {}
    travel = Travel(args.packed, args.bundle_to, args.bundle_from)
    figures = pretrain(
        sources,
        config=config,
        output_dir=args.output_dir,
        minutes=args.minutes or math.inf,
        fit=args.fit_minutes,
        travel=travel,
    )
    print(figures)
    return figures


if __name__ == "__main__":
    run_recipe(
        main,
        PretrainArguments,
        PretrainingConfig,
        stopped="The same command goes on from the last saved state in --output_dir (one every --save_steps).",
    )
