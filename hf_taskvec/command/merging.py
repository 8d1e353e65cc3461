"""`validate`, `merge` and `apply`: vectors into one, and one onto its base."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_taskvec.command.outcome import Outcome
from hf_taskvec.command.packing import open_packed
from hf_taskvec.command.verbs import Verb
from hf_taskvec.errors import OutputExistsError
from hf_taskvec.fields import arg, check_settings
from hf_taskvec.text import columns

if TYPE_CHECKING:
    from hf_taskvec.merging.recipes import MergeRecipe
    from hf_taskvec.vectors.vector import TaskVector

KEPT = (
    "No half result is left; what a slow method had finished is kept beside the output folder, so the same command "
    "goes on where it was."
)


@dataclass
class MergeSettings:
    """A merge, as the verb and the recipe have it."""

    vectors: list[str] = arg("Hub ids (with @revision if wanted) or folders of the vectors to merge.", default=[])
    method: str = arg("Merge method; `hf-taskvec methods` lists all.", default="task_arithmetic")
    settings: dict[str, Any] = arg("Settings of the method, each name=value; in YAML a mapping.", default={})
    factors: list[float] = arg("A factor for each vector before it is merged; none if left out.", default=[])
    scaling: float = arg("Factor of the result.", default=1.0)
    dtype: str | None = arg("Dtype of the result, as float16; float32 or wider if left out.", default=None)
    device: str | None = arg("Where to compute, as cuda; where the vectors are if left out.", default=None)
    output_dir: str = arg("Where to save the merged vector.", default="out/merged")
    overwrite: bool = arg("Replace a vector that the output folder holds already.", default=False)
    missing: Literal["refuse", "zero"] = arg(
        "What a vector that lacks parameters of another gets there: refuse or zero.", default="refuse"
    )
    allow_zero: bool = arg("Merge trained vectors that are all zero.", default=False)
    statistics: list[str] = arg(
        "Hub ids or folders of the vectors' statistics, in their order, for a method that looks at data.", default=[]
    )
    base: str | None = arg(
        "Hub id or folder of the checkpoint that all were made from: merge checkpoints too, into a checkpoint.",
        default=None,
    )
    include: list[str] = arg("With --base: patterns of the parameters to merge; all if left out.", default=[])
    exclude: list[str] = arg("With --base: patterns of parameters that stay the base's.", default=[])
    resume: bool | None = arg(
        "Whether a killed merge goes on where it was; a slow method and one with --base do anyway.", default=None
    )
    repeat: str | None = arg("Hub id or folder of a merged vector whose recipe to run again.", default=None)


def recipe_of(settings: MergeSettings) -> MergeRecipe:
    """The merge that the settings mean: their own, or that of a merged vector."""
    from hf_taskvec.merging.recipes import MergeRecipe
    from hf_taskvec.vectors.vector import TaskVector

    if settings.repeat is not None:
        return MergeRecipe.from_info(TaskVector.from_pretrained(settings.repeat).info)
    return MergeRecipe(
        tuple(settings.vectors),
        settings.method,
        settings.settings,
        settings.scaling,
        settings.dtype,
        missing=settings.missing,
        allow_zero=settings.allow_zero,
        factors=tuple(settings.factors),
        statistics=tuple(settings.statistics),
    )


def run_merge(settings: MergeSettings) -> TaskVector:
    """Merges and saves the result."""
    check_without_base(settings)
    return recipe_of(settings).run(
        output_dir=settings.output_dir,
        device=settings.device,
        overwrite=settings.overwrite,
        resume=settings.resume,
    )


def check_without_base(settings: MergeSettings) -> None:
    """Refuses what only merges of checkpoints have.

    Raises:
        ValueError: If a setting of theirs is given.
    """
    if settings.base is not None:
        raise ValueError("--base is for `merge`, where it makes checkpoints of checkpoints: leave it out")
    if settings.include or settings.exclude:
        raise ValueError("--include and --exclude choose parameters of checkpoints, whose base --base names")


def run_checkpoint_merge(settings: MergeSettings) -> str:
    """Merges checkpoints of one base into a checkpoint, and tells where it is."""
    from hf_taskvec.merging import merge_checkpoints

    others, left_out = ("repeat", "dtype", "missing", "allow_zero", "resume"), MergeSettings()
    if odd := [name for name in others if getattr(settings, name) != getattr(left_out, name)]:
        raise ValueError(f"--{odd[0].replace('_', '-')} is for merges of vectors; with --base leave it out")
    check_settings(settings.settings, merge_checkpoints)
    check_free(settings.output_dir, overwrite=settings.overwrite)
    merge_checkpoints(
        str(settings.base),
        settings.vectors,
        settings.method,
        output_dir=settings.output_dir,
        scaling=settings.scaling,
        include=settings.include,
        exclude=settings.exclude,
        device=settings.device,
        factors=settings.factors or None,
        statistics=settings.statistics or None,
        **settings.settings,
    )
    return f"{settings.method} of {len(settings.vectors)} checkpoints is in {Path(settings.output_dir)}"


def check_free(output_dir: str, *, overwrite: bool) -> None:
    """Raises an `OutputExistsError` if a folder holds a checkpoint that is not to be replaced."""
    from hf_taskvec.models.layouts import APPLIED_NAME

    if not overwrite and (Path(output_dir) / APPLIED_NAME).exists():
        raise OutputExistsError(
            f"{output_dir} holds a checkpoint already; choose another --output-dir, or replace it with --overwrite"
        )


def merge(settings: MergeSettings) -> Outcome:
    """Merges, and tells where the result is."""
    folder = str(Path(settings.output_dir))
    if settings.base is not None:
        told = run_checkpoint_merge(settings)
        return Outcome(
            {"folder": folder, "method": settings.method, "checkpoints": len(settings.vectors)}, told, [folder]
        )
    merged = run_merge(settings)
    count = len(merged.info.parents)
    data = {"folder": folder, "method": merged.info.method, "vectors": count, "norm": merged.norm()}
    return Outcome(data, f"{merged.info.label} of {count} vector{'s' * (count != 1)} is in {folder}", [folder])


def validate(settings: MergeSettings) -> Outcome:
    """Looks at a merge before it."""
    from hf_taskvec.merging.validation import validate as validate_merge

    check_without_base(settings)
    findings = validate_merge(
        recipe_of(settings), output_dir=settings.output_dir, device=settings.device, overwrite=settings.overwrite
    )
    rows = [asdict(finding) for finding in findings]
    refused = [finding for finding in findings if finding.verdict == "refused"]
    table = columns(["what", "verdict", "why"], [list(row.values()) for row in rows])
    end = f"{len(refused)} of {len(rows)} would refuse the merge" if refused else "Nothing speaks against the merge"
    names = [finding.what for finding in refused]
    return Outcome({"ok": not refused, "findings": rows}, f"{table}\n\n{end}.", names, code=int(bool(refused)))


@dataclass
class ApplySettings:
    """A vector onto its base."""

    vector: str = arg("Hub id (with @revision if wanted) or folder of the vector.")
    task: str | None = arg("Which task, of vectors of several tasks that were packed together.", default=None)
    base: str | None = arg("Hub id or folder of the base; the one that the vector names if left out.", default=None)
    scaling: float = arg("Factor of the vector; -1 forgets what it learnt.", default=1.0)
    output_dir: str = arg("Where to write the checkpoint.", default="out/model")
    overwrite: bool = arg("Replace a checkpoint that the output folder holds already.", default=False)
    allow_other_base: bool = arg("Add it to weights other than those it was made from; recorded.", default=False)


def apply(settings: ApplySettings) -> Outcome:
    """Writes base plus vector as a checkpoint that Transformers loads."""
    from hf_taskvec.merging.sources import open_source

    folder = Path(settings.output_dir)
    check_free(settings.output_dir, overwrite=settings.overwrite)
    packed = open_packed(settings.vector)
    if (packed is None) is not (settings.task is None):
        raise ValueError(
            "--task is for vectors of several tasks, as `hf-taskvec pack` makes them"
            if packed is None
            else f"{settings.vector} holds vectors of several tasks; say which by --task: {', '.join(packed.tasks)}"
        )
    vector = open_source(settings.vector)[1] if packed is None else packed.for_task(str(settings.task))
    vector.save_checkpoint(settings.base, folder, scaling=settings.scaling, allow_other_base=settings.allow_other_base)
    data = {"folder": str(folder), "vector": vector.info.label, "scaling": settings.scaling}
    return Outcome(data, f"The base plus {settings.scaling:g} times {vector.info.label} is in {folder}", [folder])


VERBS = [
    Verb(
        "validate",
        "Looks at a merge before it; fetches no weights.\n\n"
        "Names, settings, files, bases, disk and memory. The file is what `merge --config` takes.",
        MergeSettings,
        validate,
        ["hf-taskvec validate recipe.yaml", "hf-taskvec validate recipe.yaml --method ties -s density=0.2 --json"],
        file="argument",
    ),
    Verb(
        "merge",
        "Merges vectors into one, or checkpoints of a base into a checkpoint.\n\n"
        "The result keeps the recipe in its provenance, for --repeat.",
        MergeSettings,
        merge,
        [
            "hf-taskvec merge out/mnist/vector user/gtsrb@main --method ties -s density=0.2 -o out/ties",
            "hf-taskvec merge user/llama-math user/llama-code --base meta-llama/Llama-3.2-1B -o out/model",
            "hf-taskvec merge --config recipe.yaml",
            "hf-taskvec merge --repeat out/ties -o out/ties-again",
        ],
        positional=["vectors"],
        file="option",
        stopped=KEPT,
    ),
    Verb(
        "apply",
        "Writes base plus vector as a checkpoint.\n\nCLIPModel.from_pretrained loads it.",
        ApplySettings,
        apply,
        ["hf-taskvec apply out/ties --scaling 0.3 -o out/model", "hf-taskvec apply user/birds --base out/my-clip"],
        positional=["vector"],
    ),
]
