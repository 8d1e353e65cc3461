# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Evaluates a base, alone or with a task vector, on tasks.

python recipes/evaluate_model.py --tasks mini --vector out/quickstart/seed-0/merged-task_arithmetic --scaling 0.3
python recipes/evaluate_model.py --tasks digits shapes --vector out/merged --individual out/digits/vector \
    out/shapes/vector --criterion normalised
torchrun --nproc_per_node 2 recipes/evaluate_model.py --tasks vision8 --base openai/clip-vit-base-patch32 \
    --output out/report.json
"""

from __future__ import annotations

try:  # noqa: SIM105 (it comes before anything heavy)
    import interrupts  # noqa: F401
except ImportError:  # a job elsewhere gets this file alone
    pass
from accelerate import PartialState

from hf_taskvec import Report
from hf_taskvec.arguments import run_recipe
from hf_taskvec.command.evaluation import EvaluateSettings, run_evaluation


def main(args: EvaluateSettings) -> Report:
    """Evaluates, prints the table and returns the report."""
    report = run_evaluation(args)
    if PartialState().is_main_process:
        print(report.to_markdown())
    return report


if __name__ == "__main__":
    run_recipe(main, EvaluateSettings, stopped="No report was written; the same command begins anew.")
