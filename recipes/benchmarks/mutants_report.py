"""What became of the mutants of `mutants.py`, and what a person found out about those that survived."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_taskvec.cards.text import code
from hf_taskvec.errors import ArgumentsError
from hf_taskvec.text import table
from hf_taskvec.weights.folders import read_json

if TYPE_CHECKING:
    from cosmic_ray.work_item import WorkItem, WorkResult

SCRIPT = "recipes/benchmarks/mutants.py"
REASONS = Path(__file__).with_name("mutants.json")
KINDS = {  # of reasons, and how the report puts them
    "equivalent": "equivalent because",
    "endless": "caught: its loop has no end;",
    "test": "test added:",
    "left": "left alone because",
}


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant.

    Attributes:
        caught_by: The test that failed; empty if none did.
        timed_out: Whether that was its time limit, which proves nothing by itself.
        removed, added: The changed lines of the source.
    """

    caught_by: str
    timed_out: bool
    removed: str
    added: str

    @classmethod
    def of(cls, result: WorkResult) -> Outcome:
        """Reads a result of cosmic-ray.

        Raises:
            ArgumentsError: If the mutant could not be run.
        """
        output, diff = result.output or "", (result.diff or "").partition("\n@@")[2].splitlines()[1:]
        if result.test_outcome not in ("killed", "survived"):
            raise ArgumentsError(f"a mutant could not be run: {output[-300:]}")
        removed, added = ("\n".join(line[1:].strip() for line in diff if line[:1] == sign) for sign in "-+")
        timed_out = output == "timeout" or "from pytest-timeout" in output
        test = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        killed = result.test_outcome == "killed"
        return cls((test.group(1) if test else "the import") if killed else "", timed_out, removed, added)

    @property
    def is_caught(self) -> bool:
        """Whether a test failed, by more than its time limit."""
        return bool(self.caught_by) and not self.timed_out

    @property
    def line(self) -> str:
        """The outcome on one line, while the mutants run."""
        change = f"{self.removed!r} -> {self.added!r}"
        return (
            f"ran too long at {self.caught_by}: {change}"
            if self.timed_out
            else (f"caught by {self.caught_by}: {change}" if self.caught_by else f"SURVIVED: {change}")
        )


@dataclass(frozen=True)
class Reason:
    """What a person found out about a survivor, which is known by its module, operator and changed lines."""

    kind: str
    text: str


Reasons = dict[tuple[str, str, str, str], Reason]


def read_reasons() -> Reasons:
    """The reasons by module, operator, lines and changed lines."""
    reasons: Reasons = {}
    for entry in read_json(REASONS)["reasons"]:
        kind = next(kind for kind in KINDS if kind in entry)
        reasons[entry["module"], entry["operator"], entry["from"], entry["to"]] = Reason(kind, entry[kind])
    return reasons


def reason_for(reasons: Reasons, item: WorkItem, outcome: Outcome) -> Reason | None:
    """What is known about a mutant."""
    mutation = item.mutations[0]
    return reasons.get((str(mutation.module_path), mutation.operator_name, outcome.removed, outcome.added))


@dataclass(frozen=True)
class Sample:
    """What has run.

    Attributes:
        first: What became of the mutants.
        again: Of survivors that were made once more, by job, the test that caught it, "" or "gone".
        owners: The group of each module.
        facts: The commit, how many were drawn by which seed, the pool's size, and the commit of the second look.
        copy: The sources that were mutated.
        versions: What it was made with.
    """

    first: Sequence[tuple[WorkItem, Outcome]]
    again: Mapping[str, str]
    owners: Mapping[str, str]
    facts: Mapping[str, Any]
    copy: Path
    versions: str


def report(sample: Sample) -> str:
    """The table by group, and each mutant that survived at first."""
    reasons = read_reasons()
    again = {job: test for job, test in sample.again.items() if test not in ("", "gone")}
    first: dict[str, list[tuple[WorkItem, Outcome]]] = {group: [] for group in dict.fromkeys(sample.owners.values())}
    for item, outcome in sample.first:
        first[sample.owners[str(item.mutations[0].module_path)]].append((item, outcome))

    def counts(mutants: Sequence[tuple[WorkItem, Outcome]]) -> list[int]:
        known = {item.job_id: reason_for(reasons, item, outcome) for item, outcome in mutants}
        kinds = {job: reason.kind if reason else "" for job, reason in known.items()}
        endless = [item for item, outcome in mutants if outcome.timed_out and kinds[item.job_id] == "endless"]
        at_first = sum(outcome.is_caught or item in endless for item, outcome in mutants)
        now = sum(outcome.is_caught or item in endless or item.job_id in again for item, outcome in mutants)
        equivalent = sum(kinds[item.job_id] == "equivalent" and not outcome.is_caught for item, outcome in mutants)
        return [len(mutants), at_first, sum(o.timed_out for _, o in mutants), now, len(mutants) - now, equivalent]

    rows = [(group, counts(mutants)) for group, mutants in first.items()]
    total = [sum(column) for column in zip(*(numbers for _, numbers in rows), strict=True)]
    shares = [
        f"{number} ({number / max(total[0], 1):.1%})" if at in (1, 3) else number for at, number in enumerate(total)
    ]
    drawn = sample.facts
    command = f"python {SCRIPT} --sample {drawn['drawn']} --seed {drawn['seed']}"
    header = ["group", "mutants", "caught at first", "of them or not: timeouts", "caught now", "survived", "equivalent"]
    lines = [
        "# What the tests notice\n",
        f"    {command}  # at {drawn['commit'][:12]}",
        *([f"    {command} --only_survivors True  # at {drawn['again'][:12]}"] if drawn["again"] else []),
        f"\n{total[0]} of {drawn['drawn']} mutants, drawn with seed {drawn['seed']} from {drawn['pool']}, have run.",
        f"{sample.versions}.",
        "A timeout counts as caught only if the mutant's loop has no end, which a person looked at.\n",
        table(header, [*([group, *numbers] for group, numbers in rows), ["**all**", *shares]]),
        "\n## Not caught at first\n",
        table(
            ["where", "change", "what became of it"],
            [
                survivor(item, outcome, sample.again.get(item.job_id), reasons)
                for mutants in first.values()
                for item, outcome in mutants
                if not outcome.is_caught
            ],
            align="lll",
        ),
        *stale(reasons, sample.copy),
    ]
    return "\n".join(lines) + "\n"


def survivor(item: WorkItem, outcome: Outcome, again: str | None, reasons: Reasons) -> list[str]:
    """The row of a mutant that was not caught at first."""
    mutation, reason = item.mutations[0], reason_for(reasons, item, outcome)
    words = f"{KINDS[reason.kind]} {reason.text}" if reason else "survives"
    if reason is not None and reason.kind == "test":
        known = {None: "not run again; ", "": "survives; ", "gone": "its line is gone; "}
        words = f"caught by {code(again)}" if again not in known else f"{known[again]}{words}"
    where = f"{mutation.module_path}:{mutation.start_pos[0]}"
    return [code(where), f"{code(outcome.removed)} → {code(outcome.added)}", words]


def stale(reasons: Reasons, copy: Path) -> list[str]:
    """A sentence on the reasons whose lines are no longer in the sources."""
    gone = []
    for module, _, removed, _ in reasons:
        path = copy / module
        lines = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()} if path.is_file() else set()
        gone += [] if set(removed.split("\n")) <= lines else [f"{code(module)}: {code(removed)}"]
    return [f"\nReasons in `{REASONS.name}` whose lines are gone: {'; '.join(gone)}."] if gone else []
