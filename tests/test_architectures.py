"""Vectors of any architecture of Transformers: from files, merged, applied, written, and loaded again."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_taskvec.cards.description import describe
from hf_taskvec.cards.publish import push_model_to_hub, push_to_hub
from hf_taskvec.cards.render import render_model_card, render_vector_card
from hf_taskvec.errors import CheckpointError, IncompatibleVectorsError, UnknownNameError
from hf_taskvec.merging import merge
from hf_taskvec.models.base import load_base
from hf_taskvec.vectors.checkpoints import open_checkpoint
from hf_taskvec.vectors.vector import TaskVector
from tests.architectures import LARGE, MODELS, model_of, moved, outputs
from tests.helpers import anonymous_bytes, equal_vectors, rewrite_weights, tiny_clip
from tests.hub_server import HubServer

HALF = {"llama", "qwen2"}  # as they are published


def save(model: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    copy.deepcopy(model).to(dtype).save_pretrained(folder)
    return folder


def by_hand(base: Any, tuned: list[Any], factor: float) -> Any:
    """Base plus the scaled sum of the differences, parameter by parameter in memory."""
    result = copy.deepcopy(base)
    with torch.no_grad():
        for parameter, *others in zip(result.parameters(), *(model.parameters() for model in tuned), strict=True):
            change = sum(other.double() - parameter.double() for other in others)
            parameter.copy_(parameter.double() + factor * change)
    return result


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_merged_applied_written_and_loaded_again_it_is_base_plus_vectors(tmp_path: Path, kind: str) -> None:
    dtype = torch.bfloat16 if kind in HALF else torch.float32
    save(model_of(kind), tmp_path / "base", dtype)
    base = type(model_of(kind)).from_pretrained(tmp_path / "base")
    tuned = [moved(base, seed=seed) for seed in (1, 2)]
    folders = [save(model, tmp_path / f"tuned-{index}", dtype) for index, model in enumerate(tuned)]
    include = "*" if kind == "clip" else ()
    vectors = [TaskVector.from_checkpoints(tmp_path / "base", folder, include=include) for folder in folders]
    merged = merge(vectors, "task_arithmetic", output_dir=tmp_path / "merged")
    expected = outputs(by_hand(base, tuned, 0.5))
    assert (expected - outputs(base)).abs().max() > 0.01  # so that the comparison means something
    merged.save_checkpoint(tmp_path / "base", tmp_path / "out", scaling=0.5)
    loaded, loading = type(base).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert loaded.dtype == dtype
    assert not any(loading.values())
    tolerance = {"rtol": 0.0, "atol": 20 * torch.finfo(dtype).eps * float(expected.abs().max())}
    torch.testing.assert_close(outputs(loaded), expected, **tolerance)
    torch.testing.assert_close(outputs(merged.apply_to(base, scaling=0.5)), outputs(loaded), rtol=0, atol=0)
    assert hf.AutoConfig.from_pretrained(tmp_path / "out").model_type == base.config.model_type


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE)
def test_a_model_in_true_size_survives_the_way_through_files(tmp_path: Path, kind: str) -> None:
    base = LARGE[kind]().eval()
    tuned = moved(base)
    save(base, tmp_path / "base")
    save(tuned, tmp_path / "tuned")
    vector = TaskVector.from_checkpoints(tmp_path / "base", tmp_path / "tuned", include="*")
    vector.save_checkpoint(tmp_path / "base", tmp_path / "out")
    loaded = type(base).from_pretrained(tmp_path / "out")
    for ours, theirs in zip(loaded.parameters(), tuned.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["vit", "bert", "t5"])
def test_files_and_models_in_memory_give_one_vector(tmp_path: Path, kind: str) -> None:
    base, tuned = model_of(kind), moved(model_of(kind))
    files = TaskVector.from_checkpoints(save(base, tmp_path / "base"), save(tuned, tmp_path / "tuned"))
    memory = TaskVector.from_models(base, tuned)
    assert equal_vectors(files, memory)
    assert files.info.base_hashes == memory.info.base_hashes
    assert files.info.architecture == memory.info.architecture == base.config.model_type
    files.save_pretrained(tmp_path / "vector")
    assert TaskVector.from_pretrained(tmp_path / "vector", verify=True) == memory


# -- heads, ties, vocabularies ----------------------------------------------------------------------------------------


def test_a_classifier_is_a_vector_of_the_body_it_was_made_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = hf.Dinov2Config(**{**model_of("dinov2").config.to_dict(), "num_labels": 3})
    tuned = hf.Dinov2ForImageClassification(config)
    tuned.dinov2.load_state_dict(moved(model_of("dinov2")).state_dict())
    base, after = save(model_of("dinov2"), tmp_path / "base"), save(tuned, tmp_path / "tuned")
    with pytest.raises(IncompatibleVectorsError, match=r"'classifier.weight' is in the fine-tuned .*exclude=\['class"):
        TaskVector.from_checkpoints(base, after)
    vector = TaskVector.from_checkpoints(base, after, exclude="classifier.*")
    assert equal_vectors(vector, TaskVector.from_models(model_of("dinov2"), tuned.dinov2))
    assert equal_vectors(vector, TaskVector.from_models(model_of("dinov2"), tuned, exclude=["classifier.*"]))
    assert vector.info.left_out == 2
    assert vector.info.settings == {"exclude": ["classifier.*"]}
    assert "Left out of the vector: 2 parameters" in caplog.text
    other = hf.Dinov2ForImageClassification.from_pretrained(base, num_labels=7).eval()
    applied = vector.apply_to(other)  # to a model with a head of its own
    assert torch.equal(applied.classifier.weight, other.classifier.weight)
    torch.testing.assert_close(outputs(applied.dinov2.eval()), outputs(tuned.dinov2.eval()), rtol=0, atol=1e-4)
    whole = TaskVector.from_checkpoints(after, save(moved(tuned), tmp_path / "again"))
    assert set(whole) == {f"dinov2.{name}" for name in vector} | {"classifier.weight", "classifier.bias"}
    with pytest.raises(IncompatibleVectorsError, match=r"'classifier.weight' is in the vector but not in the model"):
        whole.save_checkpoint(base, tmp_path / "out")


def write_copies(folder: Path, copies: dict[str, str]) -> None:
    """Adds each copy of a tied parameter to a file, as older versions of Transformers wrote them."""
    weights = load_file(folder / "model.safetensors")
    rewrite_weights(folder, {copy: weights[owner].clone() for copy, owner in copies.items()})


TIES = {
    "bert": {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    "t5": dict.fromkeys(["lm_head.weight", "encoder.embed_tokens.weight"], "shared.weight"),
    "qwen2": {"lm_head.weight": "model.embed_tokens.weight"},
}


@pytest.mark.parametrize("kind", TIES)
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_tied_parameter_counts_once_however_often_it_is_stored(tmp_path: Path, kind: str, side: str) -> None:
    base, tuned = model_of(kind), moved(model_of(kind))
    save(base, tmp_path / "base")
    save(tuned, tmp_path / "tuned")
    expected = TaskVector.from_checkpoints(tmp_path / "base", tmp_path / "tuned")
    write_copies(tmp_path / side, TIES[kind])
    vector = TaskVector.from_checkpoints(tmp_path / "base", tmp_path / "tuned")
    assert equal_vectors(vector, expected)
    vector.save_checkpoint(tmp_path / "base", tmp_path / "out")
    loaded = type(base).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(outputs(loaded), outputs(tuned), rtol=0, atol=1e-4)
    written = load_file(tmp_path / "out" / "model.safetensors")
    for copied, owner in TIES[kind].items() if side == "base" else ():
        assert torch.equal(written[copied], written[owner])


def test_a_head_that_was_untied_is_named(tmp_path: Path) -> None:
    save(model_of("qwen2"), tmp_path / "base")
    untied = copy.deepcopy(model_of("qwen2"))
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach() + 1)
    with pytest.raises(IncompatibleVectorsError, match=r"'lm_head.weight' is in the fine-tuned.*exclude=\['lm_head"):
        TaskVector.from_checkpoints(tmp_path / "base", save(untied, tmp_path / "tuned"))


def test_a_vocabulary_that_grew_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    save(model_of("qwen2"), tmp_path / "base")
    tuned = moved(model_of("qwen2"))
    tuned.resize_token_embeddings(103)
    save(tuned, tmp_path / "tuned")
    with pytest.raises(IncompatibleVectorsError, match=r"resize_token_embeddings.*exclude=\['model.embed_tokens") as e:
        TaskVector.from_checkpoints(tmp_path / "base", tmp_path / "tuned")
    assert "shape (99, 32) in the base and (103, 32)" in str(e.value)
    vector = TaskVector.from_checkpoints(tmp_path / "base", tmp_path / "tuned", exclude="model.embed_tokens.*")
    assert "model.norm.weight" in vector


# -- buffers and quantised files --------------------------------------------------------------------------------------


def test_running_statistics_are_no_parameters_and_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3)
    base = hf.ResNetForImageClassification(config)
    tuned = moved(base)
    tuned.train()(torch.randn(2, 3, 32, 32))
    save(base, tmp_path / "base")
    vector = TaskVector.from_checkpoints(tmp_path / "base", save(tuned, tmp_path / "tuned"))
    assert set(vector) == {name for name, _ in base.named_parameters()}
    statistics = [name for name, _ in base.named_buffers() if "running_" in name]
    assert vector.info.left_out == len(statistics)
    assert f"{len(statistics)} running statistics" in caplog.text
    vector.save_checkpoint(tmp_path / "base", tmp_path / "out")
    _, loading = hf.ResNetForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())


def test_masks_and_positions_of_old_files_are_no_parameters(tmp_path: Path) -> None:
    config = hf.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50, n_positions=8, bos_token_id=1, eos_token_id=1)
    base = hf.GPT2LMHeadModel(config).eval()
    save(base, tmp_path / "base")
    save(moved(base), tmp_path / "tuned")
    expected = TaskVector.from_checkpoints(tmp_path / "base", tmp_path / "tuned")
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8).tril(), "inv_freq": torch.ones(2)}
    rewrite_weights(tmp_path / "base", {**masks, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)})
    assert equal_vectors(TaskVector.from_checkpoints(tmp_path / "base", tmp_path / "tuned"), expected)
    rewrite_weights(tmp_path / "base", {}, prefix=("transformer.", ""))  # as openai wrote it: the body alone
    vector = TaskVector.from_checkpoints(tmp_path / "base", tmp_path / "tuned")
    assert {f"transformer.{name}" for name in vector} == set(expected)


@pytest.mark.parametrize("told", [{"quant_method": "fp8", "activation_scheme": "dynamic"}, {"quant_method": "gptq"}])
def test_a_quantised_checkpoint_is_refused_by_its_method(tmp_path: Path, told: dict[str, str]) -> None:
    save(model_of("llama"), tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "quantised")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "quantised" / "config.json").write_text(json.dumps({**config, "quantization_config": told}))
    refusal = rf"quantised is quantised \('{told['quant_method']}' in its config.json\).*made from"
    for pair in (("base", "quantised"), ("quantised", "base")):
        with pytest.raises(CheckpointError, match=refusal):
            TaskVector.from_checkpoints(*(tmp_path / name for name in pair))


# -- what is covered --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A CLIP, and the same with both towers changed."""
    folder = tmp_path_factory.mktemp("clips")
    return save(tiny_clip(), folder / "base"), save(moved(tiny_clip()), folder / "tuned")


