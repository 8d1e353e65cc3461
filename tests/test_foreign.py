"""Checkpoints from outside: rounding is told, what only looks like a CLIP is named, wrappers come off."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel

from hf_taskvec.errors import BaseMismatchError, CheckpointError, IncompatibleVectorsError
from hf_taskvec.models.base import load_base
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.arithmetic import rounding_noise
from tests.helpers import equal_vectors, finetuned, tiny_clip

Folders = tuple[Path, Path]


def save(model: nn.Module, folder: Path, dtype: torch.dtype | None = None) -> Path:
    copy.deepcopy(model).to(dtype).save_pretrained(folder)
    return folder


def write(folder: Path, tensors: dict[str, Tensor], name: str = "model.safetensors", **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name, metadata={"format": "pt"})
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


# -- rounding ---------------------------------------------------------------------------------------------------------


def moved(base: CLIPModel, size: float) -> CLIPModel:
    """A copy whose vision tower moved by a fraction of each parameter's spread."""
    model, generator = copy.deepcopy(base), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.vision_model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(size * parameter.std(unbiased=False) * noise)
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.001, 0.003, 0.01])
def test_the_share_of_rounding_is_what_it_is(base: CLIPModel, dtype: torch.dtype, size: float) -> None:
    tuned = moved(base, size)
    true = TaskVector.from_models(base, tuned)
    rounded = TaskVector.from_models(base, copy.deepcopy(tuned).to(dtype), allow_rounding=True)
    share = (rounded - true).norm() / rounded.norm()
    assert rounded.info.rounding_error == pytest.approx(share, rel=0.05)


def test_a_vector_that_is_mostly_rounding_is_refused_unless_allowed(
    tmp_path: Path, checkpoints: Folders, base: CLIPModel, caplog: pytest.LogCaptureFixture
) -> None:
    tuned = save(moved(base, 0.001), tmp_path / "tuned", torch.bfloat16)
    with pytest.raises(IncompatibleVectorsError, match=r"\d+% of the vector's norm is rounding.*allow_rounding=True"):
        TaskVector.from_checkpoints(checkpoints[0], tuned)
    assert TaskVector.from_checkpoints(checkpoints[0], tuned, allow_rounding=True).norm() > 0
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        vector = TaskVector.from_checkpoints(checkpoints[0], save(moved(base, 0.05), tmp_path / "far", torch.bfloat16))
    assert "of the vector's norm is rounding" in caplog.text
    assert 0 < (vector.info.rounding_error or 0) < 0.2
    vector.save_pretrained(tmp_path / "v", dtype="bfloat16")
    stored = TaskVector.from_pretrained(tmp_path / "v").info.rounding_error
    assert stored is not None
    assert stored > (vector.info.rounding_error or 0)  # the file's own rounding comes on top


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_known_by_the_values_where_the_dtype_no_longer_tells(
    tmp_path: Path, checkpoints: Folders, base: CLIPModel, caplog: pytest.LogCaptureFixture, dtype: torch.dtype
) -> None:
    tuned = moved(base, 0.001)
    widened = copy.deepcopy(tuned).to(dtype).float()  # a half-precision file that somebody saved again in float32
    vector = TaskVector.from_models(base, widened, allow_rounding=True)
    share = (vector - TaskVector.from_models(base, tuned)).norm() / vector.norm()
    assert vector.info.rounding_error == pytest.approx(share, rel=0.05)
    assert f"have the values of {dtype}" in caplog.text
    if dtype == torch.bfloat16:
        folder = save(widened, tmp_path / "tuned", torch.float32)
        with pytest.raises(IncompatibleVectorsError, match=r"\d+% of the vector's norm is rounding"):
            TaskVector.from_checkpoints(checkpoints[0], folder)
    base_too = copy.deepcopy(base).to(dtype).float()  # one from a base of such values is exact
    assert TaskVector.from_models(base_too, moved(base_too, 0.001)).info.rounding_error is None


def test_two_checkpoints_in_half_precision_tell_the_rounding_of_the_second(base: CLIPModel) -> None:
    half = copy.deepcopy(base).bfloat16()
    tuned = moved(copy.deepcopy(half).float(), 0.05)  # a run with float32 weights, saved in the dtype of its base
    true = TaskVector.from_models(copy.deepcopy(half).float(), tuned)
    stored = TaskVector.from_models(half, copy.deepcopy(tuned).bfloat16())
    share = math.sqrt(sum(float((stored[name] - true[name]).square().sum()) for name in true)) / stored.norm()
    assert stored.info.rounding_error == pytest.approx(share, rel=0.15)
    assert TaskVector.from_models(half, half).info.rounding_error is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_noise_of_half_precision_is_read_from_the_bits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    before = (torch.randn(5000, generator=generator) * torch.logspace(-9, 3, 5000)).to(dtype)
    after = torch.where(torch.arange(5000) % 3 > 0, before * 1.5, before)
    delta = after.float() - before.float()
    info = TaskVector.from_weights({"w": before}, {"w": after}).info
    expected = math.sqrt(rounding_noise(after, before, delta)) / float(delta.double().norm())
    assert info.rounding_error == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("size", "told"), [(0.1, False), (0.0005, True)])
