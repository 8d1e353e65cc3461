"""Where a task's images come from: the Hub, a local folder or the package itself. Every failure has a clear error."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import xxhash
import yaml
from datasets import (
    Dataset,
    DatasetBuilder,
    DatasetDict,
    get_dataset_config_names,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetsError
from huggingface_hub import try_to_load_from_cache

from hf_taskvec.errors import DataError, NotCachedError, TaskVecError, UnknownNameError
from hf_taskvec.tasks.cache import cache_folder, safe_path
from hf_taskvec.tasks.folders import LocalData, list_files, read_file, read_folder
from hf_taskvec.tasks.mini import builtin_splits
from hf_taskvec.tasks.tables import IMAGES, TABLES, check_label_orders, innermost

logger = logging.getLogger(__name__)

BUILTIN_PREFIX = "builtin:"
_BUILTIN_REVISION = "1"  # to be raised with any change to the images of a builtin dataset
_MAX_CARD_BYTES = 1 << 20
_HUB_TABLE = re.compile(r"hf://datasets/([^@]+)@([0-9a-f]{40})/(.+\.(?:parquet|arrow))")


def load_source(dataset: str, config: str | None = None, revision: str | None = None) -> Mapping[str, Dataset]:
    """Downloads what is not cached and gives every split of a dataset, memory-mapped.

    Args:
        dataset: Hub id, local folder or table, or `builtin:<name>`.
        config: Configuration of the dataset.
        revision: Branch, tag or commit on the Hub.

    Returns:
        The splits by name.

    Raises:
        NotCachedError: If the Hub is out of reach and the cache has no copy.
        DataError: If there is no such dataset, if it cannot be read or if one file is in two of its splits.
        UnknownNameError: If the dataset has no such configuration.

    Example:
        >>> sorted(load_source("builtin:counts"))
        ['test', 'train']
    """
    if dataset.startswith(BUILTIN_PREFIX):
        return builtin_splits(dataset.removeprefix(BUILTIN_PREFIX))
    if not is_local(dataset):
        builder = _open(dataset, config, revision)
        _check_files_apart(builder, dataset)
        fetched: Mapping[str, Dataset] = _prepared(builder, dataset, config)
        check_label_orders(_fetched_files(builder, dataset), builder.info.features)
        return fetched
    local = _read_local(dataset, config)
    # The fingerprint of a local dataset knows its card but not its files; caches keyed by it would go stale.
    stamp = _stamp(local.files)
    splits: dict[str, Dataset] = DatasetDict()
    for split, data in local.splits.items():
        mark = xxhash.xxh3_64_hexdigest(f"{stamp}/{split}".encode())
        splits[split] = data.select_columns(data.column_names, new_fingerprint=mark)
    return splits


def source_revision(dataset: str, config: str | None = None, revision: str | None = None) -> str | None:
    """What identifies the data itself: the commit on the Hub, or a hash of a local folder's data files.

    Example:
        >>> source_revision("builtin:counts")
        '1'
    """
    if dataset.startswith(BUILTIN_PREFIX):
        return _BUILTIN_REVISION
    if is_local(dataset):
        return _hash_files(_read_local(dataset, config).files, Path(dataset))
    return _open(dataset, config, revision).hash or revision


def source_stamp(dataset: str) -> str:
    """What changes whenever a file of a local dataset does; empty for others, which do not change in a process."""
    if dataset.startswith(BUILTIN_PREFIX) or not is_local(dataset):
        return ""
    path = Path(dataset)
    return _stamp([("", path.joinpath(*parts)) for parts in list_files(path)] if path.is_dir() else [("", path)])


def config_names(folder: Path) -> list[str]:
    """The configurations of a dataset in a local folder."""
    if not _card_names_files(folder):
        return ["default"]
    with _clear_errors(str(folder), None):
        return list(get_dataset_config_names(str(safe_path(folder.resolve()))))


def is_local(dataset: str) -> bool:
    """Whether a dataset is a folder or a table here, and not one of the Hub.

    Example:
        >>> is_local("user/pets"), is_local(".")
        (False, True)
    """
    path = Path(dataset)
    return path.is_dir() or (path.suffix.lower() in TABLES and path.is_file())


def _read_local(dataset: str, config: str | None) -> LocalData:
    path = Path(dataset)
    if path.is_file():
        return read_file(path)
    with _clear_errors(dataset, config):
        if (saved := _saved_to_disk(path)) is not None:
            return saved
        if not _card_names_files(path):
            if config not in (None, "default"):
                raise UnknownNameError(f"configuration of {dataset}", config, ["default"])
            if (described := read_folder(path)) is not None:
                return described
    return _by_builder(dataset, config)


def _saved_to_disk(path: Path) -> LocalData | None:
    """What `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    if not ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        return None
    saved = load_from_disk(str(safe_path(path.resolve())))
    files = [(parts[0] if len(parts) > 1 else "train", path.joinpath(*parts)) for parts in list_files(path)]
    return LocalData({"train": saved} if isinstance(saved, Dataset) else saved, files)


def _card_names_files(folder: Path) -> bool:
    """Whether the dataset's card says which files are which split, or what their columns are."""
    card = folder / "README.md"
    if not card.is_file():
        return False
    with card.open(encoding="utf-8", errors="replace") as file:
        text = file.read(_MAX_CARD_BYTES)
    if not text.startswith("---"):
        return False
    try:
        header = yaml.safe_load(text.split("---", 2)[1])
    except (yaml.YAMLError, IndexError, RecursionError):
        return False
    if not isinstance(header, dict):
        return False
    configs, facts = header.get("configs"), header.get("dataset_info")
    if any("features" in entry for entry in (facts if isinstance(facts, list) else [facts]) if isinstance(entry, dict)):
        return True
    return isinstance(configs, list) and any(isinstance(entry, dict) and "data_files" in entry for entry in configs)


def _by_builder(dataset: str, config: str | None) -> LocalData:
    """A local folder whose card names its files, or of a kind that `datasets` alone can read."""
    builder = _open(dataset, config, None)
    files = [(split, Path(file)) for split, file in _data_files(builder)]
    _check_files_apart(builder, dataset)
    check_label_orders([file for _, file in files], builder.info.features)
    return LocalData(_prepared(builder, dataset, config), files)


def _prepared(builder: DatasetBuilder, dataset: str, config: str | None) -> DatasetDict:
    with _clear_errors(dataset, config):
        builder.download_and_prepare()
        return builder.as_dataset()  # an empty split raises here


def _open(dataset: str, config: str | None, revision: str | None) -> DatasetBuilder:
    with _clear_errors(dataset, config):
        if not is_local(dataset):
            return load_dataset_builder(dataset, name=config, revision=revision)
        # By default another folder of the same name and card, or the same folder with other files, shares one cache.
        place = str(safe_path(Path(dataset).resolve()))
        builder = load_dataset_builder(place, name=config)
        stamp = _stamp([(split, Path(file)) for split, file in _data_files(builder)])
        return load_dataset_builder(place, name=config, cache_dir=str(cache_folder() / stamp))


@contextmanager
def _clear_errors(dataset: str, config: str | None) -> Iterator[None]:
    try:
        yield
    except TaskVecError:
        raise
    except ConnectionError as error:
        config_argument = f", {config!r}" if config else ""
        raise NotCachedError(
            f"the dataset {dataset!r} is no folder here, it is not in the cache, and the Hub is out of reach. With a "
            f"connection, fetch it by `load_dataset({dataset!r}{config_argument})`, or into a folder by `hf download "
            f"--repo-type dataset {dataset} --local-dir DATA_DIR/NAME` and set HF_TASKVEC_DATA_DIR=DATA_DIR"
        ) from error
    except ValueError as error:
        if config is not None and "BuilderConfig" in str(error):
            raise UnknownNameError(f"configuration of {dataset}", config, get_dataset_config_names(dataset)) from error
        raise DataError(f"the dataset {dataset!r} cannot be loaded: {_told(error)}") from error
    except (OSError, DatasetsError) as error:
        nowhere = "" if is_local(dataset) else "there is no such folder here; as a dataset of the Hub: "
        raise DataError(f"the dataset {dataset!r} cannot be loaded: {nowhere}{_told(error)}") from error


