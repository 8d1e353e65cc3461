"""Tiny models and vectors built from a configuration, for every test."""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from hf_taskvec.vectors.vector import TaskVector

# For tests whose child is killed: forked off a server that has computed nothing, where no pool can hang.
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.helpers"])


def until_killed(work: Callable[..., None], kind: str, folder: Path, moment: int) -> int:
    """Works in a process that `count_or_die` kills at its `moment`-th step, or, at 0, not at all.

    Returns:
        How many steps there were.

    Raises:
        RuntimeError: If the work ended in another way.
    """
    count = PROCESSES.Value("i", 0)
    process = PROCESSES.Process(target=work, args=(kind, folder, moment, count))
    process.start()
    process.join()
    if process.exitcode != (-signal.SIGKILL if moment else 0):
        raise RuntimeError(f"{kind} ended with {process.exitcode} instead of being killed at step {moment}")
    return int(count.value)


def count_or_die(count: Any, moment: int) -> None:
    """Counts a step of the work of a process, which dies before it if it is the `moment`-th."""
    count.value += 1
    if count.value == moment:
        os.kill(os.getpid(), signal.SIGKILL)


def tiny_config() -> CLIPConfig:
    """A CLIP of two layers, 32 px and width 64."""
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": 32,
    }
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 100,
        "max_position_embeddings": 16,
        "projection_dim": 32,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=32)


def tiny_clip(*, seed: int = 0) -> CLIPModel:
    """A randomly initialised tiny CLIP in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIPModel(tiny_config()).eval()


def finetuned(base: CLIPModel, *, seed: int = 1, size: float = 0.01) -> CLIPModel:
    """A copy of `base` whose vision tower has moved."""
    model, generator = copy.deepcopy(base), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.vision_model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


def tiny_vector(base: CLIPModel | None = None, *, seed: int = 1) -> TaskVector:
    """The vector of `finetuned(base)`."""
    base = base or tiny_clip()
    return TaskVector.from_models(base, finetuned(base, seed=seed))


def random_deltas(*, seed: int = 0, size: int = 5) -> dict[str, Tensor]:
    """A few deltas of odd shapes, a scalar among them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (size, 3), "layers.0.b": (size,), "layers.0.c": (), "d": (1, 2, size)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def equal_vectors(left: TaskVector, right: TaskVector) -> bool:
    """Whether two vectors have the same names, dtypes and values, bit for bit."""
    if set(left.deltas) != set(right.deltas):
        return False
    pairs = [(left.deltas[name], right.deltas[name]) for name in left.deltas]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def rewrite_weights(folder: Path, change: dict[str, Tensor | None], *, prefix: tuple[str, str] = ("", "")) -> None:
    """Replaces, adds or (None) drops tensors of a folder's `model.safetensors`, and renames a prefix."""
    path = folder / "model.safetensors"
    weights: dict[str, Tensor | None] = {**load_file(path), **change}
    old, new = prefix
    renamed = {new + name.removeprefix(old): value for name, value in weights.items() if value is not None}
    save_file(renamed, path, metadata={"format": "pt"})


def anonymous_bytes() -> int:
    """Memory of this process that is no page of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def mutant(content: bytes, chance: random.Random) -> bytes:
    """The content after one or two random edits, half of them in the first part, where headers are."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 2])):
        at = chance.randrange(max(1, len(data) if chance.random() < 0.5 else min(len(data), 600)))
        kind = chance.choice([0, 0, 0, 1, 2, 3, 4, 5, 5])
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at : at + chance.randint(1, 8)] = chance.randbytes(chance.randint(0, 8))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = data[: chance.randint(0, 64)]
        elif kind == 4:
            data[at:at] = chance.choice(
                [b'"', b"{", b"}", b"0", b"9999999999", b"-1", b"\x00", b"F16", b"../", b"null"]
            )
        else:
            data[at : at + 1] = bytes([chance.choice(b'0123456789[]{}",:')])
    return bytes(data)


def in_processes(script: Path, *words: Path | str, count: int = 2) -> None:
    """Runs a script under torchrun in some processes."""
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}", "--standalone"]
    command = [*launcher, *map(str, (script, *words))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