def test_two_checkpoints_whose_changes_are_mostly_below_the_rounding_are_told_and_not_refused(
    base: CLIPModel, caplog: pytest.LogCaptureFixture, size: float, told: bool
) -> None:
    half = copy.deepcopy(base).bfloat16()
    tuned = moved(copy.deepcopy(half).float(), size).bfloat16()
    vector = TaskVector.from_models(half, tuned)
    assert ("below the rounding of torch.bfloat16" in caplog.text) is told
    assert (vector.info.rounding_error or 0) > (0.1 if told else 0)


def test_tokens_that_a_run_never_saw_are_no_rounding(caplog: pytest.LogCaptureFixture) -> None:
    before = torch.randn(100, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    after = before.clone()
    after[:3] += 1
    TaskVector.from_weights({"embedding": before}, {"embedding": after})
    assert "below the rounding" not in caplog.text


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (5, 0)])
def test_half_precision_holds_parameters_of_any_shape(shape: tuple[int, ...]) -> None:
    before = {"w": torch.ones(2, 2).bfloat16(), "odd": torch.ones(shape).bfloat16()}
    vector = TaskVector.from_weights(before, {name: 2 * weight for name, weight in before.items()})
    assert vector["odd"].shape == shape


def test_a_base_that_was_only_rounded_hears_of_its_dtype(base: CLIPModel, tuned: CLIPModel) -> None:
    vector = TaskVector.from_models(base, tuned)
    with pytest.raises(BaseMismatchError, match=r"that base in torch\.bfloat16, which rounds, load it in float32"):
        vector.apply_to(copy.deepcopy(base).bfloat16())
    with pytest.raises(BaseMismatchError) as error:
        vector.apply_to(finetuned(base, seed=3))
    assert "rounds" not in str(error.value)


def test_a_base_narrower_than_the_fine_tuned_weights_is_told(base: CLIPModel, caplog: pytest.LogCaptureFixture) -> None:
    TaskVector.from_models(copy.deepcopy(base).half(), finetuned(base))
    assert "The base is in torch.float16, narrower than the fine-tuned weights" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_only_rounding_changed_outside_the_tower_is_no_change(
    tmp_path: Path, checkpoints: Folders, base: CLIPModel, dtype: torch.dtype
) -> None:
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.vision_model.pre_layrnorm.weight.add_(0.5)
    text = tuned.text_model.embeddings.token_embedding.weight
    assert not torch.equal(text.to(dtype).float(), text)  # a narrower dtype rounds it
    vector = TaskVector.from_checkpoints(checkpoints[0], save(tuned, tmp_path / "half", dtype), allow_rounding=True)
    assert vector.info.left_out is None
    back = TaskVector.from_models(copy.deepcopy(base).to(dtype), tuned)  # the base is the narrower one
    assert back.info.left_out is None


def test_sums_of_half_precision_vectors_accumulate_wide() -> None:
    one, small = (TaskVector({"w": torch.tensor([value]).bfloat16()}) for value in (1.0, 0.002))
    total = sum([one] + [small] * 8)
    assert isinstance(total, TaskVector)
    assert float(total["w"]) == pytest.approx(1.016, abs=1e-4)
    assert float((one - small)["w"]) == pytest.approx(0.998, abs=1e-4)


# -- what was trained beside the tower --------------------------------------------------------------------------------


def test_the_tower_of_a_whole_model_is_taken_on_request_and_the_rest_told(
    base: CLIPModel, tuned: CLIPModel, caplog: pytest.LogCaptureFixture
) -> None:
    whole = copy.deepcopy(tuned)
    with torch.no_grad():
        whole.logit_scale.add_(0.01)
        for parameter in whole.text_model.parameters():
            parameter.add_(0.1)
    with pytest.raises(IncompatibleVectorsError, match=r"more changed too, but .* vision_only=True") as error:
        TaskVector.from_models(base, whole)
    assert len(str(error.value)) <= 600
    assert "logit_scale" in error.value.details
    vector = TaskVector.from_models(base, whole, vision_only=True)
    assert equal_vectors(vector, TaskVector.from_models(base, tuned))
    assert vector.info.left_out == 1 + len(list(whole.text_model.parameters()))
    assert f"{vector.info.left_out} parameters that changed too" in caplog.text


