"""Whether our merges agree with authors' code that is no package: functions read from clones of their repositories.

git clone https://github.com/Tobeginwith/DC-Merge out/authors/DC-Merge      # and so on, see REPOSITORIES
python recipes/benchmarks/parity_repositories.py --folder out/authors

The functions of the commit named here are run, nothing else of the repository; read them before you run them. What is
told is the norm of the difference over the norm, in float64 where the authors' code allows it.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import subprocess
import time
import typing
import unittest.mock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
    "SVC": "6ad2b31",  # github.com/lyymuwu/SVC
    "AdaRank": "dfa5358",  # github.com/david3684/AdaRank, which has CART
    "tall_masks": "d10af8b",  # github.com/nik-dim/tall_masks
    "fusion_bench": "54c9e8c",  # github.com/tanganke/fusion_bench
}
REBASE = "src/merge_and_rebase/merge/methods/functional/"
Functions = Mapping[str, Callable[..., Any]]


@dataclass
class Named:
    """Tensors by name with a sum: what the authors' classes of vectors are to their functions."""

    vector: dict[str, Tensor]

    def __radd__(self, other: Any) -> Named:
        return self if other == 0 else Named({name: other.vector[name] + own for name, own in self.vector.items()})

    __add__ = __radd__


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
    space |= {"time": time, "deepcopy": copy.deepcopy, "TaskVector": Named, "CPU_DEVICE": "cpu"}
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


BLOCK = "vision_model.encoder.layers.0"
NAMES = {
    f"{BLOCK}.self_attn.q_proj.weight": (64, 64),
    f"{BLOCK}.mlp.fc1.weight": (96, 64),
    f"{BLOCK}.mlp.fc1.bias": (96,),
    "vision_model.embeddings.position_embedding.weight": (17, 64),
}


def towers(count: int) -> list[dict[str, Tensor]]:
    """Deltas of some parameters of a CLIP, with a part that all vectors share."""
    shared = {name: random(*shape, seed=90 + index) for index, (name, shape) in enumerate(NAMES.items())}
    return [{name: shared[name] + random(*NAMES[name], seed=seed) for name in NAMES} for seed in range(count)]


def whole(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    return difference(*(torch.cat([deltas[name].flatten() for name in NAMES]) for deltas in (ours, theirs)))


def svc(folder: Path, count: int, of: str) -> str:
    """SVC of task arithmetic, scaled as by their TA, or of our TSV-M; what they send to the GPU stays here."""
    names = ["TA", "coef_cal_multi_ranks", "Align", "layer_wise_Align"]
    theirs = functions(folder / "SVC", "merge_func.py", names)
    vectors = [TaskVector(deltas) for deltas in towers(count)]
    merged = Named(dict(merge(vectors, "average" if of == "task_arithmetic" else of).deltas))
    settings = SimpleNamespace(right_only=False, target=-1, alpha=1.0 if of == "tsv_m" else 1 / count)
    stay = unittest.mock.patch.object(Tensor, "cuda", lambda self: self)
    with contextlib.redirect_stdout(io.StringIO()), stay:
        if of == "task_arithmetic":
            theirs["TA"](merged, vectors, settings)
        theirs["layer_wise_Align"](merged, [Named(dict(vector.deltas)) for vector in vectors], settings)
    return whole(merge(vectors, "svc", of=of).deltas, merged.vector)


def cart(folder: Path, count: int, strength: float) -> str:
    """CART, by four directions of each matrix: ours rounds their number, their code cuts it."""
    names = ["_get_truncated_task_vectors", "_get_origin", "_merge_weights"]
    theirs = functions(folder / "AdaRank", "vision/src/models/merge_vit/static.py", names)
    deltas, zeros = towers(count), {name: torch.zeros(shape, dtype=torch.float64) for name, shape in NAMES.items()}
    model = SimpleNamespace(device="cpu", task_vectors=[Named(own) for own in deltas])
    model.config = SimpleNamespace(prior=strength, initial_rank_ratio=4 / 64, tasks=range(count))
    model.pretrained_model = SimpleNamespace(state_dict=lambda: zeros)
    for name in names:
        setattr(model, name, partial(theirs[name], model))
    with contextlib.redirect_stdout(io.StringIO()):
        vars(model)["_merge_weights"]("CART")
    merged = merge([TaskVector(own) for own in deltas], "cart", rank=4 / 64, strength=strength)
    return whole(merged.deltas, vars(model)["_merged_state_dict"])


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
    for of, count in (("task_arithmetic", 8), ("task_arithmetic", 3), ("tsv_m", 4)):
        line("SVC", f"svc of {of}, {count} vectors", svc(folder, count, of))
    for count, strength in ((8, 1.0), (3, 2.3)):
        line("AdaRank", f"cart, {count} vectors, strength {strength}", cart(folder, count, strength))


if __name__ == "__main__":
    run_recipe(main, RepositoriesArguments)
