"""The program: every verb, its version and completion."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_taskvec.command import (
    catalogue,
    doctor,
    editing,
    evaluation,
    inspection,
    merging,
    packing,
    repositories,
    reproduction,
    studio,
)
from hf_taskvec.command.verbs import PROGRAM, add_verb

GROUPS = (inspection, catalogue, doctor, merging, packing, evaluation, editing, repositories, studio, reproduction)
HELP = """Makes, merges, measures and shares task vectors of CLIP models.

Training stays with the recipes of the repository: accelerate launch recipes/finetune.py --task mnist
"""


def _version(wanted: bool) -> None:
    if wanted:
        from hf_taskvec import __version__

        typer.echo(__version__)
        raise typer.Exit


app = typer.Typer(
    name=PROGRAM,
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),  # the recipes' flags are spelled with "_"
    },
)


@app.callback()
def _program(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")] = False,
) -> None:
    """Options before the verb."""


for group in GROUPS:
    for verb in group.VERBS:
        add_verb(app, verb)


def main() -> None:
    """Runs the program, as the console script `hf-taskvec` does."""
    app(prog_name=PROGRAM)
