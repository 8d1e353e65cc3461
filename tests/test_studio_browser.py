"""The studio's page in a real browser: every control, narrow screens, the keyboard, two visitors, hostile names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_taskvec.multitask import pack
from tests.bases import save_colour_dataset, save_tiny_base
from tests.test_studio import moved, save_foreign

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytest.importorskip("gradio", reason="the page needs the extra studio")
playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser: pip install playwright")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]
HOSTILE = "<img src=x onerror=alert(1)>"
PATIENCE = 120_000  # milliseconds, on a machine that is busy
START = [sys.executable, "-c", "from hf_taskvec.command.app import main; main()"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page as the command serves it, on a tiny base; the second of its vectors is of a hostile task."""
    root = tmp_path_factory.mktemp("browser")
    save_tiny_base(root / "base")
    for number, task in enumerate(("colours", HOSTILE)):
        save_colour_dataset(root / "data" / task, train=30, test=24, seed=number)
        moved(number, task=task, epochs=2.0).save_pretrained(root / str(number) / "vector")
    moved(7, task="colours", epochs=1.0).save_pretrained(root / "0" / "vectors" / "epoch-1")
    for epochs in (1.0, 2.0):
        moved(5, task="more", epochs=epochs).save_pretrained(root / "more" / f"epoch-{epochs:g}")
    save_foreign(root / "foreign")
    pack({name: moved(6) for name in ("this", "that")}, "emr", output_dir=root / "packed")
    words = ["studio", "0/vector", "1/vector", "--base", "base", "--data-dir", "data", "--images", "8"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen([*START, *words], cwd=root, env=environment, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = next((line for line in server.stderr if "The studio is at" in line), "")
        assert line, server.wait()
        yield line.split(" at ")[1].split(";")[0]
        server.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    with visit(browser, address) as opened:
        yield opened


class visit:  # noqa: N801 (it reads as a verb)
    """A visitor of his own, who notes what goes wrong and what leaves the machine."""

    def __init__(self, browser: Any, address: str, **screen: int) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900, **screen})
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self._look(request.url))
        self.page.set_default_timeout(PATIENCE)
        self.page.goto(address)
        self.page.wait_for_selector("#bars .tv-row")
        self.page.wait_for_function("location.search.includes('factors=')")

    def _look(self, url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.wrong.append(f"a request to {url}")

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *error: object) -> None:
        self.context.close()
        assert self.wrong == []


def factor(page: Any, number: int = 0) -> Any:
    return page.locator(f"#factor-{number} input[type=number]")


def move(page: Any, number: int, value: float) -> None:
    """Types a factor, and waits until the address tells it."""
    factor(page, number).fill(f"{value:g}")
    factor(page, number).press("Enter")
    wanted = json.dumps(f"{value:g}")
    page.wait_for_function(f"new URLSearchParams(location.search).get('factors').split(',')[{number}] === {wanted}")


def add(page: Any, source: str) -> None:
    page.locator("#source textarea, #source input").first.fill(source)
    page.locator("#add").click()


def bars(page: Any) -> str:
    return str(page.locator("#bars").inner_text())


def shows(page: Any, place: str, text: str) -> None:
    page.locator(place, has_text=text).first.wait_for()


def test_every_control_does_what_it_says(page: Any, address: str) -> None:
    move(page, 0, 0.5)
    page.locator("#flips button").first.wait_for()
    page.locator("#flips button").first.click()
    shows(page, "#logits", "Logits of this image")
    before = bars(page)
    move(page, 0, 2.0)
    shows(page, "#bars", "Against the last setting")
    assert bars(page) != before
    page.locator("#moment-0 input[type=number]").fill("0")
    page.locator("#moment-0 input[type=number]").press("Enter")
    shows(page, "#moment-0", "colours: epoch 1 of 2")
    page.wait_for_function("location.search.includes('moments=0,0')")
    page.locator("#method input").click()
    page.get_by_role("option", name="ties", exact=True).click()
    page.wait_for_function("location.search.includes('method=ties')")
    shows(page, "#bars", "24 test images a task.")
    page.get_by_role("tab", name="How alike the vectors are").click()
    assert page.locator("#cosines td").count() == page.locator("#conflicts td").count() == 5
    shows(page, "#entangled", "needs two vectors whose tasks have a bar")
    move(page, 0, 1.0)
    shows(page, "#entangled", "needs two vectors whose tasks have a bar")
    page.get_by_role("tab", name="Copy").click()
    shows(page, "#python", "merge(vectors")
    shows(page, "#yaml", "method: ties")
    page.wait_for_function("document.querySelector('#link textarea, #link input').value === location.href")
    assert page.url.startswith(address + "?method=ties")
    page.locator("#tune").click()
    shows(page, "#note", "Chosen on validation images")
    page.locator("#reset").click()
    page.wait_for_function("location.search.includes('factors=0,0&')")
    shows(page, "#yaml", "every slider stands at 0")
    page.get_by_role("tab", name="Add and publish").click()
    add(page, "nowhere/at-all")
    page.locator("#note .tv-bad").wait_for()
    add(page, "more")
    shows(page, "#note", "more is of this base")
    shows(page, "#added-0", "more")
    page.locator("#added-moment-0 input[type=number]").fill("0")
    page.locator("#added-moment-0 input[type=number]").press("Enter")
    shows(page, "#added-moment-0", "more: epoch 1 of 2")
    page.wait_for_function("new URLSearchParams(location.search).get('moments').endsWith(',0')")
    add(page, "packed")
    shows(page, "#note", "2 vectors of this base (this, that)")
    shows(page, "#added-2", "that")
    add(page, "more")
    shows(page, "#note", "2 vectors were added already")
    page.locator("#push").click()
    shows(page, "#note", "name a repository")


