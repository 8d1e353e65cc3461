"""The paper's claims, each with a verdict by a stated rule, its figures here and the authors' figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, get_args

from hf_taskvec.evaluation.intervals import Interval, bootstrap_interval, equivalence_test, paired_difference
from hf_taskvec.theory.equivalence import TOLERANCE_FLOAT32, TOLERANCE_FLOAT64
from paper.analysis import TESTABLE_GAIN, TIE, Comparison, Finding, compare_budgets, over_seeds, scores
from paper.comparison import JOINT
from paper.results import Compared, Results
from paper.settings import CONVERGED

Verdict = Literal["holds", "holds partly", "does not hold here", "not testable here"]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and what was found.

    Attributes:
        text: The claim.
        rule: When it counts as held.
        verdict: The finding.
        figure: The figure that says most, with its 95 % bootstrap interval over seeds.
        here: All figures with theirs.
        authors: The authors' public figures.
    """

    text: str
    rule: str
    verdict: Verdict
    figure: str
    here: str
    authors: str


def judge(results: Results) -> list[Claim]:
    """Every claim, judged."""
    return [
        claim_equivalence(results),
        claim_orders(results),
        claim_norms(results),
        claim_directions(results),
        claim_one_epoch(results),
        claim_multitask(results),
        claim_atm(results),
    ]


def claim_equivalence(results: Results) -> Claim:
    """One epoch of full-batch gradient descent is −η∇L."""
    exact = results.equivalence["full_batch"]
    others = {name: outcome for name, outcome in results.equivalence.items() if name != "full_batch"}
    explained = "; ".join(
        f"{name} on {outcome['tasks'][0]['task']}: error {outcome['tasks'][0]['error_float64']:.2g}, "
        f"cosine {outcome['tasks'][0]['cosine']:.3f}, because of {', '.join(v['name'] for v in outcome['violations'])}"
        for name, outcome in others.items()
    )
    joint = "" if exact["joint_error"] is None else f", against joint training {exact['joint_error']:.1e}"
    in_float64 = max(exact["relative_error_float64"], exact["joint_error"] or 0.0) <= TOLERANCE_FLOAT64
    in_float32 = [task["error_float32"] <= TOLERANCE_FLOAT32 for task in exact["tasks"]]
    listed = ", ".join(f"{task['task']} {task['error_float32']:.1e}" for task in exact["tasks"])
    return Claim(
        "A task vector of one full-batch epoch is exactly −η∇L, and their mean one epoch of joint training.",
        "relative error ≤ 1e-12 in float64 and ≤ 1e-5 in float32 for every task",
        _verdict([in_float64, all(in_float32)]),
        f"largest relative error {exact['relative_error_float64']:.1e} in float64; in float32 "
        f"{exact['relative_error_float32']:.1e}, within 1e-5 for {sum(in_float32)} of {len(in_float32)} tasks",
        f"{exact['relative_error_float64']:.1e} in float64{joint}; in float32 {listed}. "
        f"One epoch of the other optimisers is something else: {explained}",
        "a theorem",
    )


def claim_orders(results: Results) -> Claim:
    """Over several epochs the error is of second order."""
    names, studies = ("tanh network", "base"), [results.orders["mlp"], results.orders["clip"]]
    checks = [abs(study["order"] - 2) <= 0.15 for study in studies]
    checks += [abs(study["corrected_order"] - 3) <= 0.3 for study in studies]
    checks += [study["drift"]["distance"] <= study["drift"]["bound"] for study in studies]
    here = "; ".join(
        f"{name}: order {study['order']:.2f}, corrected {study['corrected_order']:.2f}, distance "
        f"{study['drift']['distance']:.1e} under the bound {study['drift']['bound']:.1e} at η = {study['bound_rate']:g}"
        for name, study in zip(names, studies, strict=True)
    )
    return Claim(
        "Over several epochs task arithmetic differs from joint training by a second-order term, which is bounded.",
        "fitted order 2.0 ± 0.15, after the correction 3.0 ± 0.3, distance below the bound",
        _verdict(checks),
        "; ".join(
            f"{name}: order {study['order']:.2f}, corrected {study['corrected_order']:.2f}"
            for name, study in zip(names, studies, strict=True)
        ),
        here,
        "a theorem",
    )