# -- dtypes that are no weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("side", [0, 1])
def test_quantised_weights_are_refused_by_dtype(
    tmp_path: Path, checkpoints: Folders, base: CLIPModel, dtype: torch.dtype, side: int
) -> None:
    weights = {name: (value * 10).to(dtype) for name, value in base.vision_model.state_dict().items()}
    folders = [checkpoints[0], checkpoints[1]]
    folders[side] = write(tmp_path / "quantised", weights)
    with pytest.raises(CheckpointError, match=rf"quantised: .*{dtype}.*save it in float32"):
        TaskVector.from_checkpoints(*folders)


# -- wrappers ---------------------------------------------------------------------------------------------------------

WRAPPERS: dict[str, Callable[[str], str]] = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DataParallel": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "both, the other way round": lambda name: f"_orig_mod.module.{name}",
    "a compiled Lightning module": lambda name: f"model._orig_mod.model.{name}",
    "the compiled tower": lambda name: name.replace("vision_model.", "vision_model._orig_mod.", 1),
    "FSDP": lambda name: name.replace(".layers.0.", ".layers.0._fsdp_wrapped_module."),
    "a Lightning module": lambda name: f"model.{name}",
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_a_wrapper_puts_in_front_of_names_comes_off(
    tmp_path: Path, checkpoints: Folders, wrapper: str, base: CLIPModel, tuned: CLIPModel
) -> None:
    rename = WRAPPERS[wrapper]
    weights = load_file(checkpoints[1] / "model.safetensors")
    wrapped = write(tmp_path / "wrapped", {rename(name): value for name, value in weights.items()})
    assert equal_vectors(TaskVector.from_checkpoints(checkpoints[0], wrapped), TaskVector.from_models(base, tuned))


@pytest.mark.parametrize("prefix", ["student.encoder."])
def test_a_clip_inside_another_module_is_named_by_its_prefix(tmp_path: Path, checkpoints: Folders, prefix: str) -> None:
    weights = load_file(checkpoints[1] / "model.safetensors")
    inner = write(tmp_path / "inner", {prefix + name: value for name, value in weights.items()})
    with pytest.raises(IncompatibleVectorsError, match=f"begin with '{prefix}'.*save the inner model"):
        TaskVector.from_checkpoints(checkpoints[0], inner)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft
