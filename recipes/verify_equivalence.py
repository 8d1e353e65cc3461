# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Checks that one epoch is one gradient step, and prints the errors.

python recipes/verify_equivalence.py --tasks digits shapes
python recipes/verify_equivalence.py --tasks digits --own_settings True --learning_rate 3e-4   # AdamW, minibatches
torchrun --nproc_per_node 2 recipes/verify_equivalence.py --tasks digits
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import interrupts  # noqa: F401
from accelerate import PartialState

from hf_taskvec import TaskVectorConfig, get_tasks, load_base, verify_equivalence
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.theory.equivalence import Equivalence


@dataclass
class VerifyArguments:
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    tasks: list[str] = arg("Tasks or suites.", default=["digits"])
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    max_train: int | None = arg("Most training images per task.", default=None)
    own_settings: bool = arg("Check a run with the other flags instead of full-batch descent.", default=False)


def main(args: VerifyArguments, config: TaskVectorConfig) -> Equivalence:
    tasks = [subset(task, max_train=args.max_train) for task in get_tasks(args.tasks, data_dir=args.data_dir)]
    if not args.own_settings and (given := changed(config)):
        raise ValueError(f"{', '.join(given)}: without own_settings, full-batch descent is checked and no other flag")
    result = verify_equivalence(load_base(args.base), tasks, args=config if args.own_settings else None)
    if PartialState().is_main_process:
        print(result.to_markdown())
    return result


def changed(config: TaskVectorConfig) -> list[str]:
    """The settings that are not the default ones."""
    default = TaskVectorConfig()
    names = [spec.name for spec in dataclasses.fields(config) if spec.init and spec.compare]
    return [name for name in names if str(getattr(config, name)) != str(getattr(default, name))]


if __name__ == "__main__":
    run_recipe(main, VerifyArguments, TaskVectorConfig, stopped="Nothing is kept; the same command begins anew.")
