"""Whether our merges agree with authors' code that is no package: functions read from clones of their repositories.

git clone https://github.com/Tobeginwith/DC-Merge out/authors/DC-Merge      # and so on, see REPOSITORIES
python recipes/benchmarks/parity_repositories.py --folder out/authors

The functions of the commit named here are run, nothing else of the repository; read them before you run them. What is
told is the norm of the difference over the norm, in float64 where the authors' code allows it.
"""

from __future__ import annotations

import ast
import contextlib
import io
import subprocess
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from merging_runs import header, line
from torch import Tensor, nn

from hf_taskvec import TaskVector, merge
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.weights.lowrank import Factors, LowRankDeltas

REPOSITORIES = {
    "DC-Merge": "3c443e4",  # github.com/Tobeginwith/DC-Merge
    "core-space-merging": "85176fa",  # github.com/apanariello4/core-space-merging
    "merge-and-rebase": "345c570",  # github.com/apanariello4/merge-and-rebase
    "tall_masks": "d10af8b",  # github.com/nik-dim/tall_masks
    "fusion_bench": "54c9e8c",  # github.com/tanganke/fusion_bench
}
REBASE = "src/merge_and_rebase/merge/methods/functional/"
Functions = Mapping[str, Callable[..., Any]]


@dataclass
class RepositoriesArguments:
    folder: str = arg("Folder with a clone of each repository.", default="out/authors")


def functions(clone: Path, file: str, names: Sequence[str], *, known: Mapping[str, Any] | None = None) -> Functions:
    """Functions, methods and classes of one file of a clone: torch, each other and the `known` are globals."""
    command = ["git", "-C", str(clone), "show", f"{REPOSITORIES[clone.name]}:{file}"]
    source = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wanted = (ast.FunctionDef, ast.ClassDef)
    body = [node for node in ast.walk(ast.parse(source)) if isinstance(node, wanted) and node.name in names]
    space: dict[str, Any] = {"torch": torch, "tqdm": lambda items, **_: items, "OrderedDict": dict}
    space |= {"parse_dtype": lambda name: getattr(torch, name), "_FORM_MODES": {"delta", "absolute"}}
    space |= {"state_dict_sum": summed, "log_wandb_mask_sparsity": lambda mask: None, "StateDictType": dict}
    space |= vars(typing) | vars(nn) | {"nn": nn, "F": nn.functional, "Tensor": Tensor} | dict(known or {})
    exec(compile(ast.Module(body=list(body), type_ignores=[]), file, "exec"), space)
    return {name: space[name] for name in names}


