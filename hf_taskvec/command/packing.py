"""`pack`: vectors of several tasks as one artefact; and what other verbs need to know such an artefact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_taskvec.command.outcome import Outcome, facts
from hf_taskvec.command.verbs import Verb
from hf_taskvec.errors import OutputExistsError
from hf_taskvec.fields import arg, check_settings
from hf_taskvec.text import columns

if TYPE_CHECKING:
    from hf_taskvec.multitask import MultiTaskVector


@dataclass
class PackSettings:
    """What is packed, and how."""

    vectors: list[str] = arg("Hub ids (with @revision if wanted) or folders of the vectors, one a task.")
    method: str = arg("tall_masks, emr, tsv_compress, twin, rtvq or basis.", default="tall_masks")
    settings: dict[str, Any] = arg("Settings of the method, each name=value; in YAML a mapping.", default={})
    output_dir: str = arg("Where to save the artefact.", default="out/packed")
    overwrite: bool = arg("Replace an artefact that the output folder holds already.", default=False)


def pack(settings: PackSettings) -> Outcome:
    """Packs vectors, and tells what each lost."""
    from hf_taskvec.multitask import pack as pack_vectors

    check_settings(settings.settings, pack_vectors)
    check_replaced(settings.output_dir, overwrite=settings.overwrite)
    packed = pack_vectors(settings.vectors, settings.method, output_dir=settings.output_dir, **settings.settings)
    return shown(packed, str(Path(settings.output_dir)))


def check_replaced(output_dir: str, *, overwrite: bool) -> None:
    """Raises an `OutputExistsError` if a folder holds an artefact that is not to be replaced."""
    from hf_taskvec.multitask.files import CONFIG_NAME

    if not overwrite and (Path(output_dir) / CONFIG_NAME).exists():
        raise OutputExistsError(
            f"{output_dir} holds an artefact already; choose another --output-dir, or replace it with --overwrite"
        )


def shown(packed: MultiTaskVector, place: str) -> Outcome:
    """An artefact in words: its method, size and tasks."""
    own = packed.parts.items()
    rows = [{"task": task, "factor": one.factor, "bytes": one.deltas.num_bytes, **_told(one.told)} for task, one in own]
    told: dict[str, object] = {
        "what": "vectors of several tasks",
        "method": packed.info.method,
        "base": packed.info.base,
        "tasks": len(rows),
        "size": f"{packed.num_bytes / 1e6:,.1f} MB",
        "of one vector": f"{packed.share:.3f}",
        "place": place,
    }
    table = columns(list(rows[0]), [list(row.values()) for row in rows])
    return Outcome({**told, "tasks": rows}, f"{facts(told)}\n\n{table}", [place])


def _told(told: Any) -> dict[str, Any]:
    accuracy = told.get("accuracy") or {}
    return {"error": told.get("error"), "accuracy": accuracy.get("difference")}


def open_packed(source: str) -> MultiTaskVector | None:
    """The vectors of several tasks at a Hub id or in a folder; `None` if it holds something else."""
    from hf_taskvec.hub.access import split_revision
    from hf_taskvec.multitask import MultiTaskVector
    from hf_taskvec.multitask.files import is_artefact

    place, revision = split_revision(source)
    if Path(place).is_file() or not is_artefact(place, revision=revision):
        return None
    return MultiTaskVector.from_pretrained(place, revision=revision)


VERBS = [
    Verb(
        "pack",
        "Packs vectors of several tasks into one artefact.\n\n"
        "What they share once, and what each has of its own in few bits; the task must be known to use it.",
        PackSettings,
        pack,
        [
            "hf-taskvec pack out/mnist/vector out/svhn/vector --method emr -o out/emr",
            "hf-taskvec evaluate mnist svhn --vector out/emr",
            "hf-taskvec apply out/emr --task mnist -o out/model",
        ],
        positional=["vectors"],
        file="option",
    ),
]
