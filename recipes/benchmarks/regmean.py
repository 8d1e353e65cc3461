"""RegMean here and in fusion-bench, on the same Gram matrices: how far the results differ, and how long each takes.

python recipes/benchmarks/regmean.py
python recipes/benchmarks/regmean.py --layers 12 --width 768 --count 8 --tokens 3200

The towers are random, of `layers` layers in the shapes of a ViT; statistics are factors of `rank` rows, which the peer
gets as the whole matrices that it wants. Seconds are those of the merge alone, each in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from merging_peers import PEERS, environment
from merging_runs import header, line
from parity import difference
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_taskvec import TaskVector, merge
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.statistics import Statistics, StatisticsInfo
from hf_taskvec.statistics.maps import inputs_of
from hf_taskvec.statistics.sums import GramSum
from hf_taskvec.weights.dtypes import as_dtype

HERE = Path(__file__).parent
MAPS = {f"self_attn.{name}": (1, 1) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
MAPS |= {"mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}  # rows and columns over the width


@dataclass
class RegMeanArguments:
    folder: str = arg("Where the peer's environment goes.", default="out/benchmark-merging")
    python: str | None = arg(
        "An interpreter that has fusion-bench; its environment is built if left out.", default=None
    )
    dtype: str = arg("Dtype in which the peer computes, float64 to compare definitions.", default="float64")
    layers: int = arg("Layers of the towers.", default=2)
    width: int = arg("Width of the towers.", default=64)
    count: int = arg("Number of vectors.", default=3)
    tokens: int = arg("Activations that each Gram matrix is the mean over.", default=1000)
    rank: int = arg("Rows of a factor; the width of each map is enough for an exact comparison.", default=256)
    shrink: float = arg("Factor of the entries beside the diagonal.", default=0.95)


def towers(args: RegMeanArguments, index: int) -> tuple[dict[str, Tensor], Statistics]:
    """The deltas of one vector, and the statistics of correlated inputs of its maps."""
    generator = torch.Generator().manual_seed(index)
    deltas, tensors = {}, {}
    for layer in range(args.layers):
        for name, (rows, columns) in MAPS.items():
            weight = f"vision_model.encoder.layers.{layer}.{name}.weight"
            deltas[weight] = torch.randn(rows * args.width, columns * args.width, generator=generator) * 1e-3
            if (key := f"gram/{inputs_of(weight)}") in tensors:
                continue
            width = columns * args.width
            total = GramSum(width, args.rank, device=torch.device("cpu"), dtype=torch.float32)
            scales = torch.logspace(0, -2, width)[torch.randperm(width, generator=generator)]
            total.add(torch.randn(args.tokens, width, generator=generator) * scales + 0.1)
            done = total.factorised(torch.float32)
            tensors[key] = done.factor
            if done.rest is not None:
                tensors[f"rest/{key}"] = done.rest
    return deltas, Statistics(tensors, StatisticsInfo(("gram",), split="train"))


def write_for_peer(
    deltas: dict[str, Tensor], statistics: Statistics, folder: Path, index: int, dtype: torch.dtype
) -> None:
    """Writes what the peer reads: the deltas as weights, and a whole Gram matrix for each module."""
    grams = {name.removesuffix(".weight"): statistics.gram(name) for name in deltas}
    save_file({name: delta.to(dtype) for name, delta in deltas.items()}, folder / f"weights-{index}.safetensors")
    whole = {name: gram.matrix().to(dtype) for name, gram in grams.items() if gram is not None}
    save_file(whole, folder / f"grams-{index}.safetensors")


def run_peer(python: str, folder: Path, args: RegMeanArguments) -> tuple[dict[str, Tensor], float]:
    """The peer's merged deltas, and its seconds."""
    out = folder / "merged.safetensors"
    words = [python, HERE / "regmean_fusion_bench.py", folder, args.count, args.shrink, out]
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, env={**os.environ}
    )
    lines = [text for text in done.stdout.splitlines() if text.startswith("METER ")]
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"{words[1]} failed: {done.stderr.strip()[-400:]}")
    return load_file(out), json.loads(lines[-1].removeprefix("METER "))["seconds"]["merge"]


def main(args: RegMeanArguments) -> None:
    python = args.python or environment(PEERS["fusion_bench"], Path(args.folder) / "merging_fusion_bench")
    made = [towers(args, index) for index in range(args.count)]
    vectors, statistics = [TaskVector(deltas) for deltas, _ in made], [own for _, own in made]

    start = time.perf_counter()
    ours = merge(vectors, "regmean", statistics=statistics, shrink=args.shrink).deltas
    seconds = time.perf_counter() - start

    header("package", "seconds", "largest difference, and that of norms")
    line("hf_taskvec", f"{seconds:.2f}", "")
    if python is None:
        return
    with tempfile.TemporaryDirectory() as place:
        for index, (deltas, own) in enumerate(made):
            write_for_peer(deltas, own, Path(place), index, as_dtype(args.dtype))
        theirs, their_seconds = run_peer(python, Path(place), args)
    line(PEERS["fusion_bench"].name, f"{their_seconds:.2f}", difference(ours, theirs))


if __name__ == "__main__":
    run_recipe(main, RegMeanArguments)
