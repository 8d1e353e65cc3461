"""Own data in every form people keep it: classes by name, splits by folder, and what cannot be proved is told."""

from __future__ import annotations

import io
import logging
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image as PILImage
from pyarrow import parquet as pq

from hf_taskvec import TaskVector, evaluate, gradient_vector, load_base
from hf_taskvec.errors import DataError, UnknownNameError
from hf_taskvec.tasks import TASKS, Task, get_task
from hf_taskvec.tasks.labels import match_classes
from hf_taskvec.tasks.pixels import load_pixels
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.training.objective import SingleTask
from hf_taskvec.vectors.info import VectorInfo
from tests.hub_server import HubServer

EUROSAT = [
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
]


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", (4, 4), (value % 256, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def class_folders(
    root: Path, names: list[str], *, splits: tuple[str, ...] = ("train", "test"), copies: int = 2
) -> Path:
    """Folders of images, each of a red of its own: 100 for its split, ten for its class, one for its copy."""
    for split_number, split in enumerate(splits):
        for number, name in enumerate(names):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for copy in range(copies):
                (folder / f"{copy}.png").write_bytes(png(100 * split_number + 10 * number + copy))
    return root


def parquet(folder: Path, **splits: Dataset) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        with (folder / f"{name}-0.parquet").open("wb") as file:  # by its path, datasets would take it for a chain
            split.to_parquet(file)
    return folder


def rows(labels: list[Any], feature: Any, *, first: int = 0, **columns: list[Any]) -> Dataset:
    images = [{"bytes": png(first + i), "path": None} for i in range(len(labels))]
    features = Features(
        {"image": Image(), "label": feature} | {name: Value("string") for name in columns},
    )
    return Dataset.from_dict({"image": images, "label": labels, **columns}, features=features)


def reds(data: Dataset) -> list[int]:
    return [row["image"].getpixel((0, 0))[0] for row in data]


def named(task: Task, split: str = "test") -> dict[int, str]:
    """The class of each image of a split, by its colour."""
    data = task.load(split)  # type: ignore[arg-type]
    return {red: task.class_names[label] for red, label in zip(reds(data), data["label"], strict=True)}


# The order of classes


def test_numbered_folders_are_the_classes_of_their_numbers(tmp_path: Path) -> None:
    class_folders(tmp_path / "gtsrb", [str(number) for number in range(43)], copies=1)
    task = get_task("gtsrb", data_dir=tmp_path)
    numbers = task.load("test")["label"][:]
    paths = [Path(row["image"].filename).parent.name for row in task.load("test")]
    assert [int(path) for path in paths] == numbers
    assert (task.class_names, task.templates) == (TASKS["gtsrb"].class_names, TASKS["gtsrb"].templates)


@pytest.mark.parametrize("pattern", ["{}", "{:05d}", "class_{}"])
def test_numbers_in_folder_names_count_not_their_place(tmp_path: Path, pattern: str) -> None:
    names = [f"kind {word}" for word in "abcdefghijkl"]
    root = class_folders(tmp_path / "own", [pattern.format(number) for number in range(12)], copies=2)
    assert named(Task.from_dataset(root, class_names=names))[200] == "kind k"
    moved = Task("moved", str(root), class_names=tuple(names))
    assert named(moved)[100 + 2 * 10] == "kind c"


def test_folders_numbered_from_one_are_taken_in_order_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = class_folders(tmp_path / "own", [str(number) for number in range(1, 12)])
    task = Task.from_dataset(root, class_names=[f"kind {word}" for word in "abcdefghijk"])
    with caplog.at_level(logging.WARNING):
        assert named(task)[100 + 10 * 1] == "kind b"
        assert named(task)[100 + 10 * 9] == "kind j"
    assert "numbers from 1 to 11" in caplog.text


@pytest.mark.parametrize(
    "names", [{0: "cat", 1: "dog"}, {"dog": 1, "cat": 0}, {"1": "dog", "0": "cat"}, iter(["cat", "dog"])]
)
def test_class_names_are_read_as_people_hold_them(tmp_path: Path, names: Any) -> None:
    split = rows([0, 1, 0, 1], Value("int64"))
    folder = parquet(tmp_path / "data", train=split, test=split)
    assert Task.from_dataset(folder, label_column="label", class_names=names).class_names == ("cat", "dog")


