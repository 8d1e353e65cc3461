"""What it costs to collect statistics, against the forward passes of the same images, and how large they are.

python recipes/benchmarks/statistics_cost.py
python recipes/benchmarks/statistics_cost.py --base openai/clip-vit-base-patch32 --num_images 64

The images are noise: neither passes nor sums care. "factors" is what is done once, after the last image.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import torch
from merging_runs import header, line
from torch import Tensor

from hf_taskvec import load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.statistics.hooks import InputSums
from hf_taskvec.statistics.maps import measured


@dataclass
class CostArguments:
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    num_images: int = arg("Images that are looked at.", default=64)
    batch_size: int = arg("Images per pass.", default=32)
    ranks: list[int] = arg("Ranks of the factors.", default=[64, 128, 256])
    repeats: int = arg("Runs, of which the fastest counts.", default=3)


def main(args: CostArguments) -> None:
    base = load_base(args.base)
    tower, projection = base.model.vision_model, base.model.visual_projection
    size = base.model.config.vision_config.image_size
    batches = torch.randn(args.num_images, 3, size, size).split(args.batch_size)
    vector_bytes = 4 * sum(parameter.numel() for parameter in tower.parameters())

    maps = [*measured(tower), ("visual_projection", projection)]

    def features(batch: Tensor) -> Tensor:
        projected: Tensor = projection(tower(batch).pooler_output)
        return projected

    def passes() -> float:
        start = time.perf_counter()
        with torch.no_grad():
            for batch in batches:
                tower(batch)
        return time.perf_counter() - start

    def collected(rank: int) -> tuple[float, float, int]:
        sums = InputSums(maps, kinds=("gram", "diagonal"), rank=rank)
        start = time.perf_counter()
        for batch in batches:
            sums.show(partial(features, batch), range(len(batch)), "noise")
        shown = time.perf_counter()
        tensors: dict[str, Tensor] = {}
        sums.into(tensors, {}, dtype=torch.float16, num_images=args.num_images)
        stored = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
        return shown - start, time.perf_counter() - shown, stored

    forward = min(passes() for _ in range(args.repeats))
    header("rank", "forward, s", "with sums, s", "factors, s", "all over forward", "of the float32 vector")
    for rank in args.ranks:
        shown, factors, stored = min(collected(rank) for _ in range(args.repeats))
        seconds = [f"{value:.2f}" for value in (forward, shown, factors, (shown + factors) / forward)]
        line(str(rank), *seconds, f"{stored / vector_bytes:.1%}")


if __name__ == "__main__":
    run_recipe(main, CostArguments)