def summed(weights: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The sum of state dicts, as fusion_bench's helper of that name gives it."""
    return {name: torch.stack([one[name] for one in weights]).sum(dim=0) for name in weights[0]}


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def difference(ours: Tensor, theirs: Tensor) -> str:
    return f"{float((ours - theirs).norm() / theirs.norm()):.1e}"


def dc_merge_full(folder: Path, count: int, shape: tuple[int, int]) -> str:
    """DC-Merge for full fine-tuning; its count of kept entries is that of the square of the shorter side."""
    theirs = functions(
        folder / "DC-Merge", "vision_fft_merge/src/utils/DC_utils.py", ["dc_merge", "keep_topk_percent", "ties_small"]
    )["dc_merge"]
    deltas = [{"w": random(*shape, seed=seed) + random(*shape, seed=50)} for seed in range(count)]
    axes = min(shape) // count * count
    density = max(1, int(1e-3 * min(shape) ** 2)) / axes**2
    with contextlib.redirect_stdout(io.StringIO()):
        expected = theirs(
            [SimpleNamespace(vector=delta) for delta in deltas], SimpleNamespace(DATASETS=range(count), device="cpu")
        )
    return difference(merge([TaskVector(d) for d in deltas], "dc_merge", density=density).deltas["w"], expected["w"])


def dc_merge_lora(folder: Path, theirs: str, ours: str) -> str:
    """DC-Merge for LoRA of rank 16, whose code makes ramps in float32."""
    names = ["dc_merge", "keep_topk_percent", "ties_small", "generate_linear_distribution"]
    their_merge = functions(folder / "DC-Merge", "vision_lora_merge/merging_functions.py", names)["dc_merge"]
    narrow = {"dtype": torch.float32}
    deltas = [random(90, 16, seed=seed, **narrow) @ random(16, 80, seed=seed + 9, **narrow) for seed in range(3)]
    density = max(1, int(1e-3 * 48**2)) / 48**2
    merged = merge([TaskVector({"w": d}) for d in deltas], "dc_merge", rank=16, smoothing=ours, density=density)
    return difference(merged.deltas["w"], their_merge({"w": deltas}, smoothing_strategy=theirs)["w"])


def core_space(folder: Path, of: str) -> str:
    """TSV-M or the sum in the core of adapters."""
    names = ["get_core_matrices", "get_tsv_delta_w"]
    theirs = functions(folder / "core-space-merging", "task_merger.py", names)
    pairs = [(random(6, 70, seed=seed), random(50, 6, seed=seed + 9)) for seed in range(4)]
    cores, left, right = theirs["get_core_matrices"](
        SimpleNamespace(cache={}), [{"w": pair} for pair in pairs], "w", {}
    )
    core = theirs["get_tsv_delta_w"](None, cores) if of == "tsv_m" else torch.stack(cores).sum(dim=0)
    factors = [Factors(b, a, 1.0, torch.Size((50, 70))) for a, b in pairs]
    merged = merge([TaskVector(LowRankDeltas({"w": item})) for item in factors], "core_space", of=of)
    return difference(merged.deltas["w"], left @ core @ right)


def actmat(folder: Path, count: int, weights: Sequence[float]) -> str:
    """ActMat, by the pseudo-inverse of float64."""
    names = ["actmerge_impl", "_resolve_form"]
    theirs = functions(folder / "merge-and-rebase", f"{REBASE}actmerge.py", names)["actmerge_impl"]
    deltas = [random(40, 30, seed=seed) for seed in range(count)]
    merged = merge([TaskVector({"w": delta}) for delta in deltas], "actmat", weights=list(weights))
    return difference(merged.deltas["w"], theirs(deltas, torch.tensor(weights), {}))


def wudi(folder: Path, theirs: str, **ours: Any) -> str:
    """WUDI in closed form, or its first steps of Adam."""
    names = ["_matrix_view", "_resolve_solver", "_prepare_terms", "_closed_form", "_gradient_descent", "wudi_impl"]
    their_merge = functions(folder / "merge-and-rebase", f"{REBASE}wudi.py", names)["wudi_impl"]
    deltas = [random(40, 30, seed=seed) for seed in range(3)]
    settings = {"solver": theirs, "ridge": 0.0, "work_dtype": "float64", "steps": ours.get("steps", 1), "lr": 1e-2}
    merged = merge([TaskVector({"w": delta}) for delta in deltas], "wudi", **ours)
    return difference(merged.deltas["w"], their_merge(deltas, torch.ones(3), settings))


def main(args: RepositoriesArguments) -> None:
    folder = Path(args.folder)
    header("repository", "what", "difference")
    for count, shape in [(4, (64, 96)), (8, (192, 64)), (3, (50, 70)), (1, (60, 60))]:
        line("DC-Merge", f"full fine-tuning, {count} matrices of {shape}", dc_merge_full(folder, count, shape))
    for theirs, ours in [("avg", "average"), ("linear", "linear")]:
        line("DC-Merge", f"LoRA, {ours} smoothing, float32", dc_merge_lora(folder, theirs, ours))
    for of in ("tsv_m", "task_arithmetic"):
        line("core-space-merging", f"{of} in the core", core_space(folder, of))
    for weights in ([1.0, 1.0, 1.0], [0.5, 2.0, 1.0, 0.1]):
        line("merge-and-rebase", f"actmat, weights {weights}", actmat(folder, len(weights), weights))
    line("merge-and-rebase", "wudi in closed form", wudi(folder, "closed_form", solver="exact"))
    line("merge-and-rebase", "wudi, 20 steps of Adam", wudi(folder, "gd", steps=20, learning_rate=1e-2))


if __name__ == "__main__":
    run_recipe(main, RepositoriesArguments)
