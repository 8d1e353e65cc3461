"""Publishes the artefacts that have a card in `hub_cards`, exactly as the card, configuration and report there say.

python recipes/make_card.py --vectors <folders> --namespace user --output_dir cards    # a card names its repository
python recipes/publish.py --cards_dir cards --namespace user                           # after `hf auth login`
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import interrupts  # noqa: F401

from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.cards import CARD_NAME, REPORT_NAME, render_folder_card
from hf_taskvec.cards.publish import OLD, create_collection
from hf_taskvec.hub.access import PushOptions
from hf_taskvec.hub.push import push_folder
from hf_taskvec.models.embedded import EMBEDDED_BASES
from hf_taskvec.vectors.files import CONFIG_NAME
from hf_taskvec.vectors.vector import TaskVector


@dataclass
class PublishArguments:
    weights_dir: str = arg("Folder with one saved vector per card, by the card's name.", default="out/published")
    cards_dir: str = arg("Folder of the cards.", default="hub_cards")
    names: list[str] = arg("Cards to publish; all if left out.", default=[])
    namespace: str = arg("User or organisation to publish under.", default="hf-taskvec")
    collection: str | None = arg("Title of a collection to gather them in.", default=None)
    private: bool = arg("Whether new repositories are private.", default=False)
    token: str | None = arg("Access token; by default that of hf auth login.", default=None)


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


def main(args: PublishArguments) -> list[str]:
    cards = sorted(path.parent for path in Path(args.cards_dir).glob(f"*/{CARD_NAME}"))
    urls, repo_ids = [], []
    for card in [card for card in cards if card.name in args.names or not args.names]:
        repo_id = f"{args.namespace}/{card.name}"
        if render_folder_card(card, repo_id=repo_id) != (card / CARD_NAME).read_text(encoding="utf-8"):
            raise ValueError(
                f"the card of {card.name} is not what its configuration and report give for {repo_id}; make it again "
                f"with recipes/make_card.py --namespace {args.namespace}, or publish under the namespace it names"
            )
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / card.name
            gather(card, Path(args.weights_dir) / card.name, folder)
            options = PushOptions(private=args.private or None, token=args.token, commit_message=f"Publish {card.name}")
            url = push_folder(folder, repo_id, options, replaces=OLD)
        print(f"{card.name}: {url}")
        urls.append(url)
        repo_ids.append(repo_id)
    if args.collection:
        print(create_collection(args.collection, repo_ids, namespace=args.namespace, token=args.token))
    return urls


if __name__ == "__main__":
    run_recipe(
        main,
        PublishArguments,
        stopped="What was pushed is complete; the same command pushes the rest and leaves what is there as it is.",
    )
