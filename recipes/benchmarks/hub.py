"""What the Hub verbs cost beside the bare Hub client, on a vector of ViT-B/32's size and a local server.

python recipes/benchmarks/hub.py

Before each timing some memory is written and freed. Without that, on a virtual machine, whoever comes first to pages
that the machine has yet to get from its host pays for them: the same call took 0.4 or 1.1 seconds.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
if (
    __name__ == "__main__" and os.environ.get("HF_TASKVEC_BENCHMARK") != "1"
):  # the Hub client reads its endpoint when it is imported
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "tests.hub_server", "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        endpoint = server.stdout.readline().split(" at ")[1].split(";")[0]
        environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_TOKEN": "write-user",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_TASKVEC_BENCHMARK": "1",
        }
        code = subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode
        server.terminate()
    sys.exit(code)

import torch  # noqa: E402
from huggingface_hub import HfApi, hf_hub_download  # noqa: E402
from transformers import CLIPVisionConfig, CLIPVisionModel  # noqa: E402

from hf_taskvec.arguments import arg, run_recipe  # noqa: E402
from hf_taskvec.cards.publish import push_to_hub, write_repository  # noqa: E402
from hf_taskvec.vectors.vector import TaskVector  # noqa: E402
from hf_taskvec.weights.fingerprint import tensor_hashes  # noqa: E402
from hf_taskvec.weights.names import canonical  # noqa: E402

WARM_BYTES = 3 << 30
PAIRS = (("push_to_hub", "upload_folder"), ("pull + open", "hf_hub_download"))  # ours and the bare client's


@dataclass
class BenchmarkArguments:
    runs: int = arg("Runs of each, in turn; the median counts.", default=5)
    work_dir: str | None = arg("Folder for caches and files; a temporary one if left out.", default=None)


def timed(call: Callable[[], object]) -> float:
    torch.ones(WARM_BYTES, dtype=torch.uint8)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def anonymous_bytes() -> int:
    """Anonymous memory of this process; mapped files are not in it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def random_vector(seed: int) -> TaskVector:
    """A vector of ViT-B/32's vision tower."""
    with torch.device("meta"):
        names = canonical(CLIPVisionModel(CLIPVisionConfig(patch_size=32)).named_parameters())
    generator = torch.Generator().manual_seed(seed)
    return TaskVector({name: 1e-3 * torch.randn(p.shape, generator=generator) for name, p in names.items()})


def measure_transfers(args: BenchmarkArguments, folder: Path) -> dict[str, list[float]]:
    """Seconds of push and pull, ours and the bare client's, in turn; both publish the same files of the same sizes."""
    times: dict[str, list[float]] = defaultdict(list)
    api = HfApi()
    for run in range(args.runs + 1):  # the first round warms up
        bare, ours = f"user/bare-{run}", f"user/ours-{run}"
        vector, other = random_vector(2 * run), random_vector(2 * run + 1)  # the server keeps equal files once
        caches = folder / "cache-bare", folder / "cache-ours"

        def upload(repo: str = bare) -> None:
            api.create_repo(repo)
            api.upload_folder(repo_id=repo, folder_path=folder / "bare")

        calls: dict[str, Callable[[], object]] = {
            "write the files": lambda: write_repository(other, folder / "bare", repo_id=bare),  # noqa: B023
            "upload_folder": upload,
            "push_to_hub": lambda: push_to_hub(vector, ours),  # noqa: B023
            "hf_hub_download": lambda: hf_hub_download(bare, "task_vector.safetensors", cache_dir=caches[0]),  # noqa: B023
            "pull + open": lambda: TaskVector.from_pretrained(ours, cache_dir=caches[1]),  # noqa: B023
        }
        order = [name for pair in PAIRS for name in (pair if run % 2 else pair[::-1])]  # who comes first changes
        for name in ["write the files", *order]:
            times[name].append(timed(calls[name]))
        for path in (folder / "bare", *caches):
            if run < args.runs or path != caches[1]:
                shutil.rmtree(path)
    return {name: values[1:] for name, values in times.items()}


def main(args: BenchmarkArguments) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=args.work_dir) as temporary:
        folder = Path(temporary)
        times = measure_transfers(args, folder)
        medians = {name: statistics.median(values) for name, values in times.items()}
        for ours, bare in PAIRS:
            for label, kind in (("median", statistics.median), ("best", min)):
                mine, theirs = kind(times[ours]), kind(times[bare])
                print(f"{label} of {args.runs}: {ours} {mine:.2f} s, {bare} alone {theirs:.2f} s: {mine / theirs:.2f}x")
        print(f"writing the files that upload_folder finds on the disk: {medians['write the files']:.2f} s")
        repo, cache, before = f"user/ours-{args.runs}", folder / "cache-ours", anonymous_bytes()
        for label, local in (("cached, asking the Hub", False), ("cached, local_files_only", True)):
            runs = [
                timed(lambda: TaskVector.from_pretrained(repo, cache_dir=cache, local_files_only=local))  # noqa: B023
                for _ in range(args.runs)
            ]
            print(f"open {label}: {1000 * statistics.median(runs):.1f} ms")
        vector = TaskVector.from_pretrained(repo, cache_dir=cache, local_files_only=True)
        size = sum(delta.nbytes for delta in vector.deltas.values())
        print(f"{size / 1e6:.0f} MB of weights, {(anonymous_bytes() - before) / 1e6:.1f} MB of memory to open them")
        hashing = min(timed(lambda: tensor_hashes(vector.deltas)) for _ in range(args.runs))
        reading = min(
            timed(lambda: [delta.view(-1).view(torch.int32).sum() for delta in vector.deltas.values()])
            for _ in range(args.runs)
        )
        print(f"fingerprint {size / hashing / 1e9:.1f} GB/s; summing the same bytes {size / reading / 1e9:.1f} GB/s")
    return medians


if __name__ == "__main__":
    run_recipe(main, BenchmarkArguments)
