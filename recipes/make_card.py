"""Writes the card of a task vector, with its configuration and report, into `hub_cards/<name>`.

python recipes/make_card.py --vector out/mnist/vector --name tiny-clip-mnist --report out/mnist/report.json
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hf_taskvec import Report, TaskVector
from hf_taskvec.hub import write_repository
from hf_taskvec.recipe import arg, parse_recipe


@dataclass
class CardArguments:
    vector: str = arg("Hub id or folder of the vector.")
    name: str = arg("Name of the repository.")
    report: str | None = arg("Saved report of the base with the vector.", default=None)
    namespace: str = arg("User or organisation of the repository.", default="hf-taskvec")
    license: str | None = arg("Licence of the vector, by the Hub's name for it.", default=None)
    command: str | None = arg("The command that made the vector, if its provenance lacks it.", default=None)
    output_dir: str = arg("Folder of the cards.", default="hub_cards")


def main(args: CardArguments) -> Path:
    vector = TaskVector.from_pretrained(args.vector)
    info = vector.info
    info = dataclasses.replace(info, license=args.license or info.license, command=args.command or info.command)
    report = Report.load(args.report) if args.report else None
    folder = Path(args.output_dir) / args.name
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "repository"
        write_repository(TaskVector(vector.deltas, info), whole, repo_id=f"{args.namespace}/{args.name}", report=report)
        folder.mkdir(parents=True, exist_ok=True)
        for path in whole.iterdir():
            if path.suffix in (".json", ".md") and not path.name.endswith(".index.json"):
                shutil.copyfile(path, folder / path.name)
    print(f"The card is in {folder}")
    return folder


if __name__ == "__main__":
    main(*parse_recipe(CardArguments))
