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
from paper.report import budget_tables, comparison_table, write_comparison
from paper.results import Compared, compare_budgets_of
from paper.settings import Reproduction

from hf_taskvec.arguments import command_line, run_recipe


def main(settings: Reproduction) -> Compared:
    compared = compare_budgets_of(settings)
    path = write_comparison(compared, command=command_line())
    print("\n".join([*comparison_table(settings, compared.cells), "", *budget_tables(settings, compared.cells)]))
    print(f"Verdicts and tables are in {path}")
    return compared


if __name__ == "__main__":
    run_recipe(main, Reproduction, stopped="Finished runs are in --output_dir; the same command goes on from there.")
