"""`studio`: a page on which sliders merge vectors and bars tell what that does."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from hf_taskvec.command.outcome import Outcome
from hf_taskvec.command.verbs import Verb
from hf_taskvec.errors import DataError, check_positive
from hf_taskvec.fields import arg

if TYPE_CHECKING:
    from hf_taskvec.studio.desk import Desk


@dataclass
class StudioSettings:
    """What stands in the studio, and where it is served."""

    vectors: list[str] = arg(
        "Hub ids or folders of vectors, series of epochs, LoRA adapters or packed tasks; eight small vectors that come "
        "with the package if left out.",
        default=[],
    )
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    tasks: list[str] = arg("Tasks or suites with a bar; the vectors' own if left out.", default=[])
    control: list[str] = arg("Tasks that merging should not harm.", default=[])
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    images: int = arg("Test images per task that every move is measured on.", default=64)
    most_images: int = arg("Test images per task at most, for the refinement after it.", default=400)
    base_name: str | None = arg(
        "Hub id of the base, where the vectors know only a folder of it, to publish.", default=None
    )
    host: str = arg("Address to serve on; 0.0.0.0 lets others in.", default="127.0.0.1")
    port: int | None = arg("Port; a free one if left out.", default=None)
    browser: bool = arg("Open a browser.", default=False)


def desk_of(settings: StudioSettings) -> Desk:
    """What the studio is to show.

    Raises:
        DataError: If the vectors do not tell their tasks, and none is named.
    """
    from hf_taskvec.cards.metadata import task_names
    from hf_taskvec.models.base import load_base
    from hf_taskvec.studio.desk import Desk
    from hf_taskvec.studio.opening import open_levers
    from hf_taskvec.tasks.registry import get_tasks

    check_positive("images", settings.images)
    check_positive("most_images", settings.most_images)
    typer.echo("Opening vectors and test images …", err=True)
    names, control, base = list(settings.tasks), list(settings.control), load_base(settings.base)
    if not settings.vectors and not names:
        names = ["studio"]
    elif not names:
        levers = [lever for source in settings.vectors for lever in open_levers(base, source)]
        names = list(dict.fromkeys(name for lever in levers for name in task_names(lever.vector.info)))
    if not names:
        raise DataError("the vectors do not tell their tasks; name them with --tasks")
    tasks = get_tasks([*names, *(name for name in control if name not in names)], data_dir=settings.data_dir)
    return Desk(
        base,
        tasks,
        settings.vectors,
        quick=settings.images,
        most=settings.most_images,
        public=settings.host not in ("127.0.0.1", "localhost", "::1"),
        base_name=settings.base_name,
    )


def studio(settings: StudioSettings) -> Outcome:
    """Serves the studio until Ctrl-C."""
    try:
        from hf_taskvec.studio.page import serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise DataError('the studio needs Gradio: pip install "hf-taskvec[studio]"') from None
    page, url = serve(
        desk_of(settings), server_name=settings.host, server_port=settings.port, inbrowser=settings.browser
    )
    typer.echo(f"The studio is at {url}; Ctrl-C closes it.", err=True)
    try:
        threading.Event().wait()
    finally:
        page.close()
    return Outcome({"url": url}, url, [url])


VERBS = [
    Verb(
        "studio",
        "Serves a page: sliders merge, bars tell at once.\n\n"
        "Without vectors, eight small ones on the embedded base; nothing is fetched.",
        StudioSettings,
        studio,
        ["hf-taskvec studio", "hf-taskvec studio out/digits/vector user/birds --control shapes --port 7860"],
        positional=["vectors"],
        stopped="The studio is closed; the link in the browser's address restores its sliders.",
    ),
]
