# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Saves the gradient vector of a task: exact full-batch gradient descent, −η∇L for each epoch.

python recipes/gradient_vector.py --task digits --learning_rate 0.05 --output_dir out/digits-gradient
torchrun --nproc_per_node 2 recipes/gradient_vector.py --task digits --learning_rate 0.05
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

try:  # noqa: SIM105 (it comes before anything heavy)
    import interrupts  # noqa: F401
except ImportError:  # a job elsewhere gets this file alone
    pass
from accelerate import PartialState

from hf_taskvec import TaskVector, get_task, gradient_vector, load_base
from hf_taskvec.arguments import arg, command_line, run_recipe
from hf_taskvec.vectors.files import CONFIG_NAME
from hf_taskvec.weights.folders import check_output_folder


@dataclass
class GradientArguments:
    task: str = arg("A registered task, or a folder's name in data_dir.")
    learning_rate: float = arg("The step size η.")
    epochs: int = arg("Full-batch steps.", default=1)
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    output_dir: str = arg("Where to save the vector.", default="out/gradient")


def main(args: GradientArguments) -> TaskVector:
    check_output_folder(args.output_dir, marker=CONFIG_NAME)
    base, task, start = load_base(args.base), get_task(args.task, data_dir=args.data_dir), time.perf_counter()
    vector = gradient_vector(base, task, learning_rate=args.learning_rate, epochs=args.epochs, progress=True)
    info = dataclasses.replace(vector.info, command=command_line(), seconds=round(time.perf_counter() - start, 1))
    if PartialState().is_main_process:
        TaskVector(vector.deltas, info).save_pretrained(args.output_dir)
        print(f"The vector is in {args.output_dir}")
    PartialState().wait_for_everyone()
    return TaskVector.from_pretrained(args.output_dir)


if __name__ == "__main__":
    run_recipe(main, GradientArguments, stopped="No vector was written; the same command begins anew.")
