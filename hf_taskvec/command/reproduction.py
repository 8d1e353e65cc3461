"""`reproduce`: the paper's experiments, which are in the repository and not in the installed package."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hf_taskvec.command.outcome import Outcome
from hf_taskvec.command.verbs import PROGRAM, Verb
from hf_taskvec.errors import CheckpointError
from hf_taskvec.fields import arg

RECIPE = Path("recipes", "reproduce_paper.py")
REPOSITORY = Path(__file__).parents[2]


@dataclass
class ReproduceSettings:
    """What is reproduced."""

    config: str | None = arg("YAML file of settings, as one of recipes/configs/paper7_*.yaml.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    output_dir: str | None = arg("Where runs, figures and the report go.", default=None)
    dry_run: bool = arg("Only count the work and estimate its time on this machine.", default=False)
    repository: str | None = arg("Folder of the repository or unpacked source distribution.", default=None)


def reproduce(settings: ReproduceSettings) -> Outcome:
    """Runs the recipe of the repository in a process of its own, with its output as it comes."""
    root = REPOSITORY if settings.repository is None else Path(settings.repository)
    if not (root / RECIPE).is_file():
        raise CheckpointError(
            f"{root} has no {RECIPE}: the paper's experiments are part of the repository and the source distribution, "
            f"not of the installed package. Get one (git clone, or pip download --no-binary :all: --no-deps {PROGRAM} "
            "and unpack it) and name its folder with --repository"
        )
    flags = {"config": settings.config, "data_dir": settings.data_dir, "output_dir": settings.output_dir}
    words = [word for name, value in flags.items() if value is not None for word in (f"--{name}", value)]
    words += ["--dry_run", "True"] if settings.dry_run else []
    done = subprocess.run([sys.executable, str(root / RECIPE), *words], check=False)
    if done.returncode:
        raise RuntimeError(f"{RECIPE} ended with exit code {done.returncode}")
    place = settings.output_dir or "the output folder of its settings"
    return Outcome(
        {"recipe": str(root / RECIPE)}, f"{RECIPE} is done; its results are in {place}", [str(root / RECIPE)]
    )


VERBS = [
    Verb(
        "reproduce",
        "Reproduces the paper (arXiv 2508.16082).\n\n"
        "Needs the repository or the source distribution: its experiments are not in the installed package.",
        ReproduceSettings,
        reproduce,
        [
            "hf-taskvec reproduce --config recipes/configs/paper7_smoke.yaml",
            "hf-taskvec reproduce --repository hf-taskvec-0.1.0 --config recipes/configs/paper7_vit_b16.yaml --dry-run",
        ],
        stopped="Finished runs are in the output folder; the same command goes on from there.",
    )
]
