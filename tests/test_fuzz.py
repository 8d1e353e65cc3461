"""Mutants of valid files and random configurations: our own error, or the very same vector."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hf_taskvec.cards import render_vector_card
from hf_taskvec.cards.text import code, fence, literal, markdown
from hf_taskvec.errors import TaskVecError
from hf_taskvec.evaluation.report import Report
from hf_taskvec.evaluation.result import TaskResult
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from tests.helpers import equal_vectors, random_deltas
from tests.hub_server_card import card_errors

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


def mutant(content: bytes, chance: random.Random) -> bytes:
    """The content after one or two random edits, half of them in the first part, where headers are."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 2])):
        at = chance.randrange(max(1, len(data) if chance.random() < 0.5 else min(len(data), 600)))
        kind = chance.choice([0, 0, 0, 1, 2, 3, 4, 5, 5])
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at : at + chance.randint(1, 8)] = chance.randbytes(chance.randint(0, 8))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = data[: chance.randint(0, 64)]
        elif kind == 4:
            data[at:at] = chance.choice(
                [b'"', b"{", b"}", b"0", b"9999999999", b"-1", b"\x00", b"F16", b"../", b"null"]
            )
        else:
            data[at : at + 1] = bytes([chance.choice(b'0123456789[]{}",:')])
    return bytes(data)


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
