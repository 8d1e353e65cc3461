"""Vectors of several tasks published as one artefact, with its card, in one commit."""

from __future__ import annotations

import dataclasses
from typing import Unpack

from hf_taskvec.cards.folder import CARD_NAME, REPORT_NAME
from hf_taskvec.cards.provenance import published_info, warn_of_base
from hf_taskvec.cards.publish import repository
from hf_taskvec.cards.render import render_multi_task_card
from hf_taskvec.evaluation.report import Report
from hf_taskvec.hub.access import PushKeywords, PushOptions
from hf_taskvec.hub.push import push_folder
from hf_taskvec.multitask.files import write_artefact
from hf_taskvec.multitask.value import MultiTaskVector
from hf_taskvec.weights.folders import write_text


def push_multi_task(
    packed: MultiTaskVector, repo_id: str, *, report: Report | None = None, **options: Unpack[PushKeywords]
) -> str:
    """Publishes vectors of several tasks: weights, configuration, card and report in one commit.

    Args:
        packed: What `pack` made.
        repo_id: The repository; it is created if need be.
        report: Their results, for the card.
        **options: `private`, `revision`, `create_pr`, `token`, `commit_message` and others; see `PushOptions`.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        TypeError: If it is no such artefact.
        HubError: If the Hub refuses or fails, or another push came in between; the repository is as it was.

    Example:
        >>> push_multi_task(packed, "eight-tasks", private=True)  # doctest: +SKIP
    """
    if not isinstance(packed, MultiTaskVector):
        raise TypeError(f"a MultiTaskVector is published, got {type(packed).__name__}; pack(vectors, method) makes one")
    chosen = PushOptions.of(options)
    message = chosen.commit_message or f"Add {len(packed.parts)} tasks by {packed.info.label}"
    chosen = dataclasses.replace(chosen, commit_message=message)
    published = dataclasses.replace(packed, info=published_info(packed.info, chosen))
    with repository(repo_id, chosen) as (full_id, folder):
        digests = write_artefact(folder, published.stored)
        write_text(folder / CARD_NAME, render_multi_task_card(published, report, repo_id=full_id))
        if report is not None:
            report.save(folder / REPORT_NAME)
        url = push_folder(folder, full_id, chosen, digests=digests, replaces=("multi_task_vector*", REPORT_NAME))
    warn_of_base(published.info, chosen.token, what="vectors tell", its="their")
    return url
