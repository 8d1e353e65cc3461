"""Tasks: what they load, how they are named, and what they refuse."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from pretraining.drawn import generated_pairs

from hf_taskvec.errors import DataError, UnknownNameError
from hf_taskvec.tasks import SUITES, TASKS, Task, get_task, get_tasks
from hf_taskvec.tasks.generated import COUNTS, PATTERNS, SHAPES, generated_split
from hf_taskvec.tasks.mini import builtin_splits
from hf_taskvec.tasks.registry import DATA_DIR_VARIABLE
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.tasks.task import DEFAULT_TEMPLATES

SHARED = Path(__file__).parents[2] / "shared/datasets"
REAL_TASKS = "mnist fashion-mnist cifar10 eurosat gtsrb flowers5 quickdraw5 plantvillage-apple".split()  # noqa: SIM905
NAMES = ["cat", "dog", "fish"]
CLASS_COUNTS = {
    "sun397": 397,
    "stanford_cars": 196,
    "resisc45": 45,
    "eurosat": 10,
    "svhn": 10,
    "gtsrb": 43,
    "mnist": 10,
    "dtd": 47,
    "oxford_flowers102": 102,
    "pcam": 2,
    "fer2013": 7,
    "oxford_iiit_pet": 37,
    "stl10": 10,
    "cifar100": 100,
    "cifar10": 10,
    "food101": 101,
    "fashion_mnist": 10,
    "emnist": 26,
    "kmnist": 10,
    "rendered_sst2": 2,
}


def picture(value: int) -> PILImage.Image:
    return PILImage.fromarray(np.full((4, 4, 3), value % 256, dtype=np.uint8))


def rows(labels: list[Any], feature: Any, *, image: str = "image", label: str = "label", first: int = 0) -> Dataset:
    """One picture per label, each of another colour."""
    columns = {image: [picture(first + i) for i in range(len(labels))], label: labels}
    return Dataset.from_dict(columns, features=Features({image: Image(), label: feature}))


def save(folder: Path, **splits: Dataset) -> Path:
    """Writes a dataset repository: parquet files and a card."""
    (folder / "data").mkdir(parents=True)
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    for name, split in splits.items():
        split.to_parquet(folder / f"data/{name}-00000-of-00001.parquet")
        card += f"  - split: {name}\n    path: data/{name}-*\n"
    (folder / "README.md").write_text(card + "---\n")
    return folder


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    return save_named(tmp_path / "my-flowers", NAMES)


def save_named(folder: Path, names: list[str], *, train: int = 30, test: int = 9) -> Path:
    feature = ClassLabel(names=names)
    return save(
        folder,
        train=rows([i % len(names) for i in range(train)], feature),
        test=rows([i % len(names) for i in range(test)], feature, first=train),
    )


def colours(data: Dataset) -> list[int]:
    return [row["image"].getpixel((0, 0))[0] for row in data]


# Own datasets


def test_from_dataset_reads_names_and_columns(flowers: Path) -> None:
    task = Task.from_dataset(flowers)
    assert (task.name, task.class_names) == ("my-flowers", tuple(NAMES))
    assert (task.image_column, task.label_column) == ("image", "label")
    assert task.templates == DEFAULT_TEMPLATES


def test_every_split_has_an_image_and_an_integer_label(flowers: Path) -> None:
    task = Task.from_dataset(flowers)
    for split in ("train", "validation", "test"):
        data = task.load(split)  # type: ignore[arg-type]
        assert data.column_names == ["image", "label"]
        assert isinstance(data.features["image"], Image)
        assert isinstance(data[0]["label"], int)
        assert isinstance(data[0]["image"], PILImage.Image)


def test_train_and_validation_partition_the_training_split_and_keep_its_order(flowers: Path) -> None:
    task = Task.from_dataset(flowers)
    train, validation = colours(task.load("train")), colours(task.load("validation"))
    assert len(validation) == 3
    assert sorted(train + validation) == list(range(30))
    assert train == sorted(train)
    assert validation == sorted(validation)


def test_test_split_is_whole_and_apart_from_validation(flowers: Path) -> None:
    assert colours(Task.from_dataset(flowers).load("test")) == list(range(30, 39))


def test_labels_stay_with_their_images(flowers: Path) -> None:
    task = Task.from_dataset(flowers)
    for split in ("train", "validation"):
        data = task.load(split)  # type: ignore[arg-type]
        assert data["label"][:] == [colour % 3 for colour in colours(data)]


@pytest.mark.parametrize(("train", "held_out"), [(2, 1), (19, 1), (30, 3), (50_000, 5_000), (60_000, 5_000)])
def test_a_tenth_is_held_out_but_at_least_one_and_at_most_5000(train: int, held_out: int, tmp_path: Path) -> None:
    image = {"bytes": b"", "path": None}
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    data = Dataset.from_dict({"image": [image] * train, "label": [0] * train}, features=features)
    task = Task.from_dataset(save(tmp_path / "many", train=data, test=data.select(range(1))))
    assert len(task.load("validation")) == held_out
    assert len(task.load("train")) == train - held_out


def test_validation_is_the_same_in_every_process_and_place(flowers: Path, tmp_path: Path) -> None:
    # These rows are the contract: a change of seed or of the draw makes every published scaling incomparable.
    assert colours(Task.from_dataset(flowers).load("validation")) == VALIDATION_ROWS_OF_30
    copy = shutil.copytree(flowers, tmp_path / "elsewhere")
    assert colours(Task.from_dataset(copy).load("validation")) == VALIDATION_ROWS_OF_30


VALIDATION_ROWS_OF_30 = [8, 22, 26]


def test_a_registered_validation_split_can_be_the_test_split(tmp_path: Path) -> None:
    feature = ClassLabel(names=NAMES)
    folder = save(
        tmp_path / "food",
        train=rows([0, 1, 2] * 4, feature),
        validation=rows([0, 1, 2], feature, first=100),
    )
    task = Task.from_dataset(folder, test_split="validation")
    assert colours(task.load("test")) == [100, 101, 102]
    assert max(colours(task.load("validation"))) < 12


def test_a_folder_with_the_name_of_an_embedded_task_is_told_not_to_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "digits", train=rows([0, 1], ClassLabel(names=NAMES)), test=rows([0], ClassLabel(names=NAMES)))
    assert get_task("digits", data_dir=tmp_path).is_builtin
    assert f"{tmp_path / 'digits'} is not read: 'digits' is an embedded task" in caplog.text
    assert not Task.from_dataset(tmp_path / "digits").is_builtin


def test_a_task_that_was_cut_stays_cut() -> None:
    few = subset(get_task("counts"), max_train=30, max_test=9, train_seed=3, train_on="validation")
    again = subset(few, max_train=50, max_validation=7)
    assert (again.max_train, again.max_validation, again.max_test) == (30, 7, 9)
    assert (again.train_seed, again.train_on) == (3, "validation")
    assert subset(few, max_train=5, train_seed=4, train_on="train").max_test == 9
    assert subset(few, train_seed=4).train_seed == 4


def test_boolean_labels_count_as_zero_and_one(tmp_path: Path) -> None:
    split = rows([True, False, True], Value("bool"))
    folder = save(tmp_path / "cells", train=split, test=split)
    task = Task.from_dataset(folder, label_column="label", class_names=["healthy", "tumour"])
    assert task.load("test")["label"][:] == [1, 0, 1]


def test_other_column_names_are_renamed(tmp_path: Path) -> None:
    split = rows([0, 1, 2], Value("int64"), image="jpg", label="cls")
    folder = save(tmp_path / "faces", train=split, test=split)
    task = Task.from_dataset(folder, label_column="cls", class_names=NAMES)
    assert task.image_column == "jpg"
    assert task.load("test").column_names == ["image", "label"]


def test_revision_of_a_folder_follows_its_bytes_not_its_place(flowers: Path, tmp_path: Path) -> None:
    revision = Task.from_dataset(flowers).dataset_revision()
    copy = shutil.copytree(flowers, tmp_path / "copy")
    assert Task.from_dataset(copy).dataset_revision() == revision
    other = save_named(tmp_path / "other", NAMES, train=31)
    assert Task.from_dataset(other).dataset_revision() != revision


def test_a_folder_with_the_name_and_card_of_another_keeps_its_own_images(flowers: Path, tmp_path: Path) -> None:
    names = ClassLabel(names=NAMES)
    same_labels = [i % 3 for i in range(9)]
    twin = save(
        tmp_path / "twin/my-flowers", train=rows([0, 1], names, first=50), test=rows(same_labels, names, first=90)
    )
    ours, theirs = Task.from_dataset(flowers).load("test"), Task.from_dataset(twin).load("test")
    assert colours(ours) == list(range(30, 39))
    assert colours(theirs) == list(range(90, 99))
    assert ours._fingerprint != theirs._fingerprint  # caches of pixels are keyed by it


def test_a_changed_folder_is_read_again(flowers: Path) -> None:
    before = Task.from_dataset(flowers).load("test")
    rows([2, 1], ClassLabel(names=NAMES), first=70).to_parquet(flowers / "data/test-00000-of-00001.parquet")
    after = Task.from_dataset(flowers).load("test")
    assert colours(after) == [70, 71]
    assert before._fingerprint != after._fingerprint


# What is refused


def test_unknown_splits_name_the_nearest(flowers: Path) -> None:
    task = Task.from_dataset(flowers)
    with pytest.raises(UnknownNameError, match="Did you mean 'validation'"):
        task.load("valid")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="Did you mean 'test'"):
        Task.from_dataset(flowers, test_split="tests")
    with pytest.raises(UnknownNameError, match="Did you mean 'train'"):
        Task.from_dataset(flowers, train_split="training")


def test_unknown_columns_name_the_nearest(flowers: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'label'"):
        Task.from_dataset(flowers, label_column="labels")
    task = Task("t", str(flowers), class_names=tuple(NAMES), image_column="images")
    with pytest.raises(UnknownNameError, match="Did you mean 'image'"):
        task.load("test")


def test_unknown_configuration_names_the_nearest(flowers: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'default'"):
        Task.from_dataset(flowers, config="defaults")


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        Task.from_dataset(tmp_path / "nowhere")


def test_ambiguous_columns_are_listed_not_guessed(tmp_path: Path) -> None:
    feature = ClassLabel(names=NAMES)
    split = rows([0, 1, 2], feature).add_column("coarse", [0, 0, 1], feature=ClassLabel(names=["a", "b"]))
    folder = save(tmp_path / "two", train=split, test=split)
    with pytest.raises(DataError, match=r"2 columns of type ClassLabel.*label_column.*image, label, coarse"):
        Task.from_dataset(folder)
    assert Task.from_dataset(folder, label_column="coarse").class_names == ("a", "b")


def test_labels_without_names_need_names(tmp_path: Path) -> None:
    split = rows([0, 1], Value("int64"))
    folder = save(tmp_path / "bare", train=split, test=split)
    for column in (None, "label"):
        with pytest.raises(DataError, match="carries no class names; pass class_names="):
            Task.from_dataset(folder, label_column=column)
    split = split.rename_column("label", "kind")  # nothing says that these numbers are labels
    with pytest.raises(DataError, match="0 columns of type ClassLabel"):
        Task.from_dataset(save(tmp_path / "unnamed", train=split, test=split))


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        ([0, 1, 3], Value("int64"), "row 2 .* label 3, but there are 3 class names"),
        ([0, -1, 1], Value("int64"), "row 1 .* label -1"),
        ([0, None, 1], Value("int64"), "1 labels are missing"),
        (["cat", "dog", "bird"], Value("string"), "row 2 .* label 'bird'.* none of the classes"),
        ([0.0, 1.0, 0.5], Value("float32"), "holds float, not class numbers"),
        ([0, 1, 0], ClassLabel(names=["a", "b"]), "2 classes in its data, but 3 class names"),
        ([0, 1, 0], ClassLabel(names=["Dog", "cat", "fish"]), "another order.* label 0 is 'Dog', not 'cat'"),
        ([], ClassLabel(names=NAMES), 'bad\' cannot be loaded: .*"test" corresponds to no data'),
    ],
)
def test_labels_that_do_not_match_are_refused(labels: list[Any], feature: Any, message: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "bad", test=rows(labels, feature))
    task = Task("bad", str(folder), class_names=tuple(NAMES))
    with pytest.raises(DataError, match=message):
        task.load("test")


def test_a_column_without_images_is_refused(flowers: Path) -> None:
    task = Task("t", str(flowers), class_names=tuple(NAMES), image_column="label")
    with pytest.raises(DataError, match="holds no images"):
        task.load("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ("cat",)}, "at least two"),
        ({"class_names": ("cat", "dog", "cat")}, "repeated class names: cat"),
        ({"templates": ("a photo",)}, "exactly once"),
        ({"templates": ("{} and {}",)}, "exactly once"),
        ({"templates": ("{} of {kind}",)}, "no other braces"),
        ({"templates": ()}, "no templates"),
        ({"test_split": "train"}, "train on its test split"),
    ],
)
def test_impossible_tasks_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Task(**{"name": "t", "dataset": "d", "class_names": ("cat", "dog"), **change})


def test_offline_without_a_copy_says_what_to_fetch(tmp_path: Path) -> None:
    code = (
        "from hf_taskvec.errors import NotCachedError\n"
        "from hf_taskvec.tasks import get_task\n"
        "try:\n    get_task('svhn').load('test')\n"
        "except NotCachedError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment.pop(DATA_DIR_VARIABLE, None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "load_dataset('ufldl-stanford/svhn', 'cropped_digits')" in done.stdout
    assert "hf download --repo-type dataset ufldl-stanford/svhn" in done.stdout


# The registry


def test_the_twenty_tasks_have_the_class_counts_of_the_suites() -> None:
    assert {name: len(TASKS[name].class_names) for name in SUITES["vision20"]} == CLASS_COUNTS


def test_suites_nest() -> None:
    assert SUITES["vision20"][:14] == SUITES["vision14"]
    assert SUITES["vision14"][:8] == SUITES["vision8"]
    assert [len(SUITES[suite]) for suite in ("vision8", "vision14", "vision20", "paper7")] == [8, 14, 20, 7]
    assert {name for suite in SUITES.values() for name in suite} == set(TASKS)


def test_registered_entries_keep_the_traps() -> None:
    assert TASKS["food101"].test_split == "validation"
    assert TASKS["svhn"].config == "cropped_digits"
    assert (TASKS["fer2013"].image_column, TASKS["fer2013"].label_column) == ("jpg", "cls")
    assert TASKS["emnist"].dataset == "tanganke/emnist_letters"
    assert TASKS["cifar100"].class_names[26] == "crab"  # "cra" in a widely copied list
    assert TASKS["eurosat"].class_names[:2] == ("annual crop land", "forest")  # not OpenAI's order
    assert TASKS["oxford_iiit_pet"].class_names[:2] == ("Abyssinian", "american bulldog")  # not OpenAI's order
    assert TASKS["oxford_flowers102"].epochs == 147


@pytest.mark.parametrize("name", [name for name in TASKS if name != "kmnist"])
def test_class_names_and_templates_are_clean_text(name: str) -> None:
    for text in (*TASKS[name].class_names, *TASKS[name].templates):
        assert text == text.strip()
        assert "_" not in text


def test_dashes_and_underscores_are_the_same_in_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)
    assert get_task("fashion-mnist") is get_task("fashion_mnist") is TASKS["fashion_mnist"]


def test_unknown_task_names_the_nearest_task_folder_or_suite(tmp_path: Path) -> None:
    save_named(tmp_path / "my-flowers", NAMES)
    with pytest.raises(UnknownNameError, match="Did you mean 'mnist'"):
        get_task("mnits")
    with pytest.raises(UnknownNameError, match="Did you mean 'my-flowers'"):
        get_task("my-flower", data_dir=tmp_path)
    with pytest.raises(UnknownNameError, match="Did you mean 'vision20'"):
        get_tasks("vision21")


def test_suites_expand_in_order_and_repeats_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)
    assert [task.name for task in get_tasks("vision8")] == list(SUITES["vision8"])
    assert [task.name for task in get_tasks(["mini", "mnist"])] == [*SUITES["mini"], "mnist"]
    with pytest.raises(DataError, match="'mnist' comes twice"):
        get_tasks(["vision8", "mnist"])


# Local folders for registered tasks


def test_a_folder_replaces_the_hub_by_argument_and_by_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"garment {i}" for i in range(10)]
    save_named(tmp_path / "fashion-mnist", names)
    task = get_task("fashion_mnist", data_dir=tmp_path)
    assert (task.name, task.dataset) == ("fashion_mnist", str(tmp_path / "fashion-mnist"))
    assert task.class_names == tuple(names)
    assert task.templates == DEFAULT_TEMPLATES
    assert task.epochs == TASKS["fashion_mnist"].epochs
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    assert get_task("fashion-mnist") == task
    assert get_task("mnist") == TASKS["mnist"]  # no such folder: still the Hub's


@pytest.mark.parametrize("feature", [ClassLabel(names=[str(i) for i in range(10)]), Value("int64")])
def test_registered_names_stand_in_for_numbers(feature: Any, tmp_path: Path) -> None:
    split = rows(list(range(10)), feature)
    save(tmp_path / "kmnist", train=split, test=split)
    task = get_task("kmnist", data_dir=tmp_path)
    assert task.class_names == TASKS["kmnist"].class_names
    assert task.templates == TASKS["kmnist"].templates
    assert task.load("test")["label"][:] == list(range(10))


def test_registered_names_must_fit_the_numbers_of_a_folder(tmp_path: Path) -> None:
    save_named(tmp_path / "kmnist", [str(i) for i in range(9)])
    with pytest.raises(DataError, match="9 classes in its data, but 10 class names"):
        get_task("kmnist", data_dir=tmp_path)


def test_a_folder_with_registered_columns_and_splits_keeps_them(tmp_path: Path) -> None:
    split = rows(list(range(7)), Value("int64"), image="jpg", label="cls")
    save(tmp_path / "fer2013", train=split, test=split)
    assert len(get_task("fer2013", data_dir=tmp_path).load("test")) == 7
    save_named(tmp_path / "food101", NAMES)  # its test set is called test, not validation
    assert get_task("food101", data_dir=tmp_path).test_split == "test"


def test_an_unregistered_folder_is_a_task(flowers: Path) -> None:
    task = get_task("my_flowers", data_dir=flowers.parent)
    assert (task.name, task.class_names) == ("my-flowers", tuple(NAMES))


def test_a_data_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        get_task("mnist", data_dir=tmp_path / "missing")


def test_builtin_tasks_are_never_replaced(tmp_path: Path) -> None:
    save_named(tmp_path / "digits", [str(i) for i in range(10)])
    assert get_task("digits", data_dir=tmp_path) is TASKS["digits"]


# Builtin tasks


@pytest.mark.parametrize("name", SUITES["studio"])
def test_builtin_tasks_have_small_rgb_images_and_all_classes(name: str) -> None:
    task = get_task(name)
    train, test = task.load("train"), task.load("test")
    assert len(test) == 400
    assert 1000 <= len(train) <= 1500
    assert (train[0]["image"].size, train[0]["image"].mode) == ((32, 32), "RGB")
    for data in (train, test):
        counts = np.bincount(data["label"][:], minlength=len(task.class_names))
        assert counts.min() > 0.7 * counts.mean()


@pytest.mark.parametrize("name", SUITES["studio"])
def test_no_builtin_image_is_in_two_splits(name: str) -> None:
    task = get_task(name)
    pixels = {split: image_bytes(task.load(split)) for split in ("train", "validation", "test")}  # type: ignore[arg-type]
    assert not pixels["train"] & pixels["test"]
    assert not pixels["validation"] & pixels["test"]
    assert not pixels["train"] & pixels["validation"]


def image_bytes(data: Dataset) -> set[bytes]:
    return {row["image"].tobytes() for row in data}


def test_builtin_tasks_are_drawn_the_same_again() -> None:
    first = {name: builtin_splits(name) for name in SUITES["studio"]}
    builtin_splits.cache_clear()
    for name, splits in first.items():
        again = builtin_splits(name)
        for split in ("train", "test"):
            assert again[split]._fingerprint == splits[split]._fingerprint  # a hash of the images and labels
            assert again[split].data == splits[split].data


def test_a_test_part_is_had_without_drawing_the_training_part(monkeypatch: pytest.MonkeyPatch) -> None:
    builtin_splits.cache_clear()
    drawn: list[int] = []

    def counted(draw: Any, names: Any, count: int, *, seed: int) -> Dataset:
        drawn.append(count)
        return generated_split(draw, names, count, seed=seed)

    monkeypatch.setattr("hf_taskvec.tasks.mini.generated_split", counted)
    assert len(get_task("shapes").load("test")) == 400
    assert drawn == [400]
    assert len(get_task("shapes").load("train")) == 1080
    assert drawn == [400, 1200]


def test_generated_drawings_are_pinned() -> None:
    # Mean pixel of a task's first 50 test images; a change means another task under the same name.
    means = {name: round(mean_pixel(builtin_splits(name)["test"]), 1) for name in SUITES["studio"]}
    assert means == pytest.approx(PINNED_MEANS, abs=0.11)


PINNED_MEANS = {
    "digits": 79.0,
    "shapes": 140.5,
    "patterns": 124.8,
    "counts": 117.3,
    "arrows": 121.5,
    "faces": 135.4,
    "places": 126.8,
    "sizes": 124.7,
    "hues": 137.7,
}


def mean_pixel(data: Dataset) -> float:
    return float(np.mean([np.asarray(row["image"]) for row in data.select(range(50))]))


def test_generated_pairs_share_the_words_but_no_image_of_the_builtin_tasks() -> None:
    pairs = generated_pairs(1500, seed=0)
    assert pairs.column_names == ["image", "text"]
    texts = " | ".join(pairs["text"])
    for name in (*SHAPES, *PATTERNS, *COUNTS):
        assert name in texts
    seen: set[bytes] = set()
    for task in get_tasks("studio"):
        seen |= image_bytes(builtin_splits(task.name)["train"]) | image_bytes(builtin_splits(task.name)["test"])
    assert len(seen) > 6000
    assert not image_bytes(pairs) & seen


def test_generated_pairs_follow_their_seed() -> None:
    first, again, other = (generated_pairs(20, seed=seed) for seed in (1, 1, 2))
    assert image_bytes(first) == image_bytes(again)
    assert first["text"][:] == again["text"][:]
    assert not image_bytes(first) & image_bytes(other)


# Real data


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared datasets")
@pytest.mark.parametrize("name", REAL_TASKS)
def test_real_folders_load_by_name(name: str) -> None:
    task = get_task(name, data_dir=SHARED)
    sizes = [len(task.load(split)) for split in ("train", "validation", "test")]  # type: ignore[arg-type]
    assert sizes[1] == (sizes[0] + sizes[1]) // 10
    row = task.load("test")[0]
    assert row["image"].size >= (28, 28)
    assert 0 <= row["label"] < len(task.class_names)
    assert all(len(name) > 1 and not name.isdigit() for name in task.class_names)
