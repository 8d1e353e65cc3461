"""Local data as people keep them: class folders, tables of paths, parquet; splits by folder and file name alone."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image

from hf_taskvec.errors import DataError
from hf_taskvec.tasks.columns import image_paths
from hf_taskvec.tasks.splits import SPLIT_WORDS
from hf_taskvec.tasks.tables import IMAGES, TABLES, read_table
from hf_taskvec.text import listed

logger = logging.getLogger(__name__)

UNREAD = frozenset({".heic", ".heif", ".dng", ".cr2", ".nef", ".arw", ".raw", ".psd", ".svg", ".jxl", ".dcm", ".npy"})
ARCHIVES = frozenset({".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"})
_NOT_TABLES = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})

Parts = tuple[str, ...]  # a file's path below its folder


@dataclass(frozen=True)
class LocalData:
    """The splits of a local dataset and the files that they come from.

    Attributes:
        splits: The splits by name.
        files: Each file with the split it belongs to.
    """

    splits: Mapping[str, Dataset]
    files: Sequence[tuple[str, Path]]


def read_folder(root: Path) -> LocalData | None:
    """Reads class folders and tables; `None` if there are neither.

    The folder directly below `root` is the split, or is one of the classes if it holds images itself; a word deeper in
    a path is never a split.

    Raises:
        DataError: If it is not clear which folders are splits and which are classes, or if all lies in archives.
    """
    files = list_files(root)
    images = _ending_in(IMAGES, files)
    tables = [parts for parts in _ending_in(TABLES, files) if parts[-1] not in _NOT_TABLES]
    if unread := _ending_in(UNREAD, files):
        told = "%d files of %s are not read: their format is not known here (first %s)"
        logger.warning(told, len(unread), root, "/".join(unread[0]))
    described = read_tables(root, tables, images)
    if described is not None or images:
        return described or _class_folders(root, images)
    if archives := sorted("/".join(parts) for parts in _ending_in(ARCHIVES, files)):
        raise DataError(
            f"{root} holds archives ({listed(archives, room=120)}), which are not read; unpack each into a folder of "
            "its name: train/<class>/…, test/<class>/…"
        )
    return None


def read_file(path: Path) -> LocalData:
    """Reads one table, whose rows are the split `train`."""
    return LocalData({"train": read_table([path], [path.parent / "images"]).data}, [("train", path)])


def list_files(root: Path) -> list[Parts]:
    """The files below a folder, sorted, hidden ones left out; links are followed, each folder once."""
    paths, seen = [], set[str]()
    for folder, names, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names[:] = sorted(name for name in names if not name.startswith((".", "__")))
        place = Path(folder).relative_to(root).parts
        paths += [(*place, name) for name in files if not name.startswith(".")]
    return sorted(paths)


def _ending_in(endings: Container[str], files: list[Parts]) -> list[Parts]:
    return [parts for parts in files if Path(parts[-1]).suffix.lower() in endings]


def read_tables(root: Path, tables: list[Parts], images: list[Parts]) -> LocalData | None:
    """The splits that tables describe; `None` if no table has images."""
    for endings in ((".parquet",), (".arrow",), (".csv", ".tsv"), (".jsonl",), (".json",)):
        splits, files = dict[str, Dataset](), list[tuple[str, Path]]()
        for split, members in _table_splits(_ending_in(endings, tables)).items():
            places = [
                root,
                root / "images",
                root / members[0][0],
                *(root / parts[0] for parts in images if len(parts) > 1),
            ]
            paths = [root.joinpath(*parts) for parts in members]
            read = read_table(paths, places)
            if not read.has_images:
                continue
            files += [(split, path) for path in paths]
            files += [(split, Path(path)) for path in read.images if os.path.isfile(path)]
            splits |= _by_top_folder(root, split, read.data, read.images, images)
        if splits:
            return _with_folders(root, LocalData(splits, files), images)
    return None


def _table_splits(tables: list[Parts]) -> dict[str, list[Parts]]:
    """Tables by split: by the folder on top, else by the one split that their file name tells."""
    told = {parts: _split_of_table(parts) for parts in tables}
    splits = defaultdict(list)
    for parts, split in told.items():
        splits[split or (Path(parts[-1]).stem if any(told.values()) else "train")].append(parts)
    return splits


def _split_of_table(parts: Parts) -> str | None:
    folders = [SPLIT_WORDS[folder.lower()] for folder in parts[:-1] if folder.lower() in SPLIT_WORDS]
    if folders:
        return folders[0]
    words = re.split(r"[^a-z]+", Path(parts[-1]).stem.lower())
    names = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    return names.pop() if len(names) == 1 else None


def _by_top_folder(
    root: Path, split: str, data: Dataset, paths: Sequence[str], images: list[Parts]
) -> dict[str, Dataset]:
    """One table for images in several split folders is a table of each of them."""
    tops = {parts[0] for parts in images if len(parts) > 1 and parts[0].lower() in SPLIT_WORDS}
    if len(tops) < 2 or not paths:
        return {split: data}
    rows = defaultdict(list)
    for row, path in enumerate(paths):
        relative = Path(path).relative_to(root).parts if Path(path).is_relative_to(root) else ()
        rows[SPLIT_WORDS.get(relative[0].lower(), split) if relative else split].append(row)
    return {name: data.select(members) for name, members in rows.items()}


def _with_folders(root: Path, described: LocalData, images: list[Parts]) -> LocalData:
    """Tables say something about images in class folders: then the folders are the labels, unless the tables are."""
    if not images:
        return described
    try:
        folders = _class_folders(root, images)
    except DataError:
        return described
    labelled = [data for data in folders.splits.values() if "label" in data.features]
    by_path = {
        path: label for data in labelled for path, label in zip(image_paths(data, "image"), data["label"], strict=True)
    }
    splits = dict(described.splits)
    for name, data in described.splits.items():
        column = next((key for key, feature in data.features.items() if isinstance(feature, Image)), None)
        if column is None or "label" in data.features or not labelled:
            continue
        labels = [by_path.get(path) for path in image_paths(data, column)]
        if None not in labels:
            splits[name] = data.add_column("label", labels, feature=labelled[0].features["label"])
    missing = {name: data for name, data in folders.splits.items() if name not in splits}
    return LocalData({**splits, **missing}, [*described.files, *(pair for pair in folders.files if pair[0] in missing)])


def _class_folders(root: Path, images: list[Parts]) -> LocalData:
    splits, depth = _image_splits(root, images)
    labels = {split: _folder_labels(root, split, members, depth) for split, members in splits.items()}
    names = sorted({label for values in labels.values() if values for label in values})
    numbers = {name: number for number, name in enumerate(names)}
    result, files = {}, []
    for split, members in splits.items():
        paths = [root.joinpath(*parts) for parts in members]
        columns: dict[str, list[object]] = {"image": [str(path) for path in paths]}
        features: dict[str, object] = {"image": Image()}
        if (values := labels[split]) is not None:
            columns["label"], features["label"] = [numbers[value] for value in values], ClassLabel(names=names)
        result[split] = Dataset.from_dict(columns, features=Features(features))
        files += [(split, path) for path in paths]
    return LocalData(result, files)


def _image_splits(root: Path, images: list[Parts]) -> tuple[dict[str, list[Parts]], int]:
    """Images by split, and how many folders of a path stand above the classes."""
    depth = _wrappers(images)
    tops: dict[str, list[Parts]] = defaultdict(list)
    for parts in images:
        tops[parts[depth] if len(parts) > depth + 1 else ""].append(parts)
    named = [top for top in tops if top.lower() in SPLIT_WORDS]
    nested = {top for top, members in tops.items() if any(len(parts) > depth + 2 for parts in members)}
    if not named or (set(named) != set(tops) and not nested):  # folders of images side by side: they are the classes
        return {"train": [parts for members in tops.values() for parts in members]}, depth
    loose = sorted(set(tops) - set(named) - nested)
    if loose and set(named) & nested:
        where = f"the folder {loose[0]!r}" if loose[0] else "images"
        raise DataError(
            f"{root} holds splits ({listed(sorted(named))}) and beside them {where}: neither a split nor a class; "
            "put every image into <split>/<class>/"
        )
    result: dict[str, list[Parts]] = {}
    for top, members in tops.items():
        split = SPLIT_WORDS.get(top.lower(), top)
        if split in result:
            raise DataError(f"{root} has two folders for the split {split!r}, {top!r} among them; keep one")
        result[split] = members
    return result, depth + 1


def _wrappers(images: list[Parts]) -> int:
    """How many folders on top hold everything and are no split."""
    depth = 0
    while True:
        tops = {parts[depth] if len(parts) > depth + 1 else "" for parts in images}
        deep = all(len(parts) > depth + 2 for parts in images)
        if len(tops) != 1 or "" in tops or not deep or next(iter(tops)).lower() in SPLIT_WORDS:
            return depth
        depth += 1


def _folder_labels(root: Path, split: str, members: list[Parts], depth: int) -> list[str] | None:
    """Each image's class, the folder that it lies in; `None` if there are no class folders."""
    folders = [parts[depth:-1] for parts in members]
    if not any(folders):
        return None
    if not all(folders):
        loose = next("/".join(parts) for parts, folder in zip(members, folders, strict=True) if not folder)
        raise DataError(f"{root} has class folders in {split!r} and {loose!r} beside them; it belongs to no class")
    if len({folder[-1] for folder in folders}) == 1 and all(len(folder) > 1 for folder in folders):
        folders = [folder[:-1] for folder in folders]  # <class>/images/…
    _check_leaves(root, folders)
    return [folder[-1] for folder in folders]


def _check_leaves(root: Path, folders: Iterable[Parts]) -> None:
    parents: dict[str, Parts] = {}
    for folder in folders:
        other = parents.setdefault(folder[-1], folder[:-1])
        if other != folder[:-1]:
            raise DataError(
                f"{root} has class {folder[-1]!r} below {'/'.join(other) or '.'!r} and below "
                f"{'/'.join(folder[:-1]) or '.'!r}: call the splits train and test, and give each class one folder"
            )
