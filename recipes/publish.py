# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Publishes the artefacts that have a card in `hub_cards`, exactly as the card, configuration and report there say.

python recipes/make_card.py --vectors <folders> --namespace user --output_dir cards    # a card names its repository
python recipes/publish.py --cards_dir cards --namespace user                           # after `hf auth login`
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import interrupts  # noqa: F401

from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.cards import CARD_NAME
from hf_taskvec.cards.gathering import publish_card
from hf_taskvec.cards.publish import create_collection
from hf_taskvec.hub.access import PushOptions


@dataclass
class PublishArguments:
    weights_dir: str = arg("Folder with one saved vector per card, by the card's name.", default="out/published")
    cards_dir: str = arg("Folder of the cards.", default="hub_cards")
    names: list[str] = arg("Cards to publish; all if left out.", default=[])
    namespace: str = arg("User or organisation to publish under.", default="hf-taskvec")
    collection: str | None = arg("Title of a collection to gather them in.", default=None)
    private: bool = arg("Whether new repositories are private.", default=False)
    token: str | None = arg("Access token; by default that of hf auth login.", default=None)


def main(args: PublishArguments) -> list[str]:
    cards = sorted(path.parent for path in Path(args.cards_dir).glob(f"*/{CARD_NAME}"))
    urls, repo_ids = [], []
    for card in [card for card in cards if card.name in args.names or not args.names]:
        repo_id = f"{args.namespace}/{card.name}"
        options = PushOptions(private=args.private or None, token=args.token, commit_message=f"Publish {card.name}")
        url = publish_card(card, Path(args.weights_dir) / card.name, repo_id, options)
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
