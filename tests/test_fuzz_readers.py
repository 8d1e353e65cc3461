"""Mutants of whatever is read from outside or from a cache: our own error, and a cache never changes what comes out."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from huggingface_hub.constants import HF_HOME
from PIL import Image

from hf_taskvec import Task, TaskVector, load_base, merge
from hf_taskvec.arguments import parse_recipe
from hf_taskvec.cards.find import list_vectors
from hf_taskvec.cards.folder import render_folder_card
from hf_taskvec.cards.publish import push_to_hub
from hf_taskvec.errors import TaskVecError
from hf_taskvec.evaluation.report import Report
from hf_taskvec.evaluation.result import TaskResult
from hf_taskvec.merging.journal import Journal
from hf_taskvec.merging.recipes import MergeRecipe
from hf_taskvec.models import heads
from hf_taskvec.tasks import pixels
from hf_taskvec.training.output import RunFolder, check_checkpoint, last_checkpoint
from hf_taskvec.vectors.files import read_info
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.weights.folders import write_json
from hf_taskvec.weights.resume import claim_folder, compute_or_read
from recipes.merge import MergeArguments
from tests.bases import save_tiny_base, tiny_base
from tests.helpers import equal_vectors, mutant, random_deltas
from tests.hub_server import Fault, HubServer

VECTOR = TaskVector(random_deltas(), VectorInfo(task="mnist", base="user/base", seed=3))


@dataclass(frozen=True)
class Reader:
    """Something that reads files which may be damaged.

    Attributes:
        files: The files.
        read: Reads them; raises an `AssertionError` if what comes out is impossible.
        refuses: Whether it may end in an error of ours; a cache may not.
    """

    files: list[Path]
    read: Callable[[], object]
    refuses: bool = True


def report(folder: Path) -> Reader:
    results = [TaskResult(task, 0.5, 10, zero_shot=0.25, metrics={"f1": 0.5}) for task in ("mnist", "gtsrb")]
    Report("merged", "test", tuple(results)).save(folder / "report.json")

    def read() -> None:
        loaded = Report.load(folder / "report.json")
        assert 0 <= loaded.accuracy <= 1
        assert Report.from_dict(json.loads(json.dumps(loaded.to_dict()))) == loaded
        assert loaded.to_markdown().replace("\n", "").isprintable()

    return Reader([folder / "report.json"], read)


def yaml(folder: Path) -> Reader:
    path = folder / "ties.yaml"
    path.write_text("vectors: [user/a, out/b]\nmethod: ties\nsettings:\n  density: 0.2\nscaling: 0.5\nquiet: true\n")

    def read() -> None:
        (args,) = parse_recipe(MergeArguments, argv=["--config", str(path)])
        assert isinstance(args.vectors, list)
        assert isinstance(args.scaling, float)

    return Reader([path], read)


def recipe(folder: Path) -> Reader:
    VECTOR.save_pretrained(folder / "one")
    merge([folder / "one", folder / "one"], "ties", density=0.5, output_dir=folder / "merged")
    path = folder / "merged" / "task_vector_config.json"

    def read() -> None:
        MergeRecipe.from_info(read_info(folder / "merged")).check()

    return Reader([path], read)


def card(folder: Path) -> Reader:
    VECTOR.save_pretrained(folder)
    Report("mnist", "test", (TaskResult("mnist", 0.5, 10),)).save(folder / "report.json")

    def read() -> None:
        assert render_folder_card(folder, repo_id="user/x").replace("\n", "").isprintable()

    return Reader([folder / "task_vector_config.json", folder / "report.json"], read)


def applied_card(folder: Path) -> Reader:
    write_json(folder / "task_vector_applied.json", {"vector": VECTOR.info.to_dict(), "scaling": 0.5, "files": []})
    return Reader([folder / "task_vector_applied.json"], lambda: render_folder_card(folder, repo_id="user/x"))


def base_card(folder: Path) -> Reader:
    config = {
        "description": "Tiny.",
        "license": "mit",
        "facts": {"width": 32},
        "command": "python a.py",
        "limits": ["a"],
    }
    config |= {"data": [{"name": "pairs", "pairs": 100, "license": "mit"}], "retrieval": {"recall": 0.5}}
    write_json(folder / "config.json", config)
    return Reader([folder / "config.json"], lambda: render_folder_card(folder, repo_id="user/x"))


def recorded_task(folder: Path) -> Reader:
    info = VectorInfo(
        task="own",
        dataset="user/own",
        class_names=("cat", "dog"),
        templates=("a {}.",),
        data_settings={"test_size": 0.5},
    )
    TaskVector(random_deltas(), info).save_pretrained(folder)

    def read() -> None:
        assert Task.from_info(read_info(folder)).class_names

    return Reader([folder / "task_vector_config.json"], read)


def base(folder: Path) -> Reader:
    save_tiny_base(folder)

    def read() -> None:
        assert load_base(folder).model.config.projection_dim > 0

    return Reader(sorted(folder.iterdir()), read)


def plan(folder: Path) -> Reader:
    settings = {"task": "mnist", "seed": 3, "rate": 1e-5}

    def read() -> None:
        claim_folder(folder / "run", settings, name="plan.json")
        value = compute_or_read(
            folder / "value.json", settings, compute=lambda path: write_json(path, {"a": 1}), read=Path.read_text
        )
        assert json.loads(value) == {"a": 1}

    read()
    return Reader([folder / "run" / "plan.json", folder / "value.json.plan.json"], read)


def run(folder: Path) -> Reader:
    checkpoint, settings = folder / "checkpoint-3", {"task": "mnist", "seed": 3}
    RunFolder(folder).begin(settings, resumed=False)
    checkpoint.mkdir()
    for name in ("model.safetensors", "optimizer.pt"):
        (checkpoint / name).touch()
    write_json(checkpoint / "trainer_state.json", {"global_step": 3})
    write_json(checkpoint / "task_vector_run.json", json.loads((folder / "task_vector_run.json").read_text()))

    def read() -> None:
        if (last := last_checkpoint(folder)) is not None:
            check_checkpoint(last, settings)
        RunFolder(folder).begin(settings, resumed=True)
        RunFolder(folder).claim("vectors/epoch-1")

    return Reader([*checkpoint.glob("*.json"), folder / "task_vector_run.json"], read)


def journal(folder: Path) -> Reader:
    def read() -> None:
        kept = Journal(folder).keep(VECTOR)
        assert all(torch.equal(kept.deltas[name], VECTOR.deltas[name]) for name in VECTOR.deltas)

    read()
    return Reader(sorted(folder.iterdir()), read, refuses=False)


def head(folder: Path) -> Reader:
    model, words = tiny_base(), (["red", "green"], ["a {}."])
    right = heads.zero_shot_head(model, *words)
    path = Path(HF_HOME) / "hf_taskvec" / "heads" / f"{heads._head_key(model, *words)}.safetensors"

    def read() -> None:
        assert torch.equal(heads.zero_shot_head(model, *words), right)

    return Reader([path], read, refuses=False)


def pixel_cache(folder: Path) -> Reader:
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40), (number * 200, 0, 9)).save(folder / split / name / "0.png")
    task, processor = Task.from_dataset(folder), tiny_base().processor.image_processor
    places = pixels.cache_folder() / "pixels"
    before = set(places.glob("*")) if places.is_dir() else set()

    def read() -> pixels.PixelDataset:
        pixels._open_pixels.cache_clear()
        return pixels.load_pixels(task, "test", processor)

    right = read()
    values, labels = np.array(right.pixels), right.labels.tolist()

    def check() -> None:
        loaded = read()
        assert np.array_equal(loaded.pixels, values)
        assert (loaded.labels.tolist(), loaded.skipped) == (labels, ())

    return Reader(sorted(set(places.glob("*")) - before), check, refuses=False)


READERS: dict[str, Callable[[Path], Reader]] = {
    read.__name__: read
    for read in (report, yaml, recipe, card, applied_card, base_card, recorded_task, base, plan, run, journal, head)
} | {"pixels": pixel_cache}


def check_reader(make: Callable[[Path], Reader], folder: Path, count: int, *, seed: int) -> int:
    """Reads `count` mutants one after the other. Returns how many were refused."""
    reader, chance, refused = make(folder), random.Random(seed), 0
    reader.read()
    whole = {path: path.read_bytes() for path in reader.files}
    for number in range(count):
        path = chance.choice(reader.files)
        path.write_bytes(mutant(whole[path], chance))
        try:
            reader.read()
        except TaskVecError as error:
            refused, message = refused + 1, str(error)
            assert reader.refuses, f"mutant {number} of {path} ended the run: {message}"
            assert message.isprintable(), f"mutant {number} of {path}: {message!r}"
            assert len(message) <= 600
        for name, content in whole.items():
            name.write_bytes(content)
    return refused


@pytest.mark.parametrize("name", READERS)
def test_what_is_read_is_refused_or_sane_and_a_cache_is_never_believed(name: str, tmp_path: Path) -> None:
    check_reader(READERS[name], tmp_path, 40, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_thousands_of_mutants_of_what_is_read(name: str, tmp_path: Path) -> None:
    print(f"{name}: {check_reader(READERS[name], tmp_path, 3000, seed=1)} of 3000 mutants refused")


# -- what a server says -----------------------------------------------------------------------------------------------

REPO = "user/vector"
HEADERS = {  # of an answer whose path fits, as a well server could say them
    "GET /api/models\\?": {"Link": '</api/models?cursor=1>; rel="next"'},
    "(GET|HEAD) .*/resolve/": {"X-Repo-Commit": "a" * 40, "ETag": '"' + "b" * 64 + '"', "Content-Length": "120"},
    "HEAD .*/resolve/": {"Location": "/user/vector/resolve/main/README.md", "X-Linked-Size": "100"},
}


def answers(hub: HubServer) -> dict[str, bytes]:
    """What a well server says about a repository and about its list, by the path."""
    push_to_hub(VECTOR, REPO, token="write-user")
    paths = {f"GET /api/models/{REPO}": f"/api/models/{REPO}?blobs=true", "GET /api/models\\?": "/api/models?full=true"}
    return {match: httpx2.get(hub.url + path).content for match, path in paths.items()}


def check_server(hub: HubServer, folder: Path, count: int, *, seed: int) -> int:
    """Asks a server that says `count` mutants of a sane answer. Returns how often that was refused."""
    whole, chance, refused = answers(hub), random.Random(seed), 0
    for number in range(count):
        if chance.random() < 0.6:
            match = chance.choice(list(whole))
            fault = Fault(match, body=mutant(whole[match], chance), times=99)
        else:
            match = chance.choice(list(HEADERS))
            name, value = chance.choice(list(HEADERS[match].items()))
            said = mutant(value.encode(), chance).decode("latin-1")
            fault = Fault(match, headers={name: "".join(sign for sign in said if sign.isprintable())}, times=99)
        for ask in (lambda: TaskVector.from_pretrained(REPO, cache_dir=folder / "cache"), list_vectors):
            hub.faults[:] = [replace(fault)]
            try:
                answer = ask()
            except TaskVecError as error:
                refused, message = refused + 1, str(error)
                assert message.isprintable(), f"mutant {number}, {fault}: {message!r}"
                assert len(message) <= 600
            else:
                assert not isinstance(answer, TaskVector) or equal_vectors(answer, VECTOR), f"mutant {number}: {fault}"
        shutil.rmtree(folder / "cache", ignore_errors=True)
    assert sorted(path.name for path in folder.iterdir()) == []
    return refused


# a server may announce more than the disk holds, of which the client only warns
BIG = pytest.mark.filterwarnings("ignore:Not enough free disk space:UserWarning")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@BIG
@pytest.mark.usefixtures("impatient")
def test_what_a_server_says_is_refused_or_the_vector_is_the_same(hub: HubServer, tmp_path: Path) -> None:
    assert 0 < check_server(hub, tmp_path, 25, seed=0) < 50


@pytest.mark.slow
@BIG
@pytest.mark.usefixtures("impatient")
def test_thousands_of_mutants_of_what_a_server_says(hub: HubServer, tmp_path: Path) -> None:
    print(f"{check_server(hub, tmp_path, 3000, seed=1)} of 6000 answers refused")
