"""Small subsets from the Hub: balanced, seeded, none of a test image in training, and a task to train on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from PIL import Image as PILImage

from hf_taskvec import get_task
from hf_taskvec.errors import OutputExistsError, SettingsDifferError, UnknownNameError
from recipes import build_small_datasets
from recipes.build_small_datasets import SOURCES, BuildArguments
from tests.hub_server import HubServer


def save_source(folder: Path, names: list[str], splits: dict[str, int]) -> Path:
    """A dataset repository with so many images per class; no two images are alike."""
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    for number, (split, count) in enumerate(splits.items()):
        labels = [index % len(names) for index in range(count * len(names))]
        pixels = [
            np.full((6, 9, 3), (number * 50 + index, 10 * label, 0), np.uint8) for index, label in enumerate(labels)
        ]
        rows = Dataset.from_dict(
            {"image": [PILImage.fromarray(image) for image in pixels], "label": labels}, features=features
        )
        (folder / "data").mkdir(parents=True, exist_ok=True)
        rows.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return folder


@pytest.fixture
def sources(hub: HubServer, tmp_path: Path) -> str:
    """A file of two sources on the Hub: one whole with both splits, one of which two classes are taken."""
    hub.store.add_folder("dataset", "user/both", save_source(tmp_path / "both", ["a", "b"], {"train": 10, "test": 4}))
    flowers = ["Red__Rose", "lily", "White tulip"]
    hub.store.add_folder("dataset", "user/one", save_source(tmp_path / "one", flowers, {"train": 10}))
    table = {
        "pair": {"dataset": "user/both", "train": 3, "test": 2, "license": "mit", "classes": ["first", "second"]},
        "flowers2": {
            "dataset": "user/one",
            "train": 100,
            "test": 100,
            "license": "mit",
            "size": 4,
            "crop": True,
            "classes": {"white_tulip": "tulip", "red rose": "rose"},
        },
    }
    (tmp_path / "sources.json").write_text(json.dumps(table))
    return str(tmp_path / "sources.json")


def colours(folder: Path, split: str) -> list[tuple[int, ...]]:
    rows = Dataset.from_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"), keep_in_memory=True)
    return [image.getpixel((0, 0)) for image in rows["image"]]


def test_it_builds_balanced_subsets_that_are_tasks(sources: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pair, flowers = build_small_datasets.main(BuildArguments(output_dir=str(out), sources=sources))
    data = load_dataset(str(pair))
    assert sorted(data["train"]["label"]) == [0] * 3 + [1] * 3
    assert sorted(data["test"]["label"]) == [0] * 2 + [1] * 2
    assert [colour[1] for colour in colours(pair, "train")] == [10 * label for label in data["train"]["label"]]
    task = get_task("flowers2", data_dir=out)
    assert task.class_names == ("tulip", "rose")
    taken = {split: load_dataset(str(flowers), split=split) for split in ("train", "test")}
    assert [len(images) for images in taken.values()] == [16, 4]  # a fifth of the training part is the test part
    assert not set(colours(flowers, "train")) & set(colours(flowers, "test"))
    assert {image.size for image in taken["train"]["image"]} == {(4, 4)}
    for label, colour in zip(taken["train"]["label"], colours(flowers, "train"), strict=True):
        assert colour[1] == {0: 20, 1: 0}[label]  # the tulip was class 2, the rose class 0
    assert "user/one" in (flowers / "README.md").read_text()


def test_the_seed_decides_and_what_is_there_is_left_alone(
    sources: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(folder: str, seed: int) -> list[tuple[int, ...]]:
        arguments = BuildArguments(output_dir=str(tmp_path / folder), names=["pair"], seed=seed, sources=sources)
        return colours(build_small_datasets.main(arguments)[0], "train")

    first = build("a", 0)
    assert build("b", 0) == first != build("c", 1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    assert build("a", 0) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == before
    assert "already" in capsys.readouterr().out
    with pytest.raises(SettingsDifferError, match="seed=0 there, 1 here"):
        build("a", 1)


def test_what_is_not_there_is_named_before_anything_is_written(sources: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'pair'"):
        build_small_datasets.main(BuildArguments(output_dir=str(tmp_path / "out"), names=["pairs"], sources=sources))
    table = json.loads(Path(sources).read_text())
    table["flowers2"]["classes"]["roze"] = "x"
    Path(sources).write_text(json.dumps(table))
    with pytest.raises(UnknownNameError, match="no class 'roze'"):
        build_small_datasets.main(BuildArguments(output_dir=str(tmp_path / "out"), names=["flowers2"], sources=sources))
    assert not (tmp_path / "out" / "flowers2").exists()
    (tmp_path / "out" / "pair").mkdir(parents=True)
    (tmp_path / "out" / "pair" / "README.md").write_text("mine")
    with pytest.raises(OutputExistsError, match="holds something else"):
        build_small_datasets.main(BuildArguments(output_dir=str(tmp_path / "out"), names=["pair"], sources=sources))


def test_the_eight_sources_are_those_of_the_readme() -> None:
    table = json.loads(SOURCES.read_text("utf-8"))
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    assert f"--tasks {' '.join(table)}" in " ".join(readme.replace("\\\n", " ").split())
    for name in ("mnist", "fashion-mnist", "cifar10", "eurosat", "gtsrb"):
        task = get_task(name)
        assert table[name]["dataset"] == task.dataset
        assert table[name].get("revision") == task.revision
        assert len(table[name]["classes"]) == len(task.class_names)