def test_id2label_may_count_from_one(tmp_path: Path) -> None:
    split = rows([1, 2, 3, 1], Value("int64"))
    task = Task.from_dataset(
        parquet(tmp_path / "data", train=split, test=split),
        label_column="label",
        class_names={1: "cat", 2: "dog", 3: "fish"},
    )
    assert task.class_names == ("cat", "dog", "fish")
    assert task.load("test")["label"][:] == [0, 1, 2, 0]
    stranger = rows([1, 2, 7], Value("int64"))
    with pytest.raises(DataError, match=r"row 2 in split 'test' .* has the label '7', which is none of the classes"):
        Task.from_dataset(
            DatasetDict(train=split, test=stranger), label_column="label", class_names={1: "cat", 2: "dog", 3: "fish"}
        )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"cat", "dog"}, "set, which has no order"),
        ("cat", "must be several"),
        ([0, 1], "class name 0 .* must be text"),
        ({"cat": 0, "dog": 0}, "two classes one number"),
        ({0: "cat", "0": "dog"}, "two classes one number"),
        (7, "must be a list of names, got int"),
        (["cat", "\x1b[2J"], "control characters"),
        (["cat", "dog", "fish"], "2 classes in its data, but 3"),
        (["dog", "a cat"], "another order"),
    ],
)
def test_class_names_without_an_order_are_refused(tmp_path: Path, names: Any, message: str) -> None:
    split = rows([0, 1, 0, 1], ClassLabel(names=["cat", "dog"]))
    with pytest.raises(DataError, match=message):
        Task.from_dataset(parquet(tmp_path / "data", train=split, test=split), class_names=names)


def test_class_names_in_a_list_make_a_task_that_can_be_used_as_a_key(tmp_path: Path) -> None:
    task = Task("t", "d", class_names=["cat", "dog"], templates=["{}"])  # type: ignore[arg-type]
    assert {task: 1}[Task("t", "d", class_names=("cat", "dog"), templates=("{}",))] == 1


def test_own_names_become_prompts_by_name(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "own", ["n02", "n01"])
    task = Task.from_dataset(root, class_names={"n02": "a tabby cat", "n01": "a beagle"})
    assert named(task)[100] == "a tabby cat"
    assert named(task)[110] == "a beagle"


def test_names_taken_by_position_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = class_folders(tmp_path / "own", ["n01", "xyz"])
    with caplog.at_level(logging.WARNING):
        Task.from_dataset(root, class_names=["a beagle", "a tabby cat"])
    assert "taken by position: its label 'n01' is 'a beagle'" in caplog.text


def test_only_the_hubs_order_is_trusted_where_no_name_proves_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert match_classes(["xyz", "dog"], ["a dog", "a cat"], (), "a split", trusted=True) == [0, 1]
    assert not caplog.text
    with pytest.raises(DataError, match="another order"):
        match_classes(["xyz", "dog"], ["a dog", "a cat"], (), "a split")
    with pytest.raises(DataError, match="another order"):
        match_classes(["cat", "dog"], ["dog", "cat"], (), "a split", trusted=True)


def test_files_that_number_their_classes_differently_are_refused(tmp_path: Path) -> None:
    train, test = rows([0, 1] * 4, ClassLabel(names=["cat", "dog"])), rows([0, 1], ClassLabel(names=["dog", "cat"]))
    folder = parquet(tmp_path / "data", train=train, test=test)
    with pytest.raises(DataError, match="another order"):
        Task.from_dataset(folder)
    with pytest.raises(DataError, match="another order"):
        Task.from_dataset(DatasetDict(train=train, test=test))
    train.to_parquet(folder / "test-1.parquet")
    with pytest.raises(DataError, match=r"test-1.parquet and test-0.parquet number the classes of column 'label' diff"):
        Task.from_dataset(folder)
    for place, data in (("train", train), ("test", test)):
        parquet(tmp_path / "deep" / place, part=data)
    (tmp_path / "deep" / "README.md").write_text("---\nconfigs:\n- config_name: x\n  data_files: '*/*'\n---\n")
    with pytest.raises(DataError, match=r"train/part-0.parquet and test/part-0.parquet number the classes"):
        Task.from_dataset(tmp_path / "deep")


def test_arrow_files_that_number_their_classes_differently_are_refused(tmp_path: Path) -> None:
    for place, names in (("a", ["cat", "dog"]), ("b", ["dog", "cat"])):
        rows([0, 1], ClassLabel(names=names)).save_to_disk(tmp_path / place)
        (file,) = (tmp_path / place).glob("*.arrow")
        (tmp_path / "own").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "own" / f"train-{place}.arrow")
    with pytest.raises(DataError, match=r"train-b.arrow and train-a.arrow number the classes"):
        Task.from_dataset(tmp_path / "own", test_size=1)


