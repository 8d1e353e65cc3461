# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Merges of one-epoch and of converged models, by optimiser, budget and merge method, beside joint training.

python recipes/one_epoch_vs_converged.py --tasks mini --output_dir out/one-epoch
python recipes/one_epoch_vs_converged.py --config recipes/configs/paper7_tiny.yaml --data_dir <folder>
"""

from __future__ import annotations

import interrupts  # noqa: F401
from paper.comparison import Cell, compare
from paper.report import budget_tables, comparison_table
from paper.results import claim_folder
from paper.settings import Reproduction

from hf_taskvec.arguments import run_recipe


def main(settings: Reproduction) -> list[Cell]:
    claim_folder(settings)
    cells = compare(settings, settings.load_base())
    print("\n".join([*comparison_table(settings, cells), "", *budget_tables(settings, cells)]))
    return cells


if __name__ == "__main__":
    run_recipe(main, Reproduction, stopped="Finished runs are in --output_dir; the same command goes on from there.")
