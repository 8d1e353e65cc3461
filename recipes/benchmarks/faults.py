"""Faults of published merging codes, each shown by a few lines that do what that code does.

python recipes/benchmarks/faults.py

The lines restate the faulty step on toy numbers; where it stands is told beside them (fusion-bench 54c9e8c,
merge-and-rebase 345c570, the others as of 2026-09).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from merging_runs import header, line

from hf_taskvec.arguments import arg, run_recipe


def one_key_for_all() -> tuple[str, str]:
    """Gradients of three tasks kept under the loop variable of the parameters: one entry is left, so no pair of two."""
    kept = {}
    for _task in ("a", "b", "c"):
        gradients = {}
        for name in ("weight", "bias"):
            gradients[name] = torch.ones(2)
        kept[name] = gradients
    pairs = [(one, other) for one in kept for other in kept if one != other]
    return f"{len(pairs)} pairs of tasks, so the sum of conflicts is 0 and the base comes back", "6 pairs"


def squared_after_the_sum() -> tuple[str, str]:
    """The gradient of the sum over images and classes is squared, where each should be squared before it is summed."""
    torch.manual_seed(0)
    inputs, weight = torch.randn(8, 5), torch.randn(3, 5, requires_grad=True)

    def published(batch_size: int) -> float:
        total = torch.zeros_like(weight)
        for batch in inputs.split(batch_size):
            chances = (batch @ weight.T).softmax(dim=-1)
            loss = (chances.detach().sqrt() * chances.log()).sum()
            total += torch.autograd.grad(loss, [weight])[0].square()
        return float(total.sum() / len(inputs))

    chances = (inputs @ weight.T).softmax(dim=-1)
    exact = 0.0
    for image in range(len(inputs)):
        for label in range(3):
            (gradient,) = torch.autograd.grad(chances[image, label].log(), [weight], retain_graph=True)
            exact += float(chances[image, label].detach() * gradient.square().sum()) / len(inputs)
    values = ", ".join(f"{published(size):.3f}" for size in (1, 2, 8))
    return f"trace of the Fisher information {values} for batches of 1, 2 and 8", f"{exact:.3f} for any"


def swapped_arguments() -> tuple[str, str]:
    """A vector is passed where the fine-tuned weights belong, and the base where the merged vector's reference does."""
    base, vector, merged = torch.tensor([5.0, 5.0]), torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    published = (base - vector).abs() >= 0.5 * (vector - merged).abs()
    correct = vector.abs() >= 0.5 * (merged - vector).abs()
    return f"mask {published.int().tolist()}", f"{correct.int().tolist()}"


def diagonal_of_a_copy() -> tuple[str, str]:
    """A diagonal that is not embedded in place."""
    matrix = torch.ones(3, 3)
    matrix.diag().fill_(0)
    cleared = torch.ones(3, 3).fill_diagonal_(0)
    return f"sum {matrix.sum():.0f}", f"{cleared.sum():.0f}"


def dead_clamp() -> tuple[str, str]:
    """A coefficient clamped in the forward pass: outside [0, 1] its gradient is 0, so that it never comes back."""
    coefficient = torch.tensor(1.2, requires_grad=True)
    (coefficient.clamp(0, 1) - 0.5).square().backward()
    return f"gradient {coefficient.grad}", "a gradient, and the clamp after the step"


def counted_after_deletion() -> tuple[str, str]:
    """A mean by the length of a list that was emptied to save memory."""
    models = [torch.ones(2), torch.ones(2)]
    total = torch.stack(models).sum(dim=0)
    models.clear()
    return f"the sum {total.tolist()} is divided by {len(models)}", "by 2"


def overlap_by_k() -> tuple[str, str]:
    """The overlap of two subspaces of dimension k, divided by k."""
    basis = torch.linalg.qr(torch.randn(9, 4, generator=torch.Generator().manual_seed(0))).Q
    norm = float(torch.linalg.matrix_norm(basis.T @ basis))
    return f"{norm / 4:.2f} for a subspace and itself", f"{norm / 4**0.5:.2f}"


def stable_rank() -> tuple[str, str]:
    """A stable rank by the squared sum of the singular values."""
    values = torch.tensor([3.0, 1.0, 1.0])
    squares = values.square().sum()
    return f"{values.sum().square() / squares:.2f}", f"{squares / values.max().square():.2f}"


def mean_of_means() -> tuple[str, str]:
    """The factor that keeps a vector's size, by the mean over tensors of each one's mean: small ones count as large."""
    vector = {"weight": torch.full((100,), 1.0), "bias": torch.full((2,), 9.0)}
    shared = {"weight": torch.full((100,), 2.0), "bias": torch.full((2,), 9.0)}
    means = [sum(float(one.mean()) for one in values.values()) for values in (vector, shared)]
    sums = [sum(float(one.sum()) for one in values.values()) for values in (vector, shared)]
    return f"{means[0] / means[1]:.2f}", f"{sums[0] / sums[1]:.2f}"


def experts_overwritten() -> tuple[str, str]:
    """The fine-tuned layers that are given are turned into differences in place: a second use of them goes wrong."""
    base, expert = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        base.weight.fill_(1.0)
        expert.weight.fill_(3.0)
        for _ in range(2):
            difference = expert.weight - base.weight
            expert.weight.data = difference
    return f"the second use finds a difference of {float(difference[0, 0]):.0f}", "2"


FAULTS: dict[str, tuple[str, Callable[[], tuple[str, str]]]] = {
    "fusion-bench TATR, trust_region/clip_task_arithmetic.py:187": ("one key for all tasks", one_key_for_all),
    "fusion-bench and MergeLM Fisher, clip_fisher_merging.py:150": ("squares after the sum", squared_after_the_sum),
    "fusion-bench tall_mask/task_arithmetic.py:49": ("arguments of other meaning", swapped_arguments),
    "MINGLE": ("`.diag().fill_(0)` acts on a copy", diagonal_of_a_copy),
    "merge-and-rebase AdaMerging": ("the clamp stops the gradient", dead_clamp),
    "crisostomi/model-merging IsotropicMerger": ("counts a list after emptying it", counted_after_deletion),
    "fusion-bench EMR, emr_merging/utils.py:55, and the authors'": ("the mean of means", mean_of_means),
    "fusion-bench SMILE, smile_moe/linear_from_module.py:227": ("overwrites the experts", experts_overwritten),
    "Mergeability-Bench, left overlap": ("divides by k, not by its root", overlap_by_k),
    "Mergeability-Bench, stable rank": ("another quantity of that name", stable_rank),
}


@dataclass
class FaultArguments:
    code: str = arg("Only codes whose name holds this.", default="")


def rows(code: str = "") -> list[tuple[str, str, str, str]]:
    """Where, what is wrong, what comes out, and what should."""
    return [(where, wrong, *show()) for where, (wrong, show) in FAULTS.items() if code in where]


def main(args: FaultArguments) -> None:
    header("code", "fault", "what comes out", "what should")
    for cells in rows(args.code):
        line(*cells)


if __name__ == "__main__":
    run_recipe(main, FaultArguments)
