"""A recipe's settings from its command line, an optional YAML file beneath it, and `run_recipe` around both."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_origin, get_type_hints

from transformers import HfArgumentParser

from hf_taskvec.errors import ArgumentsError, UnknownNameError
from hf_taskvec.fields import arg as arg
from hf_taskvec.fields import command_line as command_line
from hf_taskvec.fields import file_values, one_sentence, parse_pairs
from hf_taskvec.fields import read_yaml as read_yaml

Defaults = Callable[[argparse.Namespace], Path | None]


def run_recipe(
    main: Callable[..., object], *types: type, defaults: Defaults | None = None, stopped: str = "Nothing was written."
) -> None:
    """Runs a recipe: reads its arguments, calls `main` with them, and ends a user's error in one sentence.

    The exit code is 2 for arguments that cannot be read, 1 for another error and 130 for Ctrl-C. With the environment
    variable `HF_TASKVEC_DEBUG` errors keep their traceback; those that are no user's always do.

    Args:
        main: Called with one value of each type.
        types: Dataclasses of arguments.
        defaults: Chooses a file of defaults when the other arguments are known, as for `parse_recipe`.
        stopped: What Ctrl-C leaves, and how to go on.
    """
    description = sys.modules[main.__module__].__doc__
    with one_sentence(Path(sys.argv[0]).name, stopped=stopped) as ending:
        ending.code = 2
        values = parse_recipe(*types, defaults=defaults, description=description)
        ending.code = 1
        main(*values)


def parse_recipe(
    *types: type, argv: Sequence[str] | None = None, defaults: Defaults | None = None, description: str | None = None
) -> tuple[Any, ...]:
    """Reads one value of each dataclass in `types`; flags on the command line win over `--config FILE`.

    Args:
        types: Dataclasses of arguments.
        argv: Command line, that of the process if left out.
        defaults: Gets the arguments read so far and chooses a file that counts where neither flags nor `--config` say
            anything.
        description: What `--help` says before the arguments.

    Returns:
        One value per type.

    Raises:
        UnknownNameError: If a flag or a key of a file is no argument.
        ArgumentsError: If a value does not fit, a required one is missing or a file cannot be read.

    Example:
        >>> @dataclasses.dataclass
        ... class Arguments:
        ...     density: float = arg("Fraction kept.", default=0.2)
        >>> parse_recipe(Arguments, argv=["--density", "0.5"])[0].density
        0.5
    """
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    config_parser.add_argument("--config", type=Path, help="YAML file of arguments; the command line wins.")
    try:
        known, tokens = config_parser.parse_known_args(list(sys.argv[1:] if argv is None else argv))
    except argparse.ArgumentError as error:
        raise ArgumentsError(f"--config: {error.message}") from None
    parser = _Parser(types, parents=[config_parser], description=description)
    if known.config is not None:
        tokens = [*_yaml_tokens(known.config, types), *tokens]
    if defaults is not None and "-h" not in tokens and "--help" not in tokens:
        file = defaults(parser.namespace(tokens))
        tokens = [*(_yaml_tokens(file, types) if file is not None else []), *tokens]
    parser.namespace(tokens)  # refuses unknown flags before a dataclass complains about anything else
    return tuple(parser.parse_args_into_dataclasses(tokens, look_for_args_file=False))[: len(types)]


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Descriptions as they are written, and the default of each argument."""


class _Pairs(argparse.Action):
    """Collects `name=value` texts into a dict."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, parse_pairs(values))


class _Parser(HfArgumentParser):
    """`HfArgumentParser` that raises, honours every `default_factory`, knows dicts and sorts its help.

    The recipe's own arguments come first, then those that the other dataclasses define, inherited ones last.
    """

    def __init__(self, types: Sequence[type], **options: Any) -> None:
        self.flags: set[str] = {"--help"}
        usage = "%(prog)s [--config FILE] [--ARGUMENT VALUE ...]"
        super().__init__(types, usage=usage, formatter_class=_HelpFormatter, allow_abbrev=False, **options)
        self.flags.add("--config")

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print below the usage."""
        raise ArgumentsError(f"{message.removeprefix('argument ')} (--help explains every argument)")

    def namespace(self, tokens: Sequence[str]) -> argparse.Namespace:
        """The arguments before they become dataclasses.

        Raises:
            UnknownNameError: If a flag is no argument.
            ArgumentsError: If something else is wrong with them.
        """
        for token in tokens:
            flag = token.partition("=")[0]
            if token.startswith("--") and "--" + flag[2:].replace("-", "_") not in self.flags:
                raise UnknownNameError("argument", flag, self.flags)
        namespace: argparse.Namespace
        namespace, rest = self.parse_known_args(list(tokens))
        if rest:
            raise ArgumentsError(f"what is {rest[0]!r}? Every value follows a --flag; --help lists all")
        return namespace

    def _add_dataclass_arguments(self, dtype: Any) -> None:
        hints, own = get_type_hints(dtype), inspect.get_annotations(dtype)
        parents = [kind.__name__ for kind in dtype.__mro__[1:-1]]
        groups = {True: self.add_argument_group(f"arguments ({dtype.__name__})")}
        if parents:
            groups[False] = self.add_argument_group(f"inherited arguments ({parents[0]})")
        for original in dataclasses.fields(dtype):
            if original.init:
                field = copy.copy(original)
                field.type = hints[field.name]
                self._add_field(groups[field.name in own], field)

    def _add_field(self, group: Any, field: Any) -> None:
        names = [f"--{field.name}", f"--{field.name.replace('_', '-')}"]
        if get_origin(field.type) is dict:
            group.add_argument(
                *dict.fromkeys(names),
                nargs="*",
                action=_Pairs,
                metavar="NAME=VALUE",
                default=field.default_factory(),
                **field.metadata,
            )
        else:
            if field.default_factory is not dataclasses.MISSING and get_origin(field.type) is not list:
                # otherwise a bool is False whatever its factory says, so torchrun would start unconnected copies
                field.default, field.default_factory = field.default_factory(), dataclasses.MISSING
            self._parse_dataclass_field(group, field)
            if field.default is True:
                self.flags.add(f"--no_{field.name}")
        self.flags.add(f"--{field.name}")


def _yaml_tokens(path: Path, types: Sequence[type]) -> list[str]:
    """The file's entries as command-line tokens, so that one parser checks both."""
    tokens: list[str] = []
    for key, value in file_values(path, types).items():
        tokens += [f"--{key}", *value] if isinstance(value, list) else [f"--{key}={value}"]
    return tokens
