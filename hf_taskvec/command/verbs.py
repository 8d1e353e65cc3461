"""A verb made of a settings class and a function: its options, its help, its output and its end."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from hf_taskvec.command.outcome import Format, Outcome
from hf_taskvec.errors import TaskVecError
from hf_taskvec.fields import file_values, one_sentence, parse_pairs

PROGRAM = "hf-taskvec"
SHORT = {"settings": ["-s"], "output_dir": ["-o"]}


@dataclasses.dataclass(frozen=True)
class Verb:
    """What a verb is made of.

    Attributes:
        name: Its name.
        help: What it does; the first line stands in the list of verbs.
        settings: Dataclass of its settings, each field with a help text.
        run: From settings to what is shown. Heavy imports stand in it: the help of a verb waits for none.
        examples: Commands, for the help.
        positional: The settings that are given without a flag.
        file: Whether a YAML file can give settings, as for the recipe that does the same: by `--config`, or as the
            first argument.
        stopped: What Ctrl-C leaves, and how to go on.
    """

    name: str
    help: str
    settings: type
    run: Callable[[Any], Outcome]
    examples: Sequence[str]
    positional: Sequence[str] = ()
    file: Literal["option", "argument"] | None = None
    stopped: str = "Nothing was written."


def add_verb(app: typer.Typer, verb: Verb) -> None:
    """Registers a verb."""
    examples = "\n".join(["\b", "Examples", *(f"  $ {example}" for example in verb.examples)])
    app.command(verb.name, help=verb.help, epilog=examples, no_args_is_help=False)(function_of(verb))


def function_of(verb: Verb) -> Callable[..., None]:
    """The function that Typer makes a command of: its parameters are the fields of the settings class."""
    hints = get_type_hints(verb.settings)
    parameters = _file_parameter(verb)
    for field in dataclasses.fields(verb.settings):
        parameters.append(_parameter(field, hints[field.name], positional=field.name in verb.positional))
    parameters += _common()

    def function(**values: Any) -> None:
        form: Format = "json" if values["json"] else "quiet" if values["quiet"] else values["format"]
        with one_sentence(f"{PROGRAM} {verb.name}", stopped=verb.stopped, debug=values["debug"]) as ending:
            ending.code = 2
            settings = verb.settings(**{name: _as_field(values[name], kind) for name, kind in hints.items()})
            ending.code = 1
            if form == "quiet":
                _hide_progress()
            outcome = verb.run(settings)
            typer.echo(outcome.in_form(form))
            ending.code = outcome.code
        if ending.code:
            raise typer.Exit(ending.code)

    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


def _parameter(field: dataclasses.Field[Any], kind: Any, *, positional: bool) -> inspect.Parameter:
    help_text = field.metadata["help"].replace("%%", "%")
    default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
    if field.default_factory is not dataclasses.MISSING:
        default = list(field.default_factory())
    pairs = get_origin(kind) is dict
    if pairs:
        kind = list[str]
    info: Any
    if positional:
        info = typer.Argument(help=help_text, show_default=False, metavar=field.name.upper())
    else:
        flag = f"--{field.name.replace('_', '-')}"
        shown = default not in (None, False, [])
        metavar = "NAME=VALUE" if pairs else None
        if get_origin(kind) is list and not pairs:
            metavar, help_text = f"<{get_args(kind)[0].__name__}>", f"{help_text} Several: {flag} ... {flag} ..."
        info = typer.Option(flag, *SHORT.get(field.name, []), help=help_text, show_default=shown, metavar=metavar)
    return _keyword(field.name, Annotated[kind, info], default)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _file_parameter(verb: Verb) -> list[inspect.Parameter]:
    """The YAML file of settings; what it says counts where the command line says nothing."""
    if verb.file is None:
        return []

    def read(context: typer.Context, path: Path | None) -> None:
        if path is None or context.resilient_parsing:
            return
        try:
            context.default_map = dict(file_values(path, [verb.settings]))
        except TaskVecError as error:
            raise typer.BadParameter(str(error)) from None

    help_text = "YAML file of settings; the command line wins."
    if verb.file == "option":
        info: Any = typer.Option("--config", "-c", callback=read, is_eager=True, help=help_text)
        return [_keyword("config", Annotated[Path | None, info], None)]
    info = typer.Argument(callback=read, is_eager=True, help=help_text, metavar="RECIPE.yaml")
    return [_keyword("config", Annotated[Path, info], inspect.Parameter.empty)]


def _common() -> list[inspect.Parameter]:
    """The options that every verb has."""
    quiet = typer.Option("--quiet", "-q", help="Bare names, one a line, and no progress; --format quiet.")
    return [
        _keyword("format", Annotated[Format, typer.Option("--format", help="Form of the output.")], "table"),
        _keyword("json", Annotated[bool, typer.Option("--json", help="JSON; --format json.")], False),
        _keyword("quiet", Annotated[bool, quiet], False),
        _keyword("debug", Annotated[bool, typer.Option("--debug", help="Errors with their traceback.")], False),
    ]


def _as_field(value: Any, kind: Any) -> Any:
    """What the command line gave, as the settings class has it."""
    if get_origin(kind) is dict:
        return parse_pairs(value or [])
    return list(value or []) if get_origin(kind) is list else value


def _hide_progress() -> None:
    """No bar of the Hub's client, of Transformers or of this package; the first two ask the environment."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars("hf_taskvec")
