"""A repository put together from a card, its configuration and report, and the weights that they describe."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hf_taskvec.cards.folder import CARD_NAME, REPORT_NAME, render_folder_card
from hf_taskvec.cards.publish import OLD
from hf_taskvec.errors import CheckpointError
from hf_taskvec.hub.access import PushOptions
from hf_taskvec.hub.push import push_folder
from hf_taskvec.models.embedded import EMBEDDED_BASES
from hf_taskvec.vectors.files import CONFIG_NAME
from hf_taskvec.vectors.vector import TaskVector


def publish_card(card: Path, weights: Path, repo_id: str, options: PushOptions) -> str:
    """Publishes what a card describes, exactly as card, configuration and report there say.

    Args:
        card: Folder of the card. Without a task vector's configuration it is that of an embedded base.
        weights: Folder of the saved vector.
        repo_id: The repository, which the card names.
        options: How it is published.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        CheckpointError: If the card is not what its configuration and report give, or the weights are not its own.
        HubError: If the Hub refuses or fails.
    """
    if render_folder_card(card, repo_id=repo_id) != (card / CARD_NAME).read_text(encoding="utf-8"):
        namespace = repo_id.split("/")[0]
        raise CheckpointError(
            f"the card of {card.name} is not what its configuration and report give for {repo_id}; make it again "
            f"with recipes/make_card.py --namespace {namespace}, or publish under the namespace it names"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / card.name
        gather(card, weights, folder)
        return push_folder(folder, repo_id, options, replaces=OLD)


def gather(card: Path, weights: Path, folder: Path) -> None:
    """Puts one repository together in `folder` and checks that the weights are those of the card."""
    if (card / CONFIG_NAME).is_file():
        shutil.copytree(weights, folder, ignore=shutil.ignore_patterns("*.md"))
        for path in card.iterdir():
            shutil.copyfile(path, folder / path.name)
        TaskVector.from_pretrained(folder, verify=True)
        return
    shutil.copytree(EMBEDDED_BASES[f"hf-taskvec/{card.name}"], folder)
    for name in (CARD_NAME, REPORT_NAME):
        shutil.copyfile(card / name, folder / name)
