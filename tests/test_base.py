"""The base: what it says of itself, what it saves, and folders that are damaged or hold another model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPProcessor

from hf_taskvec import Base, load_base
from hf_taskvec.errors import CheckpointError, OutputExistsError
from tests.bases import same_base, save_tiny_base


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "copy")


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def test_a_base_fits_on_a_line() -> None:
    base = load_base()
    assert repr(base).startswith("Base(name='hf-taskvec/tiny-clip', revision=None, parameters=3,772,417")
    assert len(repr(base)) < 250
    assert base._repr_markdown_().splitlines()[0] == "| base | hf-taskvec/tiny-clip |"


def test_what_is_saved_is_loaded(tmp_path: Path, folder: Path) -> None:
    base = load_base(folder, dtype="float16")
    base.save_pretrained(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    base.save_pretrained(tmp_path / "out")
    again = load_base(tmp_path / "out", dtype=torch.float16)
    assert same_base(again, base)
    assert isinstance(CLIPProcessor.from_pretrained(tmp_path / "out"), CLIPProcessor)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_folder_of_something_else_is_not_saved_into(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OutputExistsError):
        load_base().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("model_type", "message"),
    [("siglip2", "is SigLIP 2"), ("dinov3_vit", "is DINOv3"), ("deit", "is DeiT"), ("llama", "is another model")],
)
def test_another_model_is_named_by_its_configuration(folder: Path, model_type: str, message: str) -> None:
    edit(folder / "config.json", lambda config: config.update(model_type=model_type))
    with pytest.raises(CheckpointError, match=message):
        load_base(folder)


def test_a_vision_tower_alone_is_no_base(folder: Path, tmp_path: Path) -> None:
    load_base(folder).model.vision_model.save_pretrained(tmp_path / "tower")
    with pytest.raises(CheckpointError, match=r"only a vision tower: .*the full CLIP"):
        load_base(tmp_path / "tower")


def test_a_folder_of_open_clip_is_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "config.json").unlink()
    save_file({f"visual.{name}": value for name, value in weights.items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="layout of open_clip"):
        load_base(folder)
    (folder / "model.safetensors").rename(folder / "open_clip_model.safetensors")
    with pytest.raises(CheckpointError, match="layout of open_clip"):
        load_base(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["processor_config.json", "preprocessor_config.json"], "has no image processor"),
        (["tokenizer.json", "vocab.json"], "has no tokenizer"),
        (["config.json"], "has no config.json"),
    ],
)
def test_what_is_missing_is_named(folder: Path, files: list[str], message: str) -> None:
    for name in files:
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=message):
        load_base(folder)


def broken_size(config: dict[str, Any]) -> None:
    config["vision_config"]["hidden_size"] = 48


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "weights cut": lambda folder: cut(folder / "model.safetensors", 100),
    "weights empty": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "weights no header": lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64),
    "config no json": lambda folder: (folder / "config.json").write_text("{"),
    "config a list": lambda folder: (folder / "config.json").write_text("[]"),
    "config deep": lambda folder: (folder / "config.json").write_text("[" * 100_000),
    "config types": lambda folder: edit(folder / "config.json", lambda c: c["vision_config"].update(hidden_size="x")),
    "config sizes": lambda folder: edit(folder / "config.json", broken_size),
    "config null": lambda folder: edit(folder / "config.json", lambda c: c.update(vision_config=7)),
    "tokenizer no json": lambda folder: (folder / "tokenizer.json").write_text("{"),
    "tokenizer types": lambda folder: edit(folder / "tokenizer.json", lambda c: c.update(model=[1])),
    "tokenizer no model": lambda folder: edit(folder / "tokenizer.json", lambda c: c.pop("model")),
    "processor no json": lambda folder: (folder / "processor_config.json").write_text("{"),
    "processor types": lambda folder: edit(
        folder / "processor_config.json", lambda c: c.update(image_processor={"size": [[]], "image_mean": {}})
    ),
}


def cut(file: Path, count: int) -> None:
    file.write_bytes(file.read_bytes()[:-count])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_a_checkpoint_error(folder: Path, damage: str) -> None:
    DAMAGES[damage](folder)
    with pytest.raises(CheckpointError) as error:
        load_base(folder)
    assert len(str(error.value)) <= 600


def test_a_tensors_name_cannot_drive_a_terminal(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors") | {"\x1b[2J evil": torch.zeros(1)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as error:
        load_base(folder)
    assert str(error.value).isprintable()


def test_a_dtype_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="dtype must be one of"):
        load_base(folder, dtype="int8")
    assert isinstance(load_base(folder, dtype="bfloat16"), Base)


def test_the_attention_is_the_callers_and_changes_no_feature() -> None:
    eager = load_base(attn_implementation="eager")
    assert eager.model.config._attn_implementation == "eager"
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, expected = (base.model.vision_model(pixel_values=pixels) for base in (eager, load_base()))
    torch.testing.assert_close(features.pooler_output, expected.pooler_output, rtol=1e-4, atol=1e-5)
