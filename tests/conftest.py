"""Fixtures that every test may use, and a Hub on a loopback port that stands in for the real one."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import HubServer

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread per worker; before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# The Hugging Face libraries read their environment when they are imported, so this comes before any of them.
HUB = HubServer().__enter__()
HOME = tempfile.mkdtemp(prefix="hf-home-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
atexit.register(HUB.store.clear)
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE"):
    os.environ.pop(name, None)
os.environ |= {
    "HF_ENDPOINT": HUB.url,
    "HF_HOME": HOME,
    "HF_HUB_ETAG_TIMEOUT": "2",
    "HF_HUB_DOWNLOAD_TIMEOUT": "2",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
}

from transformers import CLIPModel  # noqa: E402

from tests.helpers import finetuned, tiny_clip  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    # huggingface_hub's own upload of large files, with Xet off, uses an argument that httpx2 deprecates
    config.addinivalue_line("filterwarnings", "ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """The Hub at `HF_ENDPOINT`, empty and well; the tokens are `write-user`, `read-user`, `write-other` and so on."""
    HUB.reset()
    yield HUB
    HUB.reset()


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
