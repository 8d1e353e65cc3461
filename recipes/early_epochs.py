# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""The early-epoch adviser measured: what merges at the epochs that `choose_epochs` picks lose, and the steps they save.

python recipes/early_epochs.py --config recipes/configs/early_epochs.yaml --data_dir <folder>
python recipes/early_epochs.py --config recipes/configs/early_epochs_smoke.yaml

Training with a schedule per budget, a long schedule cut short and a constant rate cut short are told apart. Every run
is kept, so that the same command goes on. Writes studies/epochs-N.json, report.md and choices.png to the output folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import interrupts  # noqa: F401
from paper.early import budget_table, choice_table, draw_choices, separation, study_epochs
from paper.results import claim_folder
from paper.settings import Reproduction

from hf_taskvec.arguments import command_line, run_recipe
from hf_taskvec.evaluation.plots import save_figure
from hf_taskvec.weights.folders import write_text

PAGE = """# Which epoch to merge

Mean test accuracy of the merge of {tasks} tasks, differences in points, paired over {seeds} seed(s), with 95 %
bootstrap intervals over seeds (of one seed there is none, and few make it too narrow). The target: no less than the
merge of converged vectors, with three quarters of the steps saved.

    {command}

{choices}

![what chosen epochs gain and save](choices.png)

Above the line the merge of the chosen epochs beats that of converged vectors; right of the dots three quarters of the
steps are saved. Bars are 95 % intervals over seeds. Data: `studies/epochs-N.json`, one for each seed.

## Schedule and stopping point

Each budget minus converged; converged in percent.

{budgets}

{sentences}
"""


def main(settings: Reproduction) -> list[dict[str, Any]]:
    claim_folder(settings)
    entries = study_epochs(settings, settings.load_base())
    text = choice_table(entries)
    page = PAGE.format(
        tasks=len(settings.load_tasks()),
        seeds=len(settings.seeds),
        command=command_line(),
        choices=text,
        budgets=budget_table(entries),
        sentences="\n".join(f"- {sentence}" for sentence in separation(entries)),
    )
    save_figure(draw_choices(entries), Path(settings.output_dir) / "choices.png")
    write_text(Path(settings.output_dir) / "report.md", page)
    print(text)
    return entries


if __name__ == "__main__":
    run_recipe(main, Reproduction, stopped="Finished runs are kept; the same command goes on.")
