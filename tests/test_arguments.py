"""Arguments of recipes: what is read, what is refused in one sentence, and how a recipe ends."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from hf_taskvec import TaskVectorConfig
from hf_taskvec.arguments import arg, parse_pairs, parse_recipe, read_yaml, run_recipe
from hf_taskvec.errors import ArgumentsError, UnknownNameError


@dataclass
class Arguments:
    method: str = arg("A method.")
    density: float = arg("A fraction.", default=0.2)
    vectors: list[str] = arg("Some vectors.", default=["a"])
    settings: dict[str, Any] = arg("Settings of the method.", default={})
    split: Literal["train", "test"] = arg("A split.", default="test")
    learning_rate: float = arg("A rate.", default=1.0)
    quiet: bool = arg("Whether to be quiet.", default=False)


def read(*argv: str) -> Arguments:
    return parse_recipe(Arguments, argv=argv)[0]


def write(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# -- what is read -----------------------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    config = write(tmp_path, "method: ties\ndensity: 1e-1\nvectors: [x, y]\nquiet: true\n")
    assert read("--config", config, "--density", "0.5") == Arguments("ties", 0.5, ["x", "y"], quiet=True)


def test_values_of_a_file_have_the_types_of_the_arguments(tmp_path: Path) -> None:
    config = write(tmp_path, "method: no\ndensity: 1e-5\nquiet: on\nvectors: [010, 1:30, yes, null-like]\n")
    assert read("--config", config) == Arguments("no", 1e-5, ["010", "1:30", "yes", "null-like"], quiet=True)


def test_null_leaves_the_default(tmp_path: Path) -> None:
    assert read("--config", write(tmp_path, "method: ties\ndensity: null\n")).density == 0.2


def test_settings_are_a_mapping_in_a_file_and_pairs_on_the_command_line(tmp_path: Path) -> None:
    settings = {"density": 0.3, "scope": "vector", "of_settings": {"agreement": 2, "wide": True}}
    nested = "method: lines\nsettings:\n  density: 0.3\n  scope: vector\n  of_settings: {agreement: 2, wide: true}\n"
    assert read("--config", write(tmp_path, nested)).settings == settings
    pairs = write(tmp_path, "method: lines\nsettings: [density=0.3, scope=vector]\n")
    assert read("--config", pairs).settings == {"density": 0.3, "scope": "vector"}
    assert read("--config", pairs, "--settings", "density=1e-1", "a=").settings == {"density": 0.1, "a": ""}


def test_a_mapping_may_be_given_where_transformers_takes_one(tmp_path: Path) -> None:
    config = write(tmp_path, f"output_dir: {tmp_path}\nlr_scheduler_kwargs: {{num_cycles: 2, lr_end: 1e-7}}\n")
    (read_config,) = parse_recipe(TaskVectorConfig, argv=["--config", config])
    assert read_config.lr_scheduler_kwargs == {"num_cycles": 2, "lr_end": 1e-7}


def test_a_factory_decides_the_default_of_a_bool() -> None:
    @dataclass
    class Guarded:
        on: bool = field(default_factory=lambda: True)
        off: bool = field(default_factory=lambda: False)

    assert parse_recipe(Guarded, argv=[]) == (Guarded(True, False),)
    assert parse_recipe(Guarded, argv=["--no_on", "--off"]) == (Guarded(False, True),)


def test_the_guards_of_the_training_settings_reach_the_recipes(tmp_path: Path) -> None:  # torchrun needs `use_cpu`
    (config,) = parse_recipe(TaskVectorConfig, argv=["--output_dir", str(tmp_path)])
    assert config.use_cpu is not torch.accelerator.is_available()
    assert config.dataloader_pin_memory is torch.cuda.is_available()


@pytest.mark.parametrize(("argv", "density"), [([], 0.7), (["--method=b"], 0.2), (["--density", "0.1"], 0.1)])
def test_a_file_of_defaults_is_chosen_when_the_arguments_are_known(
    argv: list[str], density: float, tmp_path: Path
) -> None:
    file = Path(write(tmp_path, "density: 0.7\n"))
    config = tmp_path / "own.yaml"
    config.write_text("method: a\n")
    (arguments,) = parse_recipe(
        Arguments, argv=["--config", str(config), *argv], defaults=lambda known: file if known.method == "a" else None
    )
    assert arguments.density == density


# -- what is refused --------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[list[str], str]] = {
    "flag": (["--method", "a", "--densty", "1"], "no argument '--densty'. Did you mean '--density'?"),
    "initials": (["--lr", "3"], "no argument '--lr'. Did you mean '--learning_rate'?"),
    "word": (["--rate=3"], "no argument '--rate'. Did you mean '--learning_rate'?"),
    "number": (["--method", "a", "--density", "many"], "--density: invalid float value: 'many'"),
    "choice": (["--method", "a", "--split", "tset"], "--split: invalid choice: 'tset'"),
    "missing": (["--density", "1"], "the following arguments are required: --method"),
    "stray": (["--method", "a", "b"], "what is 'b'? Every value follows a --flag"),
    "pair": (["--method", "a", "--settings", "density"], "a setting is name=value, got 'density'"),
    "twice": (["--method", "a", "--settings", "a=1", "a=2"], "the setting 'a' comes twice"),
    "empty": (["--method", "a", "--config"], "--config: expected one argument"),
    "absent": (["--method", "a", "--config", "no.yaml"], "the file of arguments 'no.yaml' cannot be read: No such"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named_in_one_sentence(case: str) -> None:
    argv, message = WRONG[case]
    with pytest.raises((ArgumentsError, UnknownNameError)) as caught:
        read(*argv)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 400


def test_an_unknown_flag_among_a_hundred_known_ones_stays_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean '--learning_rate'") as caught:
        parse_recipe(TaskVectorConfig, argv=["--output_dir", str(tmp_path), "--lr", "3"])
    assert len(str(caught.value)) < 600
    assert "more." in str(caught.value)
    assert "--weight_decay" in caught.value.details


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels))]
    return "\n".join([*lines, f"method: *a{levels - 1}"])


FILES: dict[str, tuple[str, str]] = {
    "key": ("method: ties\ndensty: 0.5\n", "Did you mean 'density'"),
    "list": ("- ties\n", "must hold a flat mapping of arguments, got list"),
    "word": ("ties\n", "must hold a flat mapping of arguments, got str"),
    "mapping": ("method: ties\ndensity: {a: 1}\n", "density must be a value or a list, got a mapping"),
    "nested list": ("method: ties\nvectors: [[a], b]\n", "vectors must be a list of plain values"),
    "twice": ("method: ties\nmethod: dare\n", "'method' is no name, or comes twice"),
    "alias": (bomb(9), "holds the alias"),
    "depth": ("method: " + "[" * 3000 + "]" * 3000, "nested more than 20 levels deep"),
    "size": ("method: " + "x" * (1 << 20), "more than 1048576 bytes"),
    "tag": ("method: !!python/object/apply:os.system [true]\n", "holds the tag"),
    "binary": ("method: !!binary aGVsbG8=\n", "holds the tag"),
    "broken": ("method: [ties\n", "is no valid YAML"),
    "two documents": ("method: ties\n---\nmethod: dare\n", "is no valid YAML"),
    "control": ("method: \x07\n", "is no valid YAML"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_holds_something_else_is_refused_before_it_is_built(case: str, tmp_path: Path) -> None:
    text, message = FILES[case]
    with pytest.raises((ArgumentsError, UnknownNameError)) as caught:
        read("--config", write(tmp_path, text))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes("method: ä\n".encode("latin-1"))
    with pytest.raises(ArgumentsError, match="is no valid YAML"):
        read_yaml(tmp_path / "recipe.yaml")


def test_pairs_hold_json_or_words() -> None:
    pairs = parse_pairs(["a=1e-5", "b=word", "c=[1, 2]", "d=true", "e=", "f=x=y"])
    assert pairs == {"a": 1e-5, "b": "word", "c": [1, 2], "d": True, "e": "", "f": "x=y"}


# -- how a recipe ends ------------------------------------------------------------------------------------------------


def ending(
    main: Callable[[Arguments], object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str
) -> tuple[object, str]:
    """Exit code and what stands in stderr."""
    monkeypatch.setattr(sys, "argv", ["recipes/merge.py", *(argv or ("--method", "a"))])
    with pytest.raises(SystemExit) as caught:
        run_recipe(main, Arguments, stopped="The same command goes on.")
    return caught.value.code, capsys.readouterr().err


def failing(error: BaseException) -> Callable[[Arguments], object]:
    def main(args: Arguments) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("density must be in (0, 1]"), "merge.py: error: density must be in (0, 1]\n"),
        (ValueError("two\n  lines"), "merge.py: error: two lines\n"),
        (PermissionError(13, "Permission denied", "/x"), "(PermissionError; HF_TASKVEC_DEBUG=1 shows where it arose)"),
        (MemoryError(), "merge.py: error: MemoryError (MemoryError;"),
    ],
)
def test_an_error_of_a_user_is_one_sentence_and_exit_code_1(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = ending(failing(error), monkeypatch, capsys)
    assert code == 1
    assert message in printed
    assert printed.count("\n") == 1


def test_a_long_message_is_cut(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(ending(failing(ValueError("x" * 5000)), monkeypatch, capsys)[1]) < 650


def test_a_wrong_argument_is_exit_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = ending(failing(AssertionError()), monkeypatch, capsys, "--lr", "1")
    assert code == 2
    assert printed.startswith("merge.py: error: no argument '--lr'. Did you mean '--learning_rate'?")


def test_stopping_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = ending(failing(KeyboardInterrupt()), monkeypatch, capsys)
    assert (code, printed) == (130, "merge.py: stopped. The same command goes on.\n")


def test_the_traceback_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["merge.py", "--method", "a"])
    monkeypatch.setenv("HF_TASKVEC_DEBUG", "1")
    with pytest.raises(ValueError, match="why"):
        run_recipe(failing(ValueError("why")), Arguments)


def test_what_is_no_users_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["merge.py", "--method", "a"])
    with pytest.raises(KeyError, match="bug"):
        run_recipe(failing(KeyError("bug")), Arguments)


def test_a_terminal_without_the_letters_does_not_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "argv", ["merge.py", "--method", "a"])
    monkeypatch.setattr(sys, "stdout", screen)
    run_recipe(lambda args: print("88.2 ± 0.2"), Arguments)
    screen.flush()
    assert screen.buffer.getvalue() == b"88.2 ? 0.2\n"  # type: ignore[attr-defined]


def test_help_shows_a_recipes_own_arguments_before_inherited_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @dataclass
    class Own:
        density: float = arg("A fraction, 100 % of it.", default=1.0)

    with pytest.raises(SystemExit):
        parse_recipe(Own, TaskVectorConfig, argv=["--help"], description="Merges.\n\npython merge.py")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines[0]) < 120
    assert "Merges." in lines
    flags = [line.split()[0].rstrip(",") for line in lines if line.startswith("  --")]
    assert flags.index("--density") < flags.index("--trainable_parameters") < flags.index("--push_to_hub")
    assert any("100 % of it. (default: 1.0)" in " ".join(lines[at : at + 2]) for at in range(len(lines)))
