# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Mergeability against scale: bases of several widths and depths on the same images, judged and fitted.

python recipes/scale_study.py --config recipes/configs/scale.yaml --data_dir <folder> \
    --pairs <folder>/photo-captions <folder>/photo-captions-large <folder>/icon-captions <folder>/emoji-captions

Every base is kept in a folder of its own, so that the same command goes on with what is missing; with --dry_run True it
only fits and draws what is finished.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401
from mergeability.measures import Judging
from mergeability.scale import draw_scale, extrapolation, scale_data, scale_texts, trend_table
from mergeability.variants import PretrainingSources, cell_path, judge_variants, parse_variants, variant_table
from paper.settings import Reproduction

from hf_taskvec.arguments import arg, command_line, run_recipe
from hf_taskvec.errors import DataError
from hf_taskvec.evaluation.plots import save_figure
from hf_taskvec.weights.folders import read_json, write_json, write_text

PAGE = """# Mergeability against scale

{count} cells (bases and seeds), all pretrained on the same images and views, judged on test images at scalings chosen
on validation images. Trends are straight lines in log2 of the vision tower's parameters, 95 % bootstrap intervals over
cells. The authors' ViT-B/16 (another base, other tasks) is not used in the fit.

    {command}

{trends}

{extrapolation}

![measures against scale](scale.png)

{table}

Data: `scale.json`.
"""


@dataclass
class ScaleArguments(PretrainingSources):
    widths: list[int] = arg("Widths of the vision tower, multiples of 64.", default=[64, 128, 256, 512, 1024])
    depths: list[int] = arg("Its numbers of layers.", default=[2, 4, 8])
    dry_run: bool = arg("Only fits, draws and tells what is finished.", default=False)


def main(args: ScaleArguments, settings: Reproduction) -> dict[str, Any]:
    variants = parse_variants(scale_texts(args.widths, args.depths), args.common)
    out = Path(settings.output_dir)
    if args.dry_run:
        paths = [cell_path(settings, name, seed) for name in variants for seed in settings.seeds]
        cells = [read_json(path) for path in paths if path.is_file()]
    else:
        cells = judge_variants(variants, args, settings, Judging("test", args.methods, args.scalings))
    if not cells:
        raise DataError(f"no cell of the study is finished in {out}; run it without --dry_run")
    data = scale_data(cells)
    write_json(out / "scale.json", data)
    save_figure(draw_scale(data), out / "scale.png")
    parts = {"trends": trend_table(data), "extrapolation": extrapolation(data), "table": variant_table(cells)}
    page = PAGE.format(count=len(cells), command=command_line(), **parts)
    write_text(out / "report.md", page)
    print(parts["trends"] + "\n\n" + parts["extrapolation"])
    return data


if __name__ == "__main__":
    run_recipe(
        main,
        ScaleArguments,
        Reproduction,
        stopped="Finished bases are in --output_dir; the same command goes on from the last saved state.",
    )
