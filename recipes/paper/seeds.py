"""The folders of vectors that `quickstart.py` leaves, one for each seed."""

from __future__ import annotations

from pathlib import Path

from hf_taskvec.errors import DataError


def seed_folders(folder: str | Path) -> list[Path]:
    """The folders of all seeds, by number.

    Raises:
        DataError: If there is none.
    """
    folders = [path for path in Path(folder).glob("seed-*") if path.name.removeprefix("seed-").isdecimal()]
    if not folders:
        raise DataError(f"{folder} holds no folder seed-N of quickstart.py")
    return sorted(folders, key=seed_of)


def seed_of(folder: Path) -> int:
    """The seed whose vectors a folder holds."""
    return int(folder.name.removeprefix("seed-"))
