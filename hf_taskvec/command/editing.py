"""`forget`: a task taken from a base, as far as control tasks allow."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from hf_taskvec.command.outcome import Outcome
from hf_taskvec.command.verbs import Verb
from hf_taskvec.errors import OutputExistsError
from hf_taskvec.fields import arg


@dataclass
class ForgetSettings:
    """What is forgotten, and what must stay."""

    vector: str = arg("Hub id (with @revision if wanted) or folder of the vector of the task to forget.")
    control: list[str] = arg("Tasks or suites whose accuracy must stay.", default=[])
    target: str | None = arg("The task to forget; the one that the vector names if left out.", default=None)
    budget: float = arg("How much of the control tasks' accuracy may go, as a fraction.", default=0.05)
    tried: list[float] = arg("Strengths to try; 0.05, 0.1, ..., 1 if left out.", default=[])
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    relearning_steps: int = arg("The most steps of fine-tuning to bring the task back; 0 leaves it out.", default=64)
    output_dir: str = arg("Where the negated vector goes, with its receipt.", default="out/forgotten")
    overwrite: bool = arg("Replace a vector that the output folder holds already.", default=False)


def forget(settings: ForgetSettings) -> Outcome:
    """Chooses the strength, saves the negated vector, and shows the receipt."""
    from hf_taskvec.cards.render import forgetting_words
    from hf_taskvec.editing import forget as forget_task
    from hf_taskvec.editing.forgetting import STRENGTHS
    from hf_taskvec.merging.sources import open_source
    from hf_taskvec.models.base import load_base
    from hf_taskvec.tasks.registry import as_tasks
    from hf_taskvec.vectors.files import CONFIG_NAME

    folder = Path(settings.output_dir)
    if not settings.overwrite and (folder / CONFIG_NAME).exists():
        raise OutputExistsError(
            f"{folder} holds a vector already; choose another --output-dir, or replace it with --overwrite"
        )
    vector = open_source(settings.vector)[1]
    name = settings.target or (vector.info.task if settings.data_dir else None)
    gone = forget_task(
        load_base(settings.base),
        vector,
        control=as_tasks(settings.control, data_dir=settings.data_dir),
        target=None if name is None else as_tasks(name, data_dir=settings.data_dir)[0],
        budget=settings.budget,
        strengths=settings.tried or STRENGTHS,
        relearning_steps=settings.relearning_steps,
    )
    gone.vector.save_pretrained(folder)
    tried = [dataclasses.asdict(one) for one in gone.tried]
    told = forgetting_words(gone.receipt)
    text = (
        f"{gone.to_markdown()}\n\n{told}.\nThe vector to add, -{gone.strength:g} of {settings.vector}, is in {folder}"
    )
    return Outcome({"folder": str(folder), "receipt": gone.receipt, "tried": tried}, text, [str(folder)])


VERBS = [
    Verb(
        "forget",
        "Takes a task from a base, as far as control tasks allow.\n\n"
        "The vector is negated; its strength is chosen on validation data. The receipt tells what is left.",
        ForgetSettings,
        forget,
        [
            "hf-taskvec forget out/digits/vector --control shapes",
            "hf-taskvec apply out/forgotten -o out/no-digits",
        ],
        positional=["vector"],
        file="option",
        stopped="Nothing was written; the same command begins anew.",
    ),
]
