"""LoRA adapters: the vector is peft's own merged weights minus the base's, and whatever is not a product is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPConfig, CLIPForImageClassification, CLIPModel, CLIPVisionConfig, CLIPVisionModel
from transformers.pytorch_utils import Conv1D

from hf_taskvec.errors import CheckpointError, IncompatibleVectorsError, NonFiniteError
from hf_taskvec.vectors.lora import LoraAdapter
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.lowrank import LowRankDeltas
from hf_taskvec.weights.names import parameters_of

# peft 0.21 reads an attribute that Transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "projection_dim": 12,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "projection_dim": 12,
}
Q_AND_FC = ["vision_model.encoder.layers.0.self_attn.q_proj", "vision_model.encoder.layers.1.mlp.fc1"]


def vision_model() -> CLIPVisionModel:
    torch.manual_seed(0)
    return CLIPVisionModel(CLIPVisionConfig(**VISION))


def clip_model() -> CLIPModel:
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12))


def save_adapter(model: nn.Module, folder: Path, **settings: object) -> nn.Module:
    """Trains nothing, but fills both factors; returns peft's own merged model."""
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder)
    return adapted.merge_and_unload()


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def check_against_peft(model: nn.Module, merged: nn.Module, vector: TaskVector) -> None:
    before, after = parameters_of(model), parameters_of(merged)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert set(vector.deltas) == changed
    for name in changed:
        torch.testing.assert_close(vector.deltas[name], after[name] - before[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "fc1"], "r": 4, "lora_alpha": 6},
        {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 6, "use_rslora": True},
        {"target_modules": ["q_proj", "fc2"], "r": 4, "rank_pattern": {"fc2": 2}, "alpha_pattern": {"q_proj": 3}},
        {"target_modules": ["q_proj"], "rank_pattern": {r"encoder.layers.1.self_attn.q_proj": 3}, "use_rslora": True},
        {"target_modules": ["patch_embedding", "position_embedding", "out_proj"], "r": 3},
        {"target_modules": ["q_proj"], "r": 300},  # beyond the layer's own
    ],
)
@pytest.mark.parametrize("make", [vision_model, clip_model])
def test_the_vector_is_what_peft_merges(make: object, settings: dict[str, object], tmp_path: Path) -> None:
    model = make()
    if make is clip_model:  # keep the text tower out
        names = [f".*vision_model.*{name}" for name in settings["target_modules"]]
        settings = {**settings, "target_modules": "|".join(names)}
    merged = save_adapter(model, tmp_path, **settings)
    check_against_peft(model, merged, LoraAdapter.from_pretrained(tmp_path).to_vector())
    check_against_peft(model, merged, TaskVector.from_adapter(tmp_path))


def test_a_transposed_layer_is_respected(tmp_path: Path) -> None:
    model = nn.ModuleDict({"dense": Conv1D(5, 3)})
    model.config = {"model_type": "custom"}
    merged = save_adapter(model, tmp_path, target_modules=["dense"], r=2, fan_in_fan_out=True)
    check_against_peft(model, merged, LoraAdapter.from_pretrained(tmp_path).to_vector())


def test_names_are_canonical_and_the_vector_applies(tmp_path: Path) -> None:
    model = vision_model()
    merged = save_adapter(model, tmp_path, target_modules=["q_proj"])
    applied = LoraAdapter.from_pretrained(tmp_path).to_vector().apply_to(model)
    pixels = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(applied(pixels).pooler_output, merged(pixels).pooler_output, rtol=1e-4, atol=1e-4)


def test_with_a_base_the_vector_covers_the_vision_tower_and_knows_its_base(tmp_path: Path) -> None:
    model = clip_model()
    model.save_pretrained(tmp_path / "base")
    merged = save_adapter(model, tmp_path / "adapter", target_modules=Q_AND_FC)
    vector = TaskVector.from_adapter(tmp_path / "adapter", base=tmp_path / "base")
    full = TaskVector.from_models(model, merged)
    assert set(vector.deltas) == set(full.deltas)
    assert vector.info.base_hashes == full.info.base_hashes
    assert vector.deltas["vision_model.post_layernorm.bias"].abs().max() == 0
    vector.save_pretrained(tmp_path / "vector")
    assert (TaskVector.from_pretrained(tmp_path / "vector") - full).norm() < 1e-4


def test_an_adapter_for_another_base_is_refused(tmp_path: Path) -> None:
    clip_model().save_pretrained(tmp_path / "base")
    wide = CLIPVisionModel(CLIPVisionConfig(**{**VISION, "hidden_size": 32}))
    save_adapter(wide, tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(IncompatibleVectorsError, match="q_proj"):
        LoraAdapter.from_pretrained(tmp_path / "adapter", base=tmp_path / "base")


def test_a_changed_text_tower_is_refused(tmp_path: Path) -> None:
    save_adapter(clip_model(), tmp_path, target_modules=["q_proj"])
    with pytest.raises(IncompatibleVectorsError, match="text_model"):
        LoraAdapter.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["post_layernorm"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ],
)
def test_whatever_is_no_product_of_factors_is_refused_with_the_reason(
    settings: dict[str, object], reason: str, tmp_path: Path
) -> None:
    save_adapter(vision_model(), tmp_path, target_modules=["q_proj"])
    edit_config(tmp_path, **settings)
    with pytest.raises(CheckpointError, match=reason):
        LoraAdapter.from_pretrained(tmp_path)


