"""Mutants of valid files and random configurations: our own error, or the very same vector."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hf_taskvec.cards import render_vector_card
from hf_taskvec.cards.text import code, fence, literal, markdown
from hf_taskvec.errors import TaskVecError
from hf_taskvec.evaluation.report import Report
from hf_taskvec.evaluation.result import TaskResult
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.lora import LoraAdapter
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.lowrank import Factors
from hf_taskvec.weights.safetensors import write_sharded
from tests.helpers import equal_vectors, mutant, random_deltas
from tests.hub_server_card import card_errors

SHAPE = torch.Size([4, 3])
VECTOR = TaskVector(random_deltas(), VectorInfo(task="mnist", base="user/base", seed=3, settings={"a": [1, 2.5]}))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [*VectorInfo.__dataclass_fields__, "schema_version", "library", "fingerprint", "other"]
TEXT = st.text(max_size=40)
QUICK = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate],
    derandomize=True,
)


def check_mutants(tmp_path: Path, count: int, *, seed: int) -> tuple[int, int]:
    """Loads `count` mutants; each is refused with an error of ours or gives the same deltas. Returns both counts."""
    VECTOR.save_pretrained(tmp_path / "one")
    VECTOR.save_pretrained(tmp_path / "many", max_shard_size=70)
    targets = [path for folder in ("one", "many") for path in sorted((tmp_path / folder).iterdir())]
    chance, refused = random.Random(seed), 0
    for number in range(count):
        target = chance.choice(targets)
        folder = tmp_path / "mutant"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(target.parent, folder)
        (folder / target.name).write_bytes(mutant(target.read_bytes(), chance))
        try:
            loaded = TaskVector.from_pretrained(folder, verify=True)
        except TaskVecError as error:
            refused, message = refused + 1, str(error)
        else:
            message = ""
            assert equal_vectors(loaded, VECTOR), f"mutant {number} of {target} is another vector"
        assert message.isprintable(), f"mutant {number}: {message!r}"
    return refused, count - refused


def check_outside_mutants(tmp_path: Path, count: int, *, seed: int) -> int:
    """Reads `count` mutants of an adapter and of a sharded checkpoint; our own error, or a vector: none has a digest.

    Returns:
        How many were refused.
    """
    save_adapter(tmp_path / "adapter")
    save_checkpoints(tmp_path)
    chance, refused = random.Random(seed), 0
    targets = [path for folder in ("adapter", "tuned") for path in sorted((tmp_path / folder).iterdir())]
    for number in range(count):
        target, folder = chance.choice(targets), tmp_path / "mutant"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(target.parent, folder)
        (folder / target.name).write_bytes(mutant(target.read_bytes(), chance))
        try:
            if target.parent.name == "adapter":
                TaskVector.from_adapter(folder, base=tmp_path / "base")
            else:
                TaskVector.from_checkpoints(tmp_path / "base", folder)
            message = ""
        except TaskVecError as error:
            refused, message = refused + 1, str(error)
        assert message.isprintable(), f"mutant {number} of {target}: {message!r}"
        assert len(message) <= 600
    return refused


def save_adapter(folder: Path) -> None:
    factors = {"vision_model.encoder.layers.0.mlp.fc1.weight": Factors(torch.ones(4, 2), torch.ones(2, 3), 0.5, SHAPE)}
    LoraAdapter(factors, VectorInfo(kind="lora", base="user/base")).save_pretrained(folder)


def save_checkpoints(folder: Path) -> None:
    names = [f"vision_model.encoder.layers.{n}.mlp.fc1.weight" for n in range(3)]
    for name, value in (("base", 0.0), ("tuned", 1.0)):
        (folder / name).mkdir()
        weights = [(parameter, torch.full(SHAPE, value)) for parameter in names]
        shapes = dict.fromkeys(names, SHAPE)
        write_sharded(folder / name, "model", weights, shapes=shapes, dtype=torch.float32, max_shard_size=50)
        (folder / name / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))


def test_mutants_from_outside_are_refused_or_read(tmp_path: Path) -> None:
    assert 40 < check_outside_mutants(tmp_path, 150, seed=0) < 150


@pytest.mark.slow
def test_thousands_of_mutants_from_outside_are_refused_or_read(tmp_path: Path) -> None:
    print(f"{check_outside_mutants(tmp_path, 3000, seed=1)} of 3000 mutants refused")


def test_mutants_are_refused_or_the_same(tmp_path: Path) -> None:
    refused, same = check_mutants(tmp_path, 250, seed=0)
    assert refused > same > 0  # most edits matter; some, as in the provenance, leave the deltas alone


@pytest.mark.slow
def test_thousands_of_mutants_are_refused_or_the_same(tmp_path: Path) -> None:
    refused, same = check_mutants(tmp_path, 5000, seed=1)
    print(f"{refused} mutants refused, {same} the same vector")


@settings(parent=QUICK, max_examples=150)
@given(st.dictionaries(st.sampled_from(FIELDS) | TEXT, JSON, max_size=5))
def test_any_configuration_is_read_or_refused(values: dict[str, object]) -> None:
    info, message = VectorInfo(), ""
    try:
        info = VectorInfo.from_dict(json.loads(json.dumps(values)))
    except TaskVecError as error:
        message = str(error)
    assert message.isprintable()
    assert VectorInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info


@settings(parent=QUICK, max_examples=25)
@given(task=TEXT, label=TEXT, base=TEXT, command=TEXT, key=TEXT)
def test_any_text_gives_a_card_that_the_hub_accepts(task: str, label: str, base: str, command: str, key: str) -> None:
    info = VectorInfo(
        kind="merged",
        base=base,
        method=label,
        command=command,
        settings={key: task},
        layer_norms={key: 1.0},
        parents=(VectorInfo(task=task, dataset=label), VectorInfo(task=label, dataset="user/data")),
    )
    report = Report(label, task, (TaskResult(task, 0.5, 10), TaskResult(label, 0.25, 10)))
    card = render_vector_card(info, report, repo_id="user/x")
    assert card_errors(card) == []
    assert card.replace("\n", "").isprintable()


@settings(parent=QUICK, max_examples=200)
@given(st.text())
def test_any_text_stays_one_inert_line_in_a_card(text: str) -> None:
    for made in (markdown(text), code(text), literal(text)):
        assert made.isascii() or made.isprintable()
        assert "\n" not in made
    assert eval(literal(text), {}) == text
    assert code(text).count("`") in (0, 2)
    lines = fence(text).splitlines()
    assert not any(line.strip().startswith(lines[0]) for line in lines[1:-1])
