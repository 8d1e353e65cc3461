"""The command `hf-taskvec`: every verb by its command line, what it prints and how it ends."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer
from huggingface_hub.cli.extensions import ExtensionManifest
from torch import Tensor
from typer.testing import CliRunner, Result

from hf_taskvec import Report, TaskVector, VectorInfo, choose_scaling, get_task, load_base, merge, merge_method
from hf_taskvec.cards.publish import push_to_hub
from hf_taskvec.command.app import GROUPS, app
from hf_taskvec.command.evaluation import EvaluateSettings, TuneSettings
from hf_taskvec.command.merging import MergeSettings
from hf_taskvec.command.outcome import Outcome
from hf_taskvec.command.verbs import add_verb
from hf_taskvec.evaluation.criteria import Criterion
from hf_taskvec.merging import METHODS, list_methods
from hf_taskvec.merging.engine import map_parameters
from hf_taskvec.merging.recipes import MergeRecipe
from hf_taskvec.merging.sources import Missing
from hf_taskvec.tasks import TASKS, Split
from recipes import evaluate_model
from recipes import merge as merge_recipe
from tests.bases import save_colour_dataset, save_tiny_base
from tests.helpers import equal_vectors
from tests.hub_server import HubServer

ROOT = Path(__file__).parents[1]
VERBS = ["info", "diff", "methods", "tasks", "list", "doctor", "validate", "merge", "apply", "pack", "evaluate"]
VERBS += ["tune", "forget", "transport", "analogy", "push", "pull", "results", "studio", "reproduce"]


def call(*argv: object, **environment: str) -> Result:
    return CliRunner().invoke(app, [str(word) for word in argv], env=environment, prog_name="hf-taskvec")


def answer(*argv: object) -> Any:
    """What a command prints as JSON; it must not fail."""
    result = call(*argv, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(*argv: object) -> str:
    """The one sentence in which a command refuses."""
    result = call(*argv)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a dataset and two vectors of the base; never changed by a test."""
    root = tmp_path_factory.mktemp("command")
    base = load_base(save_tiny_base(root / "base"))
    save_colour_dataset(root / "data" / "colours")
    for name, seed in (("one", 1), ("two", 2)):
        generator = torch.Generator().manual_seed(seed)
        moved = {key: value.detach().clone() for key, value in base.model.named_parameters()}
        for key in moved:
            if key.startswith("vision_model"):
                moved[key] += 0.02 * torch.randn(moved[key].shape, generator=generator)
        info = VectorInfo(kind="fine-tuned", base="base", task="colours" if name == "one" else "shades")
        TaskVector.from_weights(dict(base.model.named_parameters()), moved, info=info).save_pretrained(root / name)
    return root


# -- help -------------------------------------------------------------------------------------------------------------


def test_help_shows_every_verb_and_each_verb_examples() -> None:
    shown = call("--help").stdout
    listed = [line.split()[0] for line in shown.split("Commands:\n")[1].splitlines() if line.strip()]
    assert listed == VERBS
    for verb in VERBS:
        result = call(verb, "--help")
        assert result.exit_code == 0
        assert f"  $ hf-taskvec {verb}" in result.stdout


def test_help_tells_how_to_give_several_of_a_flag() -> None:
    told = " ".join(call("doctor", "--help").stdout.split())
    assert "--tasks <str>" in told
    assert "Several: --tasks ... --tasks ..." in told


