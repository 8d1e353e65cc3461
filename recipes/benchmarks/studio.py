"""How fast the studio is to the person in front of it: start, first paint, and from a slider to the bars, in Chromium.

pip install playwright && python recipes/benchmarks/studio.py --moves 24 --methods task_arithmetic ties tsv_m

A move is one press of an arrow key on a slider. It is timed inside the page, from the key to the bars that it changed;
each begins when nothing of the last one is being computed, and no setting comes twice.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.text import table

OURS = "from hf_taskvec.command.app import main; main()"
PATIENCE = 300_000  # milliseconds, on a machine that is busy
WATCH = """() => {
    const bars = document.querySelector('#bars'), told = () => bars.querySelector('.tv-note')?.textContent;
    const begin = (event) => { window.began = event.timeStamp; window.before = told(); window.took = null; };
    document.addEventListener('keydown', begin, true);
    document.addEventListener('pointerdown', begin, true);
    const look = () => { if (window.took === null && told() !== window.before) took = performance.now() - began; };
    new MutationObserver(look).observe(bars, {childList: true, subtree: true, characterData: true});
}"""  # the bars tell how many images they are of: fewer after a move than once all is computed
SETTLED = """() => {
    const told = document.querySelector('#bars .tv-note')?.innerText ?? '';
    return told.includes('test images a task.') && !told.includes('More');
}"""
FIRST_PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


@dataclass
class StudioArguments:
    moves: int = arg("Moves of sliders for each method.", default=24)
    methods: list[str] = arg(
        "Merge methods; the first is the one that the page opens with.", default=["task_arithmetic", "ties", "tsv_m"]
    )
    images: list[int] = arg("Test images per task that a move is measured on.", default=[64, 128])
    starts: int = arg("How often the server is started.", default=3)
    vectors: list[str] = arg("Folders of vectors; those that come with the package if left out.", default=[])
    chromium: str | None = arg("The browser; one on the path, or Playwright's own, if left out.", default=None)


def main(args: StudioArguments) -> dict[str, list[float]]:
    from playwright.sync_api import sync_playwright  # here, so that --help needs no browser

    seconds: dict[str, list[float]] = {}
    with sync_playwright() as driver:
        path = args.chromium or shutil.which("chromium") or shutil.which("chromium-browser")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for images in args.images:
            for start in range(args.starts):
                with served(args.vectors, images, seconds) as address:
                    page = opened(browser, address, seconds)
                    if start == 0:
                        for method in args.methods:
                            measure(page, method, args.moves, f"{images} images", seconds)
                    page.context.close()
    print(f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, Chromium {browser.version}\n")
    rows = [
        [name, len(times), f"{statistics.median(times):.3f}", f"{min(times):.3f}", f"{max(times):.3f}"]
        for name, times in seconds.items()
    ]
    print(table(["from to", "times", "median s", "fastest", "slowest"], rows))
    return seconds


@contextmanager
def served(vectors: list[str], images: int, seconds: dict[str, list[float]]) -> Iterator[str]:
    """The address of the studio, as the command serves it."""
    words = [sys.executable, "-c", OURS, "studio", *vectors, "--images", str(images)]
    start = time.perf_counter()
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        line = next((line for line in server.stderr or () if "The studio is at" in line), None)
        if line is None:
            raise RuntimeError(f"the studio ended with exit code {server.wait()} before it was there")
        note(seconds, "command to address", time.perf_counter() - start)
        try:
            yield line.split(" at ")[1].split(";")[0]
        finally:
            server.terminate()


def opened(browser: Any, address: str, seconds: dict[str, list[float]]) -> Any:
    """The page of a new visitor, once it stands still."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(PATIENCE)
    start = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.wait_for_selector("#bars .tv-row")
    note(seconds, "address to bars", time.perf_counter() - start)
    page.wait_for_function(FIRST_PAINT)
    note(seconds, "address to first paint", page.evaluate(FIRST_PAINT) / 1000)
    page.wait_for_function("location.search.includes('factors=')")
    page.wait_for_function(SETTLED)
    page.evaluate(WATCH)
    return page


def measure(page: Any, method: str, moves: int, images: str, seconds: dict[str, list[float]]) -> None:
    """Switches to a method, and moves the sliders in turn."""
    if page.locator("#method input").input_value() != method:
        page.locator("#method input").click()
        page.get_by_role("option", name=method, exact=True).click()
        note(seconds, f"switch to {method}, {images}", taken(page))
        page.wait_for_function(SETTLED)
    sliders = page.locator("[id^=factor-] input[type=range]")
    for move in range(moves):
        slider = sliders.nth(move % sliders.count())
        slider.focus()
        page.keyboard.press("ArrowRight")
        note(seconds, f"slider to bars, {method}, {images}", taken(page))
        page.wait_for_function(SETTLED)


def taken(page: Any) -> float:
    """Seconds from the last key or click to the bars that it changed."""
    page.wait_for_function("window.took !== null")
    return float(page.evaluate("window.took")) / 1000


def note(seconds: dict[str, list[float]], name: str, value: float) -> None:
    seconds.setdefault(name, []).append(value)


def processor() -> str:
    """The processor's name, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


if __name__ == "__main__":
    run_recipe(main, StudioArguments)
