"""Mutants that survived, made once more in the sources as they are now, each against the test written for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mutants_report import Outcome, read_reasons, reason_for

from hf_taskvec.weights.folders import read_json, write_json, write_text

if TYPE_CHECKING:
    from cosmic_ray.work_item import WorkItem

GONE = "gone"


def mutated(source: str, line: int, removed: str, added: str) -> str | None:
    """The source with some lines changed at the place nearest to a line number; `None` if they are gone.

    Lines are given without what indents them.
    """
    lines, old = source.split("\n"), removed.split("\n")
    bare = [each.strip() for each in lines]
    starts = [start for start in range(len(lines)) if bare[start : start + len(old)] == old]
    if not starts:
        return None
    start = min(starts, key=lambda index: abs(index + 1 - line))
    indents = [each[: len(each) - len(each.lstrip())] for each in lines[start : start + len(old)]]
    changed = [indents[min(index, len(old) - 1)] + text for index, text in enumerate(added.split("\n"))]
    return "\n".join([*lines[:start], *changed, *lines[start + len(old) :]])


def look_again(copy: Path, kept: Path, finished: Sequence[tuple[WorkItem, Outcome]], commit: str) -> None:
    """Runs each survivor that has a test by now against it; what has run at the same commit is not run again.

    Args:
        copy: A copy of the repository as it is now.
        kept: The file of results: the commit, and of each job the test that caught it, "" or "gone".
        finished: The mutants of the sample, and what became of them at first.
        commit: The commit of the copy.
    """
    told = read_json(kept) if kept.is_file() else {}
    results = told["results"] if told.get("commit") == commit else {}
    reasons = read_reasons()
    for item, outcome in finished:
        reason = reason_for(reasons, item, outcome)
        if outcome.is_caught or reason is None or reason.kind != "test" or item.job_id in results:
            continue
        mutation = item.mutations[0]
        path, test = copy / mutation.module_path, reason.text.strip("`")
        source = path.read_text(encoding="utf-8")
        changed = mutated(source, mutation.start_pos[0], outcome.removed, outcome.added)
        if changed is None:
            results[item.job_id] = GONE
        else:
            write_text(path, changed)
            try:
                results[item.job_id] = test if fails(copy, test) else ""
            finally:
                write_text(path, source)
        write_json(kept, {"commit": commit, "results": results})
        print(f"{mutation.module_path}:{mutation.start_pos[0]} {results[item.job_id] or 'SURVIVED'}", flush=True)


def fails(copy: Path, test: str) -> bool:
    """Whether a test fails on a copy of the repository."""
    paths = os.pathsep.join([str(copy), str(copy / "recipes" / "benchmarks")])
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", test]
    variables = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    code = subprocess.run(command, cwd=copy, env=variables, capture_output=True, check=False).returncode
    if code not in (0, 1, 2):  # passed, failed, stopped by an import that fails
        raise RuntimeError(f"{test} could not be run: pytest ended with {code}")
    return code != 0
