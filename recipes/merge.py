"""Merges task vectors and saves the result, with the recipe in its provenance.

python recipes/merge.py --config recipes/configs/merge_ties.yaml --output_dir out/ties
python recipes/merge.py --vectors user/mnist user/gtsrb@main --method ties --settings density=0.2 --output_dir out/ties
python recipes/merge.py --vectors user/mnist user/gtsrb --method regmean --statistics user/mnist user/gtsrb
python recipes/merge.py --repeat out/ties --output_dir out/ties-again
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401
from huggingface_hub.utils import disable_progress_bars

from hf_taskvec import TaskVector
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.errors import OutputExistsError
from hf_taskvec.merging import methods_table
from hf_taskvec.merging.engine import PROGRESS
from hf_taskvec.merging.recipes import MergeRecipe
from hf_taskvec.merging.sources import Missing
from hf_taskvec.vectors.files import CONFIG_NAME


@dataclass
class MergeArguments:
    vectors: list[str] = arg("Hub ids (with @revision if wanted) or folders of the vectors to merge.", default=[])
    method: str = arg("Merge method; --list_methods shows all.", default="task_arithmetic")
    settings: dict[str, Any] = arg("Settings of the method, each name=value; in YAML a mapping.", default={})
    scaling: float = arg("Factor of the result.", default=1.0)
    dtype: str | None = arg("Dtype of the result, as float16; float32 or wider if left out.", default=None)
    device: str | None = arg("Where to compute, as cuda; where the vectors are if left out.", default=None)
    output_dir: str = arg("Where to save the merged vector.", default="out/merged")
    overwrite: bool = arg("Replace a vector that --output_dir holds already.", default=False)
    missing: Missing = arg(
        "What a vector that lacks parameters of another gets there: refuse or zero.", default="refuse"
    )
    allow_zero: bool = arg("Merge trained vectors that are all zero.", default=False)
    statistics: list[str] = arg(
        "Hub ids or folders of the vectors' statistics, in their order, for a method that looks at data.", default=[]
    )
    repeat: str | None = arg("Hub id or folder of a merged vector whose recipe to run again.", default=None)
    list_methods: bool = arg("Print a table of all methods and stop.", default=False)
    quiet: bool = arg("No progress bar.", default=False)


def main(args: MergeArguments) -> TaskVector | None:
    if args.list_methods:
        print(methods_table())
        return None
    if args.quiet:
        disable_progress_bars(PROGRESS)
    if args.repeat is not None:
        recipe = MergeRecipe.from_info(TaskVector.from_pretrained(args.repeat).info)
    else:
        recipe = MergeRecipe(
            tuple(args.vectors),
            args.method,
            args.settings,
            args.scaling,
            args.dtype,
            missing=args.missing,
            allow_zero=args.allow_zero,
            statistics=tuple(args.statistics),
        )
    if not args.overwrite and (Path(args.output_dir) / CONFIG_NAME).exists():
        raise OutputExistsError(
            f"{args.output_dir} holds a vector already; choose another --output_dir, or replace it with --overwrite"
        )
    merged = recipe.run(output_dir=args.output_dir, device=args.device)
    if not args.quiet:
        print(f"{merged.info.label} of {len(merged.info.parents)} vectors is in {Path(args.output_dir)}")
    return merged


if __name__ == "__main__":
    run_recipe(
        main,
        MergeArguments,
        stopped="No half result is left; what a slow method had finished is kept beside --output_dir, so the same "
        "command goes on where it was.",
    )