def _told(error: Exception) -> str:
    """An error's text, and the first cause of it."""
    return f"{error}" if error.__cause__ is None else f"{error} ({innermost(error)})"


def _data_files(builder: DatasetBuilder) -> Iterator[tuple[str, str]]:
    for split, files in sorted((builder.config.data_files or {}).items()):
        yield from ((str(split), str(file)) for file in files)


def _fetched_files(builder: DatasetBuilder, dataset: str) -> list[Path]:
    """The tables of a Hub dataset as they lie in the cache; those that are gone from it are told."""
    names = [match.groups() for _, file in _data_files(builder) if (match := _HUB_TABLE.fullmatch(file))]
    cached = [try_to_load_from_cache(repo, path, revision=at, repo_type="dataset") for repo, at, path in names]
    files = [Path(path) for path in cached if isinstance(path, str)]
    if len(files) < len(names):
        told = "%d files of %s are gone from the cache: whether they number their classes alike was not compared"
        logger.warning(told, len(names) - len(files), dataset)
    return files


def _check_files_apart(builder: DatasetBuilder, dataset: str) -> None:
    """Refuses a file that is in two splits: `datasets` goes by words in paths, and so a class may be called `train`."""
    owners: dict[str, str] = {}
    for split, file in _data_files(builder):
        if owners.setdefault(file, split) != split:
            raise DataError(
                f"{file.rpartition('@')[2]} of {dataset} is in the splits {owners[file]!r} and {split!r}, because both "
                "words are in its path; download the dataset and pass its folder, where only folder names count"
            )


def _stamp(files: Sequence[tuple[str, Path]]) -> str:
    """What changes whenever a local file is touched; cheap, unlike `_hash_files`."""
    stats = [(split, str(file.absolute()), file.stat()) for split, file in files]
    facts = [(split, name, stat.st_size, stat.st_mtime_ns) for split, name, stat in stats]
    return xxhash.xxh3_128_hexdigest(repr(facts).encode())


def _hash_files(files: Sequence[tuple[str, Path]], root: Path) -> str:
    """Hashes names of splits, classes and files, and bytes, so that a copy of the folder has the same revision."""
    digest = xxhash.xxh3_128()
    for split, file in files:
        # An image's folder is its label; that of a table says nothing.
        folder = f"{file.parent.name}/" if file.suffix.lower() in IMAGES and file.parent != root else ""
        digest.update(f"{split}/{folder}{file.name}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
