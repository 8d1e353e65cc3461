"""The tutorials run as written, each in a folder that looks like a fresh clone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hf_taskvec import TaskVector, VectorInfo, load_base
from tests.hub_server import HubServer
from tests.test_readme import clone as clone
from tests.test_readme import run_command

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "recipes" / "tutorials"
PAGES = {path.stem: path.read_text("utf-8") for path in sorted(FOLDER.glob("*.md")) if path.name != "README.md"}
LEFT = {
    "first-vector": "out/digits-model/model.safetensors",
    "forget": "out/no-digits/model.safetensors",
    "merge-published": "out/pair-model/model.safetensors",
    "own-data": "out/leaves/vector/task_vector.safetensors",
    "reproduce-paper": "out/paper7-smoke/report.md",
}


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each block."""
    return re.findall(r"```(bash|python)\n(.*?)```", page, flags=re.DOTALL)


def test_every_tutorial_is_linked_and_none_else() -> None:
    links = re.findall(r"\]\(([\w-]+)\.md\)", (FOLDER / "README.md").read_text("utf-8"))
    assert sorted(links) == sorted(PAGES) == sorted(LEFT)


@pytest.mark.parametrize("name", PAGES)
def test_a_tutorial_is_short_and_its_python_is_python(name: str) -> None:
    assert len(PAGES[name].splitlines()) <= 70
    for language, text in blocks(PAGES[name]):
        if language == "python":
            compile(text, name, "exec")


def publish(hub: HubServer, folder: Path) -> None:
    """Puts two vectors of the embedded base where the tutorial finds published ones."""
    for number, task in enumerate(("mnist", "eurosat")):
        base, moved = load_base(), load_base()
        for parameter in moved.model.vision_model.encoder.layers[number].parameters():
            parameter.data += 1e-3
        info = VectorInfo(kind="fine-tuned", base=base.name, task=task)
        vector = TaskVector.from_models(base, moved, info=info)
        vector.save_pretrained(folder / task)
        card = {"tags": ["task-vector", f"task:{task}"], "library_name": "hf-taskvec", "base_model": base.name}
        (folder / task / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
        hub.store.add_folder("model", f"hf-taskvec/tiny-clip-{task}", folder / task)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_tutorial_runs_as_written(
    name: str, clone: Path, hub: HubServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if name == "merge-published":
        publish(hub, tmp_path_factory.mktemp("published"))
    for language, text in blocks(PAGES[name]):
        if language == "python":
            (clone / "example.py").write_text(text)
            run_command("python example.py", clone)
        else:
            run_command(f"set -e\n{text}", clone)
    assert (clone / LEFT[name]).is_file()