def test_other_adapter_types_are_refused(tmp_path: Path) -> None:
    get_peft_model(vision_model(), LoHaConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="LOHA"):
        LoraAdapter.from_pretrained(tmp_path)


def test_settings_of_a_newer_peft_are_refused(tmp_path: Path) -> None:
    save_adapter(vision_model(), tmp_path, target_modules=["q_proj"])
    edit_config(tmp_path, use_zora=True)
    with pytest.raises(CheckpointError, match="use_zora"):
        LoraAdapter.from_pretrained(tmp_path)


def test_damaged_adapters_are_refused_by_name(tmp_path: Path) -> None:
    save_adapter(vision_model(), tmp_path, target_modules=["q_proj"])
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    first = next(iter(tensors))
    save_file({**tensors, first: tensors[first] * torch.nan}, path)
    with pytest.raises(NonFiniteError, match="lora_A"):
        LoraAdapter.from_pretrained(tmp_path)
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, path)
    with pytest.raises(CheckpointError, match="lacks one"):
        LoraAdapter.from_pretrained(tmp_path)
    save_file({name: tensor[:2] if "lora_A" in name else tensor for name, tensor in tensors.items()}, path)
    with pytest.raises(CheckpointError, match="rank is 8"):
        LoraAdapter.from_pretrained(tmp_path)
    save_file(
        {name: tensor[:, :2].contiguous() if "lora_B" in name else tensor for name, tensor in tensors.items()}, path
    )
    with pytest.raises(CheckpointError, match="rank is 8"):
        LoraAdapter.from_pretrained(tmp_path)
    save_file({**tensors, "base_model.model.bias": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no LoRA factor"):
        LoraAdapter.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"Pickled adapters .* since loading them can run code.*save_pretrained"):
        LoraAdapter.from_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match="no peft adapter"):
        LoraAdapter.from_pretrained(tmp_path)


def test_a_saved_adapter_loads_in_peft(tmp_path: Path) -> None:
    model = clip_model()
    merged = save_adapter(
        model, tmp_path / "one", target_modules=Q_AND_FC, rank_pattern={"fc1": 3}, alpha_pattern={"fc1": 5}
    )
    LoraAdapter.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    again = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "two").merge_and_unload()
    for name, weight in parameters_of(merged).items():
        torch.testing.assert_close(parameters_of(again)[name], weight, rtol=1e-5, atol=1e-5)


# -- what comes beside the tower, and from other versions -------------------------------------------------------------


def test_the_towers_part_of_an_adapter_is_taken_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = clip_model()
    merged = save_adapter(model, tmp_path, target_modules=["q_proj"])
    vector = TaskVector.from_adapter(tmp_path, vision_only=True, task="mnist")
    tower = parameters_of(model)
    expected = {name for name in tower if "vision_model" in name and name.endswith("q_proj.weight")}
    assert set(vector) == expected
    for name in vector:
        torch.testing.assert_close(vector[name], parameters_of(merged)[name] - tower[name], rtol=1e-5, atol=1e-5)
    assert (vector.info.left_out, vector.info.task) == (1, "mnist")
    assert "1 parameters, 'text_model.encoder.layers.0.self_attn.q_proj.weight'" in caplog.text


def test_a_classifier_that_was_trained_beside_the_adapter_is_left_out_on_request(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CLIPForImageClassification(CLIPConfig(text_config=TEXT, vision_config=VISION, num_labels=3))
    merged = save_adapter(model, tmp_path, target_modules=["q_proj"], modules_to_save=["classifier"])
    with pytest.raises(CheckpointError, match=r"modules_to_save \(classifier\).*vision_only=True"):
        TaskVector.from_adapter(tmp_path)
    vector = TaskVector.from_adapter(tmp_path, vision_only=True)
    before, after = parameters_of(model), parameters_of(merged)
    assert set(vector) == {name for name in before if "q_proj.weight" in name}
    for name in vector:
        torch.testing.assert_close(vector[name], after[name] - before[name], rtol=1e-5, atol=1e-5)


def test_a_module_of_the_tower_that_was_trained_as_a_whole_is_refused(tmp_path: Path) -> None:
    save_adapter(clip_model(), tmp_path, target_modules=Q_AND_FC, modules_to_save=["post_layernorm"])
    with pytest.raises(CheckpointError, match=r"merge it with peft and use TaskVector\.from_checkpoints"):
        TaskVector.from_adapter(tmp_path, vision_only=True)


def test_an_entry_of_another_peft_that_is_off_is_no_obstacle(tmp_path: Path) -> None:
    save_adapter(vision_model(), tmp_path, target_modules=["q_proj"])
    expected = TaskVector.from_adapter(tmp_path)
    edit_config(tmp_path, some_future_variant=None, use_other=False, more={}, bias_of="none")
    assert TaskVector.from_adapter(tmp_path) == expected


def test_an_adapters_vector_merges_with_one_that_covers_more(tmp_path: Path) -> None:
    model = clip_model()
    model.save_pretrained(tmp_path / "base")
    save_adapter(model, tmp_path / "adapter", target_modules=Q_AND_FC)
    few = TaskVector.from_adapter(tmp_path / "adapter")
    whole = TaskVector.from_adapter(tmp_path / "adapter", base=tmp_path / "base")
    covering = few.covering(whole.deltas.shapes, base_hashes=whole.info.base_hashes)
    assert covering == whole
    assert isinstance(covering.deltas, LowRankDeltas)
    covering.save_pretrained(tmp_path / "vector")
    assert (TaskVector.from_pretrained(tmp_path / "vector") + whole).norm() == pytest.approx(2 * whole.norm())
