"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPModel

from tests.helpers import finetuned, tiny_clip


@pytest.fixture(scope="session")
def base() -> CLIPModel:
    """A tiny CLIP; never changed by a test."""
    return tiny_clip()


@pytest.fixture(scope="session")
def tuned(base: CLIPModel) -> CLIPModel:
    """The tiny CLIP with a vision tower that has moved."""
    return finetuned(base)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, base: CLIPModel, tuned: CLIPModel) -> tuple[Path, Path]:
    """Folders of the two models; never changed by a test."""
    root = tmp_path_factory.mktemp("checkpoints")
    base.save_pretrained(root / "base")
    tuned.save_pretrained(root / "tuned")
    return root / "base", root / "tuned"
