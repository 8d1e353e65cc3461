"""Whose weights these are: their class of Transformers, ties and quantisation; what is no CLIP, by its name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_taskvec.errors import CheckpointError
from hf_taskvec.hub.access import AnyPath, HubAccess
from hf_taskvec.hub.fetch import CHECKPOINT, INSTEAD, PICKLED, Folder, Wanted, fetch_folder
from hf_taskvec.text import shortened
from hf_taskvec.weights.folders import check_inside, read_json
from hf_taskvec.weights.safetensors import open_safetensors, shard_files

CONFIG = "config.json"
APPLIED_NAME = "task_vector_applied.json"  # marks a checkpoint that is a base plus a vector
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
_IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
_TEXT_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
_CLIP_TYPES = {"clip", "clip_vision_model", "clip_text_model"}
_CLASS = re.compile(r"[A-Z][A-Za-z0-9]*(Model|For[A-Z][A-Za-z0-9]*)")
# Image models without a text tower that are bases: what their classes in Transformers begin with, by `model_type`.
BACKBONES = {"vit": "ViT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}
_NAMES = {
    "siglip_vision_model": "SigLIP's vision tower",
    "siglip2": "SigLIP 2 of native resolution",
    "siglip2_vision_model": "SigLIP 2",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2",
    "dinov3_vit": "DINOv3",
    "vit": "ViT",
    "deit": "DeiT",
    "beit": "BEiT",
    "timm_wrapper": "timm",
    "blip": "BLIP",
    "align": "ALIGN",
}
# How a name begins that only one layout has, and whose it is.
_SIGNS = {
    "visual.": "open_clip",
    "embeddings.cls_token": "ViT or DINOv2",
    "head.probe": "SigLIP",
    "blocks.0.": "timm",
}
# What training in shards leaves, by a file of it, and how whole weights are made of that.
_SHARDS = {
    "*.distcp": "shards of an FSDP run, whose index is a pickle: `accelerate merge-weights FOLDER OUT` makes "
    "safetensors of them; a run that is going on writes its vector by hf_taskvec.vectors.gathering.gather_vector",
    "pytorch_model_fsdp*": "an FSDP run's checkpoint: `accelerate merge-weights FOLDER/pytorch_model_fsdp_0 OUT` makes "
    "safetensors of its shards",
    "shards.json": "a checkpoint of a run with shard=True, for that run to go on from; its vectors are in the folder "
    "vectors beside it",
    "zero_to_fp32.py": "a checkpoint of DeepSpeed, which is pickled: its own `python zero_to_fp32.py FOLDER OUT "
    "--safe_serialization` makes safetensors of it",
}
_BODIES = re.compile(r"^(vision_model|vit|deit|dinov2)\.")
_OPEN_CLIP = (
    "is in the layout of open_clip. Take the same model in that of Transformers: most repositories have it as "
    "model.safetensors; else convert it by transformers.models.clip.convert_clip_original_pytorch_to_hf"
)
_OTHER = (
    "of which no base is made: that takes CLIP, SigLIP of fixed resolution, ViT or DINOv2, with its configuration. "
    "Vectors of any architecture are made by TaskVector.from_checkpoints(base, finetuned)"
)


def model_class(config: Mapping[str, Any]) -> Any:
    """The class of Transformers that a configuration names first; `None` if there is none of that name.

    Example:
        >>> model_class({"architectures": ["ViTForImageClassification"]}).base_model_prefix
        'vit'
    """
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or not _CLASS.fullmatch(name):
        return None
    import transformers  # here, since merging does without

    try:
        known = getattr(transformers, name, None)
    except (ImportError, RuntimeError):  # a library that the class needs lacks
        return None
    is_model = isinstance(known, type) and issubclass(known, transformers.PreTrainedModel)
    return known if is_model else None


def ties_of(config: Mapping[str, Any]) -> Mapping[str, str]:
    """Which parameters are the same as another, as the model's class tells: the copy by its name, and whose it is.

    Example:
        >>> ties_of({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True})
        {'lm_head.weight': 'model.embed_tokens.weight'}
        >>> ties_of({"architectures": ["LlamaForCausalLM"]})  # by default they are not
        {}
    """
    tied = config.get("tie_word_embeddings")
    if config.get("model_type") in _CLIP_TYPES or tied is False:  # the class need not be imported, which takes seconds
        return {}
    kind = model_class(config)
    ties = getattr(kind, "_tied_weights_keys", None)
    if not isinstance(ties, Mapping):
        return {}
    if tied is None:
        tied = getattr(kind.config_class(), "tie_word_embeddings", False)
    return dict(ties) if tied else {}


def check_not_quantised(config: Mapping[str, Any], where: str) -> None:
    """Raises a `CheckpointError` if a configuration says that the weights need scales to be read.

    Example:
        >>> check_not_quantised({"model_type": "llama"}, "a checkpoint")
    """
    told = config.get("quantization_config")
    if told:
        method = told.get("quant_method") if isinstance(told, Mapping) else told
        raise CheckpointError(
            f"{where} is quantised ({shortened(str(method), 60)!r} in its {CONFIG}), so its tensors are no weights: "
            "take the checkpoint it was made from, or load it with dequantize=True and save it in bfloat16"
        )


def check_is_zero_shot(folder: Path | None, names: Iterable[str], where: str) -> None:
    """Raises unless weights are those of a CLIP or SigLIP in the layout of Transformers, as far as can be told.

    What a configuration says comes first; without one, names that only another layout has tell.

    Args:
        folder: The checkpoint's folder, if there is one.
        names: Names of the parameters, as in the file.
        where: The checkpoint, for the message.

    Raises:
        CheckpointError: If it is another model; it is named.

    Example:
        >>> check_is_zero_shot(None, ["vision_model.post_layernorm.weight"], "a checkpoint")
    """
    config = read_config(folder)
    kind = config.get("model_type")
    if kind == "siglip":
        return
    if isinstance(kind, str) and kind not in _CLIP_TYPES:
        name = _NAMES.get(kind, "another model")
        raise CheckpointError(f"{where} is {name} (model_type {shortened(kind, 60)!r} in its {CONFIG}), {_OTHER}")
    if kind is None and "pretrained_cfg" in config:
        raise CheckpointError(f"{where} is a timm model, {_OTHER}")
    for name in names:
        owner = next((owner for sign, owner in _SIGNS.items() if _BODIES.sub("", name).startswith(sign)), None)
        if owner == "open_clip":
            raise CheckpointError(f"{where} {_OPEN_CLIP}")
        if owner is not None:
            raise CheckpointError(f"{where} looks like {owner} (it holds {name[:100]!r}), {_OTHER}")


def check_base_folder(folder: Path, where: str) -> None:
    """Raises unless a folder holds a whole model with its processor, as its files' names and headers tell.

    Args:
        folder: The folder.
        where: Its name, for the message.

    Raises:
        CheckpointError: If something is missing, or if it is another model; it is named.
    """
    config = read_config(folder)
    weights = open_safetensors(weight_files(folder))
    is_backbone = config.get("model_type") in BACKBONES
    if not is_backbone:
        check_is_zero_shot(folder, weights, where)
    if not config:
        raise CheckpointError(f"{where} has no {CONFIG}, which says what model it is")
    if is_backbone:
        check_not_quantised(config, where)
    elif config.get("model_type") == "clip_vision_model" or not any("text_model." in name for name in weights):
        raise CheckpointError(
            f"{where} is only a vision tower: as a base, give the full CLIP that it comes from; to make a vector of "
            "it, pass it to TaskVector.from_checkpoints as the fine-tuned model"
        )
    for names, what in ((_IMAGE_FILES, "image processor"), (_TEXT_FILES, "tokenizer"))[: 1 if is_backbone else 2]:
        if not any((folder / name).is_file() for name in names):
            raise CheckpointError(
                f"{where} has no {what} ({' or '.join(names)}); save the processor of the model it comes from beside "
                "it: AutoProcessor.from_pretrained(...).save_pretrained(folder)"
            )


def fetch_checkpoint(
    source: AnyPath, wanted: Wanted = CHECKPOINT, *, revision: str | None = None, access: HubAccess | None = None
) -> Folder:
    """The files of a checkpoint, as `fetch_folder` gives them; a folder without any is named by what it holds.

    Raises:
        CheckpointError: If there is no such folder or repository, or it has no `model.safetensors`.
    """
    if os.path.isdir(source) and not any(Path(source).glob("model*.safetensors*")):
        if (Path(source) / OPEN_CLIP_WEIGHTS).is_file():
            return Folder(Path(source), Path(source).resolve().name, None)
        raise _no_weights(Path(source), os.fspath(source))
    return fetch_folder(source, wanted, revision=revision, access=access)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, by Transformers' names for them or open_clip's.

    Raises:
        CheckpointError: If there is none, or an index names files outside the folder.
    """
    if (folder / OPEN_CLIP_WEIGHTS).is_file() and not any(folder.glob("model*.safetensors*")):
        return [folder / OPEN_CLIP_WEIGHTS]
    return [folder / file for file in shard_files(folder, "model")]


def _no_weights(folder: Path, where: str) -> CheckpointError:
    if (folder / OPEN_CLIP_CONFIG).exists():
        return CheckpointError(f"{where} {_OPEN_CLIP}")
    for name, text in INSTEAD.items():
        if (folder / name).exists():
            return CheckpointError(f"{where} {text}")
    for pattern, remedy in _SHARDS.items():
        if next(folder.glob(pattern), None) is not None:
            return CheckpointError(f"{where} holds {remedy}")
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return CheckpointError(
            f"{where} has no model.safetensors but {others[0][:100]!r}; pass the path of the file if it is the one"
        )
    return CheckpointError(f"{where} {PICKLED}")


def read_config(folder: Path | None) -> Mapping[str, Any]:
    """The configuration in a checkpoint's folder; an empty one if it has none."""
    if folder is None or not (folder / CONFIG).is_file():
        return {}
    check_inside(folder / CONFIG, folder)
    return read_json(folder / CONFIG)
