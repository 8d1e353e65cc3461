"""The studio's page in a real browser (slow), and its desk and drawings without one."""

from __future__ import annotations

import html
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import torch

from hf_taskvec import TaskVector
from hf_taskvec.command.app import app
from hf_taskvec.command.studio import StudioSettings, desk_of
from hf_taskvec.editing import analogy, transport
from hf_taskvec.errors import BaseMismatchError, DataError, TaskVecError
from hf_taskvec.multitask import pack
from hf_taskvec.studio import Bank, Lever, Moment
from hf_taskvec.studio.board import Bar, Board, ClassLogits
from hf_taskvec.studio.desk import GESTURE, Desk
from hf_taskvec.studio.drawing import drawn_board, drawn_heat, drawn_logits, drawn_note
from hf_taskvec.studio.edits import analogy_lever
from hf_taskvec.studio.setting import Analogy, Setting, added_of
from hf_taskvec.studio.words import added_note, copied
from tests.bases import colours_task, save_colour_dataset, save_tiny_base, tiny_base
from tests.helpers import equal_vectors
from tests.hub_server import HubServer
from tests.test_command import call, refusal
from tests.test_studio import moved, save_foreign

HOSTILE = "<img src=x onerror=alert(1)>\u202e\x1b[2J|birds"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("desk")
    for number, task in enumerate(("colours", "shades")):
        moved(number, task=task).save_pretrained(root / task)
    return [str(root / "colours"), str(root / "shades")]


@pytest.fixture(scope="module")
def desk(sources: list[str]) -> Desk:
    return Desk(tiny_base(), [colours_task()], sources, quick=8, most=30)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_foreign(tmp_path_factory.mktemp("foreign") / "vector")


# -- the desk ---------------------------------------------------------------------------------------------------------


def test_moves_of_one_gesture_are_compared_with_where_it_began(desk: Desk) -> None:
    visit, settings = desk.first, [Setting((factor, 0.3), (0, 0)) for factor in (0.4, 0.5, 0.6)]
    for at, setting in enumerate(settings):
        visit = desk.moved(visit, setting, at=100 + 0.5 * at)
    assert visit.last == desk.first.setting
    later = desk.moved(visit, replace(settings[0], method="ties"), at=102 + GESTURE)
    assert later.last == settings[-1]
    assert desk.moved(later, later.setting, at=999) is later
    assert desk.board(later).change is not None


def test_tuning_moves_the_sliders_to_what_validation_images_choose(desk: Desk) -> None:
    visits = [visit for visit, _ in desk.tuned(desk.first)]
    assert len(visits) == 2
    assert visits[0].setting.factors[0] == visits[0].setting.factors[1]
    assert all(visit.last == desk.first.setting for visit in visits)
    (ties,) = (
        visit for visit, _ in desk.tuned(replace(desk.first, setting=replace(desk.first.setting, method="ties")))
    )
    assert ties.setting.method == "ties"


def test_a_task_without_a_vector_is_a_control(sources: list[str]) -> None:
    desk = Desk(tiny_base(), [colours_task()], [sources[1]], quick=8, most=8)
    assert [bar.control for bar in desk.board(desk.first).bars] == [True]
    with pytest.raises(DataError, match="nothing to tune for"):
        next(desk.tuned(desk.first))


def test_strangers_open_no_folder_and_publish_nothing(sources: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tiny_base(), [colours_task()], sources, quick=8, most=8, public=True)
    folder = Path(sources[0])
    monkeypatch.chdir(folder.parents[1])
    inside = f"{folder.parent.name}/{folder.name}"  # of the form of a Hub id
    for source in (sources[0], "/etc", "", "~", inside, f"{inside}@main"):
        with pytest.raises(DataError, match="is no Hub id"):
            desk.with_vector(desk.first, source)
    with pytest.raises(DataError, match="on your own machine"):
        desk.push(desk.first, "user/mine")


def test_a_vector_is_added_once_it_fits_and_two_at_most(desk: Desk, sources: list[str], tmp_path: Path) -> None:
    TaskVector({"w": torch.ones(2)}).save_pretrained(tmp_path / "other")
    with pytest.raises(TaskVecError):
        desk.with_vector(desk.first, str(tmp_path / "other"))
    longer = desk.with_vector(desk.with_vector(desk.first, sources[0]), sources[1])
    assert longer.setting.factors == (0.3,) * 4
    assert len(desk.board(longer).bars) == 1
    with pytest.raises(DataError, match="2 vectors were added already"):
        desk.with_vector(longer, sources[0])


