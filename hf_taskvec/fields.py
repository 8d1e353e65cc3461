"""What recipes and the command share: settings as dataclasses, files of them, and an end in one sentence.

Nothing heavy is imported here: a command's `--help` waits for it.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_origin, get_type_hints

import yaml

from hf_taskvec.errors import ArgumentsError, TaskVecError, UnknownNameError
from hf_taskvec.text import printable, shortened

DEBUG_VARIABLE = "HF_TASKVEC_DEBUG"
MAX_YAML_BYTES, MAX_YAML_DEPTH = 1 << 20, 20
YAML_KINDS = {"null", "bool", "int", "float", "str", "timestamp", "value", "seq", "map"}
USER_ERRORS = (ValueError, OSError, RuntimeError, MemoryError, ImportError)


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


def check_settings(settings: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Refuses settings of a method by names that the function which takes them has for something else.

    Raises:
        ArgumentsError: If there are some.

    Example:
        >>> check_settings({"density": 0.2}, parse_pairs)
    """
    if taken := sorted(settings.keys() & inspect.signature(function).parameters.keys()):
        raise ArgumentsError(f"no setting of a method: {', '.join(taken)}; --help tells what has an option of its own")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


# -- the end ----------------------------------------------------------------------------------------------------------


@dataclass
class Ending:
    """How a program ends.

    Attributes:
        code: The exit code of an error that comes now: 2 while arguments are read, 1 later.
    """

    code: int = 1


@contextmanager
def one_sentence(program: str, *, stopped: str, debug: bool = False) -> Iterator[Ending]:
    """Ends what a user did wrong, or Ctrl-C, in one sentence on the standard error, and a closed pipe in none.

    Other errors keep their traceback; all do with `debug` or the environment variable `HF_TASKVEC_DEBUG`.

    Args:
        program: Its name, before the sentence.
        stopped: What Ctrl-C leaves, and how to go on.
        debug: Whether a user's errors keep their traceback too.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without "±" must not end a run of hours
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")
    ending = Ending()
    try:
        yield ending
        sys.stdout.flush()
    except KeyboardInterrupt:
        _end(program, 130, f"stopped. {stopped}")
    except BrokenPipeError:  # the reader, as in `| head`, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except USER_ERRORS as error:
        if debug or os.environ.get(DEBUG_VARIABLE):
            raise
        _end(program, ending.code, f"error: {_sentence(error)}")


def _sentence(error: BaseException) -> str:
    """The error's message on one line; what is no error of this package also tells its kind."""
    message = shortened(" ".join(printable(str(error)).split()) or type(error).__name__)
    if isinstance(error, (ValueError, TaskVecError)):
        return message
    return f"{message} ({type(error).__name__}; {DEBUG_VARIABLE}=1 shows where it arose)"


def _end(program: str, code: int, message: str) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.write(f"{program}: {message}\n")
    raise SystemExit(code)


# -- YAML -------------------------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping whose scalars stay the text they are, or None; no aliases, no tags, bounded.

    Text, because the type of an argument is that of its dataclass: `1e-5` is a number there and `no` may be a word.

    Raises:
        ArgumentsError: If the file is missing, too large or deep, no YAML, or no mapping of arguments.
    """
    value = read_yaml_value(path)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ArgumentsError(f"{path} must hold a flat mapping of arguments, got {type(value).__name__}")
    return value


def read_yaml_value(path: Path) -> Any:
    """Reads a YAML mapping, list or scalar; see `read_yaml`.

    Raises:
        ArgumentsError: If the file is missing, too large or deep, or no YAML.
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
    return None if node is None else _plain(path, node)


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


def file_values(path: Path, types: Sequence[type]) -> dict[str, str | list[str]]:
    """The entries of a YAML file of settings as the texts that a command line would give; what is null is left out.

    Args:
        path: The file.
        types: The dataclasses whose fields it may set.

    Raises:
        UnknownNameError: If a key is no field of theirs.
        ArgumentsError: As `read_yaml`, or if a value is nested where the field is not.

    Example:
        >>> import tempfile
        >>> @dataclasses.dataclass
        ... class Settings:
        ...     settings: dict[str, Any] = arg("Settings.", default={})
        >>> path = Path(tempfile.mkdtemp()) / "merge.yaml"
        >>> _ = path.write_text("settings: {density: 0.2}")
        >>> file_values(path, [Settings])
        {'settings': ['density=0.2']}
    """
    hints = {name: kind for one in types for name, kind in get_type_hints(one).items()}
    fields = {field.name: hints[field.name] for kind in types for field in dataclasses.fields(kind) if field.init}
    values: dict[str, str | list[str]] = {}
    for key, value in read_yaml(path).items():
        if key not in fields:
            raise UnknownNameError(f"argument in {path}:", key, fields)
        if isinstance(value, dict):
            values[key] = _mapping_value(path, key, value, fields[key])
        elif isinstance(value, list):
            if not all(isinstance(item, str) for item in value):
                raise ArgumentsError(f"{path}: {key} must be a list of plain values")
            values[key] = value
        elif value is not None:
            values[key] = _switch(value) if fields[key] is bool else value
    return values


def _mapping_value(path: Path, key: str, value: Mapping[str, Any], kind: Any) -> str | list[str]:
    """A nested mapping as text: pairs for a field that is a dict, JSON for one that may be a dict."""
    if get_origin(kind) is dict:
        return [f"{name}={_json(item)}" for name, item in value.items()]
    if "dict" in str(kind):
        return _json(value)
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
