"""The base: a CLIP, SigLIP, ViT or DINOv2 model with its processor, and where it comes from."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, CLIPModel, CLIPProcessor, SiglipModel, SiglipProcessor

from hf_taskvec.errors import CheckpointError
from hf_taskvec.hub.access import HubAccess, HubKeywords, is_repo_id
from hf_taskvec.models.backbones import ImagesOnly, backbone_class, check_loading
from hf_taskvec.models.embedded import EMBEDDED as EMBEDDED
from hf_taskvec.models.embedded import EMBEDDED_BASES as EMBEDDED_BASES
from hf_taskvec.models.embedded import FEATURE_CLIP as FEATURE_CLIP
from hf_taskvec.models.embedded import TINY_CLIP as TINY_CLIP
from hf_taskvec.models.layouts import (
    APPLIED_NAME,
    BACKBONES,
    check_base_folder,
    fetch_checkpoint,
    read_config,
    weight_files,
)
from hf_taskvec.text import shortened, table
from hf_taskvec.weights.dtypes import as_dtype
from hf_taskvec.weights.folders import atomic_folder, read_json, write_json
from hf_taskvec.weights.safetensors import open_safetensors

KINDS: dict[str, tuple[Any, Any]] = {"clip": (CLIPModel, CLIPProcessor), "siglip": (SiglipModel, SiglipProcessor)}
SAVED = "task_vector_base.json"  # marks a folder that `Base.save_pretrained` wrote


@dataclass(frozen=True, repr=False)
class Base:
    """An image model, its processor and its origin; also what `TaskVector.apply_to` returns for a base.

    SigLIP (arXiv 2303.15343; SigLIP 2 of fixed resolution, arXiv 2502.14786, is the same model) has no projections: its
    towers end in the shared space. Its model gets parameterless ones, so that both are used alike. A ViT or a
    DINOv2 has no text tower and classifies by a frozen linear head per task; see `hf_taskvec.models.linear`.

    Attributes:
        model: Image and text tower; of a ViT or a DINOv2 the backbone.
        processor: Tokenizer and image processor.
        name: Hub id or folder name.
        revision: Hub commit, if it came from the Hub.
        edited: Whether a vector was added to it.
        transductive: Whether test images were used in the making of such a vector.
        heads: Folder of the linear heads of a base without a text tower; in the cache of `datasets` if `None`.
        origin: The backbone on which linear heads are fitted: the model before vectors were added to it.
    """

    model: Any
    processor: Any
    name: str
    revision: str | None = None
    edited: bool = False
    transductive: bool = False
    heads: str | None = None
    origin: Any = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.model, SiglipModel):
            self.model.visual_projection = self.model.text_projection = nn.Identity()
        if not self.zero_shot and self.origin is None and not self.edited:
            object.__setattr__(self, "origin", self.model)

    @property
    def zero_shot(self) -> bool:
        """Whether class names become its head through a text tower; a ViT or a DINOv2 has linear heads instead."""
        return self.model.config.model_type not in BACKBONES

    @property
    def tower(self) -> Any:
        """The part of the model that sees images."""
        return self.model.vision_model if self.zero_shot else self.model

    def check_zero_shot(self, needed_by: str) -> None:
        """Raises a `ValueError` if it has no text tower.

        Args:
            needed_by: What asks, for the message.
        """
        if not self.zero_shot:
            raise ValueError(
                f"{needed_by} needs a CLIP or SigLIP, and {self.name!r} ({self.architecture}) has no text tower: with "
                "linear heads it is trained by TaskVectorTrainer, merged, and measured by evaluate and choose_scaling"
            )

    @property
    def architecture(self) -> str | None:
        """The kind of model as its configuration names it; `None` for a CLIP."""
        return None if self.model.config.model_type == "clip" else str(self.model.config.model_type)

    @property
    def linearized(self) -> bool:
        """Whether it is what `linearize` made of a base: linear in its weights."""
        return bool(getattr(self.tower, "linearized", False))

    def check_not_linearized(self, needed_by: str) -> None:
        """Raises a `ValueError` if it is: what needs the layers of a tower, or writes it as a file, finds none there.

        Args:
            needed_by: What asks, for the message.
        """
        if self.linearized:
            raise ValueError(
                f"{needed_by} does not take {self.name!r} in its tangent space, of which only image features are "
                "known; pass the base that linearize was given, or evaluate(linearized, tasks)"
            )

    @property
    def device(self) -> torch.device:
        """The device the model is on."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def __repr__(self) -> str:
        return f"Base({', '.join(f'{key}={value}' for key, value in self._facts())})"

    def _repr_markdown_(self) -> str:
        return table(["base", self.name], [[key, value] for key, value in self._facts()[1:]], align="ll")

    def _facts(self) -> list[tuple[str, object]]:
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        vision, weight = self.tower.config, next(self.model.parameters())
        layers = f"{vision.num_hidden_layers} layers of width {vision.hidden_size}, patches of {vision.patch_size} px"
        return [
            ("name", repr(self.name)),
            ("revision", repr(self.revision)),
            ("parameters", f"{parameters:,}"),
            ("vision", repr(layers)),
            ("image_size", vision.image_size),
            ("dtype", weight.dtype),
            ("device", repr(str(weight.device))),
            *([("edited", True)] if self.edited else []),
            *([("transductive", True)] if self.transductive else []),
            *([("linearized", True)] if self.linearized else []),
        ]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Saves model and processor as Transformers reads them: by `load_base`, `CLIPModel` and `CLIPProcessor`.

        Args:
            folder: Where to save; a folder that an earlier call wrote is replaced, other content there is kept.

        Raises:
            OutputExistsError: If the folder holds something else.
            ValueError: If it is linearised: a file cannot say so.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     load_base().save_pretrained(folder)
            ...     load_base(folder).model.num_parameters() == load_base().model.num_parameters()
            True
        """
        self.check_not_linearized("save_pretrained")
        with atomic_folder(folder, marker=SAVED, own=_is_weights) as temporary:
            self.model.save_pretrained(temporary)
            self.processor.save_pretrained(temporary)
            edited = {} if self.zero_shot else {"edited": self.edited}
            write_json(temporary / SAVED, {"name": self.name, "revision": self.revision, **edited})

    def encode_text(self, texts: list[str]) -> Tensor:
        """Unit-norm text features, (len(texts), F).

        SigLIP reads lower case and no mask, and pools by the last of as many tokens as its context has: padding counts.

        Raises:
            ValueError: If it has no text tower.
        """
        self.check_zero_shot("encode_text")
        settings: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt"}
        if isinstance(self.model, SiglipModel):
            texts = [text.lower() for text in texts]
            length = self.model.config.text_config.max_position_embeddings
            settings |= {"padding": "max_length", "max_length": length, "return_attention_mask": False}
        tokens = self.processor.tokenizer(texts, **settings).to(self.device)
        with torch.no_grad():
            pooled = self.model.text_model(**tokens).pooler_output
            return nn.functional.normalize(self.model.text_projection(pooled), dim=-1)


def _is_weights(name: str) -> bool:
    return name.startswith("model") and name.endswith((".safetensors", ".index.json"))


def load_base(
    source: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    base_name: str | None = None,
    dtype: torch.dtype | str = torch.float32,
    attn_implementation: str | None = None,
    heads: str | os.PathLike[str] | None = None,
    **hub: Unpack[HubKeywords],
) -> Base:
    """Loads a CLIP, SigLIP, ViT or DINOv2 model with its processor, in evaluation mode.

    Args:
        source: Hub id or folder of any `CLIPModel` or `SiglipModel`, of a ViT or DINOv2 with or without a classifier,
            which is left out; the embedded tiny CLIP if left out. `hf-taskvec/feature-clip` is embedded too: a base
            with better features, for measurements.
        revision: Branch, tag or commit on the Hub.
        base_name: Hub id of the model in a folder, for the provenance of vectors; by default the folder's name.
        dtype: Dtype of the weights in memory, or its name; float32 also for a half-precision file.
        attn_implementation: Attention as Transformers names it; its own choice if left out. On a CPU in bfloat16,
            `eager` can train faster than `sdpa`.
        heads: Folder for the linear heads of a ViT or DINOv2, `<heads>/<task>`: what is there is used, what is not is
            fitted and kept there. By default they are kept in the cache of `datasets`.
        **hub: `token`, `cache_dir`, `local_files_only`, `force_download`; see `HubAccess`.

    Returns:
        The base; its revision is the commit that was loaded.

    Raises:
        CheckpointError: If there is no such model, access is refused, files are damaged or of another model, or
            parameters are missing or left over.
        NotCachedError: If the Hub is out of reach and the cache has no copy.
        HubError: If the download failed or is damaged.
        ValueError: If `heads` comes with a CLIP or SigLIP.

    Example:
        >>> load_base().name
        'hf-taskvec/tiny-clip'
    """
    access, dtype = HubAccess.of(hub), as_dtype(dtype)
    where = EMBEDDED if source is None else os.fspath(source)
    embedded = EMBEDDED_BASES.get(where) if revision is None or source is None else None  # needs no network
    if base_name is not None:
        _check_base_name(base_name, None if embedded else source)
    folder = fetch_checkpoint(embedded or where, revision=revision, access=access)
    check_base_folder(folder.path, where)
    model, processor = _read(folder.path, where, dtype, attn_implementation)
    base = Base(
        model.eval(),
        processor,
        where if embedded else base_name or folder.name,
        folder.commit,
        edited=model.config.model_type in BACKBONES and _holds_a_vector(folder.path),
        heads=None if heads is None else os.fspath(heads),
    )
    if heads is not None and base.zero_shot:
        raise ValueError(f"heads is for a ViT or DINOv2; {base.name!r} makes its heads of class names")
    return base


def _holds_a_vector(folder: Path) -> bool:
    """Whether a folder is known to hold a base plus a vector, on whose features no head is fitted."""
    saved = read_json(folder / SAVED) if (folder / SAVED).is_file() else {}
    return (folder / APPLIED_NAME).is_file() or saved.get("edited") is True


def _read(folder: Path, where: str, dtype: torch.dtype, attention: str | None) -> tuple[Any, Any]:
    config, options = read_config(folder), dict[str, Any]()
    if config["model_type"] in BACKBONES:
        model_kind, processor_kind = backbone_class(config, where), AutoImageProcessor
        if config["model_type"] == "vit":
            options["add_pooling_layer"] = any("pooler." in name for name in open_safetensors(weight_files(folder)))
    else:
        model_kind, processor_kind = KINDS[config["model_type"]]
    try:
        model, loading = model_kind.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            **options,
        )
        processor = processor_kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        cause = shortened(f"{type(error).__name__}: {error}", 250)
        raise CheckpointError(f"{where} holds no loadable model with its processor: {cause}") from error
    check_loading(loading, model_kind, where)
    return model, ImagesOnly(processor) if processor_kind is AutoImageProcessor else processor


def _check_base_name(name: str, source: str | os.PathLike[str] | None) -> None:
    """Raises a `ValueError` if a name can or need not be given."""
    if source is None or not os.path.isdir(source):
        raise ValueError("base_name is for folders; a base from the Hub, and embedded ones, have their names")
    if not is_repo_id(name):
        raise ValueError(f"base_name must be a Hub id (user/name), got {name!r}")
