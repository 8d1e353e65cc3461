"""What can be known of a merge before it: names, settings, files, bases, disk and memory; no weights are fetched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import psutil
import torch
from huggingface_hub import HfApi, constants

from hf_taskvec.errors import IncompatibleVectorsError, NotCachedError
from hf_taskvec.hub.access import split_revision
from hf_taskvec.hub.client import hub_errors, with_retries
from hf_taskvec.hub.fetch import Wanted, fetch_folder
from hf_taskvec.merging.engine import AHEAD
from hf_taskvec.merging.recipes import MergeRecipe, check_replaced
from hf_taskvec.text import listed
from hf_taskvec.vectors.compatibility import check_one_base, check_same_shapes
from hf_taskvec.vectors.files import CONFIG_NAME, STEM, read_info
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.dtypes import DTYPES, as_device
from hf_taskvec.weights.folders import check_output_folder, check_space

_WEIGHTS = f"{STEM}*.safetensors"
Verdict = Literal["ok", "refused", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: What it is.
        verdict: Whether the merge would be refused for it; "unknown" where only the weights could tell.
        text: The fact, or the reason.
    """

    what: str
    verdict: Verdict
    text: str


@dataclass(frozen=True)
class _Source:
    """A vector as far as it is known: its provenance, and the vector itself where it is on this machine."""

    name: str
    info: VectorInfo
    vector: TaskVector | None = None
    remote_bytes: int = 0


def validate(
    recipe: MergeRecipe,
    *,
    output_dir: str | os.PathLike[str] | None = None,
    device: str | None = None,
    overwrite: bool = True,
) -> list[Finding]:
    """Looks at everything that could refuse a merge before its weights are fetched or read.

    Of a vector on the Hub the configuration is fetched, a few kB, and the sizes of its files are asked for.

    Args:
        recipe: The merge.
        output_dir: Where the result would be written; in memory if left out.
        device: Where it would be computed.
        overwrite: Whether a vector in `output_dir` may be replaced.

    Returns:
        One finding per thing that was looked at; the merge would be refused if one is.

    Example:
        >>> [(finding.what, finding.verdict) for finding in validate(MergeRecipe((), "ties"))]
        [('method and settings', 'refused'), ('output', 'ok')]
    """
    findings = [_tried("method and settings", lambda: _settings_text(recipe))]
    findings.append(_tried("output", lambda: _output_text(output_dir, overwrite)))
    if device is not None:
        findings.append(_tried("device", lambda: str(as_device(device))))
    sources: list[_Source] = []
    for name in recipe.vectors:
        findings.append(_tried(f"vector {name}", lambda name=name: _look(name, sources)))  # type: ignore[misc]
    if len(sources) == len(recipe.vectors) and sources:
        findings += _together(recipe, sources, output_dir)
    return findings


def _tried(what: str, look: Callable[[], str]) -> Finding:
    """The finding of a look that tells a fact or raises a reason."""
    try:
        return Finding(what, "ok", look())
    except NotCachedError as error:
        return Finding(what, "unknown", str(error))
    except (ValueError, OSError) as error:
        return Finding(what, "refused", str(error))


def _settings_text(recipe: MergeRecipe) -> str:
    if not recipe.vectors:
        raise ValueError("merge needs at least one vector, got none")
    recipe.check()
    settings = ", ".join(f"{name}={value!r}" for name, value in recipe.settings.items())
    return f"{recipe.method}{f' with {settings}' if settings else ''}, times {recipe.scaling:g}"


def _output_text(output_dir: str | os.PathLike[str] | None, overwrite: bool) -> str:
    if output_dir is None:
        return "in memory"
    check_replaced(output_dir, overwrite=overwrite)
    check_output_folder(output_dir, marker=CONFIG_NAME)
    return os.fspath(output_dir)


