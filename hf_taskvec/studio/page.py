"""The studio's page in Gradio (the extra `studio`): a thin layer over the desk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
import numpy as np

from hf_taskvec.errors import BaseMismatchError, TaskVecError
from hf_taskvec.studio.board import Flip, logits_of
from hf_taskvec.studio.desk import Desk, Turn, Visit
from hf_taskvec.studio.drawing import drawn_board, drawn_heat, drawn_logits, drawn_note
from hf_taskvec.studio.setting import HIGHEST, LOWEST, ROOM, STEP, Analogy, Setting
from hf_taskvec.studio.widgets import epoch_slider, factor_slider, lever_choices, term_choices
from hf_taskvec.studio.words import added_note, copied, flip_caption, lever_label, moment_label

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
REFUSALS = (TaskVecError, ValueError, OSError)  # what a visitor can meet; told on the page
ALL_TASKS = "all tasks"
MOST_QUERY = 10_000  # characters of a link
_SIDE = 96  # of an image in the strip, in pixels
_KEEP_LINK = "(link) => { history.replaceState(null, '', link || location.pathname); return location.href; }"
_ADDRESS = "(session, address) => [session, window.location.search]"
LIKENESS = "How alike the vectors are"
ENTANGLED = """Predictions for a row's task that a column's vector changes, in percent (a pair's two sum up to its
disentanglement error)"""
INTRODUCTION = """## Task vectors under your fingers

