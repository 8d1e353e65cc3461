"""Whether our merges and the peers' own packages agree, method by method, on small synthetic towers.

python recipes/benchmarks/parity.py

A difference is the largest one over the largest entry, and that of the norms over the norm. Where chance decides, it
is the share of entries that are not zero and the slope on the sum of the vectors, ours and theirs.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from merging_data import make_checkpoints
from merging_peers import PEERS, Peer, environment, run_peer
from merging_runs import header, line
from parity_cases import CASES, Case
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from hf_taskvec import TaskVector, merge
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.errors import CheckpointError
from hf_taskvec.merging.knots import merge_adapters
from hf_taskvec.vectors.checkpoints import open_checkpoint
from hf_taskvec.vectors.lora import LoraAdapter


@dataclass
class ParityArguments:
    folder: str = arg(
        "Where towers and environments go; that of merging.py is reused.", default="out/benchmark-merging"
    )
    peers: list[str] = arg("Peers to compare with.", default=["mergekit", "fusion_bench"])
    count: int = arg("Number of vectors.", default=4)


def difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """The largest difference over the largest entry, and the relative difference in norm."""
    if not ours:
        return "no such parameter"
    flat = [torch.cat([deltas[name].flatten().double() for name in ours]) for deltas in (ours, theirs)]
    error = flat[0] - flat[1]
    return f"{float(error.abs().max() / flat[1].abs().max()):.1e}, {float(error.norm() / flat[1].norm()):.1e}"


def statistics(merged: Mapping[str, Tensor], total: Mapping[str, Tensor]) -> str:
    """The share of entries that are not zero, and the slope on the sum of the vectors: 1 if that is the expectation."""
    one, whole = (torch.cat([deltas[name].flatten().double() for name in merged]) for deltas in (merged, total))
    return f"{float((one.abs() > 1e-8).double().mean()):.4f}, {float(one @ whole / whole.square().sum()):.4f}"


def compare(case: Case, peer: Peer, python: str, towers: Path, count: int) -> list[str]:
    """Cells of the table: how far we are from the peer, and how far where or when the reason does not count."""
    count = 2 if case.method == "slerp" else count
    base = open_checkpoint(towers / "base").tensors
    weights = [open_checkpoint(towers / f"task-{index}").tensors for index in range(count)]
    with tempfile.TemporaryDirectory() as out:
        run_peer(peer, python, towers, count, case.method, Path(out) / "merged")
        merged = {name: tensor.double() for name, tensor in open_checkpoint(Path(out) / "merged").tensors.items()}
    if case.weights:
        vectors, theirs = [TaskVector(one) for one in weights], merged
    else:
        vectors = [TaskVector.from_weights(base, one) for one in weights]
        theirs = {name: merged[name] - base[name].double() for name in vectors[0]}
    ours = merge(vectors, case.method, **case.settings).deltas
    if case.chance:
        total = merge(vectors, "task_arithmetic").deltas
        return [f"{statistics(ours, total)} and {statistics(theirs, total)}", ""]
    return [difference(ours, theirs), explained(case, vectors, ours, theirs)]


def explained(case: Case, vectors: list[TaskVector], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """What is left of a difference, given its reason."""
    deltas = {name: torch.stack([vector.deltas[name] for vector in vectors]) for name in ours}
    if case.restated is not None:
        restated = case.restated
        return difference({name: restated(stack) for name, stack in deltas.items()}, theirs)
    if case.kept is not None:
        size = sum(delta.numel() for delta in ours.values())
        return difference(merge(vectors, case.method, density=case.kept(size)).deltas, theirs)
    if case.untouched is not None:
        spared = {name: ours[name] for name, stack in deltas.items() if case.untouched(name, stack)}
        return f"{difference(spared, theirs)} ({len(spared)} of {len(ours)} parameters)"
    return ""


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
        ours = merge_adapters(
            [LoraAdapter.from_pretrained(folder), LoraAdapter.from_pretrained(Path(folder) / "other")],
            weights=[0.7, -0.4],
        )
        vector = ours.to_vector()
        modules = {name: adapted.base_model.model.get_submodule(name.removesuffix(".weight")) for name in vector}
        theirs = {name: module.get_delta_weight("both").detach() for name, module in modules.items()}
        return difference(vector.deltas, theirs)


def main(args: ParityArguments) -> None:
    folder = Path(args.folder)
    make_checkpoints(folder / "tiny", size="tiny", count=args.count)
    pythons = {name: environment(PEERS[name], folder / PEERS[name].worker.removesuffix(".py")) for name in args.peers}
    header("peer", "method", "our settings", "difference", "left if the reason does not count", "reason")
    line("peft", "sum of two LoRA adapters, svd", "", compare_peft(), "", "")
    for case in CASES:
        if (python := pythons.get(case.peer)) is None:
            continue
        try:
            cells = compare(case, PEERS[case.peer], python, folder / "tiny", args.count)
        except (RuntimeError, CheckpointError) as error:
            cells = [f"failed: {' '.join(str(error).split())[-200:]}", ""]
        settings = ", ".join(f"{key}={value!r}" for key, value in case.settings.items())
        line(PEERS[case.peer].name, case.method, settings, *cells, case.reason)


if __name__ == "__main__":
    run_recipe(main, ParityArguments)
