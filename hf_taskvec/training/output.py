"""A run's output folder: whose it is, what the run wrote into it, and which of its checkpoints are whole."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerState

from hf_taskvec.errors import CheckpointError, OutputExistsError
from hf_taskvec.models.base import SAVED, Base
from hf_taskvec.models.classifier import ImageClassifier, LinearClassifier
from hf_taskvec.models.layouts import BACKBONES
from hf_taskvec.text import listed
from hf_taskvec.weights.folders import read_json, write_json
from hf_taskvec.weights.resume import check_plan, plain
from hf_taskvec.weights.temporary import held

logger = logging.getLogger(__name__)

SAVED_AS: dict[str | None, str] = {  # class by the base's architecture
    None: "CLIPVisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    **{kind: f"{stem}ForImageClassification" for kind, stem in BACKBONES.items()},
}
RUN_FILE = "task_vector_run.json"
VECTORS = "vectors"
GRADIENT_VECTORS = "gradients"
FULL_GRADIENTS = "full_gradients"  # which `measure_dynamics` adds
IDENTITY = ("task", "tasks", "dataset", "dataset_revision", "base_fingerprint")  # whose a folder is
EXTENDABLE = ("num_train_epochs", "max_steps")  # a run may be resumed for longer
LATER = ("tokenizer",)  # which plans of older versions do not tell
STATE = "trainer_state.json"  # which Transformers writes last
SHARDS = "shards.json"  # of a checkpoint that has a file for each process
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_WEIGHTS_ONLY = "it holds the weights only (save_only_model=True), so the optimiser would start anew"
_RECORDED = re.compile(r"(epoch|step|fraction)-[\d.e+-]+")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_VECTOR_FILES = re.compile(r"task_vector(_config\.json|.*\.safetensors(\.index\.json)?)")


class RunFolder:
    """The output folder of one run at a time.

    `task_vector_run.json` in it holds the plan of the run and the names of the vectors that it wrote: a later run
    replaces those and nothing else.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.run: str | None = None  # the run that holds the folder, once `begin` was called

    def begin(self, plan: Mapping[str, Any], *, resumed: bool) -> None:
        """Makes the folder this run's own, after it has been found to be free, or the same task's and base's.

        Unless the run is resumed, the vectors of an earlier run of the folder are removed.

        Raises:
            SettingsDifferError: If the folder belongs to another task or base.
            OutputExistsError: If vectors lie where the run will write, and no run of this folder wrote them.
        """
        there = self._read()
        if there:
            theirs, ours = (
                {key: settings[key] for key in IDENTITY if key in settings} for settings in (there["plan"], plain(plan))
            )
            check_plan(theirs, ours, what=f"the run in {self.path}")
        written = list(there.get("written", []))
        self._check_strangers(written)
        if not resumed:
            self._remove(written)
            written = []
        self.run = there["run"] if resumed and there else uuid.uuid4().hex
        write_json(self.path / RUN_FILE, {"run": self.run, "plan": plain(plan), "written": written})

    def claim(self, name: str) -> Path:
        """The path of a file or folder, relative to the folder, from now on one of those that its run wrote.

        Raises:
            OutputExistsError: If something is there that no run of this folder wrote.
        """
        if not _is_ours(name):
            raise ValueError(f"a recorded vector's name must be letters, digits, '-', '_', '.', got {name!r}")
        there = self._read()
        path = self.path / name
        if name not in there.get("written", []):
            if path.exists():
                raise OutputExistsError(
                    f"{path} is there, and no run of {self.path} wrote it; choose another output_dir"
                )
            if there:
                write_json(self.path / RUN_FILE, {**there, "written": [*there["written"], name]})
        return path

    def adopt(self, *names: str) -> None:
        """Counts files or folders that are added to the run's, and those of old, among those that it wrote."""
        there = self._read()
        if there and (new := [name for name in names if name not in there["written"]]):
            write_json(self.path / RUN_FILE, {**there, "written": [*there["written"], *new]})

    def check_owner(self) -> None:
        """Raises an `OutputExistsError` if another run has taken the folder over since `begin`."""
        if self.run is not None and self._read().get("run") != self.run:
            raise OutputExistsError(
                f"another run has written into {self.path} since; give each run an output_dir of its own"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder against every other run, of this process or another, until the block ends.

        Raises:
            OutputExistsError: If another run is at work in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with held(self.path) as free:
            if free is False:
                raise OutputExistsError(
                    f"another run is at work in {self.path}; wait for its end, or choose another output_dir"
                )
            if free is None:
                logger.warning("%s cannot be locked: see to it that no other run uses it", self.path)
            yield

    def _read(self) -> dict[str, Any]:
        if not (self.path / RUN_FILE).is_file():
            return {}
        there = read_json(self.path / RUN_FILE)
        written = there.get("written")
        if not isinstance(there.get("plan"), dict) or not isinstance(written, list) or not there.get("run"):
            raise CheckpointError(f"{self.path / RUN_FILE} is damaged; choose another output folder, or remove it")
        if not all(isinstance(name, str) and _is_ours(name) for name in written):
            raise CheckpointError(
                f"{self.path / RUN_FILE} names files that no run writes; choose another output folder"
            )
        return there

    def _check_strangers(self, written: Sequence[str]) -> None:
        strangers = [
            f"{folder}/{path.name}"
            for folder in (VECTORS, GRADIENT_VECTORS, FULL_GRADIENTS)
            for path in sorted((self.path / folder).glob("*"))
            if _RECORDED.fullmatch(path.name) and f"{folder}/{path.name}" not in written
        ]
        checkpoints = [path for path in self.path.glob("*") if _CHECKPOINT.fullmatch(path.name)]
        strangers += [path.name for path in checkpoints if not (path / RUN_FILE).is_file() and list(path.glob("[!.]*"))]
        if strangers:
            raise OutputExistsError(
                f"{self.path} holds {listed(strangers)}, which no run of this folder wrote and this one might replace; "
                "choose another output_dir",
                details=strangers,
            )

    def _remove(self, written: Sequence[str]) -> None:
        """Removes what an earlier run wrote; everything is looked at before anything goes."""
        paths = [path for name in written if (path := self.path / name).exists()]
        for path in paths:
            others = [] if path.is_file() else [p.name for p in path.iterdir() if not _VECTOR_FILES.fullmatch(p.name)]
            if others or path.is_symlink():
                raise OutputExistsError(
                    f"{path} holds {listed(others) or 'a link'} besides the vector of an earlier run, which this run "
                    "replaces; move it away, or choose another output_dir"
                )
        for path in paths:
            path.unlink() if path.is_file() else shutil.rmtree(path)


def _is_ours(name: str) -> bool:
    """Whether a name in a run's file is one that a run can have written, and stays in the folder."""
    folder, _, last = name.partition("/")
    return folder in (VECTORS, GRADIENT_VECTORS, FULL_GRADIENTS) and bool(
        _RECORDED.fullmatch(last.removesuffix(".plan.json")) or re.fullmatch(r"[\w][\w.+-]*", last)
    )


# -- checkpoints -------------------------------------------------------------------------------------------------------


def missing_in(checkpoint: Path) -> str | None:
    """What a checkpoint lacks to be resumed from, in words; `None` if it is whole."""
    if not checkpoint.is_dir():
        return "it is no folder"
    try:
        facts = shard_facts(checkpoint)
    except CheckpointError as error:
        return str(error)
    shards = [shard_name(rank, facts["processes"]) for rank in range(facts["processes"])] if facts else []
    if lacking := [name for name in shards if not (checkpoint / name).is_file()]:
        return f"it has no {listed(lacking)}"
    if not facts and not any((checkpoint / name).is_file() for name in _WEIGHTS):
        return f"it has no {_WEIGHTS[0]}"
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"it has no whole {STATE}, which is written last"
    if not facts and not (checkpoint / "optimizer.pt").is_file():
        return _WEIGHTS_ONLY
    return None


def shard_name(rank: int, processes: int) -> str:
    """The file of one process in a checkpoint of several.

    Example:
        >>> shard_name(0, 2)
        'shard-00001-of-00002.safetensors'
    """
    return f"shard-{rank + 1:05d}-of-{processes:05d}.safetensors"


def shard_facts(checkpoint: Path) -> dict[str, Any] | None:
    """What the processes of a sharded run have in common in a checkpoint; `None` if it is of another run.

    Raises:
        CheckpointError: If it is damaged.
    """
    if not (checkpoint / SHARDS).is_file():
        return None
    facts = read_json(checkpoint / SHARDS)
    kinds = {"processes": int, "optimizer": list, "numbers": dict, "scheduler": dict}
    if any(not isinstance(facts.get(name), kind) for name, kind in kinds.items()):
        raise CheckpointError(f"{checkpoint / SHARDS} is damaged: it must hold {', '.join(kinds)}")
    return facts


def last_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The last whole checkpoint in a run's folder, `None` if it has none; unfinished ones are named in the log.

    Args:
        folder: The `output_dir` of a run.

    Raises:
        CheckpointError: If the run kept the weights only.

    Example:
        >>> import tempfile
        >>> last_checkpoint(tempfile.mkdtemp()) is None
        True
    """
    numbered = [(int(match[1]), path) for path in Path(folder).glob("*") if (match := _CHECKPOINT.fullmatch(path.name))]
    current = _run_of(Path(folder))
    ordered = sorted(numbered, key=lambda each: (_run_of(each[1]) == current, each[0]), reverse=True)
    lacking = {path: missing_in(path) for _, path in ordered}
    for path, what in lacking.items():
        if what is None:
            return path
        logger.warning("%s is passed over: %s", path, what)
    if _WEIGHTS_ONLY in lacking.values():
        raise CheckpointError(
            f"no checkpoint in {folder} can be resumed from: {_WEIGHTS_ONLY}; train into another folder"
        )
    return None


def wanted_checkpoint(folder: Path, wanted: str | Path | bool | None) -> Path | None:
    """The checkpoint to resume from: a path, of `True` the last whole one in a run's folder, else none.

    Raises:
        ValueError: If the folder has none.
    """
    if wanted is not True:
        return Path(wanted) if wanted else None
    if (checkpoint := last_checkpoint(folder)) is None:
        raise ValueError(
            f"resume_from_checkpoint=True, but {folder} has no checkpoint that is whole; train() without it starts anew"
        )
    return checkpoint


def _run_of(folder: Path) -> str | None:
    """The run that a folder or a checkpoint says it belongs to."""
    try:
        return str(read_json(folder / RUN_FILE).get("run"))
    except (OSError, CheckpointError):
        return None


def check_checkpoint(checkpoint: Path, plan: Mapping[str, Any]) -> None:
    """Makes sure that a checkpoint is whole and of the same run; a longer run is told.

    Raises:
        CheckpointError: If it is unfinished, or does not tell which run it belongs to.
        SettingsDifferError: If it belongs to a run of another task, base or settings.
    """
    if lacking := missing_in(checkpoint):
        raise CheckpointError(
            f"{checkpoint} cannot be resumed from: {lacking}; resume_from_checkpoint=True takes the last whole one"
        )
    if not (checkpoint / RUN_FILE).is_file():
        raise CheckpointError(f"{checkpoint} has no {RUN_FILE}, so it does not tell which run it belongs to")
    there, here = read_json(checkpoint / RUN_FILE).get("plan"), plain(plan)
    if not isinstance(there, dict):
        raise CheckpointError(f"{checkpoint / RUN_FILE} is damaged: it holds no plan")
    for key in EXTENDABLE:
        before, now = there.pop(key, None), here.pop(key, None)
        if before != now:
            logger.warning("resuming with %s=%s, %s before: the schedule changes from here on", key, now, before)
    check_plan(there, comparable(here, there), what=f"the checkpoint {checkpoint}")


def comparable(here: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    """A plan without what the older one it is compared with cannot tell."""
    return {key: value for key, value in here.items() if key in there or key not in LATER}


def save_beside(folder: str | os.PathLike[str], model: ImageClassifier, base: Base) -> None:
    """Writes what makes saved weights a model of Transformers: configuration and image processor."""
    config = type(model.config).from_dict(model.config.to_dict())
    config.architectures = [SAVED_AS[base.architecture]]
    if isinstance(model, LinearClassifier):
        config.id2label = dict(enumerate(model.linear_head.class_names))
        config.label2id = {name: number for number, name in config.id2label.items()}
        write_json(Path(folder) / SAVED, {"name": base.name, "revision": base.revision, "edited": True})
    config.save_pretrained(folder)
    base.processor.image_processor.save_pretrained(folder)


def _size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def epoch_name(epoch: float) -> str:
    """Folder name of the vector after so many epochs; a fraction has a name of its own.

    Example:
        >>> epoch_name(2.0), epoch_name(2.5), epoch_name(100.00005)
        ('epoch-2', 'epoch-2.5', 'epoch-100.00005')
    """
    short = f"{epoch:g}"
    whole = float(short) % 1 == 0
    return f"epoch-{short}" if whole == (epoch % 1 == 0) else f"epoch-{epoch:.12g}"


def what_is_left(folder: Path, state: TrainerState) -> str:
    """What an interrupted run leaves behind, and how to go on.

    Example:
        >>> state = TrainerState(max_steps=9)
        >>> what_is_left(Path("nowhere"), state)
        'interrupted at step 0 of 9, before the first checkpoint: start it again'
    """
    checkpoint = last_checkpoint(folder) if folder.is_dir() else None
    where = f"interrupted at step {state.global_step} of {state.max_steps}"
    if checkpoint is None:
        return f"{where}, before the first checkpoint: start it again"
    return f"{where}; {checkpoint} is left: train(resume_from_checkpoint=True) goes on there, as train_vector does"


def what_lies_in(folder: Path) -> str:
    """Where a run's vectors are and how much room they and its checkpoints take."""
    vectors = sorted(path.name for path in (folder / VECTORS).glob("*") if path.is_dir() and path.name[0] != ".")
    checkpoints = [path for path in folder.glob("checkpoint-*") if path.is_dir()]
    parts = []
    if vectors:
        shown = ", ".join(vectors[:3]) + (f" and {len(vectors) - 3} more" if len(vectors) > 3 else "")
        parts.append(f"Task vectors are in {folder / VECTORS}: {shown} ({_megabytes(_size_of(folder / VECTORS))}).")
    if checkpoints:
        room = sum(_size_of(path) for path in checkpoints)
        names = ", ".join(path.name for path in checkpoints[:3])
        parts.append(f"{names} ({_megabytes(room)}) is what resuming needs; remove it if the run is done.")
    return " ".join(parts)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
