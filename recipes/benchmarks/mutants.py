"""How many small faults the tests notice: mutants of chosen modules by cosmic-ray, a sample of them run.

pip install cosmic-ray pytest-cov pytest-timeout && python recipes/benchmarks/mutants.py --folder out/mutants

Each mutant changes one operator, number, condition, decorator or exception; it is caught if a test fails. Annotations
are left alone: nothing reads them when the program runs. First the tests of each group run without a mutant: they must
pass, and which of them run which line is noted. A mutant meets the tests that run its line, or its function or module
where the line runs on import. A test that ends by its time limit caught nothing, unless `mutants.json` says that the
mutant's loop has no end. A call that is stopped goes on where it was.

`mutants.json` holds what a person found out about a survivor. `--only_survivors True` makes those once more that a test
was written for, in the sources as they are now, each against that test.
"""

from __future__ import annotations

import ast
import os
import random
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager, chdir
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mutants_again import look_again
from mutants_report import Outcome, Sample, report

from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.errors import ArgumentsError
from hf_taskvec.vectors.info import library_versions
from hf_taskvec.weights.folders import read_json, write_json, write_text

if TYPE_CHECKING:  # a tool of this script alone, which the project does not depend on
    from cosmic_ray.work_db import WorkDB
    from cosmic_ray.work_item import MutationSpec, WorkItem

ROOT = Path(__file__).parents[2]
TOOLS = {"cosmic_ray": "cosmic-ray", "pytest_cov": "pytest-cov", "pytest_timeout": "pytest-timeout"}
GROUPS: dict[str, tuple[list[str], list[str]]] = {  # modules, and the tests that are to notice
    "storage": (
        ["weights/*.py", "vectors/files.py", "vectors/info.py"],
        ["test_storage", "test_folders", "test_resume", "test_hostile", "test_vector", "test_fuzz"],
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
    "caches": (
        ["tasks/pixels.py", "tasks/cache.py", "models/heads.py"],
        ["test_pixels", "test_heads", "test_own_data", "test_evaluation*"],
    ),
}
Contexts = dict[str, dict[int, list[str]]]  # tests by module and line


@dataclass(frozen=True)
class Chosen:
    """Tests of one mutant: files, which of their tests go first, and whether those go alone."""

    files: list[str]
    first: list[str]
    alone: bool


@dataclass
class MutantArguments:
    folder: str = arg("Where copies of the repository and the sessions go.", default="out/mutants")
    output: str = arg("The table; written after each group.", default="recipes/results/mutants.md")
    groups: list[str] = arg("Groups of modules.", default=list(GROUPS))
    sample: int = arg("Mutants to run, over all groups.", default=200)
    seed: int = arg("Seed of the sample.", default=0)
    timeout: float = arg("Seconds that one test may take.", default=180.0)
    only_survivors: bool = arg("Run survivors that have a test by now, in the sources as they are now.", default=False)


@dataclass(frozen=True)
class Home:
    """The folder of a run: `original` and `copy` of the repository, and the session of mutants."""

    folder: Path

    @property
    def copy(self) -> Path:
        """Where the mutants are made."""
        return self.folder / "copy"

    @property
    def session(self) -> Path:
        """The database of the sample."""
        return self.folder / "round-0.sqlite"

    @property
    def facts(self) -> Path:
        """What the report says about the sample."""
        return self.folder / "round-0.json"

    @property
    def again(self) -> Path:
        """What became of survivors that were made once more."""
        return self.folder / "again.json"

    def restore(self) -> None:
        """Takes back what a call that was killed has left in the sources."""
        shutil.rmtree(self.copy / "hf_taskvec", ignore_errors=True)
        shutil.copytree(self.folder / "original" / "hf_taskvec", self.copy / "hf_taskvec")


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def copy_repository(folder: Path, under: str = ".") -> None:
    """Copies what git knows under a folder of the repository."""
    for name in filter(None, git("ls-files", under).split("\n")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)


def environment(copy: Path) -> dict[str, str]:
    paths = [copy, copy / "recipes" / "benchmarks"]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}


def pytest_command(args: MutantArguments, *words: str) -> list[str]:
    limit = ["--timeout", str(args.timeout)]
    return [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-n",
        "0",
        "--dist",
        "no",
        "-p",
        "no:cacheprovider",
        *limit,
        *words,
    ]


