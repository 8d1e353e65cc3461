"""Arguments of a recipe: one dataclass, filled from the command line and an optional flat YAML file."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from hf_taskvec.errors import UnknownNameError


def arg(help: str, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field with its help text; without a default the argument is required."""
    text = help.replace("%", "%%")
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": text})
    return dataclasses.field(default=default, metadata={"help": text})


def parse_recipe(
    *types: type, argv: Sequence[str] | None = None, default_config: Path | None = None
) -> tuple[Any, ...]:
    """Reads one value of each dataclass in `types`; flags on the command line win over `--config FILE`.

    Args:
        types: Dataclasses of arguments.
        argv: Command line, that of the process if left out.
        default_config: The file that counts if no `--config` is given.

    Raises:
        UnknownNameError: If the file holds a key that is no argument.
        ValueError: If the file is not a flat mapping.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument(
        "--config", type=Path, default=default_config, help="YAML file of arguments; the command line wins."
    )
    known, rest = config_parser.parse_known_args(tokens)
    doc = sys.modules[types[0].__module__].__doc__
    parser = HfArgumentParser(
        types, description=doc, parents=[config_parser], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.allow_abbrev = False
    if known.config is not None:
        rest = [*_yaml_tokens(known.config, types), *rest]
    return tuple(parser.parse_args_into_dataclasses(rest, look_for_args_file=False))[: len(types)]


def _yaml_tokens(path: Path, types: Sequence[type]) -> list[str]:
    """The file's entries as command-line tokens, so that one parser checks both."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(entries, dict):
        raise ValueError(f"{path} must hold a flat mapping of arguments, got {type(entries).__name__}")
    fields = {field.name for kind in types for field in dataclasses.fields(kind) if field.init}
    tokens = []
    for key, value in entries.items():
        if key not in fields:
            raise UnknownNameError(f"argument in {path}:", key, fields)
        if isinstance(value, dict):
            raise ValueError(f"{path}: {key} must be a value or a list, got a mapping")
        if value is None:
            continue
        tokens += [f"--{key}", *map(str, value)] if isinstance(value, list) else [f"--{key}={value}"]
    return tokens
