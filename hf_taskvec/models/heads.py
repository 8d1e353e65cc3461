"""The zero-shot head: class names and prompts through the text tower (CLIP, arXiv 2103.00020), kept on disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import xxhash
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional

from hf_taskvec.errors import CheckpointError, DataError
from hf_taskvec.models.base import Base
from hf_taskvec.weights.fingerprint import fingerprint, tensor_hash, tensor_hashes
from hf_taskvec.weights.folders import write_bytes
from hf_taskvec.weights.names import parameters_of

logger = logging.getLogger(__name__)

FORMAT = 2  # of the files in the cache; to be raised with any change to what they hold
_DAMAGED = (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError)


def zero_shot_head(base: Base, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Class features times the logit scale, (C, F): the templates' unit text features averaged, normalised again.

    Cached on disk under a key of everything it depends on: text tower with its configuration, dtype and device,
    tokenizer, class names, templates and libraries. A damaged entry is computed anew; a cache that cannot be written
    is left alone.

    Args:
        base: The model.
        class_names: The classes.
        templates: Prompts with one `{}` for the class name.

    Raises:
        DataError: If a class name reaches beyond the text tower's context, where it would be cut.
        ValueError: If the model has no text tower.

    Example:
        >>> from hf_taskvec import load_base
        >>> zero_shot_head(load_base(), ["circle", "square"], ["a photo of a {}."]).shape
        torch.Size([2, 256])
    """
    base.check_zero_shot("zero-shot classification")
    key = _head_key(base, class_names, templates)
    path = Path(HF_HOME) / "hf_taskvec" / "heads" / f"{key}.safetensors"
    shape = (len(class_names), feature_size(base))
    kept = _read(path, key, shape, base.model.logit_scale.dtype)
    if kept is not None:
        return kept.to(base.device)
    check_context(base, class_names, templates)
    features = []
    for name in class_names:
        encoded = base.encode_text([template.format(name) for template in templates])
        features.append(functional.normalize(encoded.mean(dim=0), dim=-1))
    head: Tensor = torch.stack(features) * base.model.logit_scale.detach().exp()
    _write(path, key, head.cpu().contiguous())
    return head


def feature_size(base: Base) -> int:
    """The dimension of the space that images and texts share.

    Example:
        >>> from hf_taskvec import load_base
        >>> feature_size(load_base())
        256
    """
    config = base.model.config
    return int(config.projection_dim if base.architecture is None else config.text_config.projection_size)


def check_context(base: Base, class_names: Sequence[str], templates: Sequence[str]) -> None:
    """Refuses class names that the text tower would see only in part; tells where only a prompt's end is cut.

    Raises:
        DataError: If a class name is cut; it is named.
        CheckpointError: If the tokenizer is not that of the text tower.

    Example:
        >>> from hf_taskvec import load_base
        >>> check_context(load_base(), ["circle"], ["a photo of a {}."])
    """
    tokenizer: Any = base.processor.tokenizer
    limit = min(tokenizer.model_max_length, base.model.config.text_config.max_position_embeddings)
    heads = [template[: template.index("{}")] for template in templates]
    texts = [head + name for name in class_names for head in heads]
    whole = [template.format(name) for name in class_names for template in templates]
    _check_vocabulary(base, whole)
    needed, lengths = _lengths(tokenizer, texts), _lengths(tokenizer, whole)
    for row, length in enumerate(needed):
        if length > limit:
            name, template = class_names[row // len(templates)], templates[row % len(templates)]
            raise DataError(
                f"class name {name!r:.100} takes {length} tokens in the prompt {template!r:.100}, more than the "
                f"{limit} that the text tower of {base.name} reads: it would be cut; shorten it"
            )
    if (longest := max(lengths)) > limit:
        _tell_cut(whole[lengths.index(longest)][:200], longest, limit)


def _check_vocabulary(base: Base, texts: list[str]) -> None:
    """Raises a `CheckpointError` if the tokenizer makes tokens that the text tower has no embedding of."""
    known = base.model.text_model.get_input_embeddings().num_embeddings
    for text, ids in zip(texts, base.processor.tokenizer(texts, verbose=False)["input_ids"], strict=True):
        if max(ids) >= known:
            raise CheckpointError(
                f"the tokenizer makes token {max(ids)} of the prompt {text!r:.100}, but the text tower of {base.name} "
                f"knows {known} tokens: it is another model's tokenizer, or tokens were added to it"
            )


def _lengths(tokenizer: Any, texts: list[str]) -> list[int]:
    """Tokens of each text, start and end included."""
    encoded = tokenizer(texts, truncation=False, padding=False, verbose=False)
    return [len(ids) for ids in encoded["input_ids"]]


@cache
def _tell_cut(text: str, length: int, limit: int) -> None:
    logger.warning("the prompt %r has %d tokens; the text tower reads %d, so its end is cut", text, length, limit)


def _head_key(base: Base, class_names: Sequence[str], templates: Sequence[str]) -> str:
    weights = parameters_of(base.model)
    text = {name: weight for name, weight in weights.items() if name.startswith(("text_", "logit_scale"))}
    config, tokenizer = base.model.config.text_config, base.processor.tokenizer
    settings = {name: value for name, value in config.to_dict().items() if name != "dtype"}
    parts = [
        fingerprint(tensor_hashes(text)),
        json.dumps(settings, sort_keys=True, default=repr),
        repr(config._attn_implementation),
        _content_of(tokenizer),
        repr(tokenizer.model_max_length),
        repr(tokenizer.special_tokens_map),
        repr(tokenizer.padding_side),
        type(tokenizer).__qualname__,
        str(base.model.logit_scale.dtype),
        base.device.type,
        repr(list(class_names)),
        repr(list(templates)),
        *(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers")),
        str(FORMAT),
    ]
    return xxhash.xxh3_128_hexdigest("\0".join(parts).encode())


def _content_of(tokenizer: Any) -> str:
    """What decides a tokenizer's tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # SentencePiece
        return json.dumps([tokenizer.get_vocab(), tokenizer.init_kwargs], sort_keys=True, default=repr)
    backend.no_truncation()  # what the last call left there is set again by the next one
    backend.no_padding()
    return str(backend.to_str())


def _read(path: Path, key: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor | None:
    """The head under `path`; `None` if there is none or if it is not the one that was written."""
    try:
        if path.stat().st_size > 2 * shape[0] * shape[1] * dtype.itemsize + (1 << 16):
            raise ValueError("too large")
        tensors = load(path.read_bytes())  # in memory: a mapped file could be cut under the reader
        head, digest = tensors["head"], bytes(tensors["digest"].tolist())
        if head.shape != shape or head.dtype != dtype or digest != _digest(key, head):
            raise ValueError("not what was written")
        return head
    except (FileNotFoundError, NotADirectoryError):
        return None
    except _DAMAGED as error:
        logger.warning("the kept head %s is damaged (%s); it is computed anew", path, error)
        return None


def _write(path: Path, key: str, head: Tensor) -> None:
    try:
        write_bytes(path, save({"head": head, "digest": torch.tensor(list(_digest(key, head)), dtype=torch.uint8)}))
    except OSError as error:
        _tell_unkept(str(path.parent), str(error))


def _digest(key: str, head: Tensor) -> bytes:
    return xxhash.xxh3_128_digest(f"{key} {head.dtype} {tuple(head.shape)} {tensor_hash(head)}".encode())


@cache
def _tell_unkept(folder: str, error: str) -> None:
    logger.info("zero-shot heads cannot be kept in %s (%s); they are computed in each run", folder, error)
