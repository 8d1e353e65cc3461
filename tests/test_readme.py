"""The README says what is true."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from transformers import AutoModelForCausalLM, CLIPModel

from hf_taskvec import TaskVector, load_base
from hf_taskvec.merging import methods_table
from tests.architectures import model_of, moved
from tests.bases import save_tiny_base
from tests.hub_server import HubServer
from tests.test_lora import save_adapter

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_methods_is_todays() -> None:
    assert f"<!-- methods -->\n{methods_table().rstrip()}\n<!-- end of methods -->" in README


def test_its_claims_are_those_of_the_report() -> None:
    report = (ROOT / "recipes/results/paper7_tiny/report.md").read_text(encoding="utf-8")
    table = report.split("## Claims\n\n")[1].split("\n\n")[0]
    assert f"<!-- claims -->\n{table}\n<!-- end of claims -->" in README


@pytest.mark.parametrize("page", ["README.md", ".github/CONTRIBUTING.md"])
def test_every_file_it_links_to_exists(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", (ROOT / page).read_text("utf-8")):
        assert ((ROOT / page).parent / link).exists(), link


def test_the_map_shows_every_folder_and_no_other() -> None:
    tree = (ROOT / ".github/CONTRIBUTING.md").read_text("utf-8").split("## The tree")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in tree.splitlines() if line.startswith("| `")]
    shown = {name.rstrip("/") for row in rows for name in re.findall(r"`([^`*]+)`", row)}
    package = [path for path in (ROOT / "hf_taskvec").iterdir() if path.suffix == ".py" or path.is_dir()]
    here = {path.name for path in package if not path.name.startswith("__")}
    here |= {f"recipes/{path.name}" for path in (ROOT / "recipes").iterdir() if path.is_dir()}
    assert shown - {"hub_cards", "tests"} == here - {"recipes/__pycache__"}


def test_every_recipe_it_names_exists() -> None:
    for recipe in re.findall(r"recipes/[\w/]+\.(?:py|yaml)", README):
        assert (ROOT / recipe).is_file(), recipe


FENCE = r"```{}\n(.*?)```"
BLOCKS = re.findall(FENCE.format("python"), README, flags=re.DOTALL)
FIRST, FOREIGN, ANY_MODEL, OWN_DATA, MERGING, LOOKING, IN_ORDER, ROBUST, HUB = BLOCKS
FROM_THE_FIRST = """
import dataclasses
from hf_taskvec import Report, TaskVector, load_base
from hf_taskvec import TaskResult
model = load_base().model
vector = TaskVector.from_models(model, model)
deltas = {name: vector.deltas[name] + 1e-3 for name in vector.deltas}
merged = TaskVector(deltas, dataclasses.replace(vector.info, base="hf-taskvec/tiny-clip", task="digits"))
report = Report("merged", "test", (TaskResult("digits", 0.5, 100),), scaling=0.3)
"""


@pytest.fixture
def offline_trial() -> Iterator[str]:
    """Starts the Hub as the README says; gives the line that it prints for the other shell."""
    section = README.split("## The Hub")[1].split("\n## ")[0]
    (command,) = re.findall(FENCE.format("bash"), section, flags=re.DOTALL)
    words = [sys.executable, *command.split()[1:]]
    assert command.split()[0] == "python"
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("The Hub of user is at http://127.0.0.1:")
        yield server.stdout.readline().strip()
        server.terminate()


def run_in_a_shell(lines: str, example: str, folder: Path) -> str:
    """What a Python example prints in a fresh process, in a shell that ran `lines` before."""
    (folder / "example.py").write_text(example)
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_ENDPOINT", "HF_TOKEN")}
    done = subprocess.run(
        ["bash", "-c", f"{lines}\nexec {shlex.quote(sys.executable)} example.py"],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FOR_MERGING = """