def test_a_text_tower_is_covered_on_request(tmp_path: Path, clips: tuple[Path, Path]) -> None:
    text = TaskVector.from_checkpoints(*clips, include=["text_model.*", "text_projection.*"])
    names = set(dict(tiny_clip().named_parameters()))
    assert set(text) == {name for name in names if name.startswith("text_")}
    assert text.info.settings == {"include": ["text_model.*", "text_projection.*"]}
    tower = hf.CLIPModel.from_pretrained(clips[1]).text_model
    flat = hf.CLIPTextModel(tower.config)
    flat.load_state_dict(tower.state_dict())
    alone = TaskVector.from_checkpoints(clips[0], save(flat, tmp_path / "text"), include="text_model.*")
    assert all(torch.equal(alone[name], text[name]) for name in alone)
    vision = TaskVector.from_checkpoints(*clips, vision_only=True)
    assert set(vision) == {name for name in names if name.startswith("vision_model.")}
    few = TaskVector.from_checkpoints(*clips, exclude="*.embeddings.*")
    assert set(few) == {name for name in vision if ".embeddings." not in name}


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"include": "vision_modle.*"}, UnknownNameError, "no parameter 'vision_modle"),
        ({"exclude": ["nothing"]}, UnknownNameError, "no parameter 'nothing'"),
        ({"include": "*", "exclude": "*"}, IncompatibleVectorsError, "none of the base's parameters is covered"),
        ({"include": "*", "include_projection": True}, ValueError, "takes the place of include_projection"),
        ({"include": [1]}, TypeError, "patterns of names, got a int"),
    ],
)
def test_what_cannot_be_covered_is_named(
    clips: tuple[Path, Path], settings: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        TaskVector.from_checkpoints(*clips, **settings)


def test_two_kinds_of_model_have_no_difference(tmp_path: Path, clips: tuple[Path, Path]) -> None:
    siglip = save(model_of("siglip"), tmp_path / "siglip")
    with pytest.raises(CheckpointError, match=r"base is a clip and siglip a siglip \(model_type in config.json\)"):
        TaskVector.from_checkpoints(clips[0], siglip)
    with pytest.raises(ValueError, match="vision_only is for a CLIP"):
        TaskVector.from_checkpoints(siglip, siglip, vision_only=True)


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_written_folder_has_what_stood_beside_the_weights(tmp_path: Path) -> None:
    base = model_of("llama")
    base.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    side = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "merges.txt"}
    for name in side:
        (tmp_path / "base" / name).write_text("{}")
    vector = TaskVector.from_checkpoints(tmp_path / "base", save(moved(base), tmp_path / "tuned"))
    vector.save_checkpoint(tmp_path / "base", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == side | {"config.json", "generation_config.json", "model.safetensors", "task_vector_applied.json"}
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(outputs(loaded), outputs(moved(base)), rtol=0, atol=1e-4)


def test_neither_base_nor_deltas_come_into_memory(tmp_path: Path) -> None:
    random = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).bfloat16()
    weights = {f"layers.{index}.w": random.clone() for index in range(32)}
    save_file(weights, tmp_path / "base.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, tmp_path / "tuned.safetensors")
    del weights
    files = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    TaskVector.from_checkpoints(*files)  # what it allocates once for good
    before = anonymous_bytes()
    vector = TaskVector.from_checkpoints(*files)
    assert vector.num_entries == 1 << 25
    assert vector.dtype == torch.float32
    assert anonymous_bytes() - before < 64 << 20  # its deltas would take 128 MiB
    total = merge([vector, vector], "task_arithmetic", output_dir=tmp_path / "merged")
    assert torch.equal(total["layers.3.w"], 2 * vector["layers.3.w"])


# -- the layouts of open_clip and timm --------------------------------------------------------------------------------


def stacked(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Queries, keys and values of one layer, one below the other."""
    kinds = ("weight", "bias")
    return {k: torch.cat([weights[f"{prefix}.self_attn.{x}_proj.{k}"] for x in "qkv"]) for k in kinds}


def as_open_clip(model: hf.CLIPModel) -> dict[str, Tensor]:
    """The weights as open_clip names them."""
    weights, result = dict(model.state_dict()), {}
    for tower, outer in (("vision_model", "visual."), ("text_model", "")):
        for layer in range(2):
            ours, theirs = f"{tower}.encoder.layers.{layer}", f"{outer}transformer.resblocks.{layer}"
            for kind, value in stacked(weights, ours).items():
                result[f"{theirs}.attn.in_proj_{kind}"] = value
                for one, other in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc")):
                    result[f"{theirs}.{other}.{kind}"] = weights[f"{ours}.{one}.{kind}"]
                result[f"{theirs}.mlp.c_proj.{kind}"] = weights[f"{ours}.mlp.fc2.{kind}"]
                result[f"{theirs}.attn.out_proj.{kind}"] = weights[f"{ours}.self_attn.out_proj.{kind}"]
    vision, text = "vision_model.embeddings.", "text_model.embeddings."
    result |= {
        "visual.class_embedding": weights[vision + "class_embedding"],
        "visual.positional_embedding": weights[vision + "position_embedding.weight"],
        "visual.conv1.weight": weights[vision + "patch_embedding.weight"],
        "visual.proj": weights["visual_projection.weight"].T,
        "token_embedding.weight": weights[text + "token_embedding.weight"],
        "positional_embedding": weights[text + "position_embedding.weight"],
        "text_projection": weights["text_projection.weight"].T,
        "logit_scale": weights["logit_scale"],
        "attn_mask": torch.zeros(16, 16),
    }
    norms = {"visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm"}
    for theirs, ours in {**norms, "ln_final": "text_model.final_layer_norm"}.items():
        result |= {f"{theirs}.{kind}": weights[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    return {name: value.clone().contiguous() for name, value in result.items()}


def as_timm(model: hf.CLIPModel) -> dict[str, Tensor]:
    """The vision tower as timm names it."""
    weights = dict(model.state_dict())
    vision, outer = "vision_model.embeddings.", "vision_model."
    result = {
        "cls_token": weights[vision + "class_embedding"].view(1, 1, -1),
        "pos_embed": weights[vision + "position_embedding.weight"][None],
        "patch_embed.proj.weight": weights[vision + "patch_embedding.weight"],
        "head.weight": weights["visual_projection.weight"],
    }
    for kind in ("weight", "bias"):
        result[f"norm_pre.{kind}"] = weights[f"{outer}pre_layrnorm.{kind}"]
        result[f"norm.{kind}"] = weights[f"{outer}post_layernorm.{kind}"]
        for layer in range(2):
            ours, theirs = f"{outer}encoder.layers.{layer}", f"blocks.{layer}"
            result[f"{theirs}.attn.qkv.{kind}"] = stacked(weights, ours)[kind]
            result[f"{theirs}.attn.proj.{kind}"] = weights[f"{ours}.self_attn.out_proj.{kind}"]
            for one, other in (("layer_norm1", "norm1"), ("layer_norm2", "norm2"), ("mlp.fc1", "mlp.fc1")):
                result[f"{theirs}.{other}.{kind}"] = weights[f"{ours}.{one}.{kind}"]
            result[f"{theirs}.mlp.fc2.{kind}"] = weights[f"{ours}.mlp.fc2.{kind}"]
    return {name: value.clone().contiguous() for name, value in result.items()}


@pytest.mark.parametrize("custom_text", [False, True])
def test_an_open_clip_file_gives_the_vector_and_the_logits_of_its_model(
    tmp_path: Path, clips: tuple[Path, Path], custom_text: bool
) -> None:
    tuned = hf.CLIPModel.from_pretrained(clips[1])
    renamed = as_open_clip(tuned)
    if custom_text:
        renamed = {name if name.startswith("visual") else f"text.{name}": value for name, value in renamed.items()}
    (tmp_path / "oc").mkdir()
    save_file(renamed, tmp_path / "oc" / "open_clip_model.safetensors")
    vector = TaskVector.from_checkpoints(clips[0], tmp_path / "oc", include="*")
    assert equal_vectors(vector, TaskVector.from_checkpoints(*clips, include="*"))
    applied = vector.apply_to(hf.CLIPModel.from_pretrained(clips[0]))
    torch.testing.assert_close(outputs(applied), outputs(tuned), rtol=0, atol=1e-4)
    file = tmp_path / "oc" / "open_clip_model.safetensors"
    assert TaskVector.from_checkpoints(clips[1], file, include="*").is_zero
    with pytest.raises(CheckpointError, match=r"layout of open_clip or timm.*in the layout of Transformers as base="):
        vector.save_checkpoint(file, tmp_path / "out", allow_other_base=True)
    assert not (tmp_path / "out").exists()


def test_a_timm_clip_gives_the_vector_of_its_tower(tmp_path: Path, clips: tuple[Path, Path]) -> None:
    save_file(as_timm(hf.CLIPModel.from_pretrained(clips[1])), tmp_path / "timm.safetensors")
    vector = TaskVector.from_checkpoints(clips[0], tmp_path / "timm.safetensors", include_projection=True)
    names = ["vision_model.*", "visual_projection.*"]
    assert equal_vectors(vector, TaskVector.from_checkpoints(*clips, include=names))


def test_a_checkpoint_of_another_kind_is_no_base(tmp_path: Path) -> None:
    folder = save(model_of("bert"), tmp_path / "bert")
    assert open_checkpoint(folder).architecture == "bert"
    with pytest.raises(CheckpointError, match=r"is another model \(model_type .bert.*TaskVector.from_checkpoints"):
        load_base(folder)


def test_cards_of_other_models_do_not_speak_of_towers(tmp_path: Path) -> None:
    save(model_of("llama"), tmp_path / "base")
    vector = TaskVector.from_checkpoints(tmp_path / "base", save(moved(model_of("llama")), tmp_path / "tuned"))
    card = render_vector_card(vector.info, None, repo_id="user/vector")
    assert "of the model (llama)" in card
    assert 'vector.save_checkpoint("base", "model")' in card
    model_card = render_model_card(vector.info, None, repo_id="user/model", scaling=0.5)
    assert "AutoModel.from_pretrained" in model_card
    for text in (card, model_card):
        assert "vision tower" not in text
        assert "CLIP" not in text
        assert "zero-shot" not in text
    assert describe(tmp_path / "base").facts["parameters"] == len(vector)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_of_a_language_model_is_a_vector_of_its_base(tmp_path: Path) -> None:
    base = save(model_of("llama"), tmp_path / "base")
    lora = get_peft_model(copy.deepcopy(model_of("llama")), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    lora.save_pretrained(tmp_path / "adapter")
    vector = TaskVector.from_adapter(tmp_path / "adapter", base=base)
    assert set(vector) == {name for name, _ in model_of("llama").named_parameters()}
    torch.testing.assert_close(
        outputs(vector.apply_to(model_of("llama"))), outputs(lora.merge_and_unload()), rtol=0, atol=1e-4
    )


def test_a_language_model_goes_over_the_hub_as_vector_and_as_model(hub: HubServer, tmp_path: Path) -> None:
    base, tuned = save(model_of("qwen2"), tmp_path / "base"), save(moved(model_of("qwen2")), tmp_path / "tuned")
    (base / "chat_template.jinja").write_text("{{ messages }}")
    for name, folder in (("org/base", base), ("org/tuned", tuned)):
        hub.store.add_folder("model", name, folder)
    vector = TaskVector.from_checkpoints("org/base", "org/tuned", task="math")
    push_to_hub(vector, "user/math", token="write-user")
    pulled = TaskVector.from_pretrained("user/math")
    assert pulled == vector
    assert pulled.info.base_fingerprint == vector.info.base_fingerprint
    assert pulled.info.architecture == "qwen2"
    push_model_to_hub(pulled, "user/math-model", scaling=1.0, token="write-user")
    loaded = hf.AutoModelForCausalLM.from_pretrained("user/math-model")
    torch.testing.assert_close(outputs(loaded), outputs(moved(model_of("qwen2"))), rtol=0, atol=1e-4)
    assert "chat_template.jinja" in hub.store.get("model", "user/math-model").head.files