def test_what_the_card_says_of_the_columns_counts(tmp_path: Path) -> None:
    split = Dataset.from_dict({"image": [png(0), png(1)], "label": [0, 1]})
    folder = parquet(tmp_path / "own" / "data", train=split, test=split).parent
    names = "dtype:\n      class_label:\n        names:\n          '0': cat\n          '1': dog\n"
    card = "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n    "
    (folder / "README.md").write_text(card + names + "---\n")
    assert named(Task.from_dataset(folder)) == {0: "cat", 1: "dog"}


CATS, DOGS = ClassLabel(names=["cat", "dog"]), ClassLabel(names=["dog", "cat"])
CARD = """---
configs:
- config_name: default
  data_files: [{split: train, path: data/train-*}, {split: test, path: data/test-*}]
- config_name: other
  data_files: [{split: train, path: other/train-*}, {split: test, path: other/test-*}]
"""
FEATURES = "dataset_info:\n- config_name: default\n  features:\n  - {name: image, dtype: image}\n"
NAMES = "  - name: label\n    dtype: {class_label: {names: {'0': dog, '1': cat}}}\n"


def on_hub(hub: HubServer, folder: Path, name: str, card: str = "") -> str:
    (folder / "README.md").write_text(f"{CARD}{card}---\n")
    hub.store.add_folder("dataset", name, folder)
    return name


@pytest.mark.parametrize("odd", ["train-1", "test-0"])
def test_files_on_the_hub_that_number_their_classes_differently_are_refused(
    hub: HubServer, tmp_path: Path, odd: str
) -> None:
    folder = parquet(tmp_path / "data", train=rows([0, 1] * 4, CATS), test=rows([0, 1], CATS)).parent
    with (folder / "data" / f"{odd}.parquet").open("wb") as file:
        rows([0, 1], DOGS).to_parquet(file)
    name = on_hub(hub, folder, f"user/pets-{odd}")
    for _ in "ab":  # also where `datasets` has prepared it already
        with pytest.raises(DataError, match=r"(train|test)-\d.parquet .* number the classes of column 'label' differ"):
            Task.from_dataset(name)


def test_a_card_on_the_hub_that_numbers_the_classes_otherwise_than_its_files_is_refused(
    hub: HubServer, tmp_path: Path
) -> None:
    data = {"train": rows([0, 1] * 4, CATS), "test": rows([0, 1], CATS, first=100)}
    folder = parquet(tmp_path / "data", **data).parent
    with pytest.raises(DataError, match=r"-0.parquet and the card number the classes of column 'label' differ"):
        Task.from_dataset(on_hub(hub, folder, "user/carded", FEATURES + NAMES)).load("test")
    with pytest.raises(DataError, match=r"-0.parquet and the card number the classes"):
        Task.from_dataset(folder).load("test")  # downloaded, too


def test_each_configuration_on_the_hub_has_its_own_order(hub: HubServer, tmp_path: Path) -> None:
    for place, feature in (("data", CATS), ("other", DOGS)):
        parquet(tmp_path / place, train=rows([0, 1] * 4, feature), test=rows([0, 1], feature, first=100))
    name = on_hub(hub, tmp_path, "user/two")
    assert named(Task.from_dataset(name)) == {100: "cat", 101: "dog"}
    assert named(Task.from_dataset(name, config="other")) == {100: "dog", 101: "cat"}
    with pytest.raises(DataError, match="another order"):
        Task.from_dataset(name, config="other", class_names=["cat", "dog"])


