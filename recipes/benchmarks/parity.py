"""Whether our merges and the peers' own packages agree, method by method, on small synthetic towers.

python recipes/benchmarks/parity.py
"""

from __future__ import annotations

import copy
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from hf_taskvec import TaskVector, merge
from hf_taskvec.checkpoints import open_checkpoint
from hf_taskvec.errors import CheckpointError
from hf_taskvec.lora import read_adapter
from hf_taskvec.merging.knots import merge_adapters
from hf_taskvec.recipe import arg, parse_recipe

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from recipes.benchmarks.merging_data import make_checkpoints
from recipes.benchmarks.merging_peers import PEERS, Peer, environment, run_peer

# Our settings for the peer's mathematics, and why a difference is left where one is.
CASES: list[tuple[str, str, dict[str, Any], str]] = [
    ("mergekit", "average", {}, ""),
    ("mergekit", "task_arithmetic", {}, ""),
    ("mergekit", "ties", {"scope": "parameter"}, "mergekit keeps int(density n) entries, we round"),
    ("mergekit", "dare", {}, "other random numbers: shares kept and means are compared"),
    ("mergekit", "breadcrumbs", {}, "mergekit zeroes parameters in which its share rounds to nothing"),
    ("mergekit", "sce", {}, "mergekit divides by the weights that are left at each entry, the paper does not"),
    ("mergekit", "slerp", {}, ""),
    ("mergekit", "model_stock", {}, "mergekit leaves negative cosines in"),
    ("mergekit", "karcher", {}, "mergekit averages whole weights, not what was added to the base"),
    ("fusion_bench", "average", {}, ""),
    ("fusion_bench", "task_arithmetic", {}, ""),
    ("fusion_bench", "ties", {}, "fusion-bench keeps one entry more"),
    ("fusion_bench", "dare", {}, "other random numbers: shares kept and means are compared"),
    ("fusion_bench", "iso_c", {}, "decomposed in float32 there"),
    ("fusion_bench", "iso_cts", {}, "decomposed in float32 there"),
    ("fusion_bench", "tsv_m", {}, "decomposed in float32 there"),
    ("fusion_bench", "wudi", {"steps": 3}, "Adam divides by tiny gradients: rounding shows"),
]


@dataclass
class ParityArguments:
    folder: str = arg(
        "Where towers and environments go; that of merging.py is reused.", default="out/benchmark-merging"
    )
    peers: list[str] = arg("Peers to compare with.", default=["mergekit", "fusion_bench"])
    count: int = arg("Number of vectors.", default=4)


def difference(ours: TaskVector, theirs: dict[str, Tensor]) -> str:
    """The largest difference over the largest entry, and the relative difference in norm."""
    flat = [torch.cat([deltas[name].flatten().double() for name in ours]) for deltas in (ours.deltas, theirs)]
    error = flat[0] - flat[1]
    return f"{float(error.abs().max() / flat[1].abs().max()):.1e} | {float(error.norm() / flat[1].norm()):.1e}"


def statistics(ours: TaskVector, theirs: dict[str, Tensor]) -> str:
    """Shares of entries that are not zero, and norms."""
    flat = [torch.cat([deltas[name].flatten().double() for name in ours]) for deltas in (ours.deltas, theirs)]
    shares = " and ".join(f"{float((one.abs() > 1e-7).double().mean()):.4f}" for one in flat)
    return f"not zero: {shares} | norms: {' and '.join(f'{float(one.norm()):.4f}' for one in flat)}"


def compare(peer: Peer, python: str, method: str, settings: dict[str, Any], towers: Path, count: int) -> str:
    count = 2 if method == "slerp" else count
    weights = [open_checkpoint(towers / f"task-{index}").tensors for index in range(count)]
    base = open_checkpoint(towers / "base").tensors
    with tempfile.TemporaryDirectory() as out:
        run_peer(peer, python, towers, count, method, Path(out) / "merged")
        merged = open_checkpoint(Path(out) / "merged").tensors
        if method == "slerp":  # on whole weights
            return difference(merge([TaskVector(one) for one in weights], method, **settings), merged)
        ours = merge([TaskVector.from_weights(base, one) for one in weights], method, **settings)
        theirs = {name: merged[name].double() - base[name].double() for name in ours}
        return statistics(ours, theirs) if method == "dare" else difference(ours, theirs)


def compare_peft() -> str:
    """The sum of two adapters, truncated, by peft's `add_weighted_adapter(..., "svd")` and in the factor core."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"one": nn.Linear(300, 200), "two": nn.Linear(200, 120)})
    model.config = {"model_type": "custom"}  # type: ignore[assignment]
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["one", "two"], r=8, lora_alpha=12))
    adapted.add_adapter("other", LoraConfig(target_modules=["one", "two"], r=6, use_rslora=True))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    adapted.add_weighted_adapter(["default", "other"], [0.7, -0.4], "both", combination_type="svd")
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder, selected_adapters=["default", "other"])
        ours = merge_adapters([read_adapter(folder), read_adapter(Path(folder) / "other")], weights=[0.7, -0.4])
        vector = ours.to_vector()
        modules = {name: adapted.base_model.model.get_submodule(name.removesuffix(".weight")) for name in vector}
        return difference(vector, {name: module.get_delta_weight("both").detach() for name, module in modules.items()})


def main(args: ParityArguments) -> None:
    folder = Path(args.folder)
    make_checkpoints(folder / "tiny", size="tiny", count=args.count)
    pythons = {name: environment(PEERS[name], folder / PEERS[name].worker.removesuffix(".py")) for name in args.peers}
    print("| peer | method | our settings | largest difference | difference in norm | why |\n|---|---|---|---|---|---|")
    print(f"| peft | LoRA sum, svd | | {compare_peft()} | |", flush=True)
    for name, method, settings, reason in CASES:
        if (python := pythons.get(name)) is None:
            continue
        try:
            found = compare(PEERS[name], python, method, settings, folder / "tiny", args.count)
        except (RuntimeError, CheckpointError) as error:
            found = f"failed | {' '.join(str(error).split())[-200:]}"
        print(f"| {PEERS[name].name} | {method} | {settings or ''} | {found} | {reason} |", flush=True)


if __name__ == "__main__":
    main(*parse_recipe(ParityArguments))