def claim_norms(results: Results) -> Claim:
    """The first epoch's gradient is the largest."""
    checks, cells, ratios = [], [], {}
    for task in results.tasks:
        items = [item for item in results.dynamics if item["task"] == task]
        share = over_seeds(items, [item["shares"][0] for item in items])
        ratio = over_seeds(items, [item["shares"][0] / item["shares"][1] for item in items])
        lead = over_seeds(items, [item["shares"][0] - max(item["shares"][1:]) for item in items])
        checks.append(lead.low > 0)
        ratios[task] = ratio
        cells.append(f"{task}: share {share}, lead over the largest later one {lead}, epoch 1 / epoch 2 {ratio}")
    return Claim(
        "The first epoch's gradient has the largest norm.",
        "the share of the first epoch in the sum of the mean gradient norms leads that of every later one, by the "
        "interval, for every task",
        _verdict(checks),
        f"for {sum(checks)} of {len(checks)} tasks; epoch 1 / epoch 2 from "
        + " to ".join(f"{ratios[task]} ({task})" for task in _extremes(ratios)),
        "; ".join(cells),
        "share .124 to .681, ratio 1.27 to 3.88 on seven tasks",
    )


def claim_directions(results: Results) -> Claim:
    """The first epoch sets the direction."""
    items = results.dynamics
    courses = [item["courses"]["all"] for item in items]
    with_last = [c["accumulated_to_final_vector"] for c in courses]
    lead = over_seeds(items, [first - max(later) for first, *later in with_last])
    cosines = {
        "vector after the first epoch with the last": [c["vector_to_final_vector"][0] for c in courses],
        "last vector with −∇L at the base": [c["vector_to_first_full_gradient"][-1] for c in courses],
        "last epoch's gradient with the first's": [c["accumulated_to_first"][-1] for c in courses],
    }
    cells = [cell for cell in results.cells if cell.scores[0].optimizer == results.settings.dynamics_optimizer]
    converged = bootstrap_interval([fmean(cell.first_to_converged.values()) for cell in cells])
    before, after = (
        bootstrap_interval([cell.geometry[budget]["means"]["cosines"] for cell in cells]) for budget in ("1", CONVERGED)
    )
    return Claim(
        "The first epoch's gradient dominates the direction of the trajectory.",
        "the first epoch's gradient has a larger cosine with the last vector than any later epoch's, and the one-epoch "
        "vector a cosine of at least the authors' .42 with the converged one; both by their intervals",
        _verdict([lead.low > 0, converged.low >= 0.42]),
        f"one-epoch with converged vector: cosine {converged}; lead of the first epoch's gradient {lead}",
        f"first epoch's lead over the best later one {lead}; one-epoch with converged vector {converged}; "
        + "; ".join(f"{name} {over_seeds(items, values)}" for name, values in cosines.items())
        + f"; between tasks {before} after one epoch, {after} converged",
        "one-epoch with converged vector about .42; with −∇L .115 early, .062 at the end; between tasks .027 and .069",
    )


def claim_one_epoch(results: Compared) -> Claim:
    """Merging one-epoch models is often comparable; where merging gains little, that says nothing."""
    settings, zero_shot = results.settings, fmean(results.zero_shot.values())
    comparisons = [
        compare_budgets(results.cells, optimizer, method)
        for optimizer in settings.optimizers
        for method in settings.merges
    ]
    return judge_one_epoch(comparisons, zero_shot, settings.merges[0])


