"""What a merge method needs besides the vectors, made once and kept: statistics of training images of each task."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_taskvec import Task, TaskVector
from hf_taskvec.merging import get_method
from hf_taskvec.models.base import Base
from hf_taskvec.statistics import Statistics, collect_statistics
from hf_taskvec.tasks.pixels import load_pixels
from hf_taskvec.tuning import collect_prefix_statistics
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.weights.folders import atomic_folder, read_json, write_json
from hf_taskvec.weights.resume import compute_or_read


@dataclass(frozen=True)
class Needs:
    """Where the needs of methods are kept for the vectors of one run.

    Attributes:
        base: The base.
        tasks: The tasks, in the order of the vectors.
        folder: Where statistics are kept, one folder per task and set of kinds.
        num_images: Images per task.
    """

    base: Base
    tasks: Sequence[Task]
    folder: Path
    num_images: int

    def of(self, method: str, vectors: Sequence[TaskVector]) -> tuple[dict[str, Any], float]:
        """The further arguments of `merge` for a method, and the seconds that making them took; none without data."""
        kinds = get_method(method).statistics
        if not kinds:
            return {}, 0.0
        if "prefix" in kinds:
            made, seconds = self.prefix_statistics(vectors)
            return {"statistics": made}, seconds
        pairs = [self.statistics(task, vector, kinds) for task, vector in zip(self.tasks, vectors, strict=True)]
        return {"statistics": [statistics for statistics, _ in pairs]}, sum(seconds for _, seconds in pairs)

    def statistics(self, task: Task, vector: TaskVector, kinds: Sequence[str]) -> tuple[Statistics, float]:
        """The statistics of one task's training images with its vector, and the seconds that they took."""
        settings: Mapping[str, Any] = {"kinds": list(kinds), "num_images": self.num_images, "split": "train"}
        target = self.folder / f"{task.name}-{'-'.join(kinds)}"
        clock = target.with_name(f"{target.name}.seconds.json")

        def compute(path: Path) -> None:
            load_pixels(task, "train", self.base.processor.image_processor)  # decoding them once is nobody's cost
            start = time.perf_counter()
            statistics = collect_statistics(self.base, task, vector=vector, **settings)
            write_json(clock, {"seconds": time.perf_counter() - start})
            statistics.save_pretrained(path)

        plan = {**settings, "base": self.base.name, "vector": vector_fingerprint(vector.deltas)}
        statistics = compute_or_read(target, plan, compute=compute, read=Statistics.from_pretrained)
        return statistics, float(read_json(clock)["seconds"])

    def prefix_statistics(self, vectors: Sequence[TaskVector]) -> tuple[list[Statistics], float]:
        """The statistics of all tasks in the merged model so far, and the seconds that they took."""
        settings: Mapping[str, Any] = {"num_images": self.num_images, "split": "train"}
        names, target = [task.name for task in self.tasks], self.folder / "prefix"
        given = dict(zip(names, vectors, strict=True))

        def compute(path: Path) -> None:
            for task in self.tasks:
                load_pixels(task, "train", self.base.processor.image_processor)
            start = time.perf_counter()
            made = collect_prefix_statistics(self.base, given, self.tasks, **settings)
            seconds = time.perf_counter() - start
            with atomic_folder(path, marker="seconds.json") as folder:
                for name, statistics in zip(names, made, strict=True):
                    statistics.save_pretrained(folder / name)
                write_json(folder / "seconds.json", {"seconds": seconds})

        def read(path: Path) -> tuple[list[Statistics], float]:
            made = [Statistics.from_pretrained(path / name) for name in names]
            return made, float(read_json(path / "seconds.json")["seconds"])

        prints = {name: vector_fingerprint(vector.deltas) for name, vector in given.items()}
        return compute_or_read(
            target, {**settings, "base": self.base.name, "vectors": prints}, compute=compute, read=read
        )