def test_a_vector_of_another_base_is_brought_here_and_an_analogy_is_made_of_it(page: Any) -> None:
    page.get_by_role("tab", name="Add and publish").click()
    assert not page.locator("#carry").is_visible()
    add(page, "foreign")
    shows(page, "#note", "was made from user/elsewhere")
    page.locator("#carry").click()
    shows(page, "#note", "colours by gradfix was brought here from user/elsewhere")
    shows(page, "#added-0", "colours by gradfix")
    page.locator("#carry").wait_for(state="hidden")
    page.locator("#term-c input").click()
    page.get_by_role("option", name="colours by gradfix", exact=True).click()
    page.locator("#alpha input").fill("0.5")
    page.locator("#alpha input").press("Tab")
    page.locator("#analogy").click()
    shows(page, "#added-1", "colours by gradfix + 0.5 (")
    page.wait_for_function("new URLSearchParams(location.search).getAll('add').includes('analogy:0,1,2,0.5')")
    page.get_by_role("tab", name="Copy").click()
    shows(page, "#python", "import analogy")


def test_a_narrow_screen_holds_all_of_it(browser: Any, address: str) -> None:
    with visit(browser, address, width=360, height=740) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 361
        assert page.locator("#bars").bounding_box()["width"] > 250
        move(page, 0, 1.0)


def test_the_keyboard_alone_moves_a_slider_and_opens_an_image(page: Any) -> None:
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.type") == "range":
            break
    before = page.url
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(f"location.href !== {json.dumps(before)}")
    page.wait_for_function("new URLSearchParams(location.search).get('factors').startsWith('0.5,')")
    shows(page, "#bars", "24 test images a task.")
    page.locator("#flips button").first.wait_for()
    page.locator("#flips button").first.focus()
    page.keyboard.press("Enter")
    shows(page, "#logits", "Logits of this image")


def test_two_visitors_have_sliders_of_their_own(browser: Any, address: str) -> None:
    with visit(browser, address) as one, visit(browser, address) as other:
        move(one, 0, 2.0)
        move(other, 0, -1.0)
        move(one, 1, 0.0)
        assert (factor(one).input_value(), factor(other).input_value()) == ("2", "-1")
        assert factor(other, 1).input_value() == "0.3"
        assert "factors=2,0&" in one.url
        assert "factors=-1,0.3&" in other.url


def test_a_page_that_is_loaded_again_stands_where_it_stood(page: Any) -> None:
    move(page, 0, 1.5)
    page.reload()
    page.wait_for_function("document.querySelector('#factor-0 input[type=number]')?.value === '1.5'")


def test_a_hostile_task_name_is_text(page: Any) -> None:
    assert page.locator("img[src=x]").count() == 0
    assert HOSTILE in page.locator("#factor-1").inner_text()
    move(page, 1, 2.0)
    page.get_by_role("tab", name="How alike the vectors are").click()
    page.locator("#cosines td").first.wait_for()
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize(
    "query", ["?factors=nan,9&moments=-1,7&method=<script>alert(1)</script>", "?add=/etc&add=../.."]
)
def test_a_link_with_wild_values_opens_the_page(query: str, browser: Any, address: str) -> None:
    with visit(browser, address + query) as page:
        if "factors" in query:
            shows(page, "#note", "the factor 9 is cut to 2")
            page.wait_for_function("location.search.includes('factors=0.3,2&')")
        assert "add=" not in page.url or page.locator("#added-0").count() == 0 or "factors=0.3" in page.url


def test_a_newcomer_merges_forgets_and_publishes_without_reading_anything(browser: Any, tmp_path: Path) -> None:
    """As `recipes/benchmarks/newcomer.py` times it, without the installing."""
    import newcomer

    diary = newcomer.Diary()
    with newcomer.hub() as variables:
        environment = {**newcomer.bare(str(tmp_path)), **variables, "PYTHONPATH": str(Path(__file__).parents[1])}
        newcomer.walk(START, environment, browser, diary)
    seen = {step: note for step, _, note in diary.rows}
    merged, forgotten = (
        newcomer.TOLD.match(seen[step]) for step in ("merge: digits to 1", "forget: all to 0, digits to -1")
    )
    assert merged is not None
    assert forgotten is not None
    assert float(merged[3]) > float(merged[2]) + 20  # percent, over the base
    assert float(forgotten[3]) < float(forgotten[2]) - 5
    assert "/user/first/commit/" in seen["push"]
    assert "is in mine" in seen["hf-taskvec pull user/first"]
