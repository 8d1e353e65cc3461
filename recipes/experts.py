# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Experts to convergence, of the whole tower and of its MLP weights, and the accuracy along their vectors.

python recipes/experts.py --config recipes/configs/experts.yaml --data_dir <folder>

Epochs are chosen per task on validation images, with early stopping. Every run is kept, so that the same command goes
on. Writes experts.json, report.md and one figure per kind into the output folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401
from paper.along import along_table
from paper.experts import PARAMETERS, TITLES, expert_table, study_experts
from paper.results import claim_folder
from paper.settings import Reproduction

from hf_taskvec.arguments import arg, command_line, run_recipe
from hf_taskvec.errors import check_known
from hf_taskvec.evaluation.plots import plot_along, save_figure
from hf_taskvec.weights.folders import write_text

PAGE = """# Experts to convergence

Test accuracy in percent; epochs are those with the best validation accuracy, after which {patience} more brought
nothing. Linear probe: a logistic regression on the base's pooled features.

    {command}

{table}
"""
ALONG = """
## Along the vectors: {title}

Bend: the gain at half the vector minus half the gain of the whole one; above 0 concave, below 0 convex.

{table}

![accuracy along the vectors]({figure})
"""


@dataclass
class ExpertArguments:
    kinds: list[str] = arg("What is trained: `tower`, `mlp` or both.", default=list(PARAMETERS))
    rates: list[float] = arg("One learning rate per kind.", default=[1e-4, 3e-4])


def main(args: ExpertArguments, settings: Reproduction) -> dict[str, Any]:
    for kind in args.kinds:
        check_known("kind of expert", kind, PARAMETERS)
    if len(args.rates) != len(args.kinds):
        raise ValueError(f"rates must have one value per kind ({len(args.kinds)}), got {len(args.rates)}")
    if settings.optimizers[0] == "adamw_cosine":
        raise ValueError("a schedule ends at a fixed epoch; early stopping needs a constant rate: --optimizers adamw")
    claim_folder(settings)
    data = study_experts(settings, settings.load_base(), dict(zip(args.kinds, args.rates, strict=True)))
    out = Path(settings.output_dir)
    text = expert_table(data)
    page = PAGE.format(patience=settings.patience, command=command_line(), table=text)
    for kind, outcome in data["kinds"].items():
        along, figure = outcome["along"], f"along-{kind}.png"
        save_figure(plot_along(along["scalings"], along["accuracies"]), out / figure)
        page += ALONG.format(title=TITLES[kind], table=along_table(along), figure=figure)
    write_text(out / "report.md", page)
    print(text)
    return data


if __name__ == "__main__":
    run_recipe(main, ExpertArguments, Reproduction, stopped="Finished runs are kept; the same command goes on.")
