"""Where a task's data are kept between runs; a place that cannot be written to costs time, never the run."""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import datasets
import xxhash

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The package's folder in the cache of `datasets`, or one of this process alone where that cannot be written."""
    return _writable(str(Path(datasets.config.HF_DATASETS_CACHE) / "hf_taskvec"))


@cache
def _writable(path: str) -> Path:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return Path(path)
    except OSError as error:
        logger.warning("%s cannot be written (%s): what is read and resized is kept for this process only", path, error)
    folder = tempfile.mkdtemp(prefix="hf_taskvec-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def safe_path(path: Path) -> Path:
    """The path, or a link to it where its characters would be read as a pattern or as a chain of addresses."""
    text = str(path)
    if text.isprintable() and not any(sign in text for sign in ("*", "?", "[", "]", "{", "::", "://")):
        return path
    ending = path.suffix if path.is_file() else ""
    link = cache_folder() / "links" / (xxhash.xxh3_128_hexdigest(text.encode()) + ending)
    link.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        link.symlink_to(path)
    return link
