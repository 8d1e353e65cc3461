"""Odd, hostile and damaged adapters are refused by our own error, soon, and patterns of names match as in peft."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest
from peft.utils.other import get_pattern_key

from hf_taskvec.errors import CheckpointError, TaskVecError
from hf_taskvec.vectors.adapter_config import parse_config
from hf_taskvec.vectors.lora import LoraAdapter
from hf_taskvec.vectors.vector import TaskVector
from tests.test_lora import edit_config, save_adapter, vision_model

# peft 0.21 reads an attribute that Transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the vision tower; never changed by a test."""
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(vision_model(), folder, target_modules=["q_proj"])
    return folder


ODD = {
    "a rank of zero": {"r": 0},
    "a rank that is text": {"r": "8"},
    "a rank that is a flag": {"r": True},
    "a huge rank": {"r": 10**30},
    "a rank of nothing": {"r": -1},
    "an alpha of NaN": {"lora_alpha": float("nan")},
    "an alpha of Inf": {"lora_alpha": float("inf")},
    "a negative alpha": {"lora_alpha": -8},
    "an alpha of zero": {"lora_alpha": 0},
    "an alpha of text": {"lora_alpha": "8"},
    "a flag as a word": {"use_rslora": "false"},
    "a layout as a word": {"fan_in_fan_out": "false"},
    "a flag as a number": {"use_rslora": 1},
    "patterns in a list": {"rank_pattern": ["q_proj"]},
    "a pattern's rank of zero": {"rank_pattern": {"q_proj": 0}},
    "a pattern's alpha of text": {"alpha_pattern": {"q": "1"}},
    "an unfinished pattern": {"rank_pattern": {"(q_proj": 4}},
    "a bad escape": {"rank_pattern": {"\\q": 4}},
    "escapes in the base": {"base_model_name_or_path": "\x1b[2Jbase"},
    "a base in a list": {"base_model_name_or_path": [1]},
    "a type in a list": {"peft_type": ["LORA"]},
    "modules in a mapping": {"modules_to_save": {"a": 1}},
    "a start in a list": {"init_lora_weights": [1]},
    "a bias in a list": {"bias": [1]},
    "a deep nest": {"auto_mapping": json.loads("[" * 100 + "]" * 100)},
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_entry_is_refused_by_name(adapter: Path, tmp_path: Path, case: str) -> None:
    shutil.copytree(adapter, tmp_path / "odd")
    edit_config(tmp_path / "odd", **ODD[case])
    with pytest.raises(CheckpointError) as error:
        LoraAdapter.from_pretrained(tmp_path / "odd")
    assert str(error.value).isprintable()
    assert next(iter(ODD[case])) in str(error.value) or case in ("a type in a list", "a deep nest")


@pytest.mark.parametrize(
    "pattern", [r"vision_model\.(a+)+", "(a|a)*", "(.*)*b", "a{1,9}", r"(\w+\.)*q", "[a-z", "(?=a)", r"(a)\1", "a**"]
)
def test_a_pattern_that_could_take_for_ever_is_refused(adapter: Path, tmp_path: Path, pattern: str) -> None:
    shutil.copytree(adapter, tmp_path / "odd")
    edit_config(tmp_path / "odd", rank_pattern={pattern: 4})
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="pattern"):
        LoraAdapter.from_pretrained(tmp_path / "odd")
    assert time.perf_counter() - start < 2


def test_patterns_that_are_slow_together_are_refused() -> None:
    slow = {"peft_type": "LORA", "rank_pattern": {".*a.*b.*c.*d.*e" + str(index): 4 for index in range(20)}}
    config = parse_config(slow, "slow")
    with pytest.raises(CheckpointError, match="too long to match"):
        config.check_modules(["a" * 200] * 100)
    with pytest.raises(CheckpointError, match="a module of 300 characters"):
        config.check_modules(["a" * 300])


PATTERNS = [
    "q_proj",
    r"^vision_model.*q_proj",
    r".*layers\.0\.self_attn\.(q|v)_proj",
    r"layers\.\d+\.self_attn\.q_proj",
    r"layers.[0-1].self_attn.q_proj",
    "self_attn.q_proj",
    r"encoder.layers.1.+q_proj",
    "other",
    "proj",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_as_in_peft(pattern: str) -> None:
    modules = [f"vision_model.encoder.layers.{n}.self_attn.{kind}_proj" for n in range(12) for kind in "qv"]
    config = parse_config({"peft_type": "LORA", "r": 8, "rank_pattern": {pattern: 4}}, "mine")
    config.check_modules(modules)
    for module in modules:
        key = get_pattern_key([pattern], module)
        assert config.rank_of(module) == (4 if key == pattern else 8)


def test_links_may_not_lead_outside(adapter: Path, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        folder = tmp_path / name
        shutil.copytree(adapter, folder)
        shutil.move(folder / name, tmp_path / f"{name}.moved")
        (folder / name).symlink_to(tmp_path / f"{name}.moved")
        with pytest.raises(CheckpointError, match="a link that leaves"):
            LoraAdapter.from_pretrained(folder)


def test_mutants_of_an_adapter_are_refused_or_the_same(adapter: Path, tmp_path: Path) -> None:
    expected, chance, refused = TaskVector.from_adapter(adapter), random.Random(0), 0
    for number in range(150):
        folder, name = tmp_path / "mutant", chance.choice(["adapter_config.json", "adapter_model.safetensors"])
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(adapter, folder)
        content = (adapter / name).read_bytes()
        data = bytearray(content)
        at = chance.randrange(min(len(data), 900))
        data[at] ^= 1 << chance.randrange(8)
        (folder / name).write_bytes(bytes(data))
        try:
            vector, message = TaskVector.from_adapter(folder), ""
        except TaskVecError as error:
            vector, message, refused = expected, str(error), refused + 1
        assert message.isprintable()
        assert set(vector) == set(expected) or name.endswith(".safetensors"), f"mutant {number}"
    assert refused > 50


def test_a_saved_adapter_replaces_its_own_files_and_no_others(adapter: Path, tmp_path: Path) -> None:
    opened = LoraAdapter.from_pretrained(adapter)
    opened.save_pretrained(tmp_path / "out")
    (tmp_path / "out" / "notes.md").write_text("mine")
    opened.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "notes.md").read_text() == "mine"
    assert LoraAdapter.from_pretrained(tmp_path / "out").to_vector().cosine(opened.to_vector()) == pytest.approx(1.0)