def test_files_that_left_the_cache_are_told_not_to_have_been_compared(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = parquet(tmp_path / "data", train=rows([0, 1] * 4, CATS), test=rows([0, 1], CATS, first=100)).parent
    name = on_hub(hub, folder, "user/pruned")
    Task.from_dataset(name)
    assert "compared" not in caplog.text
    shutil.rmtree(Path(HF_HUB_CACHE) / "datasets--user--pruned")
    assert named(Task.from_dataset(name)) == {100: "cat", 101: "dog"}
    assert "2 files of user/pruned are gone from the cache" in caplog.text


def test_a_registered_task_keeps_its_names_on_the_datasets_own_folders(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class_folders(tmp_path / "eurosat", EUROSAT)
    with caplog.at_level(logging.WARNING):
        task = get_task("eurosat", data_dir=tmp_path)
    assert (task.class_names, task.templates) == (TASKS["eurosat"].class_names, TASKS["eurosat"].templates)
    assert "'HerbaceousVegetation' is taken for 'brushland or shrubland', which is left over" in caplog.text
    assert named(task)[120] == "brushland or shrubland"
    assert named(task)[190] == "lake or sea"


def test_registered_names_in_another_order_go_by_name(tmp_path: Path) -> None:
    names = list(reversed(TASKS["fashion_mnist"].class_names))
    split = rows(list(range(10)), ClassLabel(names=[name.upper() for name in names]))
    parquet(tmp_path / "fashion_mnist", train=split, test=split)
    task = get_task("fashion_mnist", data_dir=tmp_path)
    assert task.class_names == TASKS["fashion_mnist"].class_names
    assert task.load("test")["label"][:] == list(range(10))[::-1]


def test_a_registered_task_on_names_of_its_own_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class_folders(tmp_path / "eurosat", [f"land {word}" for word in "abcdefghij"])
    with caplog.at_level(logging.WARNING):
        task = get_task("eurosat", data_dir=tmp_path)
    assert task.class_names[0] == "land a"
    assert "do not compare with those of the registered task" in caplog.text


# Splits


@pytest.mark.parametrize("name", ["train", "train_railway", "test tube", "val", "eval-set"])
def test_a_word_inside_a_path_is_no_split(tmp_path: Path, name: str) -> None:
    root = class_folders(tmp_path / "own", ["apple", name], copies=10)
    task = Task.from_dataset(root)
    assert task.class_names == ("apple", name)
    test, train, validation = (set(reds(task.load(split))) for split in ("test", "train", "validation"))
    assert len(test) == len(train | validation) == 20
    assert not test & (train | validation)


@pytest.mark.parametrize("wrapper", ["data", "images", "photos of 2024", ""])
def test_class_folders_without_splits_are_one_split(tmp_path: Path, wrapper: str) -> None:
    class_folders(tmp_path / "own", ["cat", "train"], splits=(wrapper,), copies=10)
    with pytest.raises(UnknownNameError, match=r"test_size=0\.2"):
        Task.from_dataset(tmp_path / "own")
    task = Task.from_dataset(tmp_path / "own", test_size=0.3)
    parts = {split: task.load(split) for split in ("train", "validation", "test")}  # type: ignore[arg-type]
    assert {split: len(data) for split, data in parts.items()} == {"train": 13, "validation": 1, "test": 6}
    assert sorted(parts["test"]["label"][:]) == [0, 0, 0, 1, 1, 1]  # each class gives its share
    assert len({red for data in parts.values() for red in reds(data)}) == 20


def test_the_test_part_is_drawn_by_its_seed_alone(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "own", ["cat", "dog"], splits=("",), copies=10)
    first, again, other = (Task.from_dataset(root, test_size=6, split_seed=seed) for seed in (1, 1, 2))
    assert reds(first.load("test")) == reds(again.load("test"))
    assert set(reds(first.load("test"))) != set(reds(other.load("test")))
    assert first.data_settings() == {"test_size": 6, "split_seed": 1, "local": True}


def test_slices_are_splits_and_may_not_overlap(tmp_path: Path) -> None:
    split = rows([0, 1] * 10, ClassLabel(names=["cat", "dog"]))
    folder = parquet(tmp_path / "own", train=split)
    task = Task.from_dataset(folder, train_split="train[:80%]", test_split="train[80%:]")
    assert reds(task.load("test")) == [16, 17, 18, 19]
    assert len(task.load("train")) == 15
    with pytest.raises(DataError, match="share rows: 10 of 'train' is in both"):
        Task.from_dataset(folder, train_split="train[:80%]", test_split="train[50%:]")
    with pytest.raises(DataError, match="share rows"):
        Task("t", str(folder), train_split="train", test_split="train[50%:]", class_names=("cat", "dog")).load("test")
    with pytest.raises(DataError, match="is no slice of"):
        Task.from_dataset(folder, train_split="train[:8o%]", test_split="train[80%:]")


def test_a_validation_split_of_its_own_is_whole(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "own", ["cat", "dog"], splits=("train", "val", "test"), copies=3)
    task = Task.from_dataset(root, validation_split="validation")
    assert [len(task.load(split)) for split in ("train", "validation", "test")] == [6, 6, 6]
    assert set(reds(task.load("validation"))) == {100, 101, 102, 110, 111, 112}
    with pytest.raises(DataError, match="share rows"):
        Task.from_dataset(root, validation_split="test")


def test_a_small_validation_part_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = Task.from_dataset(class_folders(tmp_path / "few", ["cat", "dog"], copies=5), name="few-cats")
    with caplog.at_level(logging.WARNING):
        task.load("validation")
    assert "validation part of task 'few-cats' has 1 images" in caplog.text


def test_classes_without_a_training_image_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = rows([0] * 8 + [1] * 8, ClassLabel(names=["cat", "dog"]))
    folder = parquet(tmp_path / "own", train=split)
    task = Task.from_dataset(folder, train_split="train[:50%]", test_split="train[50%:]", name="no-dogs")
    with caplog.at_level(logging.WARNING):
        task.load("train")
    assert "train part of task 'no-dogs' has no image of 'dog'" in caplog.text


def test_splits_mixed_with_classes_are_refused(tmp_path: Path) -> None:
    class_folders(tmp_path / "own", ["cat", "dog"])
    (tmp_path / "own" / "fish").mkdir()
    (tmp_path / "own" / "fish" / "1.png").write_bytes(png(1))
    with pytest.raises(DataError, match="beside them the folder 'fish'"):
        Task.from_dataset(tmp_path / "own")
    shutil.move(tmp_path / "own" / "fish" / "1.png", tmp_path / "own" / "train" / "1.png")
    with pytest.raises(DataError, match=r"'train/1.png' beside them; it belongs to no class"):
        Task.from_dataset(tmp_path / "own")


@pytest.mark.parametrize("name", ["[ab]", "a::b", "new\nline", "what?*", "{x}"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    task = Task.from_dataset(class_folders(tmp_path / name / "own", ["cat", "dog"]))
    assert len(task.load("test")) == 4
    split = rows([0, 1] * 10, ClassLabel(names=["cat", "dog"]))
    assert len(Task.from_dataset(parquet(tmp_path / name / "rows", train=split, test=split)).load("test")) == 20


# Other forms of data


@pytest.mark.parametrize("pass_names", [False, True])
def test_labels_may_be_words(tmp_path: Path, pass_names: bool) -> None:
    train, test = rows(["dog", "cat"] * 3, Value("string")), rows(["cat", "dog"], Value("large_string"), first=50)
    folder = parquet(tmp_path / "own", train=train, test=test)
    names = {"label_column": "label", "class_names": ["dog", "cat"]} if pass_names else {}
    task = Task.from_dataset(folder, **names)  # type: ignore[arg-type]
    assert named(task) == {50: "cat", 51: "dog"}
    assert named(task, "train").items() <= {0: "dog", 1: "cat", 2: "dog", 3: "cat", 4: "dog", 5: "cat"}.items()
    with pytest.raises(DataError, match=r"'dog', which is none of the class names cat, bird"):
        Task.from_dataset(folder, label_column="label", class_names=["cat", "bird"])


def test_labels_may_be_categories_of_pandas(tmp_path: Path) -> None:
    table = pa.table({"image": [png(0), png(1), png(2)], "kind": pa.array(["dog", "cat", "dog"]).dictionary_encode()})
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}.parquet")
    assert named(Task.from_dataset(tmp_path, label_column="kind", templates="a {}.")) == {0: "dog", 1: "cat", 2: "dog"}


def test_words_that_are_numbers_go_by_value(tmp_path: Path) -> None:
    words = [str(number) for number in range(12)]
    split = rows(words * 2, Value("string"))
    folder = parquet(tmp_path / "own", train=split, test=split)
    task = Task.from_dataset(folder, label_column="label", class_names=[f"kind {word}" for word in "abcdefghijkl"])
    assert task.load("test")["label"][:12] == list(range(12))


def test_images_may_be_bytes(tmp_path: Path) -> None:
    split = Dataset.from_dict({"image": [png(i) for i in range(4)], "label": [0, 1] * 2})
    folder = parquet(tmp_path / "own", train=split, test=split)
    task = Task.from_dataset(folder, image_column="image", label_column="label", class_names=["cat", "dog"])
    assert named(task) == {0: "cat", 1: "dog", 2: "cat", 3: "dog"}
    assert Task.from_dataset(folder, label_column="label", class_names=["cat", "dog"]).image_column == "image"


def test_names_may_stand_in_a_column(tmp_path: Path) -> None:
    split = rows([5, 3, 5, 3], Value("int64"), kind=["a cat", "a dog"] * 2)
    folder = parquet(tmp_path / "own", train=split, test=split)
    task = Task.from_dataset(folder, label_column="label", names_column="kind")
    assert named(task) == {0: "a cat", 1: "a dog", 2: "a cat", 3: "a dog"}
    assert task.class_names == ("a dog", "a cat")
    wrong = rows([5, 3, 5, 3], Value("int64"), kind=["a cat", "a dog", "a fish", "a dog"])
    with pytest.raises(DataError, match=r"label 5 .* has two names in 'kind'"):
        Task.from_dataset(DatasetDict(train=wrong, test=wrong), label_column="label", names_column="kind")


def csv_of_paths(root: Path) -> Path:
    (root / "images").mkdir(parents=True)
    for split, first in (("train", 0), ("test", 100)):
        lines = ["file,label"]
        for number in range(6):
            (root / "images" / f"{split}{number}.png").write_bytes(png(first + number))
            lines.append(f"{split}{number}.png,{'cat' if number % 2 else 'dog'}")
        (root / f"{split}.csv").write_text("\n".join(lines))
    return root


def test_a_csv_may_name_the_images_and_their_classes(tmp_path: Path) -> None:
    root = csv_of_paths(tmp_path / "own")
    task = Task.from_dataset(root)
    assert task.class_names == ("cat", "dog")
    assert named(task) == {100 + number: ("cat" if number % 2 else "dog") for number in range(6)}
    alone = Task.from_dataset(root / "train.csv", test_size=2, label_column="label", class_names=["dog", "cat"])
    assert alone.name == "train"
    assert set(named(alone).values()) == {"cat", "dog"}


@pytest.mark.parametrize("ending", ["tga", "DIB"])
def test_a_csv_may_name_every_format_that_a_folder_may_hold(tmp_path: Path, ending: str) -> None:
    for number in range(4):
        PILImage.new("RGB", (8, 8), (60 * number, 0, 0)).save(tmp_path / f"{number}.{ending}")
    lines = ["picture,label", *(f"{number}.{ending},{'cat' if number % 2 else 'dog'}" for number in range(4))]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    task = Task.from_dataset(tmp_path, test_size=2)
    assert (task.image_column, task.class_names) == ("picture", ("cat", "dog"))
    assert {red // 50: name for red, name in named(task).items()}.items() <= {
        0: "dog",
        1: "cat",
        2: "dog",
        3: "cat",
    }.items()


def test_a_missing_file_of_a_csv_is_named(tmp_path: Path) -> None:
    root = csv_of_paths(tmp_path / "own")
    (root / "images" / "test3.png").unlink()
    with pytest.raises(DataError, match=r"row 3 of test of 'own' does not decode.*No such file.*test3\.png"):
        load_pixels(Task.from_dataset(root), "test", load_base().processor.image_processor)


def test_metadata_may_hold_the_labels(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("test", 100)):
        folder = tmp_path / "own" / split
        folder.mkdir(parents=True)
        lines = ["file_name,label"]
        for number in range(6):
            (folder / f"{number}.png").write_bytes(png(first + number))
            lines.append(f"{number}.png,{'cat' if number % 2 else 'dog'}")
        (folder / "metadata.csv").write_text("\n".join(lines))
    assert named(Task.from_dataset(tmp_path / "own"))[101] == "cat"


def test_metadata_beside_class_folders_leave_the_folders_the_labels(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "own", ["cat", "dog"])
    lines = ["file_name,note", *(f"{name}/{copy}.png,x" for name in ("cat", "dog") for copy in range(2))]
    (root / "train" / "metadata.csv").write_text("\n".join(lines))
    task = Task.from_dataset(root)
    assert named(task) == {100: "cat", 101: "cat", 110: "dog", 111: "dog"}
    assert len(task.load("train")) == 3
    (root / "train" / "metadata.csv").write_text("file_name,note\ncat/0.png,a\ncat/1.png,b\n,no image\n")
    with pytest.raises(DataError, match="0 columns of type ClassLabel"):
        Task.from_dataset(root)


def test_a_dataset_in_memory_is_a_task() -> None:
    feature = ClassLabel(names=["cat", "dog"])
    splits = DatasetDict(train=rows([0, 1] * 10, feature), test=rows([1, 0], feature, first=50))
    task = Task.from_dataset(splits, name="pets")
    assert named(task) == {50: "dog", 51: "cat"}
    assert task == Task.from_dataset(splits, name="pets")
    assert task != Task.from_dataset(DatasetDict(train=splits["train"], test=splits["train"]), name="pets")
    assert (task.dataset_name, task.data_settings()) == ("in memory", {"local": True})
    single = Task.from_dataset(splits["train"], test_size=0.2)
    assert len(single.load("test")) == 4
    assert len(subset(single, max_test=2).load("test")) == 2
    with pytest.raises(DataError, match="streaming"):
        Task.from_dataset(splits["train"].to_iterable_dataset())


def test_a_dataset_saved_to_disk_and_a_link_to_a_folder_are_read(tmp_path: Path) -> None:
    feature = ClassLabel(names=["cat", "dog"])
    splits = DatasetDict(train=rows([0, 1] * 4, feature), test=rows([1, 0], feature, first=50))
    splits.save_to_disk(tmp_path / "saved")
    assert named(Task.from_dataset(tmp_path / "saved")) == {50: "dog", 51: "cat"}
    splits["train"].save_to_disk(tmp_path / "single")
    assert len(Task.from_dataset(tmp_path / "single", test_size=0.5).load("test")) == 4
    (tmp_path / "link").symlink_to(class_folders(tmp_path / "own", ["cat", "dog"]))
    assert named(Task.from_dataset(tmp_path / "link"))[110] == "dog"


def test_images_that_nobody_reads_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = class_folders(tmp_path / "own", ["cat", "dog"])
    (root / "train" / "cat" / "9.heic").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        Task.from_dataset(root)
    assert "1 files of" in caplog.text
    assert "train/cat/9.heic" in caplog.text


def test_a_home_folder_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    class_folders(tmp_path / "pets", ["cat", "dog"])
    assert Task.from_dataset("~/pets").dataset == str(tmp_path / "pets")
    with pytest.raises(DataError, match="there is no such folder here"):
        Task.from_dataset(tmp_path / "nothing")


def test_archives_are_named(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "own", ["cat", "dog"])
    for split in ("train", "test"):
        shutil.make_archive(str(tmp_path / "zipped" / split), "zip", root / split)
    with pytest.raises(DataError, match=r"archives \(test.zip, train.zip\).*unpack"):
        Task.from_dataset(tmp_path / "zipped")


def test_an_unreadable_table_names_its_cause(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train-0.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(DataError, match=r"train-0.parquet cannot be read.*(Parquet|Arrow|magic)"):
        Task.from_dataset(tmp_path / "own")


# Names, provenance


def test_common_folder_names_take_the_name_above(tmp_path: Path) -> None:
    first = Task.from_dataset(class_folders(tmp_path / "a" / "data", ["cat", "dog"]))
    second = Task.from_dataset(class_folders(tmp_path / "b" / "data", ["cat", "dog"]))
    assert (first.name, second.name) == ("a-data", "b-data")


def test_a_path_is_a_task_and_a_wrong_one_gets_help(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets", ["cat", "dog"])
    assert get_task(str(root)) == Task.from_dataset(root)
    with pytest.raises(UnknownNameError, match="from_dataset"):
        get_task(str(tmp_path / "nothing"))
    with pytest.raises(TypeError, match="must be text"):
        get_task(7)  # type: ignore[arg-type]


def test_a_vectors_provenance_makes_its_task_again(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets", ["n01", "n02"], splits=("",), copies=10)
    task = Task.from_dataset(
        root, class_names={"n01": "a cat", "n02": "a dog"}, templates=["a drawing of {}."], test_size=0.5, split_seed=4
    )
    info = VectorInfo.from_dict(VectorInfo(**task.provenance()).to_dict())
    assert str(tmp_path) not in str(info)
    with pytest.raises(DataError, match="pass dataset="):
        Task.from_info(info)
    again = Task.from_info(info, dataset=root)
    assert again == task
    assert named(again) == named(task)
    published = VectorInfo(
        task="svhn",
        dataset="ufldl-stanford/svhn",
        dataset_revision="abc",
        class_names=("one", "two"),
        templates=("{}",),
    )
    assert (Task.from_info(published).dataset, Task.from_info(published).revision) == ("ufldl-stanford/svhn", "abc")
    with pytest.raises(DataError, match="no class names"):
        Task.from_info(VectorInfo(task="x"))
    with pytest.raises(DataError, match="test_size='all'"):
        Task.from_info(VectorInfo(**task.provenance() | {"data_settings": {"test_size": "all"}}))


def test_a_saved_vector_of_somebodys_own_task_can_be_measured(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets", ["n01", "n02"], splits=("",), copies=10)
    names = {"n01": "a red circle", "n02": "a red square"}
    task = Task.from_dataset(root, class_names=names, test_size=0.5)
    base = load_base()
    gradient_vector(base, task, learning_rate=1e-3).save_pretrained(tmp_path / "vector")
    vector = TaskVector.from_pretrained(tmp_path / "vector")
    again = Task.from_info(vector.info, dataset=shutil.copytree(root, tmp_path / "elsewhere"))
    assert again.class_names == tuple(names.values())
    model = vector.apply_to(base)
    assert evaluate(model, [again]).results[0].accuracy == evaluate(model, [task]).results[0].accuracy
    assert SingleTask(task).describe(VectorInfo()).data_settings == vector.info.data_settings


def test_negative_and_decimal_labels_go_by_value(tmp_path: Path) -> None:
    for folders in (["-10", "0", "-2"], ["10.0", "2.5", "0.5"]):
        task = Task.from_dataset(class_folders(tmp_path / folders[0], folders), class_names=["low", "middle", "high"])
        ordered = sorted(folders, key=float)
        by_name = dict(zip(ordered, ["low", "middle", "high"], strict=True))
        assert {red // 10: name for red, name in named(task, "train").items()} == {
            number: by_name[folder] for number, folder in enumerate(folders)
        }


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0.png,cat", "1.png,dog"], r"begins with the row of '0.png'.*file_name,label"),
        (["file_name;label", "0.png;cat", "1.png;dog"], "parts its columns by ';'.*commas"),
        (["file_name\tlabel", "0.png\tcat", "1.png\tdog"], "parts its columns by.*as .tsv"),
    ],
)
def test_a_csv_without_a_header_or_with_other_signs_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    for copy in range(2):
        (tmp_path / f"{copy}.png").write_bytes(png(copy))
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=message):
        Task.from_dataset(tmp_path)


def test_an_image_in_another_class_folder_is_another_revision(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pets", ["cat", "dog"], copies=3)
    for split in ("train", "test"):
        for copy in range(3):
            (folder / split / "dog" / f"{copy}.png").rename(folder / split / "dog" / f"{copy + 3}.png")
    before = Task.from_dataset(folder).dataset_revision()
    (folder / "train/dog/3.png").rename(folder / "train/cat/3.png")
    assert Task.from_dataset(folder).dataset_revision() != before


def test_images_without_class_folders_hear_where_labels_come_from(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "0.png").write_bytes(png(0))
    with pytest.raises(DataError, match=r"train/cat/1\.png"):
        Task.from_dataset(tmp_path)


@pytest.mark.parametrize(
    ("size", "shown"), [("0.2", "'0.2'"), (float("inf"), "inf"), (True, "True"), (1.5, "1.5"), (10**400, "1000")]
)
def test_a_test_size_that_is_none_is_refused(size: Any, shown: str) -> None:
    flat = Dataset.from_dict({"image": [png(0)] * 8, "label": ["cat", "dog"] * 4})
    with pytest.raises(DataError, match=f"test_size must be .*{shown}"):
        Task.from_dataset(flat, image_column="image", test_size=size)


def test_an_empty_name_is_no_dataset() -> None:
    with pytest.raises(DataError, match="empty name"):
        Task.from_dataset("")


def test_numbers_in_a_column_called_label_are_the_labels() -> None:
    images = [{"bytes": png(value), "path": None} for value in range(4)]
    table = Dataset.from_dict({"image": images, "row": [7, 8, 9, 10], "label": [2, 4, 2, 4]})
    splits = DatasetDict(train=table.cast_column("image", Image()), test=table.cast_column("image", Image()))
    task = Task.from_dataset(splits, name="pets", class_names={2: "cat", 4: "dog"})
    assert named(task) == {0: "cat", 1: "dog", 2: "cat", 3: "dog"}
    with pytest.raises(DataError, match="carries no class names; pass class_names"):
        Task.from_dataset(splits, name="pets")


def test_a_validation_split_that_is_not_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = class_folders(tmp_path, ["cat", "dog"], splits=("train", "val", "test"), copies=10)
    task = Task.from_dataset(folder, name="pets-with-val")
    assert "does not read the dataset's own split 'validation'; validation_split='validation' takes it" in caplog.text
    caplog.clear()
    own = Task.from_dataset(folder, name="pets-with-val", validation_split="validation")
    assert (len(task.load("validation")), len(own.load("validation"))) == (2, 20)
    assert "does not read" not in caplog.text


def test_a_warning_about_names_is_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = class_folders(tmp_path, ["cat", "dog"])
    Task.from_dataset(folder, class_names=["x " * 400, "y"], name="long")
    assert 0 < max(len(record.message) for record in caplog.records if "by position" in record.message) <= 600


@pytest.mark.parametrize("names", [["true", "false"], ["False", "True"], {"true": "yes", "false": "no"}])
def test_boolean_labels_go_by_name_where_the_classes_are_called_so(names: Any) -> None:
    flat = rows([True, False] * 4, Value("bool"))  # an even red is true
    task = Task.from_dataset(flat, label_column="label", class_names=names, test_size=0.5)
    data = task.load("test")
    truth = {red: red % 2 == 0 for red in range(8)}
    words = {"true": True, "yes": True, "false": False, "no": False}
    for red, number in zip(reds(data), data["label"], strict=True):
        assert words[task.class_names[number].lower()] is truth[red]
