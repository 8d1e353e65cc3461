# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Adds vectors, one after another, to a merge that is kept in a folder and gone on with whenever the next one comes.

python recipes/add_vectors.py --vectors out/mnist/vector --sequence out/sequence --output_dir out/merged

The folder does not grow with the vectors. It is written anew after each, whole or not at all; vectors that are in it
already are left out, so the same command goes on after a stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401

from hf_taskvec import TaskVector
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.errors import ArgumentsError
from hf_taskvec.merging.continual import CONFIG_NAME, ContinualMerge
from hf_taskvec.merging.sequential import check_rule
from hf_taskvec.vectors.files import CONFIG_NAME as VECTOR_CONFIG
from hf_taskvec.weights.folders import check_output_folder


@dataclass
class AddArguments:
    vectors: list[str] = arg("Hub ids or folders of the vectors, in their order.")
    sequence: str = arg("Folder of the sequence: a new one, or one to go on with.")
    method: str = arg("opcm, nufilt, magmax, average or task_arithmetic.", default="opcm")
    settings: dict[str, Any] = arg("Settings of the method, each name=value; in YAML a mapping.", default={})
    output_dir: str | None = arg("Where to save the merged vector, unscaled; nowhere if left out.", default=None)


def main(args: AddArguments) -> ContinualMerge:
    settings = check_rule(args.method, args.settings)
    check_output_folder(args.sequence, marker=CONFIG_NAME)
    if args.output_dir is not None:
        check_output_folder(args.output_dir, marker=VECTOR_CONFIG)
    sequence = ContinualMerge(args.method, settings)
    if (Path(args.sequence) / CONFIG_NAME).is_file():
        sequence = ContinualMerge.from_pretrained(args.sequence)
        if (sequence.method, sequence.settings) != (args.method, settings):
            raise ArgumentsError(f"{args.sequence} was begun with {sequence.method} {dict(sequence.settings)}")
    opened = [TaskVector.from_pretrained(source) for source in args.vectors]
    for source, vector in zip(args.vectors, opened, strict=True):
        if not (vector.info.task or vector.info.finetuned or vector.info.parents):
            raise ArgumentsError(
                f"{source} tells of no task and no checkpoint, so that it cannot be told whether it is in the sequence "
                "already: save it with a task, or add it by ContinualMerge.add"
            )
    for source, vector in zip(args.vectors, opened, strict=True):
        if vector.info not in sequence:
            sequence = sequence.add(vector)
            sequence.save_pretrained(args.sequence)
        else:
            print(f"{source} is in the sequence already")
    print(f"{len(sequence)} vectors: {', '.join(sequence.tasks)}")
    if args.output_dir is not None:
        sequence.vector().save_pretrained(args.output_dir)
    return sequence


if __name__ == "__main__":
    run_recipe(main, AddArguments, stopped="The vectors before are in --sequence; the same command goes on.")
