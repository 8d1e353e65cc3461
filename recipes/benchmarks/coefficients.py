"""Times a step of `learn_coefficients` against bare forward and backward passes, and tells the memory it takes.

python recipes/benchmarks/coefficients.py
python recipes/benchmarks/coefficients.py --base openai/clip-vit-base-patch32 --count 8
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from merging_data import heavy_tailed

from hf_taskvec import Base, TaskVector, VectorInfo, get_task, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.tuning.images import Choice, choose_images
from hf_taskvec.tuning.mixture import Mixture
from hf_taskvec.tuning.tower import Tower
from hf_taskvec.weights.names import covered_names, parameters_of


@dataclass
class BenchmarkArguments:
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    count: int = arg("How many vectors, of random deltas over the whole tower, and as many batches a step.", default=8)
    batch_size: int = arg("Images of each task in a step.", default=16)
    repeats: int = arg("How often both are timed, in turns; the medians are compared.", default=5)


def main(args: BenchmarkArguments) -> float:
    """Prints both times and the memory; returns their ratio, of which at most 1.3 is the aim."""
    base = load_base(args.base)
    chosen = choose_images(base, [get_task("digits")], images=args.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        vectors = [_vector(base, index, Path(folder) / str(index)) for index in range(args.count)]
        tower = Tower(base, [chosen.samples[0].task], list(vectors[0].deltas))
        mixture = Mixture(tower, vectors, "parameter")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        coefficients = torch.full((len(mixture.groups), args.count), 0.3)
        bare, whole = list[float](), list[float]()
        for _ in range(args.repeats + 1):  # the first warms up
            bare.append(_passes(tower, chosen, args.count))
            tower.clear()
            started = time.perf_counter()
            mixture.set(coefficients)
            _passes(tower, chosen, args.count)
            mixture.gradient()
            whole.append(time.perf_counter() - started)
            tower.clear()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    ratios = [ours / plain for ours, plain in zip(whole[1:], bare[1:], strict=True)]
    ratio: float = statistics.median(ratios)
    size = 4 * vectors[0].num_entries / 2**20
    print(f"{args.count} forward and backward passes {statistics.median(bare[1:]):8.3f} s")
    print(f"a step                        {statistics.median(whole[1:]):8.3f} s")
    print(f"median ratio                  {ratio:8.3f}   ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"memory beyond the model       {grown / 2**10:8.0f} MB, pages of files among it; a vector has {size:.0f} MB")
    return ratio


def _vector(base: Base, index: int, folder: Path) -> TaskVector:
    """A vector over the whole tower, memory-mapped."""
    weights = parameters_of(base.model)
    names = covered_names(weights)
    deltas = {name: heavy_tailed(weights[name].shape, index, place) for place, name in enumerate(names)}
    TaskVector(deltas, VectorInfo(task=f"task-{index}")).save_pretrained(folder)
    return TaskVector.from_pretrained(folder)


def _passes(tower: Tower, chosen: Choice, count: int) -> float:
    """Seconds of so many forward and backward passes."""
    sample = chosen.samples[0]
    pixels = sample.batch(range(len(sample)))["pixel_values"]
    started = time.perf_counter()
    for _ in range(count):
        tower.add_gradient("entropy", sample.task, pixels, None, size=len(sample))
    return time.perf_counter() - started


if __name__ == "__main__":
    run_recipe(main, BenchmarkArguments)