def judge_one_epoch(comparisons: Sequence[Comparison], zero_shot: float, shown: str) -> Claim:
    """The claim on one epoch, of every pair of optimiser and method; the figures are those of the method `shown`."""
    testable = [one for one in comparisons if one.testable(zero_shot)]
    counts = {name: sum(one.finding == name for one in testable) for name in get_args(Finding)}
    listed = [(one, one.gain(zero_shot)) for one in comparisons if one.method == shown]
    short = "; ".join(f"{one.optimizer} {one.difference} ({gain.mean:+.3f})" for one, gain in listed)
    cells = [
        f"{one.optimizer}: {one.difference}, ties or wins in {100 * one.wins:.0f} %, over zero-shot {gain}"
        for one, gain in listed
    ]
    summary = f"the merge gains {100 * TESTABLE_GAIN:g} points for {len(testable)} of {len(comparisons)} pairs"
    if testable:
        summary += ", of which one epoch is " + ", ".join(f"{name} for {n}" for name, n in counts.items() if n)
    good = counts["comparable"] + counts["better"]
    return Claim(
        "Merging models fine-tuned for one epoch is often comparable to merging converged ones.",
        f"judged for the pairs of optimiser and merge method whose better budget gains at least "
        f"{100 * TESTABLE_GAIN:g} points over zero-shot by its interval, for where merging gains nothing one epoch "
        f"cannot be worse; held where the difference is within ±{100 * TIE:g} points by two one-sided t-tests over "
        "seeds (5 % each) or one epoch is better; partly: for some of these pairs; not testable: there are none",
        _verdict([True] * good + [False] * (len(testable) - good)) if testable else "not testable here",
        f"{summary}; {shown}, one epoch minus converged (and the better one over zero-shot): {short}",
        f"{summary}; {shown}: " + "; ".join(cells),
        "task arithmetic .7162 and .7256 on 8 tasks, zero-shot .551; AdamW .7364 / .7438, Adam .7288 / .7021, "
        "SGD .5836 / .6364 on 7",
    )


def claim_multitask(results: Compared) -> Claim:
    """Task arithmetic is approximate multitask learning."""
    method, checks, cells, short = results.settings.merges[0], [], [], []
    for optimizer in results.settings.optimizers:
        gaps, same = [], []
        for budget in ("1", CONVERGED):
            merged = [score.mean for score in scores(results.cells, optimizer, method, budget)]
            joint = [score.mean for score in scores(results.cells, optimizer, JOINT, budget)]
            gaps.append(paired_difference(merged, joint))
            one_seed = len(merged) < 2  # of full-batch descent on all images, the same for every seed
            same.append(merged == joint if one_seed else equivalence_test(merged, joint, margin=TIE).equivalent)
        checks.append(same[0])
        short.append(f"{optimizer} {gaps[0]}")
        cells.append(f"{optimizer}: {gaps[0]} after one epoch, {gaps[1]} converged")
    return Claim(
        "Task arithmetic is approximate multitask learning.",
        f"{method} minus joint training after one epoch is within ±{100 * TIE:g} points by two one-sided t-tests over "
        "seeds (5 % each) for every optimiser; with full-batch descent and 1/T both are the same model",
        _verdict(checks),
        "merged minus joint after one epoch: " + "; ".join(short),
        "; ".join(cells),
        "none",
    )


def claim_atm(results: Results) -> Claim:
    """Alternating tuning and merging beats one-shot merging."""
    items = results.atm
    means = {count: [fmean(item["rounds"][count].values()) for item in items] for count in items[0]["rounds"]}
    joint = [fmean(item[JOINT].values()) for item in items]
    best = max((count for count in means if count != "1"), key=lambda count: fmean(means[count]), default="1")
    gain: Interval = paired_difference(means[best], means["1"])
    to_joint = paired_difference(means[best], joint)
    listed = ", ".join(f"{count}: {bootstrap_interval(values)}" for count, values in means.items())
    return Claim(
        "At equal budget alternating tuning and merging beats one-shot merging (arXiv 2411.03055).",
        "the interval of the best number of rounds minus one round lies above 0",
        _verdict([gain.low > 0]),
        f"{best} rounds minus one: {gain}",
        f"{results.settings.atm_budget} epochs per task in rounds {listed}; gain of {best} rounds {gain}; "
        f"against joint training {to_joint}",
        "budget 10: 1 round .7222, 2 .7911, 5 .8527, 10 .8808",
    )


def _verdict(checks: Sequence[bool]) -> Verdict:
    if all(checks):
        return "holds"
    return "holds partly" if any(checks) else "does not hold here"


def _extremes(ratios: Mapping[str, Interval]) -> list[str]:
    """The names of the smallest and of the largest mean."""
    names = sorted(ratios, key=lambda name: ratios[name].mean)
    return [names[0], names[-1]]