def test_no_help_waits_for_a_heavy_library() -> None:
    code = """
import sys
from hf_taskvec.command.app import GROUPS, app
for argv in (["--help"], ["merge", "--help"], ["info", "--nonsense"]):
    try:
        app(argv)
    except SystemExit:
        pass
print("loaded:", sorted({"torch", "transformers", "numpy", "datasets", "huggingface_hub"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize("argv", [["mrege"], ["merge", "--nonsense"], ["diff", "one"], ["merge", "--scaling", "much"]])
def test_what_cannot_be_read_is_exit_code_2(argv: list[str]) -> None:
    result = call(*argv)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: hf-taskvec" in result.stderr


def test_a_verb_that_is_misspelt_is_told_the_nearest() -> None:
    assert "Did you mean 'merge'?" in call("mrege").stderr


def test_a_shell_completes_verbs_and_flags() -> None:
    shell = {"_HF_TASKVEC_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    assert call(COMP_WORDS="hf-taskvec me", **shell).stdout.split() == ["methods", "merge"]
    assert call(COMP_WORDS="hf-taskvec merge --out", **{**shell, "COMP_CWORD": "2"}).stdout.split() == ["--output-dir"]


def test_settings_offer_what_the_functions_take() -> None:
    for settings in (EvaluateSettings, TuneSettings):
        assert get_args(_hints(settings)["criterion"]) == get_args(Criterion)
    assert get_args(_hints(EvaluateSettings)["split"]) == get_args(Split)
    assert get_args(_hints(MergeSettings)["missing"]) == get_args(Missing)


def _hints(kind: type) -> dict[str, Any]:
    from typing import get_type_hints

    return get_type_hints(kind)


def test_a_recipe_has_the_settings_of_its_verb() -> None:
    assert issubclass(merge_recipe.MergeArguments, MergeSettings)
    assert evaluate_model.EvaluateSettings is EvaluateSettings


# -- looking ----------------------------------------------------------------------------------------------------------


def test_info_tells_provenance_norms_and_whether_the_base_is_its_own(place: Path) -> None:
    vector = TaskVector.from_pretrained(place / "one")
    told = answer("info", place / "one", "--base", place / "base")
    assert (told["task"], told["dtype"], told["parameters"]) == ("colours", "float32", len(vector))
    assert told["base check"] == "the weights of 'base' are those it was made from"
    norms = {row["layer"]: row["norm"] for row in told["layers"]}
    assert norms == pytest.approx(vector.norms(by="layer"))
    assert call("info", place / "one", "-q").stdout == "task vector\n"


def test_info_of_a_vector_on_another_base_is_exit_code_1(place: Path, tmp_path: Path) -> None:
    vector = TaskVector.from_pretrained(place / "one")
    vector.save_checkpoint(place / "base", tmp_path / "other")
    result = call("info", place / "one", "--base", tmp_path / "other", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["base check"].startswith("'other' is another base: ")


def test_info_of_a_checkpoint_tells_its_spectra(place: Path) -> None:
    told = answer("info", place / "base", "--spectrum")
    assert told["what"] == "checkpoint"
    weights = load_base(place / "base").model.state_dict()
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    values = torch.linalg.svdvals(weights[name].double())
    spectrum = told["spectra"][name]
    assert spectrum["largest"] == pytest.approx(float(values[0]), rel=1e-6)
    assert spectrum["stable_rank"] == pytest.approx(float((values**2).sum() / values[0] ** 2), rel=1e-6)
    shares = (values**2).cumsum(0) / (values**2).sum()
    assert spectrum["directions"] == int((shares < 0.9).sum()) + 1


def test_diff_compares_vectors_as_their_algebra_does(place: Path) -> None:
    one, two = (TaskVector.from_pretrained(place / name) for name in ("one", "two"))
    told = answer("diff", place / "one", place / "two", "--largest", 2)
    assert told["cosine"] == pytest.approx(one.cosine(two))
    assert told["distance"] == pytest.approx((one - two).norm())
    assert told["same base"] == "yes"
    assert {row["layer"]: row["cosine"] for row in told["layers"]} == pytest.approx(one.cosines(two, by="layer"))
    apart = (one - two).norms()
    assert [row["parameter"] for row in told["largest"]] == sorted(apart, key=lambda name: -apart[name])[:2]
    products = torch.cat([(one[name] * two[name]).flatten() for name in one])
    assert told["same sign"] == pytest.approx(float((products > 0).sum() / (products != 0).sum()))


def test_diff_refuses_a_vector_beside_a_checkpoint(place: Path) -> None:
    assert "compare two vectors or two checkpoints" in refusal("diff", place / "one", place / "base")


def test_methods_and_tasks_are_all_listed_and_each_is_explained() -> None:
    assert call("methods", "-q").stdout.split() == [method.name for method in list_methods()]
    assert answer("methods", "ties")["settings"] == {"density": 0.2, "scope": "vector"}
    assert "Did you mean 'ties'?" in refusal("methods", "tise")
    assert call("tasks", "-q").stdout.split() == list(TASKS)
    assert call("tasks", "mini", "-q").stdout.split() == ["digits", "shapes", "patterns", "counts"]
    assert answer("tasks", "digits")["class_names"] == list(TASKS["digits"].class_names)


# -- merging ----------------------------------------------------------------------------------------------------------


def test_merge_gives_what_the_function_gives_and_repeats_itself(place: Path, tmp_path: Path) -> None:
    flags = ["--method", "ties", "-s", "density=0.5", "--scaling", 0.5]
    folder = tmp_path / "ties"
    assert call("merge", place / "one", place / "two", *flags, "-o", folder, "-q").stdout == f"{folder}\n"
    expected = merge([place / "one", place / "two"], "ties", density=0.5, scaling=0.5)
    assert equal_vectors(TaskVector.from_pretrained(folder), expected)
    assert answer("merge", "--repeat", folder, "-o", tmp_path / "again")["method"] == "ties"
    assert equal_vectors(TaskVector.from_pretrained(tmp_path / "again"), expected)


def test_a_vector_is_replaced_on_request_only(place: Path, tmp_path: Path) -> None:
    argv = ["merge", place / "one", "--method", "average", "-o", tmp_path / "out"]
    assert call(*argv).exit_code == 0
    assert "replace it with --overwrite" in refusal(*argv)
    assert call(*argv, "--overwrite").exit_code == 0


def write_recipe(folder: Path, place: Path, **changes: object) -> Path:
    values = {"vectors": [str(place / "one"), str(place / "two")], "method": "ties", "settings": {"density": 0.5}}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({**values, "output_dir": str(folder / "out"), **changes}))  # JSON is YAML
    return path


def test_a_file_gives_settings_and_the_command_line_wins(place: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, place)
    assert answer("merge", "--config", path, "-s", "density=0.25")["folder"] == str(tmp_path / "out")
    assert TaskVector.from_pretrained(tmp_path / "out").info.settings["density"] == 0.25
    result = call("merge", "--config", write_recipe(tmp_path, place, methode="ties"))
    assert result.exit_code == 2
    assert "Did you mean 'method'?" in result.stderr


def test_with_a_base_merge_makes_a_checkpoint_of_checkpoints(place: Path, tmp_path: Path) -> None:
    clip, out = "hf-taskvec/tiny-clip", tmp_path / "model"
    argv = ["merge", clip, clip, "--base", clip, "--exclude", "text_model.*", "--method", "average", "-o", out]
    assert answer(*argv) == {"folder": str(out), "method": "average", "checkpoints": 2}
    assert {"config.json", "model.safetensors"} <= {path.name for path in out.iterdir()}
    assert "holds a checkpoint already" in refusal(*argv)
    assert call(*argv, "--overwrite", "-q").stdout == f"{out}\n"
    assert "--dtype is for merges of vectors" in refusal(*argv, "--overwrite", "--dtype", "float16")
    (tmp_path / "anew.yaml").write_text("resume: false")
    assert "--resume is for merges of vectors" in refusal(*argv, "--overwrite", "--config", tmp_path / "anew.yaml")
    assert "whose base --base names" in refusal("merge", place / "one", "--exclude", "*", "-o", tmp_path / "b")
    assert "--base is for `merge`" in refusal("validate", write_recipe(tmp_path, place), "--base", clip)


def test_names_that_a_command_has_for_something_else_are_no_settings_of_its_method(place: Path, tmp_path: Path) -> None:
    clip, one, out = "hf-taskvec/tiny-clip", place / "one", tmp_path / "out"
    for argv in (
        ["merge", clip, "--base", clip, "-s", "scaling=2"],
        ["pack", one, "-s", "output_dir=elsewhere"],
        ["transport", one, "-s", "seed=3"],
    ):
        assert f"no setting of a method: {str(argv[-1]).partition('=')[0]};" in refusal(*argv, "-o", out)
    assert not out.exists()


def test_an_analogys_factor_is_given_or_chosen(place: Path, tmp_path: Path) -> None:
    argv = ["analogy", place / "one", place / "two", place / "one", "-o", tmp_path / "out"]
    assert "leave --factor out" in refusal(*argv, "--task", "digits", "--factor", "0.5")
    assert answer(*argv, "--factor", "0.5")["factor"] == 0.5
    assert answer(*argv, "--overwrite")["factor"] == 1


def test_validate_lets_a_good_merge_pass_and_writes_nothing(place: Path, tmp_path: Path) -> None:
    told = answer("validate", write_recipe(tmp_path, place))
    assert told["ok"] is True
    looked = [finding["what"] for finding in told["findings"]]
    assert {"bases", "disk", "memory", "names, shapes and dtypes"} <= set(looked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"method": "tise"}, "method and settings"),
        ({"settings": {"densty": 0.5}}, "method and settings"),
        ({"settings": {"density": 2}}, "method and settings"),
        ({"method": "slerp", "settings": {}, "vectors": ["one"]}, "method and settings"),
        ({"dtype": "int8"}, "method and settings"),
        ({"device": "nonsense"}, "device"),
        ({"output_dir": "."}, "output"),
        ({"vectors": ["one", "base"]}, "vector base"),
        ({"vectors": ["one", "foreign"]}, "bases"),
        ({"vectors": ["one", "narrow"]}, "names, shapes and dtypes"),
    ],
)
def test_validate_names_what_would_refuse_the_merge(
    change: dict[str, Any], what: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = TaskVector.from_pretrained(place / "one")
    name = next(iter(vector))
    if what == "bases":
        hashes = {**vector.info.base_hashes, name: "0" * 32}
        TaskVector(vector.deltas, VectorInfo(base_hashes=hashes)).save_pretrained(tmp_path / "foreign")
    if what.startswith("names"):
        TaskVector({name: vector.deltas[name]}).save_pretrained(tmp_path / "narrow")
    for folder in ("one", "base"):
        (tmp_path / folder).symlink_to(place / folder)
    monkeypatch.chdir(tmp_path)
    result = call("validate", write_recipe(tmp_path, place, **{"vectors": ["one"] * 2, **change}), "-q")
    assert result.exit_code == 1, result.output
    assert result.stdout.splitlines() == [what]


@pytest.fixture
def published(hub: HubServer, place: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The Hub with the repository `user/one`, and a user who is logged in."""
    monkeypatch.setenv("HF_TOKEN", "write-user")
    hub.store.create("model", "user/base")
    push_to_hub(TaskVector.from_pretrained(place / "one"), "user/one", base_name="user/base")
    hub.log.clear()
    return hub


