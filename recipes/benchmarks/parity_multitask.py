"""Whether our masks and routed maps agree with public codes: functions read from clones of their repositories.

git clone https://github.com/nik-dim/tall_masks out/authors/tall_masks
git clone https://github.com/tanganke/fusion_bench out/authors/fusion_bench
python recipes/benchmarks/parity_multitask.py --folder out/authors

As `parity_repositories.py` does: functions and classes of the commits named there are run, nothing else. The code of
TVQ is not public (its repository is a web page), so that method is tested against its definition only.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from merging_runs import header, line
from parity_repositories import difference, functions, random
from torch import Tensor, nn

from hf_taskvec import TaskVector
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.merging.linalg import leading
from hf_taskvec.multitask import pack
from hf_taskvec.routing.experts import ExpertLinear
from hf_taskvec.vectors.info import VectorInfo

SMILE = "fusion_bench/models/smile_moe/"
SHAPES = {"w": (40, 30), "v": (20, 50), "b": (40,)}


@dataclass
class MultitaskArguments:
    folder: str = arg("Folder with a clone of each repository.", default="out/authors")


def vectors(count: int, names: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, TaskVector]:
    """Random vectors in float64, by task."""
    return {
        f"task{index}": TaskVector(
            {name: random(*shape, seed=10 * index + place) for place, (name, shape) in enumerate(names.items())},
            VectorInfo(task=f"task{index}"),
        )
        for index in range(count)
    }


def flat(vector: TaskVector) -> Tensor:
    return torch.cat([delta.flatten().double() for delta in vector.deltas.values()])


def tall_masks(folder: Path, strength: float) -> str:
    """How many bits of the masks differ, and the vectors of the tasks."""
    theirs = functions(folder / "tall_masks", "src/utils/tallmask_utils.py", ["generate_task_masks"])
    given = vectors(4)
    rows = torch.stack([flat(vector) for vector in given.values()])
    base = random(rows.shape[1], seed=99)
    with contextlib.redirect_stdout(io.StringIO()):
        masks = theirs["generate_task_masks"](rows, base + rows, base, tall_mask_lambda=strength)
    packed = pack(given, "tall_masks", strength=strength, shared="float32")
    ours = torch.stack([flat(packed.for_task(task)) for task in packed.tasks])
    bits = int(((ours != 0) != masks).sum())
    return f"{bits} of {masks.numel()} bits; vectors {difference(ours, rows.sum(dim=0) * masks)}"


def emr(folder: Path, names: Mapping[str, tuple[int, ...]]) -> str:
    """The vectors of the tasks, and the factors."""
    theirs = functions(folder / "fusion_bench", "fusion_bench/method/emr_merging/utils.py", ["emr_merge", "_sign"])
    given = vectors(4, names)
    shared, masks, factors = theirs["emr_merge"]([dict(vector.deltas) for vector in given.values()])
    packed = pack(given, "emr")
    directions, ratios = [], []
    for index, task in enumerate(packed.tasks):
        expected = torch.cat([(shared[name] * masks[name][index]).flatten() for name in names])
        ours = flat(packed.for_task(task))
        ratio = float(ours @ expected / expected.square().sum())
        directions.append(float((ours / ratio - expected).norm() / expected.norm()))
        ratios.append(abs(ratio / float(factors[index]) - 1))
    return f"unified and masked {max(directions):.1e}; factors {max(ratios):.1e}"


def smile(folder: Path, *, rank: int, gate_rank: int) -> str:
    """The outputs of one linear map with three experts, of random tokens."""
    clone = folder / "fusion_bench"
    cut: dict[str, Any] = dict(functions(clone, f"{SMILE}utils/svd_utils.py", ["_svd", "svd"]))
    cut |= functions(clone, f"{SMILE}utils/__init__.py", ["_is_all_zeros"])
    names = ["SmileGate", "SmileCompressedLinear", "SmileMoELinear", "ExpertNotTrainedError"]
    layer = functions(clone, f"{SMILE}linear_from_module.py", names, known=cut)["SmileMoELinear"]
    base, experts = linear(0), [linear(seed) for seed in (1, 2, 3)]
    deltas = [expert.weight.detach() - base.weight.detach() for expert in experts]
    ours = ExpertLinear((30, 40), 3, rank, bias=(True, True), gate_rank=gate_rank).double()
    kept = [leading(delta, rank) for delta in deltas]
    values = {
        "weight": base.weight,
        "bias": base.bias,
        "left": torch.cat([own.left * own.values for own in kept], dim=1),
        "right": torch.cat([own.right.T for own in kept]),
        "gate": torch.cat([own.right.T[:gate_rank] for own in kept]),
        "biases": torch.stack([expert.bias.detach() - base.bias.detach() for expert in experts]),
    }
    ours.load_state_dict({name: value.detach().clone() for name, value in values.items()})
    tokens = random(5, 17, 30, seed=7)
    with torch.no_grad():
        expected = layer(base, experts, gate_k=gate_rank, k=rank)(tokens)
        return difference(ours(tokens), expected)


def linear(seed: int) -> nn.Linear:
    """A random linear map in float64."""
    layer = nn.Linear(30, 40).double()
    with torch.no_grad():
        layer.weight.copy_(random(40, 30, seed=seed))
        layer.bias.copy_(random(40, seed=seed + 50))
    return layer


def main(args: MultitaskArguments) -> None:
    folder = Path(args.folder)
    header("repository", "what", "difference")
    for strength in (0.2, 0.4, 0.6):
        line("tall_masks", f"tall_masks, strength {strength}", tall_masks(folder, strength))
    line("fusion_bench", "emr, one tensor", emr(folder, {"w": SHAPES["w"]}))
    line("fusion_bench", "emr, tensors of three sizes", emr(folder, SHAPES))
    for rank, gate_rank in ((30, 1), (8, 1), (8, 4)):
        line(
            "fusion_bench",
            f"smile, rank {rank}, {gate_rank} directions decide",
            smile(folder, rank=rank, gate_rank=gate_rank),
        )


if __name__ == "__main__":
    run_recipe(main, MultitaskArguments)
