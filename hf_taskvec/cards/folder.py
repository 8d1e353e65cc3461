"""The card of a folder, rendered from the configuration and the report in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jinja2 import TemplateError

from hf_taskvec.cards.find import epochs_of
from hf_taskvec.cards.render import render_base_card, render_model_card, render_vector_card
from hf_taskvec.errors import CheckpointError, TaskVecError
from hf_taskvec.evaluation.report import Report
from hf_taskvec.merging.run import as_scaling
from hf_taskvec.models.layouts import APPLIED_NAME
from hf_taskvec.vectors.files import CONFIG_NAME, read_info
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.weights.folders import read_json

CARD_NAME = "README.md"
REPORT_NAME = "report.json"
PICTURE_NAME = "scaling.png"
BASE_CONFIG_NAME = "config.json"


def render_folder_card(folder: Path, *, repo_id: str) -> str:
    """The card that a folder must have: of a task vector, of a checkpoint one was added to, or of a base.

    Raises:
        CheckpointError: If the folder holds the configuration of none of them.

    Example:
        >>> from tempfile import mkdtemp
        >>> import torch
        >>> from hf_taskvec import TaskVector
        >>> folder = Path(mkdtemp()) / "vector"
        >>> TaskVector({"w": torch.ones(2)}, VectorInfo(task="digits")).save_pretrained(folder)
        >>> "digits" in render_folder_card(folder, repo_id="user/digits")
        True
    """
    report = Report.load(folder / REPORT_NAME) if (folder / REPORT_NAME).is_file() else None
    if (folder / CONFIG_NAME).is_file():
        epochs = epochs_of(path.name for path in folder.iterdir() if path.is_dir())
        picture = PICTURE_NAME if (folder / PICTURE_NAME).is_file() else None
        return render_vector_card(read_info(folder), report, repo_id=repo_id, epochs=epochs, picture=picture)
    if (folder / APPLIED_NAME).is_file():
        applied = read_json(folder / APPLIED_NAME)
        with _shown(folder / APPLIED_NAME):
            info, scaling = VectorInfo.from_dict(applied["vector"]), as_scaling(applied["scaling"])
            return render_model_card(info, report, repo_id=repo_id, scaling=scaling)
    if (folder / BASE_CONFIG_NAME).is_file():
        config = read_json(folder / BASE_CONFIG_NAME)
        with _shown(folder / BASE_CONFIG_NAME):
            return render_base_card(config, report, repo_id=repo_id)
    raise CheckpointError(f"{folder} has neither {CONFIG_NAME} nor {APPLIED_NAME} nor {BASE_CONFIG_NAME}")


@contextmanager
def _shown(path: Path) -> Iterator[None]:
    """Raises a `CheckpointError` where a file does not hold what a card shows of it."""
    try:
        yield
    except TaskVecError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, TemplateError) as error:
        raise CheckpointError(f"{path} does not hold what a card shows: {type(error).__name__}: {error}") from None
