"""A newcomer's first minutes, timed: install, the studio in a browser, merge, forget, push to a Hub on loopback, pull.

pip install playwright && python recipes/benchmarks/newcomer.py --environment out/newcomer

The environment, the Hub's cache and the working folder are new. The page is used as a person sees it, by what stands on
it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.text import table

ROOT = Path(__file__).parents[2]
TOLD = re.compile(r"(.+): base ([\d.]+), merged now ([\d.]+)")
PATIENCE = 300_000  # milliseconds, on a machine that is busy


@dataclass
class NewcomerArguments:
    environment: str | None = arg("Where the new virtual environment goes; a temporary folder if left out.", None)
    packages: list[str] = arg("What is installed, one after the other.", default=["torch==2.13.0", f"{ROOT}[studio]"])
    chromium: str | None = arg("The browser; one on the path, or Playwright's own, if left out.", default=None)


@dataclass
class Diary:
    """What was done, and how long each step took."""

    rows: list[tuple[str, float, str]] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Times a step; what it puts into the list is noted beside it."""
        notes: list[str] = []
        start = time.perf_counter()
        yield notes
        self.rows.append((name, time.perf_counter() - start, "; ".join(notes)))

    @property
    def table(self) -> str:
        """The steps, and all of them together."""
        whole = sum(seconds for _, seconds, _ in self.rows)
        rows = [(name, f"{seconds:.1f}", note) for name, seconds, note in (*self.rows, ("together", whole, ""))]
        return table(["step", "seconds", "seen"], rows, align="lrl")


def main(args: NewcomerArguments) -> str:
    from playwright.sync_api import sync_playwright  # here, so that --help needs no browser

    diary = Diary()
    with tempfile.TemporaryDirectory() as room:
        environment = Path(args.environment or room, "venv").absolute()
        with diary.step("a new virtual environment"):
            subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        for package in args.packages:
            with diary.step(f"pip install {package}"):
                words = [str(environment / "bin" / "pip"), "install", "--quiet", package]
                subprocess.run(words, check=True, env=bare(room))
        with hub() as variables, sync_playwright() as driver:
            path = args.chromium or shutil.which("chromium") or shutil.which("chromium-browser")
            browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
            walk([str(environment / "bin" / "hf-taskvec")], {**bare(room), **variables}, browser, diary)
    print(diary.table)
    return diary.table


def bare(room: str) -> dict[str, str]:
    """The variables of a new user, whose home and caches are empty."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON", "VIRTUAL"))}
    return {**kept, "HOME": room, "HF_HOME": str(Path(room, "hf"))}


@contextmanager
def hub() -> Iterator[dict[str, str]]:
    """The Hub that the tests use, and the variables that point a shell at it."""
    words = [sys.executable, "-m", "tests.hub_server"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        line = next(line for line in server.stdout or () if line.startswith("export "))
        try:
            yield dict(word.split("=", 1) for word in line.split()[1:])
        finally:
            server.terminate()


def walk(command: list[str], environment: Mapping[str, str], browser: Any, diary: Diary) -> None:
    """From the first start of the studio to a vector that was published and is there again.

    Args:
        command: `hf-taskvec`, as it is called.
        environment: Its variables.
        browser: Playwright's.
        diary: Where the steps are noted.
    """
    with tempfile.TemporaryDirectory() as folder:
        with diary.step("hf-taskvec studio"):
            server = subprocess.Popen(
                [*command, "studio"], cwd=folder, env=dict(environment), stderr=subprocess.PIPE, text=True
            )
            address = next((line for line in server.stderr or () if "http://" in line), None)
        with server:
            try:
                if address is None:
                    raise RuntimeError(f"the studio ended with exit code {server.wait()} before it was there")
                use(browser, re.findall(r"http://[^;\s]+", address)[0], diary)
            finally:
                server.terminate()
        with diary.step("hf-taskvec pull user/first") as seen:
            words = [*command, "pull", "user/first", "-o", "mine"]
            done = subprocess.run(words, cwd=folder, env=dict(environment), capture_output=True, text=True, check=True)
            seen.append(done.stdout.strip())


def use(browser: Any, address: str, diary: Diary) -> None:
    """What a person does on the page."""
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    with diary.step("open the page") as seen:
        page.goto(address)
        page.get_by_role("img", name=TOLD).first.wait_for()
        seen.append(str(page.get_by_role("heading").first.inner_text()))
        still(page)
    with diary.step("merge: digits to 1") as seen:
        move(page, "digits", "1")
        seen.append(told(page, "digits"))
    with diary.step("switch to ties") as seen:
        with changed(page):
            page.get_by_label("Merge method").click()
            page.get_by_role("option", name="ties", exact=True).click()
        seen.append(told(page, "mean"))
    with diary.step("forget: all to 0, digits to -1") as seen:
        with changed(page):
            page.get_by_role("button", name="All to 0").click()
        move(page, "digits", "-1")
        seen.append(told(page, "digits"))
    with diary.step("push") as seen:
        page.get_by_role("tab", name="Add and publish").click()
        page.get_by_label("Publish the merged vector").fill("user/first")
        page.get_by_role("button", name="Push").click()
        page.get_by_text("Published:").wait_for()
        seen.append(str(page.get_by_text("Published:").inner_text()))


def move(page: Any, name: str, value: str) -> None:
    """Brings the slider of a vector to a value."""
    with changed(page):
        page.get_by_role("slider", name=re.compile(name)).first.fill(value)


@contextmanager
def changed(page: Any) -> Iterator[None]:
    """Waits until the address tells what is done within, and until all images were looked at."""
    before = page.url
    yield
    page.wait_for_function(f"location.href !== {json.dumps(before)}")
    still(page)


def still(page: Any) -> None:
    """Waits until no more images are being looked at."""
    page.get_by_text(re.compile(r"\d+ test images a task\.$")).wait_for()


def told(page: Any, task: str) -> str:
    """What the bar of a task says to somebody who cannot see it."""
    return str(page.get_by_role("img", name=re.compile(f"^{task}: base")).first.get_attribute("aria-label"))


if __name__ == "__main__":
    run_recipe(main, NewcomerArguments)
