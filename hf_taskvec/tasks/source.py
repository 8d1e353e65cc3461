"""Where a task's images come from: the Hub, a local folder or the package itself. Every failure has a clear error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import xxhash
from datasets import DatasetBuilder, DatasetDict, get_dataset_config_names, load_dataset_builder
from datasets.exceptions import DatasetsError

from hf_taskvec.errors import DataError, NotCachedError, UnknownNameError
from hf_taskvec.tasks.mini import BUILTIN, builtin_splits

BUILTIN_PREFIX = "builtin:"
_BUILTIN_REVISION = "1"  # to be raised with any change to the images of a builtin dataset


def load_source(dataset: str, config: str | None = None, revision: str | None = None) -> DatasetDict:
    """Downloads what is not cached and gives every split of a dataset, memory-mapped.

    Args:
        dataset: Hub id, local folder, or `builtin:<name>`.
        config: Configuration of the dataset.
        revision: Branch, tag or commit on the Hub.

    Returns:
        The splits by name.

    Raises:
        NotCachedError: If the Hub is out of reach and the cache has no copy.
        DataError: If there is no such dataset or it cannot be read.
        UnknownNameError: If the dataset has no such configuration.
    """
    if dataset.startswith(BUILTIN_PREFIX):
        return builtin_splits(_builtin_name(dataset))
    builder = _open(dataset, config, revision)
    with _clear_errors(dataset, config):
        builder.download_and_prepare()
        source = builder.as_dataset()  # an empty split raises here
    if not _is_local(dataset):
        return source
    # The fingerprint of a local dataset knows its card but not its files; caches keyed by it would go stale.
    stamp = _stamp(builder)
    marks = {split: xxhash.xxh3_64_hexdigest(f"{stamp}/{split}".encode()) for split in source}
    return DatasetDict(
        {split: data.select_columns(data.column_names, new_fingerprint=marks[split]) for split, data in source.items()}
    )


def source_revision(dataset: str, config: str | None = None, revision: str | None = None) -> str | None:
    """What identifies the data itself: the commit on the Hub, or a hash of a local folder's data files."""
    if dataset.startswith(BUILTIN_PREFIX):
        return _BUILTIN_REVISION
    builder = _open(dataset, config, revision)
    return _hash_files(builder) if _is_local(dataset) else builder.hash or revision


def config_names(folder: Path) -> list[str]:
    """The configurations of a dataset in a local folder."""
    with _clear_errors(str(folder), None):
        names: list[str] = get_dataset_config_names(str(folder))
        return names


def _builtin_name(dataset: str) -> str:
    name = dataset.removeprefix(BUILTIN_PREFIX)
    if name not in BUILTIN:
        raise UnknownNameError("builtin dataset", name, BUILTIN)
    return name


def _open(dataset: str, config: str | None, revision: str | None) -> DatasetBuilder:
    with _clear_errors(dataset, config):
        builder = load_dataset_builder(dataset, name=config, revision=revision)
        if not _is_local(dataset):
            return builder
        # By default another folder of the same name and card, or the same folder with other files, shares one cache.
        cache = Path(datasets.config.HF_DATASETS_CACHE) / "hf_taskvec" / _stamp(builder)
        return load_dataset_builder(dataset, name=config, cache_dir=str(cache))


def _is_local(dataset: str) -> bool:
    return Path(dataset).is_dir()


@contextmanager
def _clear_errors(dataset: str, config: str | None) -> Iterator[None]:
    try:
        yield
    except ConnectionError as error:
        config_argument = f", {config!r}" if config else ""
        raise NotCachedError(
            f"the dataset {dataset!r} is not in the cache and the Hub is out of reach. With a connection, fetch it by "
            f"`load_dataset({dataset!r}{config_argument})`, or into a folder by `hf download --repo-type dataset "
            f"{dataset} --local-dir DATA_DIR/NAME` and set HF_TASKVEC_DATA_DIR=DATA_DIR"
        ) from error
    except ValueError as error:
        if config is not None and "BuilderConfig" in str(error):
            raise UnknownNameError(f"configuration of {dataset}", config, get_dataset_config_names(dataset)) from error
        raise DataError(f"the dataset {dataset!r} cannot be loaded: {error}") from error
    except (FileNotFoundError, DatasetsError) as error:
        raise DataError(f"the dataset {dataset!r} cannot be loaded: {error}") from error


def _data_files(builder: DatasetBuilder) -> Iterator[tuple[str, Path]]:
    for split, files in sorted((builder.config.data_files or {}).items()):
        yield from ((split, Path(file)) for file in files)


def _stamp(builder: DatasetBuilder) -> str:
    """What changes whenever a local file is touched; cheap, unlike `_hash_files`."""
    stats = [(split, str(file.resolve()), file.stat()) for split, file in _data_files(builder)]
    facts = [(split, name, stat.st_size, stat.st_mtime_ns) for split, name, stat in stats]
    return xxhash.xxh3_128_hexdigest(repr(facts).encode())


def _hash_files(builder: DatasetBuilder) -> str:
    """Hashes split names, file names and bytes, so that a copy of the folder has the same revision."""
    digest = xxhash.xxh3_128()
    for split, file in _data_files(builder):
        digest.update(f"{split}/{file.name}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
