# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Merges task vectors and saves the result, with the recipe in its provenance.

python recipes/merge.py --config recipes/configs/merge_ties.yaml --output_dir out/ties
python recipes/merge.py --vectors user/mnist user/gtsrb@main --method ties --settings density=0.2 --output_dir out/ties
python recipes/merge.py --vectors user/mnist user/gtsrb --method regmean --statistics user/mnist user/gtsrb
python recipes/merge.py --base meta-llama/Llama-3.2-1B --vectors user/llama-math user/llama-code --output_dir out/model
python recipes/merge.py --repeat out/ties --output_dir out/ties-again
accelerate launch recipes/merge.py --config recipes/configs/merge_ties.yaml  # parameters dealt over its processes
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

try:  # noqa: SIM105 (it comes before anything heavy)
    import interrupts  # noqa: F401
except ImportError:  # a job elsewhere gets this file alone
    pass
from huggingface_hub.utils import disable_progress_bars

from hf_taskvec import TaskVector
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.command.merging import KEPT, MergeSettings, run_checkpoint_merge, run_merge
from hf_taskvec.merging import methods_table
from hf_taskvec.merging.engine import PROGRESS


@dataclass
class MergeArguments(MergeSettings):
    list_methods: bool = arg("Print a table of all methods and stop.", default=False)
    quiet: bool = arg("No progress bar.", default=False)


def main(args: MergeArguments) -> TaskVector | None:
    if args.list_methods:
        print(methods_table())
        return None
    if args.quiet or int(os.environ.get("RANK") or 0):
        disable_progress_bars(PROGRESS)
    if args.base is not None:
        told = run_checkpoint_merge(args)
        if not args.quiet:
            print(told)
        return None
    merged = run_merge(args)
    if not args.quiet and int(os.environ.get("RANK") or 0) == 0:
        print(f"{merged.info.label} of {len(merged.info.parents)} vectors is in {Path(args.output_dir)}")
    return merged


if __name__ == "__main__":
    run_recipe(main, MergeArguments, stopped=KEPT)
