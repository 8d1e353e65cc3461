# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Which base is worth training: pretrains each variant, probes, fine-tunes and merges it, and writes one table.

python recipes/variant_study.py --config recipes/configs/variants.yaml --data_dir <folder> \
    --pairs <folder>/photo-captions <folder>/photo-captions-large <folder>/icon-captions <folder>/emoji-captions

All figures are of validation parts. Every variant is kept in a folder of its own: the same command goes on with what is
missing, and with more variants it adds rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401
from mergeability.measures import Judging
from mergeability.variants import PretrainingSources, judge_variants, parse_variants, variant_table
from paper.settings import Reproduction

from hf_taskvec.arguments import arg, command_line, run_recipe
from hf_taskvec.weights.folders import write_text

PAGE = """# Variants of the base

Validation accuracy in percent, mean over {tasks} tasks and {seeds} seed(s) of fine-tuning; in brackets and for the mean
of the vectors (scaling 1/T) the points above the same base's zero-shot accuracy; other merges stand at their best
scaling.

    {command}

{table}
"""


@dataclass
class VariantArguments(PretrainingSources):
    variants: list[str] = arg(
        "Bases, each `name: setting=value …`; what a setting is pretrain_tiny_clip.py tells.", default=[]
    )
    page: str = arg("Markdown file of the table; `table.md` in the output folder if left out.", default="")


def main(args: VariantArguments, settings: Reproduction) -> list[dict[str, Any]]:
    variants = parse_variants(args.variants, args.common)
    judging = Judging("validation", args.methods, args.scalings)
    cells = judge_variants(variants, args, settings, judging)
    table = variant_table(cells)
    page = PAGE.format(tasks=len(settings.load_tasks()), seeds=len(settings.seeds), command=command_line(), table=table)
    write_text(args.page or Path(settings.output_dir) / "table.md", page)
    print(table)
    return cells


if __name__ == "__main__":
    run_recipe(
        main,
        VariantArguments,
        Reproduction,
        stopped="Finished variants are in --output_dir; the same command goes on from the last saved state.",
    )
