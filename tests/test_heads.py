"""The zero-shot head on disk: its key holds all it depends on, and what is damaged there is never used."""

from __future__ import annotations

import copy
import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.constants import HF_HOME
from safetensors.torch import save_file

from hf_taskvec import Base, evaluate, get_task, load_base
from hf_taskvec.errors import CheckpointError, DataError
from hf_taskvec.models import heads
from hf_taskvec.models.base import Base as BaseType
from hf_taskvec.models.heads import zero_shot_head
from hf_taskvec.tasks.subsets import subset

NAMES, TEMPLATES = ("circle", "square", "star"), ("a photo of a {}.", "{}")
HEADS = Path(HF_HOME) / "hf_taskvec" / "heads"


@pytest.fixture
def base() -> Base:
    return load_base()


def with_text(base: BaseType, **settings: Any) -> BaseType:
    """The same weights under another configuration of the text tower."""
    model = copy.deepcopy(base.model)
    for name, value in settings.items():
        setattr(model.config.text_config, name, value)
    fresh = type(model)(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    return dataclasses.replace(base, model=fresh)


def entry(base: BaseType) -> Path:
    """The file of the head in the cache."""
    zero_shot_head(base, NAMES, TEMPLATES)
    return HEADS / f"{heads._head_key(base, NAMES, TEMPLATES)}.safetensors"


def test_one_set_of_weights_under_two_activations_has_two_heads(base: Base) -> None:
    other = with_text(base, hidden_act="quick_gelu" if base.model.config.text_config.hidden_act == "gelu" else "gelu")
    first = zero_shot_head(base, NAMES, TEMPLATES)
    second = zero_shot_head(other, NAMES, TEMPLATES)
    assert not torch.allclose(first, second, atol=1e-4)
    assert torch.equal(zero_shot_head(base, NAMES, TEMPLATES), first)


def test_the_head_has_the_dtype_of_its_model_in_any_turn() -> None:
    task = subset(get_task("counts"), max_test=20)
    for dtype in (torch.float32, torch.float16, torch.float32, torch.bfloat16):
        model = load_base(dtype=dtype)
        assert zero_shot_head(model, task.class_names, task.templates).dtype == dtype
        assert evaluate(model, [task]).results[0].num_images == 20


def test_the_key_is_that_of_tokenizer_and_limit_and_not_of_the_last_call(base: Base) -> None:
    first = heads._head_key(base, NAMES, TEMPLATES)
    base.encode_text(["a", "a much longer text"])
    assert heads._head_key(base, NAMES, TEMPLATES) == first
    processor = copy.deepcopy(base.processor)
    processor.tokenizer.model_max_length = 8
    assert heads._head_key(dataclasses.replace(base, processor=processor), NAMES, TEMPLATES) != first
    processor = copy.deepcopy(base.processor)
    processor.tokenizer.add_tokens(["circle"])
    assert heads._head_key(dataclasses.replace(base, processor=processor), NAMES, TEMPLATES) != first


@pytest.mark.parametrize("count", [2, 600])  # the bound on a kept file grows with the head
def test_a_kept_head_is_read_and_not_computed_again(base: Base, count: int, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"thing {number}" for number in range(count)]
    first = zero_shot_head(base, names, TEMPLATES[:1])
    path = HEADS / f"{heads._head_key(base, names, TEMPLATES[:1])}.safetensors"
    written = path.stat().st_mtime_ns
    assert torch.equal(zero_shot_head(base, names, TEMPLATES[:1]), first)
    assert (path.stat().st_mtime_ns, caplog.text) == (written, "")


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other", "shape", "dtype", "huge", "folder"])
def test_a_damaged_head_is_computed_anew(base: Base, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    right, path = zero_shot_head(base, NAMES, TEMPLATES), entry(base)
    content, head = path.read_bytes(), right.clone()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage in ("other", "shape", "dtype"):
        wrong = {"other": head.flip(0).contiguous(), "shape": head[:2].clone(), "dtype": head.half()}[damage]
        save_file({"head": wrong}, path)
    else:
        flipped = content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
        path.write_bytes(
            {"empty": b"", "cut": content[:-9], "flipped": flipped, "huge": content + b"\0" * (1 << 18)}[damage]
        )
    with caplog.at_level(logging.WARNING):
        assert torch.equal(zero_shot_head(base, NAMES, TEMPLATES), right)
    assert "computed anew" in caplog.text
    if damage == "folder":
        path.rmdir()
    else:
        assert path.read_bytes() == content


def test_class_names_beyond_the_context_are_refused(base: Base, caplog: pytest.LogCaptureFixture) -> None:
    long = "a " + "very " * 100 + "round circle"
    with pytest.raises(DataError, match=r"class name 'a very very .* tokens .* it would be cut"):
        zero_shot_head(base, (long, "square"), TEMPLATES)
    with caplog.at_level(logging.WARNING):
        zero_shot_head(base, ("circle", "square"), ("{}, " + "which is round, " * 40,))
    assert "its end is cut" in caplog.text


def test_a_tokenizer_with_tokens_that_the_tower_does_not_know_is_refused(base: Base) -> None:
    processor = copy.deepcopy(base.processor)
    processor.tokenizer.add_tokens(["octagon"])
    with pytest.raises(CheckpointError, match=r"makes token \d+ of the prompt '.*octagon.*tokens were added"):
        zero_shot_head(dataclasses.replace(base, processor=processor), ("circle", "octagon"), TEMPLATES)