def test_several_tasks_that_are_added_leave_the_sum_as_it_is(desk: Desk, sources: list[str], tmp_path: Path) -> None:
    pack(sources, "twin", output_dir=tmp_path / "twin")
    longer = desk.with_vector(desk.first, str(tmp_path / "twin"))
    assert longer.setting.factors == (0.3, 0.3, 0.0, 0.0)
    assert len(longer.setting.moments) == 4
    again, notes = desk.entered({"factors": ["0.3,0.3"]})
    assert (again.setting, notes) == (desk.first.setting, [])


def test_an_analogy_of_vectors_at_the_desk_has_a_slider(desk: Desk) -> None:
    longer = desk.with_vector(desk.first, Analogy(0, 1, 1, 0.5).source)
    bank, (a, b) = desk.bank(longer), (lever.vector for lever in desk.home.levers)
    assert equal_vectors(bank.levers[2].vector, analogy(a, b, b, factor=0.5))
    assert bank.levers[2].name == "shades + 0.5 (shades − colours)"
    alone = replace(longer.setting, factors=(0.0, 0.0, 1.0))
    names: dict[str, Any] = {}
    exec(copied(bank, alone, tiny_base().name)[0].rsplit("\n", 1)[0], names)
    assert equal_vectors(names["merged"], bank.merged(alone))
    again, notes = desk.entered(parse_qs(longer.setting.link(longer.added).removeprefix("?")))
    assert (again.setting, again.added, notes) == (longer.setting, longer.added, [])
    for wrong in (Analogy(0, 0, 1), Analogy(0, 1, 2)):
        with pytest.raises(DataError, match="out of the 2 under the sliders"):
            desk.with_vector(desk.first, wrong.source)


def test_an_analogy_across_bases_is_refused_by_name(desk: Desk, foreign: str) -> None:
    stranger = Lever("stranger", (Moment("end", foreign, TaskVector.from_pretrained(foreign)),))
    with pytest.raises(BaseMismatchError, match="colours"):
        analogy_lever(Analogy(0, 2, 1), [*desk.home.levers, stranger])


def test_a_vector_of_another_base_is_brought_here(desk: Desk, foreign: str, tmp_path: Path) -> None:
    with pytest.raises(BaseMismatchError):
        desk.with_vector(desk.first, foreign)
    bank = desk.bank(desk.with_vector(desk.first, f"gradfix:{foreign}"))
    vector = TaskVector.from_pretrained(foreign)
    assert equal_vectors(bank.levers[2].vector, transport(vector, to=tiny_base(), tasks=colours_task()))
    info = bank.levers[2].vector.info
    assert (info.base, (info.transport or {})["base"]) == (tiny_base().name, "user/elsewhere")
    told = added_note(bank.levers[2:])
    assert "colours by gradfix was brought here from user/elsewhere by 2 images a class of colours" in told
    assert "method='gradfix', tasks=['colours']" in str(bank.levers[2].moments[0].code)
    TaskVector(vector.deltas, replace(vector.info, task="ships")).save_pretrained(tmp_path / "ships")
    with pytest.raises(DataError, match="of ships, which has no bar here: start with --tasks"):
        desk.with_vector(desk.first, f"gradfix:{tmp_path / 'ships'}")


def test_strangers_and_links_bring_vectors_only_by_what_opens_no_other_base(sources: list[str]) -> None:
    desk = Desk(tiny_base(), [colours_task()], sources, quick=8, most=8, public=True)
    assert desk.ways == ["gradfix"]
    with pytest.raises(DataError, match="theseus opens another base: take gradfix"):
        desk.with_vector(desk.first, "theseus:user/birds")
    with pytest.raises(DataError, match="is no Hub id"):
        desk.with_vector(desk.first, "gradfix:/etc")
    links = {
        "add": ["theseus:user/birds", "gradfix:/etc", "analogy:0,1,x,1", "gradfix:user/birds", "analogy:0,1,0,-0.5"]
    }
    assert added_of(links) == ["gradfix:user/birds", "analogy:0,1,0,-0.5"]


