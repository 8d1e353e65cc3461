"""The base: a CLIP model with its processor, and where it comes from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn
from transformers import CLIPModel, CLIPProcessor

from hf_taskvec.errors import CheckpointError, NotCachedError
from hf_taskvec.text import listed

TINY_CLIP = Path(__file__).parent / "tiny_clip"
EMBEDDED = "hf-taskvec/tiny-clip"  # the name of the base that comes with the package


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
        return next(self.model.parameters()).device

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
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Base:
    """Loads a CLIP model with its processor, in evaluation mode.

    Args:
        source: Hub id or folder of any `CLIPModel`; the embedded tiny CLIP if left out.
        revision: Branch, tag or commit on the Hub.
        token, cache_dir, local_files_only: As in `from_pretrained` of Transformers.
        dtype: Dtype of the weights in memory; float32 also for a half-precision file.

    Raises:
        CheckpointError: If parameters are missing or left over; all are named.
        NotCachedError: If the Hub is out of reach and the cache has no copy.
    """
    path = os.fspath(source) if source is not None else os.fspath(TINY_CLIP)
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    try:
        model, loading = CLIPModel.from_pretrained(
            path, dtype=dtype, use_safetensors=True, output_loading_info=True, **hub
        )
        processor = CLIPProcessor.from_pretrained(path, **hub)
    except (OSError, HfHubHTTPError) as error:
        if Path(path).is_dir():
            raise CheckpointError(f"{path} holds no loadable CLIP model: {error}") from error
        raise NotCachedError(
            f"{path!r} is neither a folder nor a CLIP model that can be fetched now; "
            f"if you are offline, fetch it first: hf download {path}"
        ) from error
    lines = [f"{key.replace('_', ' ')}: {listed(sorted(names), room=100)}" for key, names in loading.items() if names]
    if lines:
        details = [f"{key}: {name}" for key, names in loading.items() for name in sorted(names)]
        raise CheckpointError(f"{path} does not fit CLIPModel; {'; '.join(lines)}", details=details)
    name = EMBEDDED if source is None else path
    if source is not None and Path(path).is_dir():
        name = Path(path).resolve().name
    return Base(model.eval(), processor, name, getattr(model.config, "_commit_hash", None))
