"""Tables of images: parquet and Arrow files that hold them, CSV and JSON that name their files."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
from datasets import ClassLabel, Dataset, Features, Image, concatenate_datasets, load_dataset_builder
from datasets.exceptions import DatasetsError
from pyarrow import compute, parquet

from hf_taskvec.errors import DataError
from hf_taskvec.tasks.cache import cache_folder, safe_path
from hf_taskvec.tasks.columns import is_image, is_text, values_of
from hf_taskvec.text import shortened

TABLES = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".json": "json",
}
_FORMATS = (
    "jpg jpeg jpe jfif png apng bmp dib gif tif tiff webp ppm pgm pbm pnm jp2 j2k jpx avif ico tga dds sgi pcx xbm xpm"
)
IMAGES = frozenset(f".{ending}" for ending in _FORMATS.split())
_ENDING = rf"(?i)\.({_FORMATS.replace(' ', '|')})$"


@dataclass(frozen=True)
class TableData:
    """The rows of one split's tables.

    Attributes:
        data: The rows; a column of paths has become one of images.
        images: The path of each row's image, empty if the tables hold the images.
    """

    data: Dataset
    images: Sequence[str] = ()

    @property
    def has_images(self) -> bool:
        """Whether a column holds images."""
        return any(is_image(feature) for feature in self.data.features.values())


def read_table(files: Sequence[Path], places: Iterable[Path]) -> TableData:
    """Reads the tables of one split.

    Args:
        files: The tables, of one kind.
        places: Folders that the paths in them may start from, besides each table's own.

    Raises:
        DataError: If a table cannot be read, or if its files do not agree about their classes.
    """
    kind = TABLES[files[0].suffix.lower()]
    check_label_orders(files)
    if kind in ("parquet", "arrow"):
        return TableData(_load(kind, files))
    tables = []
    for file in files:
        data = _load(kind, [file])
        if kind == "csv":
            _check_header(file, data.column_names)
        tables.append(_with_images(data, [file.parent, *places]))
    if len(tables) == 1:
        return tables[0]
    with _told(files[0]):
        data = concatenate_datasets([table.data for table in tables])
    return TableData(data, [path for table in tables for path in table.images])


def check_label_orders(files: Sequence[Path], card: Features | None = None) -> None:
    """Raises a `DataError` if parquet or Arrow files, or their dataset's card, number one column's classes differently.

    `datasets` takes the names of the card, or of the first file, for all of them. A card may call classes otherwise,
    but not by the name of another class.

    Args:
        files: The files; those of another kind carry no names.
        card: The columns as the dataset's card describes them.
    """
    first: dict[str, tuple[Path, list[str]]] = {}
    told = {name: feature.names for name, feature in (card or {}).items() if isinstance(feature, ClassLabel)}
    for file in files:
        for column, names in _class_labels(file).items():
            other, known = first.setdefault(column, (file, names))
            if names != known:
                raise _numbered_differently(column, file, names, other, known)
            carded = told.get(column) or names
            if any(ours != theirs and theirs in names for ours, theirs in zip(names, carded, strict=False)):
                raise _numbered_differently(column, file, names, None, carded)


def _numbered_differently(
    column: str, file: Path, there: Sequence[str], source: Path | None, here: Sequence[str]
) -> DataError:
    one, other = file.name, "the card" if source is None else source.name
    if source is not None and one == other:
        one, other = (f"{path.parent.name}/{path.name}" for path in (file, source))
    row = next(row for row, (a, b) in enumerate(zip_longest(there, here)) if a != b)
    return DataError(
        f"{one} and {other} number the classes of column {column!r} differently: class {row} is "
        f"{dict(enumerate(there)).get(row)!r} there and {dict(enumerate(here)).get(row)!r} here; write them with one "
        "ClassLabel (Dataset.cast_column)"
    )


def _class_labels(file: Path) -> dict[str, list[str]]:
    """The class names in the own metadata of a parquet or Arrow file, by column."""
    try:
        metadata = _schema(file).metadata or {}
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return {
            column: list(feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and isinstance(feature.get("names"), list)
        }
    except (OSError, ValueError, AttributeError, pa.ArrowException):
        return {}  # the reader says what is wrong with the file


def _schema(file: Path) -> pa.Schema:
    if file.suffix.lower() == ".parquet":
        return parquet.read_schema(file)
    if file.suffix.lower() != ".arrow":
        return pa.schema([])
    with pa.memory_map(str(file)) as source:
        try:
            return pa.ipc.open_stream(source).schema
        except pa.ArrowInvalid:
            return pa.ipc.open_file(source).schema


def _load(kind: str, files: Sequence[Path]) -> Dataset:
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    cache = cache_folder() / xxhash.xxh3_128_hexdigest(repr(facts).encode())
    settings: dict[str, Any] = {"sep": "\t"} if files[0].suffix.lower() == ".tsv" else {}
    with _told(files[0]):
        escaped = [glob.escape(str(safe_path(file.absolute()))) for file in files]
        builder = load_dataset_builder(kind, data_files={"train": escaped}, cache_dir=str(cache), **settings)
        builder.download_and_prepare()
        return builder.as_dataset(split="train")


def _check_header(file: Path, columns: Sequence[str]) -> None:
    """Raises a `DataError` if the first line of a CSV holds no names of columns, or if other signs part its columns."""
    entry = next((column for column in columns if re.search(_ENDING, column)), None)
    if entry is not None:
        raise DataError(
            f"{file} begins with the row of {entry[:100]!r}, where the names of its columns belong; "
            "write a first line such as file_name,label"
        )
    if len(columns) == 1 and (sign := next((sign for sign in ";|\t" if sign in columns[0]), None)):
        raise DataError(
            f"{file} parts its columns by {sign!r} ({columns[0][:100]!r} reads as one column); write it with commas, "
            "or with tabs as .tsv"
        )


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Turns what reading a table raises into a `DataError` with the innermost cause."""
    try:
        yield
    except (OSError, ValueError, TypeError, LookupError, DatasetsError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read as a table of images: {innermost(error)}") from error


def innermost(error: BaseException) -> str:
    """What the first of a chain of errors says.

    Example:
        >>> innermost(ValueError("no such column"))
        'ValueError: no such column'
    """
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return shortened(f"{type(error).__name__}: {error}", 250)


def _with_images(data: Dataset, places: Sequence[Path]) -> TableData:
    """The column that names image files, as images."""
    for column, feature in data.features.items():
        if not is_text(feature):
            continue
        values = values_of(data, column)
        matches = compute.match_substring_regex(values, _ENDING)
        if values.null_count < len(values) and compute.all(matches, skip_nulls=True).as_py():
            paths = _paths(values.to_pylist(), places)
            return TableData(_replaced(data, column, paths), [path or "" for path in paths])
    return TableData(data)


def _paths(names: Sequence[str | None], places: Sequence[Path]) -> list[str | None]:
    """The files, below the first place in which one of the first few lies."""
    first = [name for name in names if name][:20]
    fitting = (place for place in dict.fromkeys(places) if any(os.path.isfile(place / name) for name in first))
    place = next(fitting, places[0])
    return [str(place / name) if name else None for name in names]


def _replaced(data: Dataset, column: str, paths: Sequence[str | None]) -> Dataset:
    name = "image" if column == "file_name" and "image" not in data.column_names else column
    images = Dataset.from_dict({name: list(paths)}, features=Features({name: Image()}))
    others = data.remove_columns(column)
    return concatenate_datasets([images, others], axis=1) if others.column_names else images
