"""Recipes: dataclasses filled from the command line and an optional YAML file, and an end in one sentence."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import inspect
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from hf_taskvec.errors import ArgumentsError, UnknownNameError
from hf_taskvec.text import printable, shortened

DEBUG_VARIABLE = "HF_TASKVEC_DEBUG"
MAX_YAML_BYTES, MAX_YAML_DEPTH = 1 << 20, 20
YAML_KINDS = {"null", "bool", "int", "float", "str", "timestamp", "value", "seq", "map"}
USER_ERRORS = (ValueError, OSError, RuntimeError, MemoryError, ImportError)

Defaults = Callable[[argparse.Namespace], Path | None]


def arg(help: str, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field with its help text; without a default the argument is required.

    Example:
        >>> @dataclasses.dataclass
        ... class Arguments:
        ...     method: str = arg("Merge method.", default="ties")
        >>> Arguments().method
        'ties'
    """
    text = help.replace("%", "%%")
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata={"help": text})
    return dataclasses.field(default=default, metadata={"help": text})


def command_line() -> str:
    """The command that runs this process, as a user would type it."""
    return shlex.join(["python", *sys.argv])


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
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without "±" must not end a run of hours
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")
    code = 2
    try:
        values = parse_recipe(*types, defaults=defaults, description=sys.modules[main.__module__].__doc__)
        code = 1
        main(*values)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _end(130, f"stopped. {stopped}")
    except BrokenPipeError:  # the reader, as in `| head`, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except USER_ERRORS as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        _end(code, f"error: {_sentence(error)}")


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


def parse_pairs(texts: Sequence[str]) -> dict[str, Any]:
    """A mapping from `name=value` texts; a value is JSON (`0.2`, `[1, 2]`, `true`) or else a word.

    Raises:
        ArgumentsError: If a text is no `name=value` or a name comes twice.

    Example:
        >>> parse_pairs(["density=0.2", "scope=vector"])
        {'density': 0.2, 'scope': 'vector'}
    """
    result: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (piece.strip() for piece in text.partition("="))
        if not equals or not name:
            raise ArgumentsError(f"a setting is name=value, got {text!r}")
        if name in result:
            raise ArgumentsError(f"the setting {name!r} comes twice")
        result[name] = _value(value)
    return result


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


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


def _sentence(error: BaseException) -> str:
    """The error's message on one line; what is no error of this package also tells its kind."""
    message = shortened(" ".join(printable(str(error)).split()) or type(error).__name__)
    if isinstance(error, ValueError):
        return message
    return f"{message} ({type(error).__name__}; {DEBUG_VARIABLE}=1 shows where it arose)"


def _end(code: int, message: str) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {message}\n")
    raise SystemExit(code)


# -- YAML -------------------------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping whose scalars stay the text they are, or None; no aliases, no tags, bounded.

    Text, because the type of an argument is that of its dataclass: `1e-5` is a number there and `no` may be a word.

    Raises:
        ArgumentsError: If the file is missing, too large or deep, no YAML, or no mapping of arguments.
    """
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise ArgumentsError(f"{path} has more than {MAX_YAML_BYTES} bytes, more than a file of arguments needs")
        text = path.read_text(encoding="utf-8")
        _check_events(path, yaml.parse(text, Loader=yaml.SafeLoader))
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise ArgumentsError(f"the file of arguments {str(path)!r} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ArgumentsError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
    value = _plain(path, node) if node is not None else {}
    if not isinstance(value, dict):
        raise ArgumentsError(f"{path} must hold a flat mapping of arguments, got {type(value).__name__}")
    return value


def _check_events(path: Path, events: Iterator[yaml.Event]) -> None:
    """Refuses aliases, which grow without bound, and depth, both before anything is built."""
    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise ArgumentsError(f"{path} holds the alias *{event.anchor}; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_YAML_DEPTH:
            raise ArgumentsError(f"{path} is nested more than {MAX_YAML_DEPTH} levels deep")


def _plain(path: Path, node: yaml.Node) -> Any:
    if node.tag.removeprefix("tag:yaml.org,2002:") not in YAML_KINDS:
        raise ArgumentsError(f"{path} holds the tag {node.tag[:80]!r}; arguments are plain values")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(path, item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        entries: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _plain(path, key_node)
            if not isinstance(key, str) or key in entries:
                raise ArgumentsError(f"{path}: {str(key)[:80]!r} is no name, or comes twice")
            entries[key] = _plain(path, value_node)
        return entries
    return None if node.tag.endswith(":null") else node.value


def _yaml_tokens(path: Path, types: Sequence[type]) -> list[str]:
    """The file's entries as command-line tokens, so that one parser checks both."""
    hints = {name: kind for one in types for name, kind in get_type_hints(one).items()}
    fields = {field.name: hints[field.name] for kind in types for field in dataclasses.fields(kind) if field.init}
    tokens: list[str] = []
    for key, value in read_yaml(path).items():
        if key not in fields:
            raise UnknownNameError(f"argument in {path}:", key, fields)
        if isinstance(value, dict):
            tokens += _mapping_tokens(path, key, value, fields[key])
        elif isinstance(value, list):
            if not all(isinstance(item, str) for item in value):
                raise ArgumentsError(f"{path}: {key} must be a list of plain values")
            tokens += [f"--{key}", *value]
        elif value is not None:
            tokens.append(f"--{key}={_switch(value) if fields[key] is bool else value}")
    return tokens


def _mapping_tokens(path: Path, key: str, value: Mapping[str, Any], kind: Any) -> list[str]:
    """A nested mapping as tokens: pairs for a field that is a dict, JSON for one that may be a dict."""
    if get_origin(kind) is dict:
        return [f"--{key}", *(f"{name}={_json(item)}" for name, item in value.items())]
    if "dict" in str(kind):
        return [f"--{key}={_json(value)}"]
    raise ArgumentsError(f"{path}: {key} must be a value or a list, got a mapping")


def _json(value: Any) -> str:
    """JSON in which numbers, true and false are no text; a plain text stays as it is."""
    return value if isinstance(value, str) else json.dumps(_typed(value))


def _typed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _typed(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return None if value is None else _value(value)


def _switch(value: str) -> str:
    return {"on": "true", "off": "false"}.get(value.lower(), value)
