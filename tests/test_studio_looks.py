"""What the studio's page tells after a move, without a browser: looks that run at once, and slow merges."""

from __future__ import annotations

import asyncio
import importlib.util
from dataclasses import replace
from typing import Any

import pytest

from hf_taskvec.studio.desk import Desk, Turn, Visit
from hf_taskvec.studio.setting import Setting
from tests.bases import colours_task, tiny_base
from tests.test_studio import moved

pytestmark = [
    pytest.mark.slow,  # it imports Gradio
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="the page needs the extra studio"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folders = [tmp_path_factory.mktemp("looks") / str(number) for number in range(2)]
    for number, folder in enumerate(folders):
        moved(number, task="colours").save_pretrained(folder)
    desk = Desk(tiny_base(), [colours_task()], [str(folder) for folder in folders], quick=8, most=30)

    async def build() -> Any:  # where no loop runs, Gradio makes some and leaves them open
        from hf_taskvec.studio.page import _Page

        return _Page(desk)

    return asyncio.run(build())


def move(page: Any, turn: Turn, factor: float, method: str = "task_arithmetic") -> dict[Any, Any]:
    """What the page shows at once after both vectors' sliders were moved."""
    factors, moments = [factor] * len(page.controls.sliders), [0] * len(page.controls.epochs)
    shown: dict[Any, Any] = page._moved(page.desk.first, turn, method, *factors, *moments)
    return shown


def nothing(page: Any) -> dict[Any, Any]:
    """A step that changes nothing: what Gradio shows again at a look's end, which must not be an older setting."""
    return {page.note: {"__type__": "update"}}


def test_an_older_look_ends_where_a_newer_one_or_a_move_begins(page: Any) -> None:
    turn = Turn()
    visits = [move(page, turn, factor)[page.visit] for factor in (0.5, 1.0)]
    older, newer = (page._settled(visit, turn, -1, False) for visit in visits)
    assert next(older)[page.link] == visits[0].setting.link()  # its move was the last when it was due
    assert next(newer)[page.link] == visits[1].setting.link()
    assert list(older) == [nothing(page)]
    visit = move(page, turn, 0.3)[page.visit]
    assert list(newer) == [nothing(page)]
    for click in (page._reset, page._tuned):
        look = page._settled(visit, turn, -1, False)
        next(look)
        list(click(visit, turn))
        assert list(look) == [nothing(page)]
    looks = list(page._settled(visit, turn, -1, False))
    assert (looks[0][page.link], len(looks)) == (visit.setting.link(), 1 + page.desk.all_blocks + 1)
    assert looks[-1] == nothing(page)


def test_a_look_that_ends_before_its_first_step_empties_nothing(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = Turn()
    visit = move(page, turn, 0.5)[page.visit]
    newer, copies = page._settled(visit, turn, -1, False), page._copies

    def meanwhile(visit: Visit) -> dict[Any, Any]:
        monkeypatch.setattr(page, "_copies", copies)
        next(newer)
        return dict(copies(visit))

    monkeypatch.setattr(page, "_copies", meanwhile)
    assert list(page._settled(visit, turn, -1, False)) == [nothing(page)]


def test_the_bars_follow_a_move_that_was_told_to_take_a_while(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = Turn()
    told = move(page, turn, 0.4, "iso_c")
    assert "Merging by iso_c" in told[page.note]
    visit, other = told[page.visit], replace(page.desk.first, setting=Setting((0.0, 1.0), (0, 0), "iso_c"))
    page.desk.bank(visit).delta(visit.setting)  # another visitor's merge shows that it takes no while
    monkeypatch.setattr("hf_taskvec.studio.bank.SLOW", 60.0)
    assert not page.desk.bank(visit).is_slow(visit.setting)
    first = next(page._settled(visit, turn, -1, False))
    assert (first[page.note], "merged now" in first[page.bars]) == ("", True)
    monkeypatch.setattr("hf_taskvec.studio.bank.SLOW", 0.0)
    assert page.desk.bank(other).is_slow(other.setting)
    assert page.note not in next(page._settled(other, turn, -1, False))  # no move told so: a note that stands is left


def test_the_next_look_is_never_left_out(page: Any) -> None:
    looks = [event for event in page.blocks.fns.values() if event.name == "_settled"]
    assert len(looks) == 9
    assert {event.trigger_mode for event in looks} == {"multiple"}
    assert not any(event.cancels for event in page.blocks.fns.values())  # by the listener: it may hit the next look