def _look(name: str, sources: list[_Source]) -> str:
    """Looks at one vector and keeps what is known of it."""
    place, revision = split_revision(name)
    if os.path.exists(place):
        vector = TaskVector.from_pretrained(place)
        sources.append(_Source(name, vector.info, vector))
        dtype = str(vector.dtype).removeprefix("torch.")
        return f"{vector.info.label}, {vector.num_entries:,} entries in {dtype}, here"
    folder = fetch_folder(place, Wanted([CONFIG_NAME]), revision=revision)
    info = read_info(folder.path)
    with hub_errors(name, "reading"):
        remote = with_retries(lambda: HfApi().model_info(os.fspath(place), revision=folder.commit, files_metadata=True))
    sizes = {file.rfilename: file.size or 0 for file in remote.siblings or [] if fnmatch(file.rfilename, _WEIGHTS)}
    if not sizes:
        raise ValueError(f"{name} has a configuration and no weights ({_WEIGHTS})")
    size = sum(sizes.values())
    sources.append(_Source(name, info, remote_bytes=size))
    return f"{info.label}, {size / 1e6:,.1f} MB on the Hub at commit {(folder.commit or 'unknown')[:8]}"


def _together(
    recipe: MergeRecipe, sources: Sequence[_Source], output_dir: str | os.PathLike[str] | None
) -> Iterator[Finding]:
    """What the vectors are to each other, and what the merge takes."""
    yield _tried("bases", lambda: _bases_text(sources))
    here = [source.vector for source in sources if source.vector is not None]
    if len(here) < len(sources):
        away = [source.name for source in sources if source.vector is None]
        yield Finding("names, shapes and dtypes", "unknown", f"the weights tell those of {listed(away, room=200)}")
    else:
        yield _tried("names, shapes and dtypes", lambda: _shapes_text(recipe, here))
    yield _tried("disk", lambda: _disk_text(recipe, sources, output_dir))
    if here:
        yield _tried("memory", lambda: _memory_text(recipe, here, len(sources), output_dir))


def _bases_text(sources: Sequence[_Source]) -> str:
    check_one_base([source.info for source in sources])
    first = sources[0].info
    silent = [source.name for source in sources if not source.info.base_hashes]
    if silent:
        return f"no fingerprint tells the base of {listed(silent, room=200)}; the others are of {first.base}"
    return f"all are of {first.base or 'one base'} (fingerprint {(first.base_fingerprint or '')[:12]})"


def _shapes_text(recipe: MergeRecipe, vectors: Sequence[TaskVector]) -> str:
    if recipe.missing == "refuse":
        check_same_shapes(vectors)
    if len(dtypes := sorted({str(vector.dtype) for vector in vectors})) > 1:
        raise IncompatibleVectorsError(f"dtypes differ: {', '.join(dtypes)}. Convert them first")
    return f"{len(vectors[0])} parameters in {dtypes[0].removeprefix('torch.')}"


def _disk_text(recipe: MergeRecipe, sources: Sequence[_Source], output_dir: str | os.PathLike[str] | None) -> str:
    """What is downloaded and written, and whether there is room for it."""
    needs: list[tuple[str, int, Path]] = []
    if download := sum(source.remote_bytes for source in sources):
        needs.append(("download", download, Path(constants.HF_HUB_CACHE)))
    if output_dir is not None:
        needs.append(("result", _result_bytes(recipe, sources), Path(output_dir)))
    texts = [check_space(place, size, what) for what, size, place in needs]
    return "; ".join(texts) or "nothing is downloaded or written"


def _result_bytes(recipe: MergeRecipe, sources: Sequence[_Source]) -> int:
    """The size of the result, from a vector that is here, or from the file of one that is not."""
    here = next((source.vector for source in sources if source.vector is not None), None)
    if here is None:
        return max(source.remote_bytes for source in sources)
    wide = torch.promote_types(here.dtype, torch.float32)
    return here.num_entries * DTYPES.get(recipe.dtype or "", wide).itemsize


def _memory_text(
    recipe: MergeRecipe, here: Sequence[TaskVector], count: int, output_dir: str | os.PathLike[str] | None
) -> str:
    """What is in memory at once, at the least: the largest parameter of every vector, and what waits to be written."""
    largest = max(shape.numel() for shape in here[0].deltas.shapes.values())
    width = torch.promote_types(here[0].dtype, torch.float32).itemsize
    waiting = min(AHEAD, here[0].num_entries) if output_dir is not None else here[0].num_entries
    needed = (count * largest + waiting) * width
    text = f"at least {needed / 1e6:,.0f} MB beside the libraries"
    free = psutil.virtual_memory().available
    if needed > free:
        raise OSError(f"the merge needs {text}, and {free / 1e6:,.0f} MB are free")
    return f"{text}, {free / 1e6:,.0f} MB free"
