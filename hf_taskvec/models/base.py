"""The base: a CLIP model with its processor, and where it comes from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPProcessor

from hf_taskvec.errors import CheckpointError
from hf_taskvec.hub.access import HubAccess, HubKeywords, is_repo_id
from hf_taskvec.hub.fetch import CHECKPOINT, fetch_folder
from hf_taskvec.models.embedded import EMBEDDED as EMBEDDED
from hf_taskvec.models.embedded import TINY_CLIP as TINY_CLIP
from hf_taskvec.text import listed


@dataclass(frozen=True)
class Base:
    """A CLIP model, its processor and its origin; also what `TaskVector.apply_to` returns for a base.

    Attributes:
        model: Image and text tower.
        processor: Tokenizer and image processor.
        name: Hub id or folder name.
        revision: Hub commit, if it came from the Hub.
    """

    model: CLIPModel
    processor: CLIPProcessor
    name: str
    revision: str | None = None

    @property
    def device(self) -> torch.device:
        """The device the model is on."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def encode_text(self, texts: list[str]) -> Tensor:
        """Unit-norm text features, (len(texts), F)."""
        tokens = self.processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.device)
        with torch.no_grad():
            pooled = self.model.text_model(**tokens).pooler_output
            return nn.functional.normalize(self.model.text_projection(pooled), dim=-1)


def load_base(
    source: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    base_name: str | None = None,
    dtype: torch.dtype = torch.float32,
    **hub: Unpack[HubKeywords],
) -> Base:
    """Loads a CLIP model with its processor, in evaluation mode.

    Args:
        source: Hub id or folder of any `CLIPModel`; the embedded tiny CLIP if left out.
        revision: Branch, tag or commit on the Hub.
        base_name: Hub id of the model in a folder, for the provenance of vectors; by default the folder's name.
        dtype: Dtype of the weights in memory; float32 also for a half-precision file.
        **hub: `token`, `cache_dir`, `local_files_only`, `force_download`; see `HubAccess`.

    Returns:
        The base; its revision is the commit that was loaded.

    Raises:
        CheckpointError: If there is no such model, access is refused, or parameters are missing or left over.
        NotCachedError: If the Hub is out of reach and the cache has no copy.
        HubError: If the download failed or is damaged.

    Example:
        >>> load_base().name
        'hf-taskvec/tiny-clip'
    """
    access = HubAccess.of(hub)
    if base_name is not None:
        _check_base_name(base_name, source)
    folder = fetch_folder(TINY_CLIP if source is None else source, CHECKPOINT, revision=revision, access=access)
    path = os.fspath(folder.path)
    try:
        model, loading = CLIPModel.from_pretrained(
            path, dtype=dtype, use_safetensors=True, output_loading_info=True, local_files_only=True
        )
        processor = CLIPProcessor.from_pretrained(path, local_files_only=True)
    except OSError as error:
        raise CheckpointError(f"{source} holds no loadable CLIP model: {error}") from error
    lines = [f"{key.replace('_', ' ')}: {listed(sorted(names), room=100)}" for key, names in loading.items() if names]
    if lines:
        details = [f"{key}: {name}" for key, names in loading.items() for name in sorted(names)]
        raise CheckpointError(f"{source} does not fit CLIPModel; {'; '.join(lines)}", details=details)
    name = EMBEDDED if source is None else base_name or folder.name
    return Base(model.eval(), processor, name, folder.commit)


def _check_base_name(name: str, source: str | os.PathLike[str] | None) -> None:
    """Raises a `ValueError` if a name can or need not be given."""
    if source is None or not os.path.isdir(source):
        raise ValueError("base_name is for folders; a base from the Hub, and the embedded one, have their names")
    if not is_repo_id(name):
        raise ValueError(f"base_name must be a Hub id (user/name), got {name!r}")
