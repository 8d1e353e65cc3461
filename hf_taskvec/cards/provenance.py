"""The provenance that is published: what the options of a push say, and a base that others can find."""

from __future__ import annotations

import dataclasses
import logging

from huggingface_hub import HfApi, constants

from hf_taskvec.errors import CheckpointError, TaskVecError
from hf_taskvec.hub.access import PushOptions, is_repo_id
from hf_taskvec.hub.client import hub_errors
from hf_taskvec.models.embedded import EMBEDDED_BASES
from hf_taskvec.statistics.value import StatisticsInfo
from hf_taskvec.vectors.info import VectorInfo

logger = logging.getLogger(__name__)


def published_base(info: VectorInfo | StatisticsInfo, options: PushOptions) -> tuple[str | None, str | None]:
    """The base that is told, and its commit, which is none where the options give the base another name.

    Example:
        >>> published_base(VectorInfo(base="out/clip", base_revision="c0ffee"), PushOptions(base_name="user/clip"))
        ('user/clip', None)
    """
    base = options.base_name or info.base
    return base, info.base_revision if base == info.base else None


def published_info(info: VectorInfo, options: PushOptions, *, keep_source: bool = False) -> VectorInfo:
    """The provenance with what the options give it, and without the repository it came from unless that is kept.

    Example:
        >>> published_info(VectorInfo(tags=("a",), repo_id="user/old"), PushOptions(tags=("b",))).tags
        ('a', 'b')
    """
    base, revision = published_base(info, options)
    return dataclasses.replace(
        info,
        license=options.licence or info.license,
        tags=tuple(dict.fromkeys((*info.tags, *options.tags))),
        language=options.language or info.language,
        base=base,
        base_revision=revision,
        repo_id=info.repo_id if keep_source else None,
        repo_commit=info.repo_commit if keep_source else None,
    )


def warn_of_base(
    info: VectorInfo | StatisticsInfo, token: str | bool | None, *, what: str = "vector tells", its: str = "its"
) -> None:
    """Warns if readers cannot find the base: a folder of this machine, or a name that the Hub does not know."""
    if info.base in EMBEDDED_BASES or info.base_revision is not None:
        return
    known = info.base is not None and is_repo_id(info.base)
    if known:
        try:
            with hub_errors(str(info.base), "reading"):
                HfApi(token=token).model_info(str(info.base), timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except CheckpointError:
            known = False
        except TaskVecError:
            return  # nothing is known about it, and the push is done
    if not known:
        logger.warning(
            "The published %s %s: others cannot load the base, and a search for it finds nothing of this "
            "(list_vectors(base_model=...)). Pass base_name= with the base's Hub id.",
            what,
            "no base" if info.base is None else f"{info.base!r} as {its} base, no repository you can see",
        )