def modules(copy: Path, group: str) -> list[str]:
    paths = [path for pattern in GROUPS[group][0] for path in sorted((copy / "hf_taskvec").glob(pattern))]
    return [path.relative_to(copy).as_posix() for path in paths if path.name != "__init__.py"]


def tests(copy: Path, group: str) -> list[str]:
    return [
        f"tests/{path.name}" for pattern in GROUPS[group][1] for path in sorted((copy / "tests").glob(f"{pattern}.py"))
    ]


# -- which tests run which line ---------------------------------------------------------------------------------------


def measure(home: Home, group: str, args: MutantArguments) -> Contexts:
    """Runs the tests of a group without a mutant, and reads which of them run which line."""
    from coverage import CoverageData

    data, unfinished = home.folder / f"coverage-0-{group}", home.folder / "coverage-part"
    if not data.is_file():
        unfinished.unlink(missing_ok=True)
        words = ["--cov=hf_taskvec", "--cov-context=test", "--cov-report="]
        command = pytest_command(args, *words, *tests(home.copy, group))
        variables = {**environment(home.copy), "COVERAGE_FILE": str(unfinished)}
        print(f"measuring {group}", flush=True)
        if subprocess.run(command, cwd=home.copy, env=variables, check=False).returncode:
            raise ArgumentsError(f"the tests of {group!r} fail without a mutant, so they cannot judge one")
        unfinished.rename(data)
    reader = CoverageData(str(data))
    reader.read()
    files = {path.split("/hf_taskvec/")[-1]: path for path in reader.measured_files()}
    return {f"hf_taskvec/{name}": reader.contexts_by_lineno(path) for name, path in files.items()}


def around(source: str, line: int) -> list[range]:
    """The lines of the innermost statement around a line (of a compound one its head), of its function, of all."""
    statement, function, everything = range(line, line + 1), range(0), range(1, source.count("\n") + 2)
    for node in ast.walk(ast.parse(source)):  # outer ones come first
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno):
            body, end = getattr(node, "body", None), (node.end_lineno or node.lineno) + 1
            head = range(node.lineno, body[0].lineno if body else end)
            statement = head if line in head else statement
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                function = range(node.body[0].lineno, end)
    return [statement, function, everything]


def chosen_tests(home: Home, mutation: MutationSpec, group: str, contexts: Contexts) -> Chosen:
    """The tests that a mutant meets."""
    files, module = tests(home.copy, group), str(mutation.module_path)
    by_line = contexts.get(module, {})
    first: list[str] = []
    for lines in around((home.copy / module).read_text(encoding="utf-8"), mutation.start_pos[0]):
        first = first or sorted({name.split("|")[0] for line in lines for name in by_line.get(line, []) if name})
    if not first:
        return Chosen(files, first, alone=False)
    return Chosen([file for file in files if any(name.startswith(f"{file}::") for name in first)], first, alone=True)


# -- mutants ----------------------------------------------------------------------------------------------------------


def annotated_lines(source: str) -> set[int]:
    """The lines on which an annotation stands."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            note = getattr(node, name, None)
            if isinstance(note, ast.expr):
                lines |= {*range(note.lineno, (note.end_lineno or note.lineno) + 1)}
    return lines


def place(item: WorkItem) -> tuple[str, tuple[int, int], str, int]:
    mutation = item.mutations[0]
    return str(mutation.module_path), mutation.start_pos, mutation.operator_name, mutation.occurrence


def opened(path: Path, *, new: bool = False) -> AbstractContextManager[WorkDB]:
    from cosmic_ray.work_db import WorkDB, use_db

    session: AbstractContextManager[WorkDB] = use_db(str(path), WorkDB.Mode.create if new else WorkDB.Mode.open)
    return session


def candidates(home: Home, group: str) -> list[WorkItem]:
    """The mutants of a group that change what runs, in the order of the sources."""
    from cosmic_ray.commands import init

    draft = home.folder / "draft.sqlite"
    draft.unlink(missing_ok=True)
    with chdir(home.copy), opened(draft, new=True) as session:
        init([Path(name) for name in modules(home.copy, group)], session, {})
        items = list(session.work_items)
    draft.unlink()
    skipped = {name: annotated_lines((home.copy / name).read_text()) for name in modules(home.copy, group)}
    chosen = [i for i in items if i.mutations[0].start_pos[0] not in skipped[str(i.mutations[0].module_path)]]
    return sorted(chosen, key=place)


def compiles(home: Home, item: WorkItem) -> bool:
    """Whether a mutant is Python at all; one that is not proves nothing about the tests."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    mutation = item.mutations[0]
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    changed = mutate_code((home.copy / mutation.module_path).read_text(encoding="utf-8"), operator, mutation.occurrence)
    try:
        compile(changed, str(mutation.module_path), "exec")
    except SyntaxError:
        return False
    return True


