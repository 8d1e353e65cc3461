"""`doctor`: what stands against a merge before it is made."""

from __future__ import annotations

from dataclasses import dataclass

from hf_taskvec.command.outcome import Outcome
from hf_taskvec.command.verbs import Verb
from hf_taskvec.fields import arg


@dataclass
class DoctorSettings:
    """What is looked at, and how far."""

    vectors: list[str] = arg("Hub ids (with @revision if wanted) or folders of the vectors that are to be merged.")
    tasks: list[str] = arg("Their tasks, to look at images too; with --base the vectors' own if left out.", default=[])
    base: str | None = arg("Hub id or folder of their base; with --tasks the embedded tiny CLIP if left out.", None)
    skip_gradients: bool = arg("Do not compute the gradients at the base, from training images.", default=False)
    skip_leaks: bool = arg("Do not look for training images in the test parts of other tasks.", default=False)
    num_images: int = arg("Most images of each task for accuracies and gradients.", default=256)
    evidence: str | None = arg("File of recipes/doctor.py, instead of what was measured on the tiny CLIP.", None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)


def doctor(settings: DoctorSettings) -> Outcome:
    """Diagnoses, and names the findings."""
    from hf_taskvec.doctor import diagnose
    from hf_taskvec.merging.sources import open_source
    from hf_taskvec.models.base import load_base
    from hf_taskvec.tasks.registry import get_tasks

    vectors, base, tasks = [open_source(source)[1] for source in settings.vectors], None, None
    if settings.base is not None or settings.tasks:
        names = settings.tasks or list(dict.fromkeys(v.info.task for v in vectors if v.info.task is not None))
        base, tasks = load_base(settings.base), get_tasks(names, data_dir=settings.data_dir)
    diagnosis = diagnose(
        vectors,
        base,
        tasks,
        gradients=not settings.skip_gradients,
        leaks=not settings.skip_leaks,
        num_images=settings.num_images,
        evidence=settings.evidence,
    )
    names = [finding.symptom for finding in diagnosis.findings]
    return Outcome(diagnosis.to_dict(), str(diagnosis), names + ["leak"] * bool(diagnosis.leaks))


VERBS = [
    Verb(
        "doctor",
        "Tells what stands against a merge before it is made.\n\n"
        "From the vectors alone, or with --tasks also from images: what may go wrong, what was measured to help, and "
        "what the merge is thought to keep.",
        DoctorSettings,
        doctor,
        [
            "hf-taskvec doctor out/mnist/vector out/svhn/vector",
            "hf-taskvec doctor out/mnist/vector out/svhn/vector --tasks mnist --tasks svhn --json",
        ],
        positional=["vectors"],
        file="option",
    )
]