def test_only_vectors_whose_tasks_have_a_bar_are_told_to_disturb_each_other(desk: Desk, sources: list[str]) -> None:
    names, changed = desk.entangled(desk.first)
    assert (names, changed.tolist()) == (["colours"], [[0.0]])
    longer = desk.with_vector(desk.first, sources[0])
    names, changed = desk.entangled(replace(longer, setting=replace(longer.setting, factors=(1.0, 0.3, -1.0))))
    assert names == ["colours", "colours (2)"]
    assert changed.diagonal().tolist() == [0.0, 0.0]
    assert changed[0, 1] > 0  # it takes the task away again


def test_the_doctor_speaks_in_words(desk: Desk) -> None:
    long = replace(desk.home.levers[0].moments[0], vector=5 * desk.home.levers[0].vector)
    other = Bank([replace(desk.home.levers[0], moments=(long,)), desk.home.levers[1]])
    told = [" ".join(desk.findings(replace(desk.first, added=()))), ""]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(desk, "home", other)
        told[1] = " ".join(desk.findings(desk.first))
    assert "times as long as the others" in told[1]
    assert "times as long as the others" not in told[0]


def test_a_push_brings_card_and_report(hub: HubServer, sources: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "write-user")
    hub.store.create("model", "user/base")
    desk = Desk(tiny_base(), [colours_task()], sources, quick=8, most=30, base_name="user/base")
    assert "/user/mine/commit/" in desk.push(desk.first, "user/mine")
    files = hub.store.get("model", "user/mine").head.files
    assert {"README.md", "report.json", "task_vector.safetensors", "task_vector_config.json"} <= set(files)


# -- drawings ---------------------------------------------------------------------------------------------------------


def test_names_of_others_are_harmless_in_every_drawing() -> None:
    bar = Bar(HOSTILE, 0.2, 0.4, 0.9, 64, False)
    pictures = [
        drawn_board(Board((bar, replace(bar, control=True, expert=None)))),
        drawn_logits([ClassLogits(HOSTILE, 1.0, 2.0, True)], task=HOSTILE),
        drawn_heat(torch.eye(1), [HOSTILE], title=HOSTILE),
        drawn_note([HOSTILE]),
        drawn_note([], link=f"https://hub/{HOSTILE}"),
    ]
    for picture in pictures:
        assert "<img" not in picture
        assert not {"\u202e", "\x1b"} & set(picture)
        assert html.escape("<img src=x") in picture


def test_only_an_address_becomes_a_link() -> None:
    assert 'href="https://hub/a%22b"' in drawn_note(["there:"], link='https://hub/a"b')
    assert "href" not in drawn_note(["there:"], link="javascript:alert(1)")


def test_the_bars_are_as_long_as_they_say() -> None:
    drawn = drawn_board(Board((Bar("birds", 0.25, 0.5, 0.75, 64, False),)))
    assert "width:50.00%" in drawn
    assert drawn.count("left:25.00%") == drawn.count("left:75.00%") == 1
    assert "birds: base 25.0, merged now 50.0, expert 75.0 percent" in drawn
    assert "+25.0" in drawn


# -- the verb ---------------------------------------------------------------------------------------------------------


def test_the_studio_without_gradio_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "hf_taskvec.studio.page", raising=False)
    assert 'pip install "hf-taskvec[studio]"' in refusal("studio")


def test_nothing_else_needs_gradio() -> None:
    code = "import sys; import hf_taskvec.studio.desk, hf_taskvec.command.studio; print('gradio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_verb_takes_its_tasks_from_the_vectors(sources: list[str], tmp_path: Path) -> None:
    save_tiny_base(tmp_path / "base")
    for task in ("colours", "shades"):
        save_colour_dataset(tmp_path / "data" / task)
    pack(sources, "tall_masks", output_dir=tmp_path / "packed")
    own = {"base": str(tmp_path / "base"), "data_dir": str(tmp_path / "data"), "images": 4}
    desk = desk_of(StudioSettings(vectors=[str(tmp_path / "packed")], **own))
    assert [bar.task for bar in desk.board(desk.first).bars] == ["colours", "shades"]
    assert None not in desk.experts(desk.first)
    silent = moved(5)
    silent.save_pretrained(tmp_path / "silent")
    with pytest.raises(DataError, match="name them with --tasks"):
        desk_of(StudioSettings(vectors=[str(tmp_path / "silent")], base=own["base"]))
    assert call("studio", "--help").exit_code == 0
    assert app is not None
