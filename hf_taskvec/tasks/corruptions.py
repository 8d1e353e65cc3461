"""Tasks whose images are corrupted: what a model is worth away from the images it was made for."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import xxhash
from datasets import Dataset
from numpy.random import RandomState

from hf_taskvec.errors import DataError, check_count, check_known
from hf_taskvec.tasks.distortions import KINDS, STRENGTHS, distort
from hf_taskvec.tasks.images import decode_image
from hf_taskvec.tasks.registry import as_task
from hf_taskvec.tasks.task import Split, Task

FORMAT = 1  # of corrupted images; to be raised with any change to what they are


@dataclass(frozen=True)
class CorruptedTask(Task):
    """A task every image of which is corrupted, in all its parts; made by `corrupt`.

    Args:
        clean: The task as it was.
        kind: How its images are corrupted.
        strength: How much.
        seed: Chance.
    """

    clean: Task | None = None
    kind: str = KINDS[0]
    strength: int = 3
    seed: int = 0

    def load(self, split: Split) -> Dataset:
        """Loads one part of the task, corrupted; see `Task.load`. It is kept in the cache of `datasets`."""
        if self.clean is None:
            raise DataError("a corrupted task is made of another one: corrupt(task, kind)")
        data = self.clean.load(split).cast_column("image", datasets.Image(decode=False))
        facts = (data._fingerprint, self.kind, str(self.strength), str(self.seed), str(self.skip_broken), str(FORMAT))
        data = data.map(
            _Corruption(self.kind, self.strength, self.seed, self.name, skip_broken=self.skip_broken),
            input_columns=["image"],
            with_indices=True,
            features=data.features,
            new_fingerprint=xxhash.xxh3_128_hexdigest("\0".join(facts).encode())[:16],
            desc=f"{self.name} {split}",
        )
        return data.cast_column("image", datasets.Image())

    def data_settings(self) -> dict[str, Any]:
        """As those of the clean task, and what was done to its images."""
        told = {"corruption": self.kind, "corruption_strength": self.strength, "corruption_seed": self.seed}
        return (self.clean.data_settings() if self.clean else {}) | told


@dataclass(frozen=True)
class _Corruption:
    """The function that `Dataset.map` calls with the value and the number of every row."""

    kind: str
    strength: int
    seed: int
    where: str
    skip_broken: bool

    def __call__(self, value: Mapping[str, Any], row: int) -> dict[str, Any]:
        try:
            image, _ = decode_image(value, f"row {row} of {self.where}")
        except DataError:
            if not self.skip_broken:
                raise
            return {"image": value}  # it does not decode later either, and is counted then
        image = image.convert("RGB")
        # by what is seen in it, so that an image meets the same chance in every part, subset and order
        digest = xxhash.xxh3_64_intdigest(image.tobytes(), seed=self.seed)
        random = RandomState([KINDS.index(self.kind), digest >> 32, digest & 0xFFFFFFFF])
        buffer = io.BytesIO()
        distort(image, self.kind, self.strength, random=random).save(buffer, "PNG", compress_level=1)
        return {"image": {"bytes": buffer.getvalue(), "path": None}}


def corrupt(task: Task | str, kind: str, strength: int = 3, *, seed: int = 0) -> CorruptedTask:
    """The task with corrupted images, for `evaluate` or anything else that takes a task.

    Classes, prompts and labels stay. The name tells the corruption, as the provenance of a vector trained on it does.
    Corrupt a `subset` where a few images are enough: all of them are written to the cache.

    Args:
        task: A task, or its name.
        kind: `motion_blur`, `impulse_noise`, `gaussian_noise`, `pixelate`, `spatter`, `contrast` or `jpeg_compression`.
        strength: From 1 to 5. An image keeps its noise from one to the next, which makes it stronger.
        seed: Chance, together with what an image shows.

    Raises:
        UnknownNameError: If there is no such corruption or task.
        ValueError: If the strength is none.

    Example:
        >>> task = corrupt("digits", "gaussian_noise", strength=5)
        >>> task.name, len(task.load("validation")), task.data_settings()["corruption_strength"]
        ('digits-gaussian_noise-5', 139, 5)
    """
    check_known("corruption", kind, KINDS)
    if isinstance(strength, bool) or strength not in STRENGTHS:
        raise ValueError(f"strength must be a whole number from 1 to 5, got {strength!r:.80}")
    seed, clean = check_count("seed", seed, least=0), as_task(task, needed_by="corrupt")
    if seed >> 64:  # the hash would take it for a smaller one
        raise ValueError(f"seed must be below 2**64, got {seed!r:.80}")
    fields = {spec.name: getattr(clean, spec.name) for spec in dataclasses.fields(Task)}
    fields["name"] = f"{clean.name}-{kind}-{int(strength)}"
    return CorruptedTask(**fields, clean=clean, kind=kind, strength=int(strength), seed=seed)


def corruption_suite(
    task: Task | str, *, kinds: Iterable[str] = KINDS, strengths: Iterable[int] = STRENGTHS, seed: int = 0
) -> list[CorruptedTask]:
    """The task with every corruption at every strength.

    Args:
        task: A task, or its name.
        kinds: The corruptions, all seven if left out.
        strengths: The strengths, all five if left out.
        seed: As in `corrupt`.

    Raises:
        UnknownNameError, ValueError: As `corrupt`; also if nothing is left.

    Example:
        >>> [task.name for task in corruption_suite("digits", kinds=["contrast"], strengths=[1, 5])]
        ['digits-contrast-1', 'digits-contrast-5']
    """
    strengths = list(strengths)
    suite = [corrupt(task, kind, strength, seed=seed) for kind in kinds for strength in strengths]
    if not suite:
        raise ValueError("a corruption suite needs a kind and a strength at least")
    return suite