def weights_read(hub: HubServer) -> list[str]:
    return [line for line in hub.log if "safetensors" in line]


def test_validate_fetches_no_weights(published: HubServer, place: Path, tmp_path: Path) -> None:
    told = answer("validate", write_recipe(tmp_path, place, vectors=["user/one@main", str(place / "two")]))
    (sized,) = (finding for finding in told["findings"] if finding["what"] == "vector user/one@main")
    assert "MB on the Hub" in sized["text"]
    assert {finding["verdict"] for finding in told["findings"]} == {"ok", "unknown"}
    assert weights_read(published) == []


@pytest.mark.parametrize(("method", "settings"), [("tise", {}), ("ties", {"density": 2}), ("ties", {"densty": 0.2})])
def test_a_recipe_refuses_names_and_ranges_before_it_fetches_anything(
    method: str, settings: dict[str, Any], published: HubServer
) -> None:
    with pytest.raises(ValueError, match=r"tise|densi?ty"):
        MergeRecipe(("user/one", "user/one"), method, settings).run()
    assert published.log == []


@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_method_is_refused_for_its_defaults_or_a_setting_repeated(method: str) -> None:
    known = METHODS[method]
    sources = ("somewhere",) * max(2, known.min_vectors)
    for settings in ({}, {name: value for name, value in known.defaults.items() if value is not None}):
        MergeRecipe(sources, method, settings, statistics=sources if known.statistics else ()).check()