Each slider adds a task vector to one small CLIP: 0 leaves it out, 1 is the fine-tuned model, below 0 it forgets. The
bars tell at once what the sum can do, on test images."""

Shown = dict[Any, Any]  # what a listener gives: a component and what it shows now


def build(desk: Desk) -> gr.Blocks:
    """The page.

    Args:
        desk: Vectors, images and base, shared by all who open the page.
    """
    return _Page(desk).blocks


def serve(desk: Desk, **options: Any) -> tuple[gr.Blocks, str]:
    """Serves the page from a thread of its own, and gives it with its address.

    Args:
        desk: What it shows.
        **options: Those of `gradio.Blocks.launch`.
    """
    page = build(desk)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page.queue(default_concurrency_limit=4)
    _, address, _ = page.launch(
        theme=theme, css=STYLE, footer_links=[], quiet=True, share=False, prevent_thread_lock=True, **options
    )
    return page, str(address)


@dataclass
class _Controls:
    """What the visitor moves."""

    sliders: list[Any] = field(default_factory=list)
    epochs: dict[int, Any] = field(default_factory=dict)  # by the number of their lever


class _Page:
    """The components, and what each event does to them.

    Args:
        desk: What they show.
    """

    def __init__(self, desk: Desk) -> None:
        self.desk, self.controls = desk, _Controls()
        with gr.Blocks(title="hf_taskvec studio", analytics_enabled=False, delete_cache=(600, 3600)) as self.blocks:
            self.visit, self.turn = gr.State(desk.first), gr.State(Turn())
            self.strip, self.looking = gr.State([]), gr.State(False)  # whether the vectors' likeness is on the screen
            self.address = gr.Textbox(visible=False)
            gr.Markdown(INTRODUCTION)
            with gr.Row():
                with gr.Column(scale=5, min_width=300):
                    self._levers()
                with gr.Column(scale=7, min_width=300):
                    self._measures()
                    with gr.Tabs() as self.tabs:
                        self._flips_tab()
                        self._likeness_tab()
                        self._copy_tab()
                        self._vectors_tab()
            self._listen()

    # -- components ---------------------------------------------------------------------------------------------------

    def _levers(self) -> None:
        start = self.desk.home.start
        with gr.Column(elem_classes="tv-levers"):
            for number, (lever, factor) in enumerate(zip(self.desk.home.levers, start.factors, strict=True)):
                self.controls.sliders.append(factor_slider(lever, factor, name=f"factor-{number}"))
                if len(lever.moments) > 1:
                    last = len(lever.moments) - 1
                    label = moment_label(lever, last)
                    self.controls.epochs[number] = epoch_slider(label, last, name=f"moment-{number}")
            for number in range(ROOM):  # what a visitor adds
                hidden = gr.Slider(
                    LOWEST, HIGHEST, value=0, step=STEP, visible=False, elem_id=f"added-{number}", buttons=[]
                )
                self.controls.sliders.append(hidden)
                self.controls.epochs[len(self.desk.home.levers) + number] = epoch_slider(
                    "", 1, name=f"added-moment-{number}", visible=False
                )

    def _measures(self) -> None:
        with gr.Row():
            self.method = gr.Dropdown(
                self.desk.methods, value=self.desk.methods[0], label="Merge method", elem_id="method", scale=3
            )
            self.tune = gr.Button("Tune for me", elem_id="tune", scale=1, min_width=110)
            self.reset = gr.Button("All to 0", elem_id="reset", scale=1, min_width=90)
        busy = self.desk.all_blocks > 1
        self.bars = gr.HTML(drawn_board(self.desk.board(self.desk.first), busy=busy), elem_id="bars")
        self.note = gr.HTML(elem_id="note")

    def _flips_tab(self) -> None:
        names = [ALL_TASKS, *(task.name for task in self.desk.bench.tasks)]
        with gr.Tab("Images that flip"):
            choices = [(name, number - 1) for number, name in enumerate(names)]
            label = "Mended (✓) and broken (✗) against the base; click one for its logits"
            self.task = gr.Dropdown(choices, value=-1, label=label, elem_id="flips-of")
            shape: dict[str, Any] = {"columns": 4, "height": "auto", "format": "png", "elem_classes": "tv-strip"}
            self.gallery = gr.Gallery(**shape, show_label=False, allow_preview=False, elem_id="flips", buttons=[])
            self.logits = gr.HTML(elem_id="logits")

    def _likeness_tab(self) -> None:
        with gr.Tab(LIKENESS):
            self.cosines = gr.HTML(elem_id="cosines")
            self.conflicts = gr.HTML(elem_id="conflicts")
            self.entangled = gr.HTML(elem_id="entangled")
            self.doctor = gr.Button("Ask the doctor", elem_id="doctor")
            self.findings = gr.HTML(elem_id="findings")

    def _copy_tab(self) -> None:
        with gr.Tab("Copy", elem_id="copy"):
            self.link = gr.Textbox(label="Link to this setting", interactive=False, buttons=["copy"], elem_id="link")
            self.python = gr.Code(label="Python", language="python", interactive=False, elem_id="python")
            self.yaml = gr.Code(label="Recipe for hf-taskvec merge", language="yaml", interactive=False, elem_id="yaml")

    def _vectors_tab(self) -> None:
        with gr.Tab("Add and publish"):
            place = "user/vector" if self.desk.public else "user/vector, or a folder"
            with gr.Row():
                label = f"Add a vector, series, LoRA adapter or packed tasks of {self.desk.base.name}"
                self.source = gr.Textbox(label=label, placeholder=place, elem_id="source", scale=4)
                self.add = gr.Button("Check and add", elem_id="add", scale=1)
            with gr.Row(visible=False) as self.carrying:
                label = "It is of another base: bring it here by"
                self.way = gr.Dropdown(self.desk.ways, label=label, elem_id="way", scale=4)
                self.carry = gr.Button("Carry it over", elem_id="carry", scale=1)
            with gr.Row():
                self.terms = term_choices(self.desk.home.levers)
                self.alpha = gr.Number(1.0, label="how far (α)", minimum=-1, maximum=2, elem_id="alpha", min_width=80)
                self.analogy = gr.Button("Add c + α (b − a)", elem_id="analogy", scale=1)
            with gr.Row(visible=not self.desk.public):
                self.repository = gr.Textbox(
                    label="Publish the merged vector with its card", placeholder="user/name", elem_id="repo", scale=4
                )
                self.push = gr.Button("Push", elem_id="push", scale=1)

    # -- events -------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        moves = [*self.controls.sliders, *self.controls.epochs.values()]
        inputs = [self.visit, self.turn, self.method, *moves]
        everything = [self.visit, self.strip, self.method, self.bars, self.note, self.link, self.python, self.yaml]
        everything += [self.gallery, self.logits, self.cosines, self.conflicts, self.entangled, self.source, *moves]
        everything += [self.carrying, *self.terms]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        told: dict[str, Any] = {**quiet, "outputs": [self.visit, self.bars, self.note]}

        triggers = [*(slider.input for slider in moves), self.method.input]
        moved = gr.on(triggers, self._moved, inputs, trigger_mode="always_last", queue=False, **told)
        enters = [
            self.blocks.load(self._entered, [self.visit, self.address], everything, js=_ADDRESS, **quiet),
            self.reset.click(self._reset, [self.visit, self.turn], everything, **quiet),
            self.tune.click(self._tuned, [self.visit, self.turn], everything, **quiet),
            self.add.click(self._added, [self.visit, self.source], everything, **quiet),
            self.source.submit(self._added, [self.visit, self.source], everything, **quiet),
            self.carry.click(self._carried, [self.visit, self.source, self.way], everything, **quiet),
            self.analogy.click(self._analogy, [self.visit, *self.terms, self.alpha], everything, **quiet),
        ]
        seen = [self.visit, self.turn, self.task, self.looking]
        # "once" would leave out a look while one runs; `Turn` ends that, where Gradio's `cancels` may hit the new one
        looks = {**quiet, "fn": self._settled, "inputs": seen, "outputs": everything, "trigger_mode": "multiple"}
        for event in (moved, *enters):
            event.then(**looks)
        self.task.input(**looks)
        for number, slider in self.controls.epochs.items():
            relabel = partial(self._relabelled, number)
            slider.input(relabel, [self.visit, slider], [slider], trigger_mode="always_last", **quiet)
        self.tabs.select(self._looked, [self.visit], [self.looking, self.entangled], **quiet)
        self.gallery.select(self._clicked, [self.visit, self.strip], [self.logits], **quiet)
        self.link.change(None, [self.link], [self.link], js=_KEEP_LINK, **quiet)  # it becomes the whole address
        self.doctor.click(self._diagnosed, [self.visit], [self.findings], **quiet)
        self.push.click(self._pushed, [self.visit, self.repository], [self.note], **quiet)

    def _moved(self, visit: Visit, turn: Turn, method: str, *values: float) -> Shown:
        """The first thing after a move: the bars on few images, or that they take a while."""
        count = len(self.controls.sliders)
        factors, moments = values[:count], list(self.desk.bank(visit).start.moments)
        for number, value in zip(self.controls.epochs, values[count:], strict=True):
            if number < len(moments):
                moments[number] = min(max(int(value), 0), moments[number])
        cut = tuple(min(max(float(value), LOWEST), HIGHEST) for value in factors[: len(moments)])
        setting = Setting(cut, tuple(moments), method)
        visit, slow = self.desk.moved(visit, setting, at=time.monotonic()), self.desk.bank(visit).is_slow(setting)
        turn.newest, turn.merging = None, setting if slow else None
        if slow:
            return {self.visit: visit, self.bars: gr.skip(), self.note: drawn_note([f"Merging by {method} …"])}
        return self._first_look(visit)

    def _first_look(self, visit: Visit, note: str = "") -> Shown:
        try:
            bars = drawn_board(self.desk.board(visit), busy=self.desk.all_blocks > 1)
        except REFUSALS as error:
            return {self.visit: visit, self.bars: gr.skip(), self.note: drawn_note([str(error)], bad=True)}
        return {self.visit: visit, self.bars: bars, self.note: note}

    def _settled(self, visit: Visit, turn: Turn, task: int, looking: bool) -> Iterator[Shown]:
        """What may come later, until there was another move or another look begins."""
        yield from turn.taken(self._look(visit, task, looking, told=turn.merging == visit.setting))
        yield {self.note: gr.skip()}  # Gradio shows the last step again at the end, and without one empties all outputs

    def _look(self, visit: Visit, task: int, looking: bool, *, told: bool) -> Iterator[Shown]:
        """What is copied, the likeness of the vectors, more images, and those that flip."""
        try:
            if told:  # that a merge is being made, and no bars
                first = self._first_look(visit)
                yield {self.bars: first[self.bars], self.note: first[self.note]}
            yield {**self._copies(visit), **self._likeness(visit)}
            for blocks in range(1, self.desk.all_blocks + 1):
                busy = blocks < self.desk.all_blocks
                bars = drawn_board(self.desk.board(visit, blocks=blocks), busy=busy)
                shown: Shown = {self.bars: bars}
                if blocks == 1 or not busy:
                    shown |= self._strip(visit, task, blocks)
                if blocks == 1:
                    shown[self.logits] = ""  # not again: by then somebody may be reading those of an image
                yield shown
            if looking:
                yield self._entanglement(visit)
        except REFUSALS as error:
            yield {self.note: drawn_note([str(error)], bad=True)}

    def _strip(self, visit: Visit, task: int, blocks: int) -> Shown:
        exam = None if task < 0 else task
        turned = self.desk.flips(visit, blocks=blocks, exam=exam)
        tasks = [task.name for task in self.desk.bench.tasks]
        pictures = [(self._picture(flip), flip_caption(flip, tasks[flip.exam])) for flip in turned]
        return {self.strip: turned, self.gallery: gr.Gallery(pictures, selected_index=None)}

    def _picture(self, flip: Flip) -> np.ndarray[Any, Any]:
        pixels = self.desk.bench.exams[flip.exam].pixels[flip.image].permute(1, 2, 0).numpy()
        times = max(1, _SIDE // pixels.shape[0])
        return pixels.repeat(times, axis=0).repeat(times, axis=1)

    def _copies(self, visit: Visit) -> Shown:
        python, yaml = copied(self.desk.bank(visit), visit.setting, self.desk.base.name)
        return {self.link: visit.setting.link(visit.added), self.python: python, self.yaml: yaml}

    def _likeness(self, visit: Visit) -> Shown:
        bank = self.desk.bank(visit)
        names = [lever.name for lever in bank.levers]
        cosines = bank.chosen(bank.cosines, visit.setting)
        conflicts = bank.chosen(bank.conflicts, visit.setting)
        told = "Cosine of each pair"
        against = "Entries of opposite signs, in percent (50 is chance)"
        return {
            self.cosines: drawn_heat(cosines, names, title=told),
            self.conflicts: drawn_heat(conflicts, names, title=against, percent=True),
            self.entangled: "",
        }

    def _looked(self, visit: Visit, tab: gr.SelectData) -> Iterator[Shown]:
        """Somebody opened a tab."""
        yield {self.looking: tab.value == LIKENESS}
        if tab.value == LIKENESS:
            yield self._entanglement(visit)

    def _entanglement(self, visit: Visit) -> Shown:
        names, changed = self.desk.entangled(visit)
        if len(names) < 2:
            return {self.entangled: drawn_note(["The disentanglement error needs two vectors whose tasks have a bar."])}
        return {self.entangled: drawn_heat(changed, names, title=ENTANGLED, percent=True)}

    def _everywhere(self, visit: Visit, note: str = "") -> Shown:
        """A visit on every control, as after a link."""
        bank, shown = self.desk.bank(visit), self._first_look(visit, note)
        home = len(self.desk.home.levers)
        for number, slider in enumerate(self.controls.sliders):
            if number < len(bank.levers):
                label = lever_label(bank.levers[number]) + ("" if number < home else " · added")
                shown[slider] = gr.Slider(value=visit.setting.factors[number], visible=True, label=label)
        for number, slider in self.controls.epochs.items():
            if number < len(bank.levers) and (last := len(bank.levers[number].moments) - 1):
                moment = visit.setting.moments[number]
                label = moment_label(bank.levers[number], moment)
                shown[slider] = gr.Slider(value=moment, maximum=last, visible=True, label=label)
        if visit.added:
            shown |= {term: gr.Dropdown(lever_choices(bank.levers)) for term in self.terms}
        return {**shown, self.method: visit.setting.method}

    def _entered(self, visit: Visit, address: str) -> Shown:
        """What a link, or a page that was loaded again, asks for."""
        query = parse_qs((address or "")[:MOST_QUERY].removeprefix("?"), max_num_fields=100)
        try:
            visit, notes = self.desk.entered(query)
        except REFUSALS as error:
            return self._everywhere(self.desk.first, drawn_note([f"The link was not taken: {error}"], bad=True))
        return self._everywhere(visit, drawn_note([f"Of the link, {note}." for note in notes]))

    def _reset(self, visit: Visit, turn: Turn) -> Shown:
        turn.newest = None
        setting = replace(visit.setting, factors=(0.0,) * len(visit.setting.factors))
        return self._everywhere(self.desk.moved(visit, setting, at=time.monotonic()))

    def _tuned(self, visit: Visit, turn: Turn) -> Iterator[Shown]:
        turn.newest = None
        yield {self.note: drawn_note(["Trying factors on validation images …"])}
        try:
            note = ""
            for better, told in self.desk.tuned(visit):
                visit, note = better, drawn_note([f"Chosen on validation images: {told}."])
                yield self._everywhere(visit, drawn_note([f"Best so far: {told} …"]))
            yield {self.note: note}
        except REFUSALS as error:
            yield {self.note: drawn_note([str(error)], bad=True)}

    def _added(self, visit: Visit, source: str) -> Iterator[Shown]:
        yield {self.note: drawn_note([f"Looking at {source} …"])}
        yield self._with(visit, source)

    def _carried(self, visit: Visit, source: str, way: str) -> Iterator[Shown]:
        yield {self.note: drawn_note([f"Bringing {source} here by {way} …"])}
        yield self._with(visit, f"{way}:{source.strip()}")

    def _analogy(self, visit: Visit, a: int, b: int, c: int, factor: float | None) -> Shown:
        return self._with(visit, Analogy(a, b, c, 1.0 if factor is None else factor).source)

    def _with(self, visit: Visit, source: str) -> Shown:
        """The page with one more vector, or why not; of one of another base, with the offer to bring it here."""
        try:
            longer = self.desk.with_vector(visit, source)
        except REFUSALS as error:
            offered = {self.carrying: gr.Row(visible=isinstance(error, BaseMismatchError))}
            return {**offered, self.note: drawn_note([str(error)], bad=True)}
        levers = self.desk.bank(longer).levers
        told = added_note(levers[len(visit.setting.factors) :])
        done: Shown = {self.source: "", self.carrying: gr.Row(visible=False)}
        return {**self._everywhere(longer, drawn_note([told])), **done}

    def _relabelled(self, number: int, visit: Visit, moment: float) -> Any:
        return gr.Slider(label=moment_label(self.desk.bank(visit).levers[number], int(moment)))

    def _clicked(self, visit: Visit, strip: list[Flip], chosen: gr.SelectData) -> str:
        if not isinstance(chosen.index, int) or not 0 <= chosen.index < len(strip):
            return ""
        flip = strip[chosen.index]
        blocks = next(count for count, (_, end) in enumerate(self.desk.bench.blocks, 1) if flip.image < end)
        base, now = self.desk.measured(visit, blocks=blocks)
        return drawn_logits(logits_of(self.desk.bench, base, now, flip), task=self.desk.bench.tasks[flip.exam].name)

    def _diagnosed(self, visit: Visit) -> Iterator[str]:
        yield drawn_note(["Looking at norms, cosines, signs and spectra …"])
        try:
            yield drawn_note(self.desk.findings(visit))
        except REFUSALS as error:
            yield drawn_note([str(error)], bad=True)

    def _pushed(self, visit: Visit, repository: str) -> Iterator[str]:
        yield drawn_note(["Measuring on all images, then pushing …"])
        try:
            yield drawn_note(["Published:"], link=self.desk.push(visit, repository))
        except REFUSALS as error:
            yield drawn_note([str(error)], bad=True)
