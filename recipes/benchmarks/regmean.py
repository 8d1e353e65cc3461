"""RegMean here and in fusion-bench, on the same Gram matrices: how far the results differ, and what each takes.

python recipes/benchmarks/regmean.py                                 # a small tower, in float64: the same definition
python recipes/benchmarks/regmean.py --size b32 --count 8 --dtype float32 --runs 3

Towers are random, in the shapes of a ViT. Statistics are factors of `rank` rows and the diagonal of the rest, of random
correlated inputs. fusion-bench gets the whole matrices that they stand for, in `dtype`, as it would collect them, and
only its merging step is run, not its data pipeline. Each merge is a process of its own, which reads files and writes
the merged vector. Seconds are without imports and loading, "processor" is the time of all threads, and memory what is
beyond the files that are mapped. The folder takes 8 GB for eight towers of ViT-B/32 in float32; it can be deleted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from merging_data import make_vectors
from merging_peers import PEERS, environment, run_ours, run_script
from merging_runs import Run, header, line
from parity import difference
from safetensors.torch import load_file
from torch import Tensor

from hf_taskvec import TaskVector
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.statistics import Statistics, StatisticsInfo
from hf_taskvec.statistics.collect import RANK
from hf_taskvec.statistics.maps import inputs_of
from hf_taskvec.statistics.sums import GramSum
from hf_taskvec.weights.dtypes import as_dtype
from hf_taskvec.weights.safetensors import write_safetensors


@dataclass
class RegMeanArguments:
    folder: str = arg("Where vectors, statistics and the peer's environment go.", default="out/benchmark-regmean")
    python: str | None = arg(
        "An interpreter that has fusion-bench; its environment is built if left out.", default=None
    )
    dtype: str = arg("Dtype of the peer's matrices and weights, float64 to compare definitions.", default="float64")
    size: str = arg("Tower: tiny, b32 or l14.", default="tiny")
    count: int = arg("Number of vectors.", default=3)
    tokens: int = arg("Activations that each Gram matrix is the mean over.", default=1000)
    rank: int = arg("Rows of a factor.", default=RANK)
    shrink: float = arg("Factor of the entries beside the diagonal.", default=0.95)
    runs: int = arg("Runs of each, in turn, of which the median counts.", default=1)


def main(args: RegMeanArguments) -> None:
    folder = Path(args.folder) / "-".join([args.size, *map(str, (args.rank, args.tokens)), args.dtype])
    peer = PEERS["fusion_bench"]
    python = args.python or environment(peer, Path(args.folder) / "merging_fusion_bench")
    make_vectors(folder, size=args.size, count=args.count)
    for index in range(args.count):
        make_statistics(folder, index, args)
    settings = {"shrink": args.shrink, "statistics": [str(folder / f"statistics-{one}") for one in range(args.count)]}
    words = ["regmean_fusion_bench.py", folder, args.count, args.shrink, args.dtype, folder / "theirs"]
    ours, theirs = list[Run](), list[Run]()
    for _ in range(args.runs):
        ours.append(run_ours(folder, args.count, "regmean", settings, folder / "ours"))
        if python is not None:
            theirs.append(run_script(words, python=python))
    header("package", "merge and save, s", "processor, s", "memory, GB", "largest difference, and that of norms")
    line("hf_taskvec", *figures(ours), "")
    if theirs:
        merged = [load_file(folder / name / "task_vector.safetensors") for name in ("ours", "theirs")]
        line(peer.name, *figures(theirs), difference(*merged))
        seconds, processor = (
            median(getattr(run, name) for run in theirs) / median(getattr(run, name) for run in ours)
            for name in ("merging", "processor_merging")
        )
        print(f"\n{peer.name} took {seconds:.1f} times as long, and {processor:.1f} times the processor time")


def figures(runs: list[Run]) -> list[str]:
    """Medians over the runs: seconds, processor seconds, gigabytes."""
    columns = [[run.merging for run in runs], [run.processor_merging for run in runs], [run.peak / 1e9 for run in runs]]
    return [f"{median(column):.2f}" for column in columns]


def make_statistics(folder: Path, index: int, args: RegMeanArguments) -> None:
    """Writes the statistics of a vector and, for the peer, its whole Gram matrices; what exists is kept."""
    if (folder / f"statistics-{index}").exists():
        return
    shapes = TaskVector.from_pretrained(folder / f"vector-{index}").deltas.shapes
    widths = {name: shape[1] for name, shape in shapes.items() if "encoder.layers." in name and len(shape) == 2}
    statistics = Statistics(dict(factors(widths, index, args)), StatisticsInfo(("gram",), split="train"))

    def matrices() -> Iterator[tuple[str, Tensor]]:
        for name in widths:
            if (gram := statistics.gram(name)) is not None:
                yield name.removesuffix(".weight"), gram.matrix()

    sizes = {name.removesuffix(".weight"): (width, width) for name, width in widths.items()}
    write_safetensors(folder / f"grams-{index}.safetensors", matrices(), shapes=sizes, dtype=as_dtype(args.dtype))
    statistics.save_pretrained(folder / f"statistics-{index}")  # last: it tells that both are whole


def factors(widths: dict[str, int], index: int, args: RegMeanArguments) -> Iterator[tuple[str, Tensor]]:
    """The factor of the Gram matrix of each map's inputs, and the diagonal of what it leaves out."""
    generator = torch.Generator().manual_seed(index)
    for key, width in {inputs_of(name): width for name, width in widths.items()}.items():
        total = GramSum(width, args.rank, device=torch.device("cpu"), dtype=torch.float32)
        scales = torch.logspace(0, -2, width)[torch.randperm(width, generator=generator)]
        total.add(torch.randn(args.tokens, width, generator=generator) * scales + 0.1)
        done = total.factorised(torch.float16)
        yield f"gram/{key}", done.factor
        if done.rest is not None:
            yield f"rest/gram/{key}", done.rest


if __name__ == "__main__":
    run_recipe(main, RegMeanArguments, stopped="Finished vectors and matrices are in --folder; the runs begin anew.")
