"""The studio's desk: what a visitor's moves mean, without the page that shows it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from hf_taskvec.cards.publish import push_to_hub
from hf_taskvec.doctor.diagnosis import diagnose
from hf_taskvec.errors import DataError
from hf_taskvec.evaluation.accuracy import evaluate
from hf_taskvec.evaluation.coefficients import choose_weights
from hf_taskvec.evaluation.report import Report
from hf_taskvec.evaluation.result import TaskResult
from hf_taskvec.evaluation.scalings import best_scaling, choose_scaling
from hf_taskvec.models.base import Base
from hf_taskvec.studio.bank import Bank, methods_at_hand
from hf_taskvec.studio.bench import Bench, Measured
from hf_taskvec.studio.board import Board, Flip, board, flips
from hf_taskvec.studio.kept import Kept
from hf_taskvec.studio.opening import open_bank
from hf_taskvec.studio.setting import (
    HIGHEST,
    LOWEST,
    MOST_ADDED,
    PUBLIC_WAY,
    ROOM,
    SUM,
    WAYS,
    Analogy,
    Setting,
    added_of,
    is_hub_source,
    restored,
    way_of,
)
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.text import listed

GESTURE = 1.5  # seconds without a move after which the next one is compared with where the sliders stood
TRIED = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
TUNING_IMAGES = 64  # validation images per task
KEPT_BANKS = 8
Step = TypeVar("Step")


@dataclass(frozen=True)
class Visit:
    """What one visitor has before him.

    Attributes:
        setting: Where the sliders stand.
        last: Where they stood before this gesture; `None` before the first.
        moved: When they were last moved, in seconds of a clock that only goes on.
        added: Sources of the vectors that he added.
    """

    setting: Setting
    last: Setting | None = None
    moved: float = float("-inf")
    added: tuple[str, ...] = ()


@dataclass
class Turn:
    """Which look at one visitor's setting is the newest: several may run at once. It is changed in place.

    Attributes:
        newest: The look whose turn it is; `None` after a move.
        merging: The setting of the last move, if it was told that its merge is being made, without bars.
    """

    newest: object | None = None
    merging: Setting | None = None

    def taken(self, look: Iterator[Step]) -> Iterator[Step]:
        """The steps of a look, which is the newest now, until it is not any more.

        Example:
            >>> turn = Turn()
            >>> older = turn.taken(iter("ab"))
            >>> next(older), list(turn.taken(iter("cd"))), list(older)
            ('a', ['c', 'd'], [])
        """
        self.newest = look
        return itertools.takewhile(lambda _: self.newest is look, look)


class Desk:
    """A base, images and vectors, shared by all visitors.

    Args:
        base: The base.
        tasks: The tasks with a bar; those that no vector is of are the controls.
        sources: The vectors under the sliders; those that come with the package if there are none.
        quick: Images per task that every move is measured on.
        most: Images per task at most.
        public: Whether strangers come: they open no folders of this machine, and do not publish in its owner's name.
        base_name: Hub id of the base for what is published, where the vectors know only a folder of it.

    Raises:
        TaskVecError: If a vector or task cannot be opened.
    """

    def __init__(
        self,
        base: Base,
        tasks: Sequence[Task],
        sources: Sequence[str] = (),
        *,
        quick: int = 64,
        most: int = 400,
        public: bool = False,
        base_name: str | None = None,
    ) -> None:
        self.base_name = base_name
        self.base, self.sources, self.public = base, tuple(sources), public
        self.home = open_bank(base, sources)
        self.bench = Bench(base, tasks, quick=quick, most=most)
        self.methods = methods_at_hand()
        self._banks: Kept[tuple[str, ...], Bank] = Kept(KEPT_BANKS)
        self._experts: Kept[tuple[int, int], list[float | None]] = Kept(4 * KEPT_BANKS)
        self._entangled: Kept[tuple[int, Setting], Tensor] = Kept(4 * KEPT_BANKS)
        self._tuning = threading.Lock()

    @property
    def first(self) -> Visit:
        """What a visitor finds."""
        return Visit(self.home.start)

    @property
    def ways(self) -> list[str]:
        """The methods that bring a vector of another base here."""
        return [PUBLIC_WAY] if self.public else list(WAYS)

    @property
    def all_blocks(self) -> int:
        """How many blocks of images there are."""
        return len(self.bench.blocks)

    def bank(self, visit: Visit) -> Bank:
        """The vectors of a visit."""
        if not visit.added:
            return self.home
        return self._banks.get(visit.added, lambda: self._opened(visit.added))

    def _opened(self, added: tuple[str, ...]) -> Bank:
        return open_bank(self.base, self.sources, added=added, room=ROOM, tasks=self.bench.tasks)

    def entered(self, query: Mapping[str, Sequence[str]]) -> tuple[Visit, list[str]]:
        """The visit that a link describes, and what of it was not taken, in words.

        Raises:
            TaskVecError: If a vector that it adds cannot be opened.
        """
        visit = self.first
        for source in added_of(query):
            visit = self.with_vector(visit, source)
        bank = self.bank(visit)
        counts = [len(lever.moments) for lever in bank.levers]
        again = restored(query, visit.setting, counts, self.methods)
        return replace(visit, setting=again.setting), list(again.notes)

    def moved(self, visit: Visit, setting: Setting, *, at: float) -> Visit:
        """The visit after a move; moves that follow each other at once are one gesture.

        Args:
            visit: The visit.
            setting: Where the sliders stand now.
            at: When that was, as `Visit.moved`.
        """
        if setting == visit.setting:
            return visit
        last = visit.setting if at - visit.moved > GESTURE else visit.last
        return replace(visit, setting=setting, last=last, moved=at)

    def with_vector(self, visit: Visit, source: str) -> Visit:
        """The visit with one more vector, whose slider stands at 0.3, or with those of several tasks, at 0.

        Args:
            visit: The visit.
            source: As `open_bank` takes it among `added`.

        Raises:
            DataError: If there is no room, or a stranger names something else than a Hub repository.
            TaskVecError: If it is of another base or cannot be opened.
        """
        source = source.strip()
        if len(visit.added) >= MOST_ADDED:
            raise DataError(f"{MOST_ADDED} vectors were added already; reload the page to begin anew")
        way, place = way_of(source)
        if Analogy.of(source) is None and (not place or (self.public and not is_hub_source(place))):
            raise DataError(f"{place or 'nothing'!r} is no Hub id; write user/name, with @revision if wanted")
        if way is not None and way not in self.ways:
            raise DataError(f"this page is open to everybody, and {way} opens another base: take {PUBLIC_WAY}")
        longer = replace(visit, added=(*visit.added, source))
        start, before = self.bank(longer).start, len(visit.setting.factors)
        new = start.factors[before:] if len(start.factors) == before + 1 else (0.0,) * (len(start.factors) - before)
        setting = Setting(
            (*visit.setting.factors, *new), (*visit.setting.moments, *start.moments[before:]), visit.setting.method
        )
        return replace(longer, setting=setting, last=None)

    def measured(self, visit: Visit, *, blocks: int = 1) -> tuple[Measured, Measured]:
        """The base and the merged model on the first blocks of images."""
        bank = self.bank(visit)
        unmoved = replace(visit.setting, factors=(0.0,) * len(bank.levers), method=SUM)
        return (
            self.bench.measure(bank, unmoved, blocks=blocks),
            self.bench.measure(bank, visit.setting, blocks=blocks),
        )

    def board(self, visit: Visit, *, blocks: int = 1) -> Board:
        """The bars of a visit on the first blocks of images.

        Raises:
            ValueError, TaskVecError: What the merge method refuses.
        """
        base, now = self.measured(visit, blocks=blocks)
        before = None if visit.last is None else self.bench.measure(self.bank(visit), visit.last, blocks=blocks)
        return board(self.bench, base, now, before, self.experts(visit, blocks=blocks))

    def entangled(self, visit: Visit) -> tuple[list[str], Tensor]:
        """The vectors whose tasks have a bar, and how often the one of a column changes predictions of a row's task."""
        bank, names = self.bank(visit), [task.name for task in self.bench.tasks]
        tasks = [lever.vector.info.task for lever in bank.levers]
        exams = [names.index(task) if task in names else None for task in tasks]
        rows = [number for number, exam in enumerate(exams) if exam is not None]
        known = replace(visit.setting, method=SUM)
        key = (bank.key, known)
        changed = self._entangled.get(key, lambda: self.bench.entanglement(bank, known, exams))
        return [bank.levers[number].name for number in rows], changed[rows][:, rows]

    def experts(self, visit: Visit, *, blocks: int = 1) -> list[float | None]:
        """The accuracy of each task's own vector, `None` where no vector is of the task."""
        bank = self.bank(visit)
        tasks = [lever.vector.info.task for lever in bank.levers]

        def compute() -> list[float | None]:
            numbers = [tasks.index(task.name) if task.name in tasks else None for task in self.bench.tasks]
            pairs = enumerate(numbers)
            return [None if own is None else self.bench.expert(bank, own, exam, blocks=blocks) for exam, own in pairs]

        return self._experts.get((bank.key, blocks), compute)

    def flips(self, visit: Visit, *, blocks: int = 1, exam: int | None = None) -> list[Flip]:
        """The images that flip, of all tasks or of one."""
        base, now = self.measured(visit, blocks=blocks)
        return flips(self.bench, base, now, exam=exam)

    def tuned(self, visit: Visit) -> Iterator[tuple[Visit, str]]:
        """Settings that are better and better on validation images, with what is being done, in words.

        The sum gets a weight for each vector (`choose_weights`), another method one factor for all (`best_scaling`).
        The controls do not count.

        Raises:
            DataError: If no task is one of a vector, or somebody else's sliders are being tuned.
        """
        bank, setting = self.bank(visit), visit.setting
        experts = self.experts(visit)
        counted = [task for task, own in zip(self.bench.tasks, experts, strict=True) if own is not None]
        tasks = [subset(task, max_validation=TUNING_IMAGES) for task in counted]
        if not tasks:
            raise DataError("no task here is one of a vector, so there is nothing to tune for")
        if not self._tuning.acquire(blocking=False):
            raise DataError("sliders are being tuned in another window; try again in a while")
        try:
            everywhere = self._common_factor(bank, setting, tasks)
            yield self._after(visit, [everywhere] * len(bank.levers)), f"{everywhere:g} for all"
            if setting.method == SUM:
                vectors = bank.vectors(setting)
                weights = choose_weights(self.base, vectors, tasks, start=everywhere, steps=[0.2, 0.1], progress=False)
                yield self._after(visit, weights), f"{listed(f'{weight:g}' for weight in weights)} in turn"
        finally:
            self._tuning.release()

    def _common_factor(self, bank: Bank, setting: Setting, tasks: Sequence[Task]) -> float:
        if setting.method == SUM:
            total = bank.merged_in_memory(replace(setting, factors=(1.0,) * len(bank.levers)))
            return float(choose_scaling(self.base, total, tasks, scalings=TRIED, progress=False))
        curve = {}
        for factor in TRIED:
            merged = bank.merged_in_memory(replace(setting, factors=(factor,) * len(bank.levers)))
            curve[factor] = evaluate(merged.apply_to(self.base), tasks, split="validation", progress=False)
        return float(best_scaling(curve))

    def _after(self, visit: Visit, weights: Sequence[float]) -> Visit:
        factors = tuple(min(HIGHEST, max(LOWEST, round(weight, 4))) for weight in weights)
        return replace(visit, setting=replace(visit.setting, factors=factors), last=visit.setting)

    def findings(self, visit: Visit) -> list[str]:
        """What the doctor finds in the vectors themselves, in words; images are not looked at.

        Raises:
            DataError: If there are fewer than two vectors.
        """
        symptoms = diagnose(self.bank(visit).vectors(visit.setting)).findings
        told = [" ".join(filter(None, (finding.text, finding.advice))) for finding in symptoms]
        return told or ["Nothing in these vectors speaks against merging them."]

    def report(self, visit: Visit) -> Report:
        """What a setting reaches on all images that there are here, for its card."""
        bars = self.board(visit, blocks=self.all_blocks).bars
        results = [TaskResult(bar.task, bar.now, bar.images, zero_shot=bar.base, individual=bar.expert) for bar in bars]
        return Report(visit.setting.method, "test", tuple(results), 1.0)

    def push(self, visit: Visit, repo_id: str) -> str:
        """Publishes the merged vector with its card; gives the commit's URL.

        Raises:
            DataError: If strangers come here, or no repository is named.
            HubError: If the Hub refuses.
        """
        if self.public:
            raise DataError("this page is open to everybody: copy the recipe, merge and push on your own machine")
        if not repo_id.strip():
            raise DataError("name a repository, as user/name")
        merged, report = self.bank(visit).merged(visit.setting), self.report(visit)
        return push_to_hub(merged, repo_id.strip(), report=report, base_name=self.base_name)
