"""How long `hf-taskvec` takes to show its help, beside a bare Python and the Hub's own client.

python recipes/benchmarks/command.py --runs 9
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.text import table

OURS = "from hf_taskvec.command.app import main; main()"
HUB = "from huggingface_hub.cli.hf import main; main()"
COMMANDS = {
    "python -c pass": ["pass"],
    "hf --help": [HUB, "--help"],
    "hf download --help": [HUB, "download", "--help"],
    "hf-taskvec --help": [OURS, "--help"],
    "hf-taskvec merge --help": [OURS, "merge", "--help"],
    "hf-taskvec --version": [OURS, "--version"],
}


@dataclass
class HelpArguments:
    runs: int = arg("Runs of each command, after one that warms the files' cache.", default=9)


def main(args: HelpArguments) -> dict[str, float]:
    medians = {}
    rows = []
    for name, words in COMMANDS.items():
        times = [seconds([sys.executable, "-c", *words]) for _ in range(args.runs + 1)][1:]
        medians[name] = statistics.median(times)
        rows.append([name, f"{medians[name]:.3f}", f"{min(times):.3f}", f"{max(times):.3f}"])
    print(table(["command", "median s", "fastest", "slowest"], rows))
    return medians


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    run_recipe(main, HelpArguments)
