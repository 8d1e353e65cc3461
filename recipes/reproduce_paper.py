# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Reproduces “On Task Vectors and Gradients” (arXiv 2508.16082) and writes report.md with its figures.

python recipes/reproduce_paper.py --config recipes/configs/paper7_smoke.yaml                       # minutes, no network
python recipes/reproduce_paper.py --config recipes/configs/paper7_tiny.yaml --data_dir <folder>    # hours, resumable
python recipes/reproduce_paper.py --config recipes/configs/paper7_vit_b16.yaml --dry_run True      # what it would take
python recipes/reproduce_paper.py --redraw recipes/results/paper7_tiny/figures
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import interrupts  # noqa: F401
from paper.estimate import estimate
from paper.figures import redraw
from paper.report import write_report
from paper.results import reproduce
from paper.settings import Reproduction

from hf_taskvec.arguments import arg, command_line, run_recipe


@dataclass
class RunArguments:
    dry_run: bool = arg("Only count the work and estimate its time on this machine.", default=False)
    redraw: str | None = arg("Folder of figures, to only draw them again from the JSON beside them.", default=None)


def main(settings: Reproduction, run: RunArguments) -> Path | None:
    if run.dry_run:
        print(estimate(settings).to_markdown())
        return None
    if run.redraw is not None:
        redraw(Path(run.redraw))
        return None
    path = write_report(reproduce(settings), command=command_line())
    print(f"The report is in {path}")
    return path


if __name__ == "__main__":
    run_recipe(
        main,
        Reproduction,
        RunArguments,
        stopped="Finished runs are in --output_dir; the same command goes on from there.",
    )