def draw(home: Home, args: MutantArguments) -> None:
    """The sample of the mutants of all groups."""
    copy_repository(home.folder / "original")
    copy_repository(home.copy)
    pool = [item for group in args.groups for item in candidates(home, group)]
    shuffled = random.Random(args.seed).sample(pool, len(pool))
    drawn = list(islice((item for item in shuffled if compiles(home, item)), args.sample))
    draft = home.folder / "draft.sqlite"
    with opened(draft, new=True) as session:
        session.add_work_items(drawn)
    commit = git("rev-parse", "HEAD").strip()
    write_json(home.facts, {"commit": commit, "drawn": len(drawn), "pool": len(pool), "seed": args.seed})
    draft.rename(home.session)


def run_sample(home: Home, args: MutantArguments) -> None:
    """Runs the mutants that have no result yet."""
    with opened(home.session) as session:
        pending = sorted(session.pending_work_items, key=place)
    for group in args.groups:
        own = modules(home.copy, group)
        if items := [item for item in pending if place(item)[0] in own]:
            contexts = measure(home, group, args)
            for item in items:
                run_mutant(home, item, chosen_tests(home, item.mutations[0], group, contexts), args)
            write_report(home, args)


def run_mutant(home: Home, item: WorkItem, chosen: Chosen, args: MutantArguments) -> None:
    """Runs one mutant and keeps what became of it."""
    from cosmic_ray.mutating import mutate_and_test

    order = home.folder / "first.txt"
    write_text(order, "\n".join(chosen.first))
    os.environ.update(environment(home.copy), MUTANTS_FIRST=str(order), MUTANTS_ALONE=str(chosen.alone))
    with chdir(home.copy):
        command = " ".join(pytest_command(args, "-p", "mutants_first", *chosen.files))
        result = mutate_and_test(item.mutations, command, timeout=20 * args.timeout)
    outcome = Outcome.of(result)
    with opened(home.session) as session:
        session.set_result(item.job_id, result)
        left = len(session.pending_work_items)
    print(f"{left} left. {place(item)[0]}:{item.mutations[0].start_pos[0]} {outcome.line}", flush=True)


def write_report(home: Home, args: MutantArguments) -> str:
    """The table of what has run so far, which is written too."""
    owners = {name: group for group in args.groups for name in modules(home.folder / "original", group)}
    versions = {name: version(name) for name in ("cosmic-ray", "pytest", "hypothesis")} | library_versions()
    made_with = ", ".join(f"{name} {number}" for name, number in versions.items())
    again = read_json(home.again) if home.again.is_file() else {"commit": None, "results": {}}
    known = {**read_json(home.facts), "again": again["commit"]}
    sample = Sample(outcomes(home), again["results"], owners, known, home.folder / "original", made_with)
    text = report(sample)
    write_text(args.output, text)
    return text


def outcomes(home: Home) -> list[tuple[WorkItem, Outcome]]:
    """What became of the mutants."""
    with opened(home.session) as session:
        return [(item, Outcome.of(result)) for item, result in session.completed_work_items]


def main(args: MutantArguments) -> None:
    if missing := [name for module, name in TOOLS.items() if find_spec(module) is None]:
        raise ArgumentsError(f"mutants need tools that are not installed; run: pip install {' '.join(missing)}")
    home = Home(Path(args.folder).resolve())
    if not home.session.is_file():
        draw(home, args)
    if args.only_survivors:
        shutil.rmtree(home.folder / "now", ignore_errors=True)
        copy_repository(home.folder / "now")
        look_again(home.folder / "now", home.again, outcomes(home), git("rev-parse", "HEAD").strip())
    else:
        home.restore()
        run_sample(home, args)
    print(write_report(home, args))


if __name__ == "__main__":
    run_recipe(main, MutantArguments, stopped="The same command goes on where it was.")
