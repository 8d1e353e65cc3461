"""How many small faults the tests notice: mutants of chosen modules by cosmic-ray, a sample of them run.

pip install cosmic-ray && python recipes/benchmarks/mutants.py --folder out/mutants --sample 200

Each mutant changes one operator, number, condition, decorator or exception; it is caught if a test of its group fails
or runs too long. Annotations are left alone: nothing reads them when the program runs. A call that is stopped goes on
where it was. With two cores, start a second call with `--groups` of its own in another folder.
"""

from __future__ import annotations

import ast
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.errors import ArgumentsError
from hf_taskvec.text import table

if TYPE_CHECKING:  # a tool of this script alone, which the project does not depend on
    from cosmic_ray.work_db import WorkDB
    from cosmic_ray.work_item import WorkItem, WorkResult

ROOT = Path(__file__).parents[2]
GROUPS: dict[str, tuple[list[str], list[str]]] = {  # modules, and the tests that are to notice
    "storage": (
        ["weights/*.py", "vectors/files.py", "vectors/info.py"],
        ["test_storage", "test_folders", "test_resume", "test_hostile", "test_vector"],
    ),
    "vectors": (
        [
            "vectors/vector.py",
            "vectors/checkpoints.py",
            "vectors/lora.py",
            "vectors/factors.py",
            "vectors/differences.py",
        ],
        ["test_vector", "test_checkpoints", "test_foreign", "test_lora", "test_adapters"],
    ),
    "merging": (["merging/*.py"], ["test_merging_*"]),
    "trainer": (["training/*.py"], ["test_trainer", "test_runs", "test_settings", "test_gradients", "test_atm"]),
    "hub": (["hub/*.py", "cards/publish.py", "cards/find.py"], ["test_hub*", "test_cards"]),
    "evaluation": (["evaluation/*.py"], ["test_evaluation*", "test_equivalence_test", "test_text"]),
    "caches": (["tasks/pixels.py", "tasks/cache.py", "models/heads.py"], ["test_pixels", "test_heads"]),
}


@dataclass
class MutantArguments:
    folder: str = arg("Where copies of the repository and the sessions go.", default="out/mutants")
    groups: list[str] = arg("Groups of modules.", default=list(GROUPS))
    sample: int = arg("Mutants to run, over all groups.", default=200)
    seed: int = arg("Seed of the sample.", default=0)
    timeout: float = arg("Seconds after which a mutant counts as caught.", default=240.0)


def annotated_lines(source: str) -> set[int]:
    """The lines on which an annotation stands."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            note = getattr(node, name, None)
            if isinstance(note, ast.expr):
                lines |= {*range(note.lineno, (note.end_lineno or note.lineno) + 1)}
    return lines


def prepare(group: str, args: MutantArguments) -> Path:
    """A copy of the repository with a session of all mutants of a group."""
    home = Path(args.folder) / group
    if (home / "session.sqlite").is_file():
        return home
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, home / name)
    modules, tests = GROUPS[group]
    sources = [path for pattern in modules for path in sorted((home / "hf_taskvec").glob(pattern))]
    names = [path.relative_to(home).as_posix() for path in sources if path.name != "__init__.py"]
    wanted = [f"tests/{path.name}" for pattern in tests for path in sorted((home / "tests").glob(f"{pattern}.py"))]
    command = f"{sys.executable} -m pytest -x -q -n 0 -p no:cacheprovider {' '.join(wanted)}"
    (home / "mutants.toml").write_text(
        f"[cosmic-ray]\nmodule-path = {names!r}\ntimeout = {args.timeout}\nexcluded-modules = []\n"
        f'test-command = "{command}"\n[cosmic-ray.distributor]\nname = "local"\n'
    )
    (home / "unsampled.sqlite").unlink(missing_ok=True)  # of a call that was stopped
    run_tool(home, "init", "mutants.toml", "unsampled.sqlite")
    (home / "unsampled.sqlite").rename(home / "session.sqlite")
    return home


def run_tool(home: Path, *words: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(home.resolve()), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "cosmic_ray.cli", *words], cwd=home, env=environment, check=True)


def candidates(home: Path, items: Sequence[WorkItem]) -> list[WorkItem]:
    """The mutants that change what runs."""
    skipped = {path: annotated_lines((home / path).read_text()) for path in {i.mutations[0].module_path for i in items}}
    chosen = [item for item in items if item.mutations[0].start_pos[0] not in skipped[item.mutations[0].module_path]]
    return sorted(chosen, key=_place)


def _place(item: WorkItem) -> tuple[str, tuple[int, int], str, int]:
    mutation = item.mutations[0]
    return str(mutation.module_path), mutation.start_pos, mutation.operator_name, mutation.occurrence


def opened(home: Path) -> AbstractContextManager[WorkDB]:
    """The session of a group."""
    from cosmic_ray.work_db import WorkDB, use_db

    session: AbstractContextManager[WorkDB] = use_db(str(home / "session.sqlite"), WorkDB.Mode.open)
    return session


def draw_sample(homes: dict[str, Path], args: MutantArguments) -> None:
    """Leaves in the sessions, together, as many mutants as are asked for; a session that was cut stays as it is."""
    marker = Path(args.folder) / "sampled"
    if marker.is_file():
        return
    pool: list[tuple[str, WorkItem]] = []
    for group, home in homes.items():
        with opened(home) as session:
            pool += [(group, item) for item in candidates(home, session.work_items)]
    chosen = random.Random(args.seed).sample(pool, min(args.sample, len(pool)))
    for group, home in homes.items():
        with opened(home) as session:
            session.clear()
            session.add_work_items([item for owner, item in chosen if owner == group])
    marker.write_text(f"{len(chosen)} of {len(pool)}\n")


def results(home: Path) -> Iterator[tuple[WorkItem, WorkResult]]:
    with opened(home) as session:
        yield from session.completed_work_items


def main(args: MutantArguments) -> None:
    if find_spec("cosmic_ray") is None:
        raise ArgumentsError("mutants are made by cosmic-ray, which is not installed; run: pip install cosmic-ray")
    homes = {group: prepare(group, args) for group in args.groups}
    draw_sample(homes, args)
    counts: dict[str, tuple[int, int]] = {}
    survivors: list[tuple[str, str]] = []
    for group, home in homes.items():
        run_tool(home, "exec", "mutants.toml", "session.sqlite")
        done = list(results(home))
        alive = [result for _, result in done if result.test_outcome == "survived"]
        counts[group] = len(done), len(done) - len(alive)
        survivors += [(group, result.diff or "") for result in alive]
    total, caught = (sum(count[column] for count in counts.values()) for column in (0, 1))
    rows = [[group, *count] for group, count in counts.items()]
    print(
        table(["group", "mutants", "caught"], [*rows, ["**all**", total, f"{caught} ({caught / max(total, 1):.0%})"]])
    )
    for group, diff in survivors:
        print(f"\n{group}\n" + "\n".join(line for line in diff.splitlines() if line[:1] in "+-@"))


if __name__ == "__main__":
    run_recipe(main, MutantArguments, stopped="The same command goes on where it was.")
