"""The peers of the merging benchmark: their virtual environments, and how each calls our methods."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from merging_runs import Run

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Peer:
    """A package to compare with.

    Attributes:
        name: Its name in tables.
        python: The version of Python it needs.
        packages: What to install; fusion-bench imports more than it declares, and older versions than it allows.
        worker: The script that runs one merge; without arguments it only imports the package.
        calls: For each of our methods, its own name and arguments for the same mathematics.
        towers: Where its checkpoints lie in the folder of the towers.
    """

    name: str
    python: str
    packages: tuple[str, ...]
    worker: str
    calls: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    towers: str = "."


def _kit(
    each: dict[str, Any], everywhere: dict[str, Any] | None = None, *, base: str | None = "base"
) -> dict[str, Any]:
    return {"each": each, "all": everywhere or {}, "base": base}


MERGEKIT = Peer(
    "mergekit 0.1.5",
    "3.11",
    ("torch<2.14", "mergekit==0.1.5"),
    "merging_mergekit.py",
    {
        "average": ("linear", _kit({"weight": 1.0}, base=None)),
        "task_arithmetic": ("task_arithmetic", _kit({"weight": 1.0})),
        "ties": ("ties", _kit({"weight": 1.0, "density": 0.2}, {"normalize": True})),
        "dare": ("dare_linear", _kit({"weight": 1.0, "density": 0.1})),
        "breadcrumbs": ("breadcrumbs", _kit({"weight": 1.0, "density": 0.143, "gamma": 0.007})),
        "della": ("della", _kit({"weight": 1.0, "density": 0.7, "epsilon": 0.07}, {"normalize": True})),
        "sce": ("sce", _kit({}, {"select_topk": 0.1})),
        "model_stock": ("model_stock", _kit({})),
        "karcher": ("karcher", _kit({}, base=None)),
        "slerp": ("slerp", _kit({}, {"t": 0.5}, base="task-0")),
    },
    "flat",
)
FUSION_BENCH = Peer(
    "fusion-bench 0.2.33",
    "3.12",
    ("torch", "transformers<5", "fusion-bench==0.2.33", "torchvision", "peft<0.18", "pyarrow<21"),
    "merging_fusion_bench.py",
    {
        "average": ("SimpleAverageAlgorithm", {}),
        "task_arithmetic": ("TaskArithmeticAlgorithm", {"scaling_factor": 1.0}),
        "ties": (
            "TiesMergingAlgorithm",
            {"scaling_factor": 1.0, "threshold": 20, "remove_keys": [], "merge_func": "mean"},
        ),
        "dare": (
            "DareTaskArithmetic",
            {"scaling_factor": 1.0, "sparsity_ratio": 0.9, "only_on_linear_weights": False, "rescale": True},
        ),
        "magmax": ("MagMaxAlgorithm", {"scaling_factor": 1.0}),
        "slerp": ("SlerpMergeAlgorithm", {"t": 0.5}),
        "iso_c": ("ISO_C_Merge", {"scaling_factor": 1.0}),
        "iso_cts": ("ISO_CTS_Merge", {"scaling_factor": 1.0, "common_space_fraction": 0.8}),
        "tsv_m": ("TaskSingularVectorMerging", {"alpha": 1.0}),
        "wudi": ("WUDIMerging", {"iter_num": 3, "exclude_keys": []}),
    },
)
PEERS = {"mergekit": MERGEKIT, "fusion_bench": FUSION_BENCH}


def environment(peer: Peer, folder: Path) -> str | None:
    """The interpreter of the peer's virtual environment, built if need be; a reason in words goes to the screen."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        interpreter = shutil.which(f"python{peer.python}")
        if interpreter is None:
            print(f"{peer.name} is skipped: no python{peer.python} here")
            return None
        chosen = {**os.environ, "PYENV_VERSION": peer.python}  # without it, pyenv's shims find one version only
        try:
            subprocess.run([interpreter, "-m", "venv", folder], check=True, env=chosen)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *peer.packages], check=True)
            subprocess.run([python, HERE / peer.worker], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        except subprocess.CalledProcessError as error:
            print(f"{peer.name} is skipped: its environment cannot be built ({error})")
            return None
        (folder / "ready").touch()
    return str(python)


def run_ours(towers: Path, count: int, method: str, settings: dict[str, Any], out: Path) -> Run:
    """One merge by this package."""
    words = [sys.executable, HERE / "merging_ours.py", towers, count, method, json.dumps(settings), out]
    return _run(words, out, warm=2 << 30)


def run_script(words: Sequence[object], *, python: str = sys.executable) -> Run:
    """One run of a script in this folder; its last word is the folder that it writes."""
    return _run([python, HERE / str(words[0]), *words[1:]], Path(str(words[-1])), warm=2 << 30)


def run_peer(
    peer: Peer,
    python: str,
    towers: Path,
    count: int,
    method: str,
    out: Path,
    *,
    limit: float | None = None,
    **settings: object,
) -> Run:
    """One merge by a peer, within a limit of seconds if there is one.

    Raises:
        RuntimeError: If it fails, or writes less than a whole model.
        subprocess.TimeoutExpired: If it takes longer than the limit.
    """
    name, arguments = peer.calls[method]
    words = [python, HERE / peer.worker, towers / peer.towers, count, name, json.dumps({**arguments, **settings}), out]
    run = _run(words, out, warm=6 << 30, limit=limit)
    whole, written = (_size(folder) for folder in (towers / "task-0", out))
    if written < 0.99 * whole:
        raise RuntimeError(f"{peer.name} wrote {written} bytes of weights where a model has {whole}")
    return run


def run_lora(folder: Path, size: str, count: int, by: str) -> Run:
    """The sum of adapters, by "ours" or by "peft"."""
    words = [sys.executable, HERE / "merging_lora.py", folder, size, count, by]
    return _run(words, folder / "merged", warm=2 << 30)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _run(command: list[object], out: Path, *, warm: int, limit: float | None = None) -> Run:
    shutil.rmtree(out, ignore_errors=True)
    # A virtual machine gets memory from its host on first touch, at half a gigabyte per second: whoever comes next
    # must not pay for that, so as many bytes as most runs need are touched and freed.
    torch.ones(warm, dtype=torch.uint8)
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    start = time.perf_counter()
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=limit,
        env={**os.environ, **quiet, "PYTHONPATH": str(ROOT)},
    )
    seconds = time.perf_counter() - start
    lines = [line for line in done.stdout.splitlines() if line.startswith("METER ")]
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"{command[1]} failed: {done.stderr.strip()[-400:]}")
    values = json.loads(lines[-1].removeprefix("METER "))
    return Run(seconds, values["seconds"], values["peak"], values["processor"])