def test_a_model_with_factors_beside_its_weights_is_named(base: CLIPModel) -> None:
    lora = get_peft_model(copy.deepcopy(base), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(IncompatibleVectorsError, match=r"is a PeftModel.*from_adapter.*merge_and_unload\(\)"):
        TaskVector.from_models(base, lora)
    assert TaskVector.from_models(base, lora.merge_and_unload()).norm() == 0


def test_the_prefix_that_transformers_gives_a_body_comes_off(
    tmp_path: Path, checkpoints: Folders, base: CLIPModel, tuned: CLIPModel
) -> None:
    weights = load_file(checkpoints[1] / "model.safetensors")
    inner = write(tmp_path / "inner", {f"clip.{name}": value for name, value in weights.items()})
    assert equal_vectors(TaskVector.from_checkpoints(checkpoints[0], inner), TaskVector.from_models(base, tuned))


def test_weights_of_numpy_are_no_quantised_ones(base: CLIPModel) -> None:
    weights = {name: value.numpy() for name, value in base.state_dict().items()}
    with pytest.raises(TypeError, match=r"is a ndarray, not a torch\.Tensor"):
        TaskVector.from_weights(weights, weights)  # type: ignore[arg-type]


def test_a_wrapped_model_takes_a_vector(base: CLIPModel, tuned: CLIPModel) -> None:
    vector = TaskVector.from_models(base, tuned)
    applied = vector.apply_to(nn.DataParallel(copy.deepcopy(base)))
    assert equal_vectors(TaskVector.from_models(base, applied.module), vector)


# -- other models -----------------------------------------------------------------------------------------------------

TOWER = {"embeddings.cls_token": torch.zeros(1, 1, 4), "layernorm.bias": torch.zeros(4)}
OPEN_CLIP = {"visual.conv1.weight": torch.zeros(2), "transformer.resblocks.0.ln_1.bias": torch.zeros(2)}
MODELS: dict[str, tuple[dict[str, Tensor], dict[str, object], str]] = {
    "SigLIP": ({"embeddings.patch_embedding.bias": torch.zeros(4)}, {"model_type": "siglip2"}, "SigLIP 2"),
    "SigLIP's tower": (
        {"vision_model.post_layernorm.bias": torch.zeros(4)},
        {"model_type": "siglip_vision_model"},
        "SigLIP",
    ),
    "SigLIP without configuration": ({"vision_model.head.probe": torch.zeros(4)}, {}, "SigLIP"),
    "DINOv3": (TOWER, {"model_type": "dinov3_vit"}, "DINOv3"),
    "DeiT": ({f"deit.{name}": value for name, value in TOWER.items()}, {"model_type": "deit"}, "is DeiT"),
    "ViT without configuration": ({f"vit.{name}": value for name, value in TOWER.items()}, {}, "ViT or DINOv2"),
    "timm": ({"blocks.0.attn.qkv.weight": torch.zeros(4)}, {"architecture": "vit", "pretrained_cfg": {}}, "timm"),
    "timm without configuration": ({"blocks.0.attn.qkv.weight": torch.zeros(4)}, {}, "timm"),
    "open_clip under another name": (OPEN_CLIP, {}, "open_clip.*convert"),
    "something new": (TOWER, {"model_type": "clip_of_the_future"}, "another model .*'clip_of_the_future'"),
}


@pytest.mark.parametrize("model", MODELS)
def test_another_model_is_named_where_a_clip_is_needed(tmp_path: Path, model: str) -> None:
    weights, config, named = MODELS[model]
    folder = write(tmp_path / "m", weights, **config)
    with pytest.raises(CheckpointError, match=named) as error:
        load_base(folder)
    assert "TaskVector.from_checkpoints" in str(error.value) or "model.safetensors" in str(error.value)


def test_an_open_clip_folder_with_pickled_weights_is_named(tmp_path: Path, checkpoints: Folders) -> None:
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"")
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="layout of open_clip"):
        TaskVector.from_checkpoints(checkpoints[0], tmp_path)


def test_what_lies_in_a_folder_without_weights_is_told(tmp_path: Path, checkpoints: Folders) -> None:
    write(tmp_path / "m", {"w": torch.zeros(1)}, name="ft.safetensors")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors but 'ft\.safetensors'; pass the path"):
        TaskVector.from_checkpoints(checkpoints[0], tmp_path / "m")


# -- paths ------------------------------------------------------------------------------------------------------------


def test_a_single_file_is_a_checkpoint(tmp_path: Path, checkpoints: Folders, base: CLIPModel, tuned: CLIPModel) -> None:
    (tmp_path / "ft.safetensors").write_bytes((checkpoints[1] / "model.safetensors").read_bytes())
    vector = TaskVector.from_checkpoints(checkpoints[0], str(tmp_path / "ft.safetensors"))
    assert equal_vectors(vector, TaskVector.from_models(base, tuned))
    assert vector.info.finetuned == "ft"


@pytest.mark.parametrize("name", ["ft.pt", "pytorch_model.bin", "ft.ckpt"])
def test_a_pickled_file_is_refused_with_the_way_out(tmp_path: Path, checkpoints: Folders, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(CheckpointError, match=r"no \.safetensors file.*Pickled weights.*save_pretrained"):
        TaskVector.from_checkpoints(checkpoints[0], tmp_path / name)


def test_a_missing_folder_is_said_to_be_missing(
    tmp_path: Path, checkpoints: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing in (tmp_path / "nothing", "./nothing", "~/nothing", "nothing.safetensors", tmp_path / "ft.pt"):
        with pytest.raises(CheckpointError, match="there is nothing at that path"):
            TaskVector.from_checkpoints(checkpoints[0], missing)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for method in (TaskVector.from_pretrained, TaskVector.from_adapter):
        with pytest.raises(CheckpointError, match=r"there is nothing at that path|neither a folder"):
            method("out/nothing")


@pytest.mark.parametrize("name", ["hf-taskvec/tiny-clip", "hf-taskvec/feature-clip"])
def test_an_embedded_base_is_known_by_its_name(name: str) -> None:
    vector = TaskVector.from_checkpoints(name, name)
    assert vector.info.base == name
    assert vector.is_zero


def test_models_may_be_bases(base: CLIPModel) -> None:
    with pytest.raises(TypeError, match="expected a model or a Base, got str"):
        TaskVector.from_models("openai/clip", base)  # type: ignore[arg-type]
    assert TaskVector.from_models(base, tiny_clip()).is_zero
