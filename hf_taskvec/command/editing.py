"""`forget`, `transport` and `analogy`: a task taken away, a vector on another base, one of a task without labels."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_taskvec.command.outcome import Outcome
from hf_taskvec.command.verbs import Verb
from hf_taskvec.errors import OutputExistsError
from hf_taskvec.fields import arg, check_settings


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
    from hf_taskvec.tasks.registry import as_task, as_tasks

    folder = _output(settings.output_dir, overwrite=settings.overwrite)
    vector = open_source(settings.vector)[1]
    name = settings.target or (vector.info.task if settings.data_dir else None)
    gone = forget_task(
        load_base(settings.base),
        vector,
        control=as_tasks(settings.control, data_dir=settings.data_dir),
        target=None if name is None else as_task(name, data_dir=settings.data_dir, needed_by="forget"),
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


@dataclass
class TransportSettings:
    """What is brought where, and how."""

    vector: str = arg("Hub id (with @revision if wanted) or folder of the vector.")
    to: str | None = arg("Hub id or folder of the new base; the embedded tiny CLIP if left out.", default=None)
    task: list[str] = arg("Tasks whose images are shown; those that the vector names if left out.", default=[])
    method: str = arg("gradfix, orthogonal_shift, theseus or rebasin.", default="gradfix")
    settings: dict[str, Any] = arg("Settings of the method, each name=value; in YAML a mapping.", default={})
    source: str | None = arg("The vector's own base; loaded by the name that it tells if left out.", default=None)
    images_per_class: int = arg("Training images of each class that are shown; 0 for all.", default=2)
    seed: int = arg("Which images.", default=0)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    output_dir: str = arg("Where the vector of the new base goes.", default="out/transported")
    overwrite: bool = arg("Replace a vector that the output folder holds already.", default=False)


def transport(settings: TransportSettings) -> Outcome:
    """Brings a vector to another base, saves it, and tells what it is of."""
    from hf_taskvec.cards.render import transport_words
    from hf_taskvec.editing import transport as bring
    from hf_taskvec.merging.sources import open_source
    from hf_taskvec.models.base import load_base
    from hf_taskvec.tasks.registry import as_tasks

    check_settings(settings.settings, bring)
    folder = _output(settings.output_dir, overwrite=settings.overwrite)
    vector = open_source(settings.vector)[1]
    names = settings.task or ([vector.info.task] if settings.data_dir and vector.info.task else [])
    brought = bring(
        vector,
        to=load_base(settings.to),
        tasks=as_tasks(names, data_dir=settings.data_dir) if names else None,
        method=settings.method,
        source=None if settings.source is None else load_base(settings.source),
        images_per_class=settings.images_per_class or None,
        seed=settings.seed,
        **settings.settings,
    )
    brought.save_pretrained(folder)
    data = {"folder": str(folder), "base": brought.info.base, "norm": brought.norm()}
    words = transport_words(brought.info.transport)
    text = f"{folder} is a vector of {brought.info.base}, {words}; `hf-taskvec tune` finds its scaling"
    return Outcome({**data, "transport": brought.info.transport}, text, [str(folder)])


@dataclass
class AnalogySettings:
    """Three vectors, and the task of the fourth."""

    a: str = arg("Hub id or folder of a vector, as of photographs.")
    b: str = arg("Hub id or folder of what it becomes, as of sketches of the same.")
    c: str = arg("Hub id or folder of the vector that is to become the same way, as of photographs of something else.")
    task: str | None = arg("The task of the fourth: the factor is chosen on its images, without labels.", default=None)
    factor: float | None = arg("The factor of b - a, where no task is given; 1 if left out.", default=None)
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    output_dir: str = arg("Where the vector goes.", default="out/analogy")
    overwrite: bool = arg("Replace a vector that the output folder holds already.", default=False)


def analogy(settings: AnalogySettings) -> Outcome:
    """Saves c + factor * (b - a), and tells the factor."""
    from hf_taskvec.editing import analogy as plain_analogy
    from hf_taskvec.editing import choose_analogy
    from hf_taskvec.merging.sources import open_source
    from hf_taskvec.models.base import load_base
    from hf_taskvec.tasks.registry import as_task

    if settings.task is not None and settings.factor is not None:
        raise ValueError("with --task the factor is chosen on its images; leave --factor out, or --task")
    folder = _output(settings.output_dir, overwrite=settings.overwrite)
    a, b, c = (open_source(source)[1] for source in (settings.a, settings.b, settings.c))
    factor, told = 1.0 if settings.factor is None else settings.factor, {}
    if settings.task is None:
        vector = plain_analogy(a, b, c, factor=factor)
    else:
        task = as_task(settings.task, data_dir=settings.data_dir, needed_by="analogy")
        chosen = choose_analogy(load_base(settings.base), a, b, c, task)
        vector, factor, told = chosen.vector, chosen.factor, dict(chosen.information)
    vector.save_pretrained(folder)
    text = f"{settings.c} + {factor:g} ({settings.b} - {settings.a}) is in {folder}"
    data = {"folder": str(folder), "factor": factor, "information": {f"{key:g}": value for key, value in told.items()}}
    return Outcome(data, text, [str(folder)])


def _output(folder: str, *, overwrite: bool) -> Path:
    """A folder to write a vector to.

    Raises:
        OutputExistsError: If it holds one that may not be replaced.
    """
    from hf_taskvec.vectors.files import CONFIG_NAME

    if not overwrite and (Path(folder) / CONFIG_NAME).exists():
        raise OutputExistsError(
            f"{folder} holds a vector already; choose another --output-dir, or replace it with --overwrite"
        )
    return Path(folder)


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
    Verb(
        "transport",
        "Brings a vector to another base of its architecture.\n\n"
        "A vector refuses any base but its own; this makes one of the new base of it.",
        TransportSettings,
        transport,
        [
            "hf-taskvec transport out/birds/vector --to user/newer-clip",
            "hf-taskvec transport out/birds/vector --to user/newer-clip --method rebasin",
        ],
        positional=["vector"],
        file="option",
    ),
    Verb(
        "analogy",
        "Makes the vector that is to c as b is to a.\n\nIt is c + factor * (b - a); with --task the factor is "
        "chosen on that task's images, without labels.",
        AnalogySettings,
        analogy,
        ["hf-taskvec analogy out/photos/vector out/sketches/vector out/birds/vector --task bird-sketches"],
        positional=["a", "b", "c"],
        file="option",
    ),
]