def test_apply_writes_the_checkpoint_that_the_vector_makes(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    argv = ["apply", place / "one", "--base", place / "base", "--scaling", -1, "-o", folder]
    assert call(*argv, "-q").stdout == f"{folder}\n"
    change = TaskVector.from_checkpoints(place / "base", folder)
    expected = TaskVector.from_pretrained(place / "one")
    assert change.cosine(expected) == pytest.approx(-1, abs=1e-6)
    assert change.norm() == pytest.approx(expected.norm(), rel=1e-5)
    assert "replace it with --overwrite" in refusal(*argv)


# -- measuring --------------------------------------------------------------------------------------------------------


def test_evaluate_and_tune_measure_as_the_functions_do(place: Path, tmp_path: Path) -> None:
    data = ["--base", place / "base", "--data-dir", place / "data"]
    told = answer("evaluate", "colours", *data, "--vector", place / "one", "--output", tmp_path / "report.json")
    report = Report.load(tmp_path / "report.json")
    assert told == report.to_dict()
    base, task = load_base(place / "base"), get_task("colours", data_dir=place / "data")
    vector = TaskVector.from_pretrained(place / "one")
    assert report.scaling == choose_scaling(base, vector, task)
    chosen = answer("tune", place / "one", *data, "--tried", 0.5, "--tried", 1)
    assert chosen["scaling"] == choose_scaling(base, vector, task, scalings=[0.5, 1.0])
    assert [row["scaling"] for row in chosen["curve"]] == [0.5, 1.0]
    weights = call("tune", place / "one", place / "two", "--tasks", "colours", *data, "--tried", 0.5, "-q")
    assert len(weights.stdout.split()) == 2


# -- the Hub ----------------------------------------------------------------------------------------------------------


def test_a_vector_goes_to_the_hub_is_listed_and_comes_back(published: HubServer, place: Path, tmp_path: Path) -> None:
    assert "/user/two/commit/" in answer("push", place / "two", "user/two", "--base-name", "user/base")["url"]
    assert sorted(call("list", "-q").stdout.split()) == ["user/one", "user/two"]
    assert [row["repo_id"] for row in answer("list", "--task", "shades", "--base", "user/base")] == ["user/two"]
    assert call("pull", "user/two@main", "-o", tmp_path / "two", "-q").stdout == f"{tmp_path / 'two'}\n"
    assert equal_vectors(TaskVector.from_pretrained(tmp_path / "two"), TaskVector.from_pretrained(place / "two"))
    assert "replace it with --overwrite" in refusal("pull", "user/two", "-o", tmp_path / "two")
    assert "nowhere" in refusal("pull", "user/nowhere")


def test_a_checkpoint_is_pushed_with_its_scaling_only(published: HubServer, place: Path) -> None:
    argv = ["push", place / "one", "user/model", "--base", place / "base", "--base-name", "user/base"]
    assert "--scaling" in refusal(*argv, "--checkpoint")
    answer(*argv, "--checkpoint", "--scaling", 0.5)
    assert "model.safetensors" in published.store.get("model", "user/model").head.files


def test_hf_runs_it_as_an_extension(tmp_path: Path) -> None:
    """The folder is as `hf extensions install` lays it out; the script is as an installer writes it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    module, function = project["scripts"]["hf-taskvec"].split(":")
    home = tmp_path / "home"
    folder = home / ".local" / "share" / "hf" / "extensions" / "hf-taskvec"
    script = folder / "venv" / "bin" / "hf-taskvec"
    script.parent.mkdir(parents=True)
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    script.chmod(0o755)
    ExtensionManifest(
        owner="somebody",
        repo="hf-taskvec",
        repo_id="somebody/hf-taskvec",
        short_name="taskvec",
        executable_path=str(script),
        type="python",
        installed_at=datetime.now(UTC),
        description=project["description"],
    ).save(folder)
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}

    def hf(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()", "taskvec", *argv]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = hf("methods", "-q")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [method.name for method in list_methods()]
    refused = hf("mrege")
    assert (refused.returncode, refused.stdout) == (2, "")


# -- the end ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stopping() -> Iterator[str]:
    """A method that Ctrl-C stops at its third parameter."""

    @merge_method("stopping", paper="test")
    def stopping(vectors: Sequence[TaskVector]) -> TaskVector:
        """Stops."""
        names = list(vectors[0])

        def compute(name: str) -> Tensor:
            if name == names[2]:
                raise KeyboardInterrupt
            return vectors[0].deltas[name]

        return map_parameters(compute, vectors)

    yield "stopping"
    del METHODS["stopping"]


def test_ctrl_c_leaves_nothing_half_and_says_how_to_go_on(stopping: str, place: Path, tmp_path: Path) -> None:
    result = call("merge", place / "one", "--method", stopping, "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert result.stderr.startswith("hf-taskvec merge: stopped. No half result is left")
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(place: Path) -> None:
    result = call("merge", place / "one", "--method", "tise", "--debug")
    assert isinstance(result.exception, ValueError)
    assert "Did you mean 'ties'" in str(result.exception)


def test_reproduce_runs_the_recipe_of_a_repository_and_says_where_there_is_none(tmp_path: Path) -> None:
    assert "has no recipes/reproduce_paper.py" in refusal("reproduce", "--repository", tmp_path)
    (tmp_path / "recipes").mkdir()
    code = f"import sys; open({str(tmp_path / 'argv')!r}, 'w').write(' '.join(sys.argv[1:])); sys.exit('a' in sys.argv)"
    (tmp_path / "recipes" / "reproduce_paper.py").write_text(code)
    assert call("reproduce", "--repository", tmp_path, "--config", "c.yaml", "--dry-run").exit_code == 0
    assert shlex.split((tmp_path / "argv").read_text()) == ["--config", "c.yaml", "--dry_run", "True"]
    assert "ended with exit code 1" in refusal("reproduce", "--repository", tmp_path, "--output-dir", "a")


# -- what is shown ----------------------------------------------------------------------------------------------------


def shown_commands() -> list[str]:
    """The commands in Markdown and in the help of every verb."""
    pages = [ROOT / "README.md", *sorted((ROOT / "recipes").rglob("*.md"))]
    text = "\n".join(path.read_text("utf-8") for path in pages).replace("\\\n", " ")
    lines = [line.split("  #")[0] for line in text.splitlines() if line.startswith("hf-taskvec ")]
    return [*lines, *(example for group in GROUPS for verb in group.VERBS for example in verb.examples)]


@pytest.mark.parametrize("command", dict.fromkeys(shown_commands()))
def test_a_command_that_is_shown_can_be_read(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("method: ties\n")
    Path("recipes").symlink_to(ROOT / "recipes")
    silent = typer.Typer()
    for group in GROUPS:
        for verb in group.VERBS:
            add_verb(silent, replace(verb, run=lambda settings: Outcome({}, "")))
    words = shlex.split(command)[1:]
    result = CliRunner().invoke(silent, words)
    assert result.exit_code == 0, result.output