merged.save_pretrained("out/mnist/vector")
merged.save_pretrained("out/quickstart/seed-0/digits/vector")
push_to_hub(merged, "user/gtsrb-vector")
"""


def test_its_lines_on_the_hub_and_on_merging_run_as_written(offline_trial: str, tmp_path: Path) -> None:
    assert offline_trial.startswith("export HF_ENDPOINT=")
    printed = run_in_a_shell(
        offline_trial, FROM_THE_FIRST + HUB + FOR_MERGING + MERGING + LOOKING + IN_ORDER + ROBUST, tmp_path
    )
    assert TaskVector.from_pretrained(tmp_path / "out" / "ties").info.method == "ties"
    assert (tmp_path / "out" / "sequence" / "sequence.safetensors").is_file()
    assert "| digits-gaussian_noise-3 |" in printed
    assert "PublishedVector(repo_id='user/digits-and-shapes', base='hf-taskvec/tiny-clip'" in printed


# peft 0.21 reads an attribute that Transformers 5.23 has deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_its_lines_on_own_data_and_foreign_checkpoints_run_as_written(hub: HubServer, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, colour in (("robin", 0), ("jay", 2)):
        (tmp_path / "birds" / name).mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(0, 120, (32, 32, 3), np.uint8)
            pixels[..., colour] += 100
            PILImage.fromarray(pixels).save(tmp_path / "birds" / name / f"{number}.png")
    base = save_tiny_base(tmp_path / "base")
    model = CLIPModel.from_pretrained(base)
    save_adapter(model, tmp_path / "lora", target_modules=["q_proj", "v_proj"], r=2)
    for parameter in model.parameters():
        parameter.data += 1e-2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "tuned")
    model_of("qwen2").save_pretrained(tmp_path / "qwen")
    moved(model_of("qwen2")).save_pretrained(tmp_path / "math")
    for name, folder in (
        ("Qwen/Qwen2.5-1.5B", "qwen"),
        ("Qwen/Qwen2.5-Math-1.5B", "math"),
        ("openai/clip-vit-base-patch32", "base"),
        ("user/clip-birds", "tuned"),
        ("user/clip-birds-lora", "lora"),
    ):
        hub.store.add_folder("model", name, tmp_path / folder)
    printed = run_in_a_shell(f"export HF_ENDPOINT={hub.url}", OWN_DATA + FOREIGN + ANY_MODEL, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "math").config.model_type == "qwen2"
    assert "| birds |" in printed
    assert CLIPModel.from_pretrained(tmp_path / "out" / "clip-birds").config.projection_dim == 16


@pytest.mark.slow
def test_its_first_example_and_the_hub_lines_after_it_run_as_written(offline_trial: str, tmp_path: Path) -> None:
    printed = run_in_a_shell(offline_trial, FIRST + HUB, tmp_path)
    assert "| **mean** |" in printed
    assert "tasks=('digits', 'shapes')" in printed


# -- its commands -----------------------------------------------------------------------------------------------------

NOT_RUN = {  # every other command is
    "pip install torch==2.13.0": "the project is installed already",
    "pip install .": "the project is installed already",
    'pip install ".[test]"': "the project is installed already",
    "python -m pytest": "this is it",
    "python -m tests.hub_server": "started by the tests of the Hub's lines",
    "python recipes/reproduce_paper.py --config recipes/configs/paper7_tiny.yaml --data_dir out/datasets": (
        "91 minutes; paper7_smoke.yaml, which is run, has the same shape"
    ),
}


def shell_commands() -> list[str]:
    """Every command of the README's shell blocks, in order."""
    blocks = re.findall(FENCE.format("bash"), README, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(command.split()) for line in lines for command in line.split(" && ") if command.strip()]


COMMANDS = [command for command in shell_commands() if command not in NOT_RUN]
MERGES = [command for command in COMMANDS if "recipes/merge.py" in command]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks like a fresh clone, in which commands may write to `out`."""
    for name in ("recipes", "tests", "hf_taskvec", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    script = tmp_path / "bin" / "hf-taskvec"  # as an installer writes it
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom hf_taskvec.command.app import main\nmain()\n")
    script.chmod(0o755)
    return tmp_path


def run_command(command: str, folder: Path, *, timeout: float = 3600) -> str:
    """What a command prints in the shell, whose `python` is this one."""
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "HF_HOME": str(folder / "home")}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_every_command_that_is_not_run_is_one_of_the_readme() -> None:
    assert set(NOT_RUN) <= set(shell_commands())
    assert len(MERGES) == 2


def test_its_merge_commands_run_as_written(clone: Path) -> None:
    moved = load_base().model
    for number, task in enumerate(("digits", "shapes", "patterns", "counts")):
        with torch.no_grad():
            moved.vision_model.post_layernorm.bias.fill_(0.1 * (number + 1))
        vector = TaskVector.from_models(load_base().model, moved)
        vector.save_pretrained(clone / "out" / "quickstart" / "seed-0" / task / "vector")
    for command in MERGES:
        assert "ties of 4 vectors is in out/ties" in run_command(command, clone)
    first, again = (TaskVector.from_pretrained(clone / "out" / name) for name in ("ties", "ties-again"))
    assert first.info.settings["density"] == 0.2
    assert all(torch.equal(first.deltas[name], again.deltas[name]) for name in first)


def host_stand_ins(hub: HubServer, folder: Path) -> None:
    """Puts small datasets and a tiny CLIP on the Hub where the README's commands look for the real ones."""
    for name, source in json.loads((ROOT / "recipes/small_datasets/sources.json").read_text("utf-8")).items():
        splits = ["train"] if isinstance(source["classes"], dict) else ["train", "test"]
        splits = ["valid", "test"] if "files" in source else splits
        save_classes(folder / name, list(source["classes"]), splits)
        hub.store.add_folder("dataset", source["dataset"], folder / name)
        if "revision" in source:
            repo = hub.store.get("dataset", source["dataset"])
            repo.refs[f"refs/tags/{source['revision']}"] = repo.head.id
    hub.store.add_folder("model", "openai/clip-vit-base-patch32", save_tiny_base(folder / "base"))


def save_classes(folder: Path, names: list[str], splits: list[str]) -> None:
    """A dataset repository of noise, five images per class in each split."""
    random = np.random.default_rng(0)
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    (folder / "data").mkdir(parents=True)
    for split in splits:
        labels = list(range(len(names))) * 5
        images = [PILImage.fromarray(random.integers(0, 255, (28, 28, 3), np.uint8)) for _ in labels]
        rows = Dataset.from_dict({"image": images, "label": labels}, features=features)
        rows.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))


@pytest.mark.slow
def test_every_command_runs_as_written_in_the_order_of_the_readme(
    hub: HubServer, clone: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    host_stand_ins(hub, tmp_path_factory.mktemp("hosted"))
    for command in COMMANDS:
        run_command(command, clone)
    assert (clone / "out" / "quickstart" / "report.json").is_file()
    assert TaskVector.from_pretrained(clone / "out" / "mnist" / "vector").info.task == "mnist"
