# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Builds small subsets of eight public datasets from the Hub, one dataset folder per task, for `--data_dir`.

python recipes/build_small_datasets.py --output_dir out/datasets
python recipes/build_small_datasets.py --names mnist eurosat --output_dir out/datasets

The figures of the README were measured on subsets of the same datasets with the same classes and sizes, but drawn from
other copies of them; other images give other figures. Of quickdraw5 there are about 725 training drawings per class in
place of 800, flowers5 and plantvillage-apple are split at random, and the leaves stand on their background.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import interrupts  # noqa: F401
from small_datasets.build import Source, build

from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.errors import UnknownNameError
from hf_taskvec.weights.folders import read_json

SOURCES = Path(__file__).parent / "small_datasets" / "sources.json"


@dataclass
class BuildArguments:
    output_dir: str = arg("Where one folder per dataset goes.", default="out/datasets")
    names: list[str] = arg("Datasets to build; all of them if left out.", default=[])
    seed: int = arg("Which images are drawn.", default=0)
    sources: str | None = arg(
        "JSON file of the datasets, their Hub ids, classes and sizes; that of the README's eight if left out.",
        default=None,
    )


def main(args: BuildArguments) -> list[Path]:
    sources, folders = read_json(Path(args.sources or SOURCES)), []
    for name in args.names:
        if name not in sources:
            raise UnknownNameError("small dataset", name, sources)
    for name in args.names or sources:
        folder = Path(args.output_dir) / name
        sizes = build(name, Source(**sources[name]), folder, seed=args.seed)
        images = f", {sizes['train']} training and {sizes['test']} test images" if sizes else " already"
        print(f"{name} is in {folder}{images}", flush=True)
        folders.append(folder)
    return folders


if __name__ == "__main__":
    run_recipe(main, BuildArguments, stopped="Finished datasets stay; the same command goes on with the next.")
